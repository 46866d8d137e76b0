"""`tubelet weights`: what a file holds in words and JSON, and conversions that lose nothing in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models.encoder import EncoderConfig, VideoEncoder
from models.errors import WeightsError
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import AttentiveProbe, AttentiveProbeConfig, LinearProbe, LinearProbeConfig
from models.weights import (
    from_huggingface,
    infer_config,
    inspect_checkpoint,
    load_encoder,
    load_module,
    save_module,
    state_digest,
    to_official,
)
from pipelines.errors import InputError
from pipelines.weights import convert as conversion
from pipelines.weights.convert import Conversion, Converted, convert
from pipelines.weights.describe import converted_text, inspection_json, inspection_text, is_sound
from pipelines.weights.locate import locate
from pipelines.weights.parts import Hints

REPOSITORY = Path(__file__).resolve().parents[2]
ENCODER = EncoderConfig(embed_dim=48, depth=2, num_heads=3, img_size=(32, 32), num_frames=4)
PREDICTOR = PredictorConfig(embed_dim=48, depth=1, num_heads=2, predictor_embed_dim=24, num_mask_tokens=2, img_size=(32, 32), num_frames=4)
HINTS = Hints(heads=3, predictor_heads=2, probe_heads=16, image_size=32)


def drawn(module: nn.Module) -> nn.Module:
    """The module with no two tensors alike: zero biases and unit scales would hide a mix-up."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {"encoder": drawn(VideoEncoder(ENCODER)), "target_encoder": drawn(VideoEncoder(ENCODER)), "predictor": drawn(MaskedPredictor(PREDICTOR))}


@pytest.fixture(scope="module")
def checkpoint(modules: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official training checkpoint: wrapped keys, unused position table, optimizer and counters."""
    path = tmp_path_factory.mktemp("official") / "latest.pt"
    content: dict[str, object] = {
        name: {f"module.backbone.{key}": value for key, value in to_official(module).items()} for name, module in modules.items()
    }
    content["encoder"]["module.backbone.pos_embed"] = torch.zeros(1, 8, 48)  # type: ignore[index]
    torch.save(content | {"opt": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "epoch": 9, "lr": 1e-4}, path)
    return path


@pytest.fixture(scope="module")
def ours(modules: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    for name, module in modules.items():
        save_module(module, folder, name)
    return folder


def run(source: Path, destination: Path, to: str, *parts: str, overwrite: bool = False, hints: Hints = HINTS) -> Converted:
    return convert(Conversion(source=source, destination=destination, to=to, parts=parts, hints=hints, overwrite=overwrite))


def tubelet(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "200", "TUBELET_STORE": str(cwd / "none")}
    command = [sys.executable, str(REPOSITORY / "tubelet.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_official_becomes_ours_part_by_part_and_says_what_is_left_out(checkpoint: Path, modules: dict[str, nn.Module], tmp_path: Path) -> None:
    done = run(checkpoint, tmp_path / "ours", "tubelet")
    assert {name: digest for name, _, _, digest in done.parts} == {name: state_digest(module) for name, module in modules.items()}
    for name, module in modules.items():
        assert state_digest(load_module(tmp_path / "ours", name)) == state_digest(module)
    assert load_module(tmp_path / "ours", "encoder").config == ENCODER
    words = "; ".join(done.left_out)
    assert all(entry in words for entry in ("pos_embed of encoder", "opt", "epoch", "lr"))


def test_chain_through_every_layout_gives_back_the_same_weights(checkpoint: Path, modules: dict[str, nn.Module], tmp_path: Path) -> None:
    run(checkpoint, tmp_path / "hf", "huggingface", "target_encoder")
    model = from_huggingface(tmp_path / "hf")
    assert state_digest(model.encoder) == state_digest(modules["target_encoder"]) and model.predictor is not None
    run(tmp_path / "hf", tmp_path / "again.pt", "official", "target_encoder")
    done = run(tmp_path / "again.pt", tmp_path / "ours", "tubelet")
    assert [name for name, *_ in done.parts] == ["target_encoder"]
    assert state_digest(load_module(tmp_path / "ours", "target_encoder")) == state_digest(modules["target_encoder"])


def test_written_official_file_loads_the_ways_upstream_loads_it(ours: Path, modules: dict[str, nn.Module], tmp_path: Path) -> None:
    run(ours, tmp_path / "all.pt", "official")
    content = torch.load(tmp_path / "all.pt", weights_only=True)
    assert set(content) == {"encoder", "target_encoder", "predictor"}
    plain = modules["encoder"].state_dict()
    hub = {key.replace("module.", "").replace("backbone.", ""): value for key, value in content["encoder"].items()}
    assert hub.keys() == plain.keys() and all(torch.equal(hub[key], plain[key]) for key in plain)
    # The post-training trainer strips this alone and loads into a DistributedDataParallel module with strict=False.
    wrapped = {key.replace("backbone.", "") for key in content["target_encoder"]}
    assert wrapped == {f"module.{key}" for key in plain}


def test_which_encoder_goes_to_hugging_face_is_never_guessed(checkpoint: Path, ours: Path, modules: dict[str, nn.Module], tmp_path: Path) -> None:
    for source in (checkpoint, ours):
        with pytest.raises(WeightsError, match="--part"):
            run(source, tmp_path / "hf", "huggingface")
    assert not (tmp_path / "hf").exists()
    done = run(ours, tmp_path / "hf", "huggingface", "encoder")
    assert state_digest(load_encoder(tmp_path / "hf")) == state_digest(modules["encoder"])
    assert "target_encoder (another encoder)" in done.left_out


def test_files_that_exist_are_kept_unless_told_otherwise(ours: Path, tmp_path: Path) -> None:
    target = tmp_path / "one.safetensors"
    run(ours, target, "official", "encoder")
    before = target.read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        run(ours, target, "official", "target_encoder")
    assert target.read_bytes() == before
    run(ours, target, "official", "target_encoder", overwrite=True)
    assert target.read_bytes() != before
    with pytest.raises(InputError, match="exists already"):
        run(target, ours, "tubelet")
    with pytest.raises(InputError, match="lies in the source"):
        run(ours, ours / "hf", "huggingface", "encoder", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_overwriting_a_folder_leaves_no_file_of_the_old_model(ours: Path, modules: dict[str, nn.Module], tmp_path: Path) -> None:
    target = tmp_path / "model"
    run(ours, target, "tubelet")
    for name in ("README.md", "lora.safetensors", "results.json"):
        (target / name).write_text("mine")
    mine = {"README.md", "lora.safetensors", "results.json"}
    done = run(ours, target, "tubelet", "encoder", overwrite=True)
    assert set(done.removed) == {f"{name}.{end}" for name in ("target_encoder", "predictor") for end in ("json", "safetensors")}
    assert "removed predictor.json" in converted_text(done)
    assert {path.name for path in target.iterdir()} == mine | {"encoder.json", "encoder.safetensors"}
    done = run(ours, target, "huggingface", "target_encoder", overwrite=True)
    assert set(done.removed) == {"encoder.json", "encoder.safetensors"}
    assert state_digest(load_encoder(target)) == state_digest(modules["target_encoder"])
    (target / "pytorch_model-00001-of-00001.bin").write_text("shard")
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00001.bin", "b": "README.md", "c": "../x.bin"}}))
    run(ours, target, "tubelet", "predictor", overwrite=True)
    assert {path.name for path in target.iterdir()} == mine | {"predictor.json", "predictor.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    one = run(ours, target / "predictor.safetensors", "official", "encoder", overwrite=True)
    assert one.removed == ("predictor.json",) and state_digest(load_encoder(target / "predictor.safetensors", num_heads=3)) == state_digest(modules["encoder"])


def test_old_model_comes_back_when_a_new_file_cannot_be_put_in_place(ours: Path, tmp_path: Path) -> None:
    run(ours, tmp_path / "model", "tubelet", "encoder")
    (tmp_path / "model" / "predictor.safetensors").mkdir()
    before = {path.name for path in (tmp_path / "model").iterdir()}
    with pytest.raises(InputError, match="predictor"):
        run(ours, tmp_path / "model", "tubelet", overwrite=True)
    assert {path.name for path in (tmp_path / "model").iterdir()} == before and [path.name for path in tmp_path.iterdir()] == ["model"]
    assert load_encoder(tmp_path / "model").config == ENCODER


def test_options_that_contradict_a_stored_configuration_are_refused(ours: Path, tmp_path: Path) -> None:
    for hints, words in ((Hints(heads=2), "num_heads 2 given, 3 stored"), (Hints(image_size=64), r"img_size \(64, 64\) given, \(32, 32\) stored")):
        with pytest.raises(InputError, match=words):
            run(ours, tmp_path / "hf", "huggingface", "encoder", hints=hints)
    run(ours, tmp_path / "hf", "huggingface", "encoder")
    with pytest.raises(InputError, match="carries its configuration"):
        run(tmp_path / "hf", tmp_path / "back", "tubelet", hints=Hints(heads=2))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_broken_part_says_how_to_look_at_it(tmp_path: Path) -> None:
    tensors = to_official(drawn(VideoEncoder(ENCODER)))
    del tensors["norm.bias"]
    torch.save({"encoder": tensors}, tmp_path / "broken.pt")
    with pytest.raises(WeightsError, match=r"norm\.bias.*Look with `tubelet weights inspect"):
        run(tmp_path / "broken.pt", tmp_path / "ours", "tubelet")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("facebook/vjepa2-vitl-fpc64-256", r"nothing is downloaded.*huggingface-cli download facebook/vjepa2-vitl-fpc64-256"),
        ("https://dl.fbaipublicfiles.com/vjepa2/vitl.pt", "nothing is downloaded.*browser"), ("gone/vitl.pt", "does not exist"), ("./a/b/c", "does not exist"),
    ],
)  # fmt: skip
def test_checkpoint_that_is_elsewhere_must_be_fetched_first(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=words):
        locate(name, tmp_path)


def test_nothing_is_kept_when_what_was_written_reads_back_differently(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(conversion, "load_module", lambda *_: VideoEncoder(ENCODER))
    with pytest.raises(WeightsError, match="came back different"):
        run(ours, tmp_path / "copy", "tubelet", "encoder")
    assert not list(tmp_path.iterdir())


def test_official_file_says_what_its_layout_cannot_carry(ours: Path, tmp_path: Path) -> None:
    notes = " ".join(run(ours, tmp_path / "all.pt", "official").notes)
    assert "encoder: the official layout does not tell num_heads 3, img_size (32, 32), num_frames 4" in notes
    with pytest.raises(WeightsError, match="Pass --heads"):
        run(tmp_path / "all.pt", tmp_path / "back", "tubelet", "encoder", hints=Hints())
    with pytest.raises(WeightsError, match="Pass --predictor-heads"):
        run(tmp_path / "all.pt", tmp_path / "back", "tubelet", "predictor", hints=Hints(heads=3))


def test_released_width_needs_no_hint_and_bare_keys_are_an_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = drawn(VideoEncoder(EncoderConfig(embed_dim=384, depth=12, num_heads=6, num_frames=64)))
    torch.save(to_official(module), tmp_path / "bare.pt")
    done = run(tmp_path / "bare.pt", tmp_path / "ours", "tubelet", "target_encoder", hints=Hints())
    assert [(name, digest) for name, _, _, digest in done.parts] == [("target_encoder", state_digest(module))]


def test_heads_of_a_probe_are_assumed_only_where_probes_of_its_width_were_released(tmp_path: Path) -> None:
    for width, assumed in ((384, False), (1280, False), (1024, True), (1408, True)):
        with torch.device("meta"):
            tensors = AttentiveProbe(AttentiveProbeConfig(embed_dim=width, num_classes=2, depth=1)).state_dict()
        if assumed:
            assert infer_config("probe", tensors).num_heads == 16
        else:
            with pytest.raises(WeightsError, match="num_heads"):
                infer_config("probe", tensors)
    torch.manual_seed(0)
    torch.save({"classifiers": [to_official(drawn(AttentiveProbe(AttentiveProbeConfig(embed_dim=384, num_classes=2, depth=1, num_heads=6))))]}, tmp_path / "p.pt")
    assert "--probe-heads N says it" in inspection_text(inspect_checkpoint(tmp_path / "p.pt"))
    with pytest.raises(WeightsError, match="Pass --probe-heads"):
        run(tmp_path / "p.pt", tmp_path / "ours", "tubelet", hints=Hints())
    run(tmp_path / "p.pt", tmp_path / "ours", "tubelet", hints=Hints(probe_heads=16))
    assert "num_heads 16" in inspection_text(inspect_checkpoint(tmp_path / "ours"))


def test_probes_go_out_as_upstreams_list_and_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    probe = drawn(AttentiveProbe(AttentiveProbeConfig(embed_dim=48, num_classes=5)))
    save_module(probe, tmp_path / "probe", "ssv2")
    done = run(tmp_path / "probe", tmp_path / "ssv2.pt", "official")
    assert isinstance(torch.load(tmp_path / "ssv2.pt", weights_only=True)["classifiers"], list)
    assert done.parts[0][3] == state_digest(probe)
    run(tmp_path / "ssv2.pt", tmp_path / "back", "tubelet")
    assert state_digest(load_module(tmp_path / "back", "classifiers_0")) == state_digest(probe)
    save_module(LinearProbe(LinearProbeConfig(embed_dim=48, num_classes=5)), tmp_path / "linear", "linear")
    with pytest.raises(WeightsError, match="no official layout"):
        run(tmp_path / "linear", tmp_path / "linear.pt", "official")
    with pytest.raises(WeightsError, match="one encoder"):
        run(tmp_path / "probe", tmp_path / "hf", "huggingface")


@pytest.mark.parametrize(
    ("to", "name", "words"),
    [("hf", "x", "no layout hf"), ("official", "x", "does not name a weight file"), ("tubelet", "x.pt", "is a folder"), ("official", "x.safetensors", "holds one part")],
)  # fmt: skip
def test_requests_that_cannot_be_met_leave_nothing_behind(ours: Path, tmp_path: Path, to: str, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(ours, tmp_path / name, to)
    with pytest.raises(InputError, match="has no part teacher"):
        run(ours, tmp_path / "y.pt", "official", "teacher")
    assert not list(tmp_path.iterdir())


def test_inspection_names_parts_sizes_problems_and_what_to_do_next(checkpoint: Path, ours: Path, tmp_path: Path) -> None:
    text = inspection_text(inspect_checkpoint(checkpoint))
    assert "official layout" in text and "target_encoder" in text and "--heads N" in text and "opt" in text and "pos_embed" in text
    text = inspection_text(inspect_checkpoint(ours))
    assert "48 x 2" in text and "num_heads 3" in text and "--part encoder|target_encoder" in text and "PROBLEM" not in text
    found = json.loads(inspection_json(inspect_checkpoint(ours)))
    assert found["layout"] == "tubelet" and all(part["usable"] for part in found["parts"])
    assert found["parts"][0]["config"]["num_heads"] == 3 and found["bytes"] > 0
    torch.manual_seed(0)
    broken = VideoEncoder(EncoderConfig(embed_dim=384, depth=12, num_heads=6))
    tensors = to_official(broken)
    tensors["norm.weight"][3] = float("nan")
    tensors["blocks.0.surprise"] = torch.zeros(2)
    torch.save({"encoder": tensors}, tmp_path / "broken.pt")
    inspection = inspect_checkpoint(tmp_path / "broken.pt")
    text = inspection_text(inspection)
    assert not is_sound(inspection) and "norm.weight" in text and "surprise" in text and "nothing can be loaded" in text


def test_commands_from_end_to_end(checkpoint: Path, modules: dict[str, nn.Module], tmp_path: Path) -> None:
    done = tubelet("weights", "convert", checkpoint, "hf", "--to", "huggingface", "--part", "encoder", "--heads", 3, "--predictor-heads", 2, "--image-size", 32, cwd=tmp_path)
    assert done.returncode == 0 and "read back equal" in done.stdout and "left out" in done.stdout, done.stderr
    assert (tmp_path / "hf" / "model.safetensors").stat().st_mode & 0o044 == (tmp_path / "hf" / "config.json").stat().st_mode & 0o044
    assert state_digest(load_encoder(tmp_path / "hf")) == state_digest(modules["encoder"])
    seen = tubelet("weights", "inspect", "hf", "--json", cwd=tmp_path)
    assert seen.returncode == 0 and json.loads(seen.stdout)["layout"] == "huggingface"
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><p>not found")
    refused = tubelet("weights", "inspect", "page.pt", cwd=tmp_path)
    assert refused.returncode == 2 and "web page" in refused.stderr and "Traceback" not in refused.stderr


def test_destination_that_cannot_be_made_is_told_in_words(modules: dict[str, nn.Module], tmp_path: Path) -> None:
    save_module(modules["encoder"], tmp_path / "ours", "encoder")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        convert(Conversion(source=tmp_path / "ours", destination=tmp_path / "file" / "out", to="huggingface"))
