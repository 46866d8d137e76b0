"""Weight files of every kind: parts chosen by name, broken and dangerous files refused, everything told by inspection."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from models.encoder import EncoderConfig, VideoEncoder
from models.errors import WeightsError
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import AnticipationProbe, AnticipationProbeConfig, AttentiveProbe, AttentiveProbeConfig
from models.weights import (
    from_huggingface,
    from_official,
    inspect_checkpoint,
    load_encoder,
    load_module,
    read_checkpoint,
    save_module,
    state_digest,
    to_official,
)

CONFIG = EncoderConfig(embed_dim=16, depth=1, num_heads=2, img_size=(32, 32), num_frames=4)


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    return VideoEncoder(CONFIG)


@pytest.fixture(scope="module")
def predictor() -> MaskedPredictor:
    return MaskedPredictor(PredictorConfig(embed_dim=16, depth=1, num_heads=2, predictor_embed_dim=16))


def test_checkpoint_with_several_parts_needs_an_explicit_choice(encoder: VideoEncoder, tmp_path: Path) -> None:
    path, student = tmp_path / "latest.pt", to_official(encoder)
    teacher = {key: value + 1 for key, value in student.items()}
    torch.save({"encoder": student, "target_encoder": teacher, "epoch": 3, "opt": {"state": {}}}, path)
    for read in (read_checkpoint, load_encoder):
        with pytest.raises(
            WeightsError, match=r"encoder is the student .*target_encoder is the moving average"
        ) as hint:
            read(path)
        assert "latest.pt" in str(hint.value)
    assert torch.equal(read_checkpoint(path, part="target_encoder")["norm.bias"], teacher["norm.bias"])
    with pytest.raises(WeightsError, match=r"no part ema \(expected one of encoder, target_encoder.*; found ema\)"):
        read_checkpoint(path, part="ema")
    assert state_digest(load_encoder(path, part="encoder", num_heads=2)) == state_digest(encoder)
    other = tmp_path / "weights.pt"
    torch.save(student | {"epoch": 3, "opt": None}, other)
    assert read_checkpoint(other).keys() == student.keys(), "entries that are no tensors are no weights"
    assert read_checkpoint(save_module(encoder, tmp_path, "ours")).keys() == student.keys()


def test_reading_and_changing_tensors_leaves_the_file_alone(encoder: VideoEncoder, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(to_official(encoder), path)
    before = path.read_bytes()
    for value in read_checkpoint(path).values():
        value.zero_()
    assert path.read_bytes() == before and state_digest(load_encoder(path, num_heads=2)) == state_digest(encoder)


def test_probe_file_holds_its_probes_as_parts(tmp_path: Path) -> None:
    config = AnticipationProbeConfig(embed_dim=16, verbs=3, nouns=4, actions=5, num_heads=2, depth=2)
    probes = [AnticipationProbe(config) for _ in range(2)]
    states = [{f"module.{key}": value for key, value in probe.state_dict().items()} for probe in probes]
    torch.save({"classifiers": states, "opt": [{"state": {}}], "scaler": None, "epoch": 1}, tmp_path / "ek100.pt")
    with pytest.raises(WeightsError, match=r"parts classifiers\.0, classifiers\.1: .*side by side"):
        read_checkpoint(tmp_path / "ek100.pt")
    loaded = from_official("probe", read_checkpoint(tmp_path / "ek100.pt", "classifiers.1"), config)
    assert state_digest(loaded) == state_digest(probes[1])
    with pytest.raises(WeightsError, match="AnticipationProbeConfig"):
        from_official("probe", states[0], AttentiveProbeConfig(embed_dim=16, num_classes=3, num_heads=2))


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_old_torch_versions_are_read_too(legacy: bool, encoder: VideoEncoder, tmp_path: Path) -> None:
    torch.save({"encoder": to_official(encoder)}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=not legacy)
    assert state_digest(load_encoder(tmp_path / "old.pth.tar", num_heads=2)) == state_digest(encoder)


def test_encoder_opens_from_folders_and_files_of_ours(
    encoder: VideoEncoder, predictor: MaskedPredictor, tmp_path: Path
) -> None:
    save_module(encoder, tmp_path, "model")
    save_module(predictor, tmp_path, "predictor")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = load_encoder(path, embed_dim=16)
        assert loaded.config == CONFIG and state_digest(loaded) == state_digest(encoder)
    with pytest.raises(WeightsError, match=r"depth: given 5, stored 1"):
        load_encoder(tmp_path, depth=5)
    with pytest.raises(WeightsError, match=r"predictor\.safetensors holds no encoder"):
        load_encoder(tmp_path / "predictor.safetensors")
    save_module(encoder, tmp_path, "target")
    with pytest.raises(WeightsError, match="model, target"):
        load_encoder(tmp_path)
    assert state_digest(load_encoder(tmp_path, part="target")) == state_digest(encoder)
    kinds = {part.name: part.kind for part in inspect_checkpoint(tmp_path).parts}
    assert kinds == {"model": "encoder", "predictor": "predictor", "target": "encoder"}


def test_input_size_comes_from_the_position_table_else_from_a_released_name_else_is_given(
    encoder: VideoEncoder, tmp_path: Path
) -> None:
    student = to_official(encoder)
    cases: list[tuple[str, dict[str, Any], tuple[int, int, int]]] = [
        ("vitg-384", {}, (64, 384, 384)),
        ("vitg-384", {"img_size": (256, 320), "num_frames": 8}, (8, 256, 320)),
        ("mine", {}, (64, 256, 256)),
        ("table-8", {}, (4, 32, 32)),
        ("table-2048", {}, (16, 256, 256)),
        ("table-65536", {}, (512, 256, 256)),
    ]
    for name, given, wanted in cases:
        table = {"pos_embed": torch.zeros(1, int(name[6:]), 1)} if name.startswith("table") else {}
        torch.save(student | table, tmp_path / f"{name}.pt")
        config = load_encoder(tmp_path / f"{name}.pt", num_heads=2, **given).config
        assert (config.num_frames, *config.img_size) == wanted, name
    with pytest.raises(WeightsError, match=r"table-8\.pt .*made for 8 positions .*64 x 64 px \(32 positions\)"):
        load_encoder(tmp_path / "table-8.pt", num_heads=2, img_size=(64, 64))


def test_inspection_tells_parts_ignored_entries_and_problems(
    encoder: VideoEncoder, predictor: MaskedPredictor, tmp_path: Path
) -> None:
    student = {f"module.backbone.{key}": value for key, value in to_official(encoder).items()}
    damaged = student | {"module.backbone.norm.bias": torch.full((16,), float("inf"))}
    content = {"encoder": student, "target_encoder": damaged, "predictor": to_official(predictor), "epoch": 3}
    content["encoder"] = student | {"module.backbone.pos_embed": torch.zeros(1, 8, 16)}
    torch.save(content, tmp_path / "latest.pt")
    found = inspect_checkpoint(tmp_path / "latest.pt")
    parts = {part.name: part for part in found.parts}
    assert found.layout == "official" and list(parts) == ["encoder", "target_encoder", "predictor"]
    assert parts["encoder"].ignored == ("pos_embed",) and parts["encoder"].dtypes == ("float32",)
    assert parts["encoder"].parameters == sum(value.numel() for value in encoder.parameters())
    assert parts["predictor"].kind == "predictor" and parts["predictor"].config is None
    assert parts["encoder"].needs_heads and not parts["encoder"].problems, "no release has this width"
    notes = " ".join(found.notes)
    for phrase in ("target_encoder is the moving average", "no weights: epoch", "predictor: 2 of 2 mask tokens are zero, so never trained"):
        assert phrase in notes


def test_two_keys_that_become_one_are_a_problem_of_their_part(encoder: VideoEncoder, tmp_path: Path) -> None:
    tensors = to_official(encoder)
    torch.save({"encoder": tensors | {"module.norm.weight": tensors["norm.weight"]}}, tmp_path / "twice.pt")
    (part,) = inspect_checkpoint(tmp_path / "twice.pt").parts
    assert part.problems and "two official keys name norm.weight" in part.problems[0]


def test_predictor_of_a_released_name_is_inspected_at_its_released_size(tmp_path: Path) -> None:
    predictor = MaskedPredictor(PredictorConfig(embed_dim=16, depth=1, num_heads=12))
    torch.save({"predictor": to_official(predictor)}, tmp_path / "vitg-384.pt")
    (part,) = inspect_checkpoint(tmp_path / "vitg-384.pt").parts
    assert part.config.img_size == (384, 384) and part.config.num_frames == 64


def test_inspection_finds_what_would_keep_released_sizes_from_loading(tmp_path: Path) -> None:
    probe = AttentiveProbe(AttentiveProbeConfig(embed_dim=384, num_classes=2, depth=1))
    tensors = to_official(probe)
    tensors["linear.bias"][1] = float("nan")
    del tensors["pooler.cross_attention_block.norm1.bias"]
    torch.save({"classifiers": [tensors]}, tmp_path / "probe.pt")
    (part,) = inspect_checkpoint(tmp_path / "probe.pt").parts
    assert part.config is None and part.needs_heads, "released probes have 16 heads; none is of this width"
    assert part.problems == ("missing: pooler.cross_attention_block.norm1.bias", "not finite: linear.bias")


def test_reading_what_is_no_checkpoint_warns_of_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / "raw.pt")
    assert not recwarn.list


def test_many_missing_shards_are_counted_and_a_few_named(tmp_path: Path) -> None:
    weight_map = {f"w{number}": f"model-{number:05d}-of-00040.safetensors" for number in range(40)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=r"missing model-00000.*, model-00001.*, model-00002\S* and 37 more") as told:
        read_checkpoint(tmp_path)
    assert len(str(told.value)) < 400


class _Intruder:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("intruder-was-here"),))


@pytest.fixture
def broken(encoder: VideoEncoder, tmp_path: Path) -> dict[str, Path]:
    """Files that are no weights, by what is wrong with them."""
    paths = {name: tmp_path / f"{name}.pt" for name in ("code", "page", "pointer", "empty", "cut", "list", "absent")}
    paths["code"].write_bytes(pickle.dumps({"encoder": _Intruder()}, protocol=2))
    paths["page"].write_text("<!DOCTYPE html><html>404</html>")
    paths["pointer"].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    paths["empty"].touch()
    torch.save({"encoder": to_official(encoder)}, paths["cut"])
    paths["cut"].write_bytes(paths["cut"].read_bytes()[:-300])
    torch.save([1, 2], paths["list"])
    paths["safe_cut"] = save_module(encoder, tmp_path, "safe_cut")
    paths["safe_cut"].write_bytes(paths["safe_cut"].read_bytes()[:-100])
    paths["safe_page"] = tmp_path / "safe_page.safetensors"
    paths["safe_page"].write_text("<html>404</html>")
    paths["safe_absent"] = tmp_path / "safe_absent.safetensors"
    for name in ("folder.pt", "folder.safetensors"):
        paths[name] = tmp_path / name
        paths[name].mkdir()
        (paths[name] / "readme.md").touch()
    return paths


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("code", r"a pickle that wants to run \S+; nothing was run.*a source you trust"),
        ("page", r"a web page, so the download failed.*Download it again"),
        ("pointer", r"Git LFS pointer"),
        ("empty", r"an empty file"),
        ("cut", r"whose end is cut off"),
        ("list", r"holds no weights .*found list"),
        ("absent", r"does not exist\. Check the path"),
        ("safe_cut", r"damaged or no safetensors file.*download it again"),
        ("safe_page", r"a web page, so the download failed"),
        ("safe_absent", r"does not exist"),
        ("folder.pt", r"a folder without weights.*found readme\.md"),
        ("folder.safetensors", r"a folder without weights"),
    ],
)
def test_foreign_truncated_and_dangerous_files_are_refused_with_name_and_remedy(
    name: str, message: str, broken: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (read_checkpoint, load_encoder, inspect_checkpoint):
        with pytest.raises(WeightsError, match=message) as caught:
            read(broken[name])
        assert broken[name].name in str(caught.value) and caught.value.remedy
    with pytest.raises(WeightsError, match=broken[name].name):
        from_huggingface(broken[name])
    assert not (tmp_path / "intruder-was-here").exists()


def test_module_whose_file_is_cut_is_refused(broken: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match=r"safe_cut\.safetensors"):
        load_module(broken["safe_cut"].parent, "safe_cut")


def test_nan_in_a_file_is_refused_with_file_part_and_key(encoder: VideoEncoder, tmp_path: Path) -> None:
    tensors = to_official(encoder)
    tensors["blocks.0.attn.qkv.bias"][3] = float("nan")
    torch.save({"encoder": tensors}, tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match=r"nan\.pt part encoder .*not finite: blocks\.0\.attn\.qkv\.bias"):
        load_encoder(tmp_path / "nan.pt", num_heads=2)
