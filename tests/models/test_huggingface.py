"""Folders of transformers' VJEPA2 in both directions: same numbers, same tensors, and refusals that name the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.encoder import EncoderConfig, VideoEncoder, encoder_2_1
from models.errors import ShapeError, WeightsError
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import AttentiveProbe, AttentiveProbeConfig
from models.weights import (
    VJEPA2,
    from_huggingface,
    from_official,
    inspect_checkpoint,
    load_encoder,
    read_checkpoint,
    state_digest,
    to_huggingface,
    to_official,
)

ATOL = 2e-5
LABELS = ("Pushing [something]", "Pulling [something]", "Tearing [something]")


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Give every tensor values that matter: norms around one, biases, mask tokens and queries away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() > 1 and "tokens" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise)
    return module.eval()


@dataclass(frozen=True)
class Theirs:
    """transformers' classifier and what it computes, with the folder it wrote."""

    library: Any
    model: Any
    folder: Path
    video: torch.Tensor
    context: torch.Tensor
    target: torch.Tensor


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # read once, at import
        transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.VJEPA2Config(
        crop_size=48,
        frames_per_clip=8,
        hidden_size=132,
        num_attention_heads=3,
        num_hidden_layers=3,
        mlp_ratio=48 / 11,
        num_pooler_layers=2,
        pred_hidden_size=64,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=3,
        pred_mlp_ratio=3.0,
        id2label=dict(enumerate(LABELS)),
    )
    model = randomise(transformers.VJEPA2ForVideoClassification(config), seed=0)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(2, 3, 8, 48, 48, generator=generator)
    order = torch.stack([torch.randperm(36, generator=generator) for _ in range(2)])
    return Theirs(transformers, model, folder, video, order[:, :20], order[:, 20:31])


@pytest.fixture(scope="module")
def ours(theirs: Theirs) -> VJEPA2:
    return from_huggingface(theirs.folder)


@pytest.fixture
def copied(theirs: Theirs, tmp_path: Path) -> Path:
    return Path(shutil.copytree(theirs.folder, tmp_path / "copied"))


def features(theirs: Theirs, model: Any, **masks: Any) -> Any:
    with torch.no_grad():
        return model(theirs.video.transpose(1, 2), **masks)


def build_ours() -> VJEPA2:
    shared: dict[str, Any] = {"img_size": (48, 48), "num_frames": 8}
    return VJEPA2(
        randomise(VideoEncoder(EncoderConfig(embed_dim=96, depth=2, num_heads=3, **shared)), 2),
        randomise(
            MaskedPredictor(
                PredictorConfig(embed_dim=96, depth=2, num_heads=2, predictor_embed_dim=48, num_mask_tokens=4, **shared)
            ),
            3,
        ),
        randomise(
            AttentiveProbe(AttentiveProbeConfig(embed_dim=96, num_classes=3, num_heads=3, depth=3, norm_eps=1e-6)), 4
        ),
        LABELS,
    )


def test_features_of_their_encoder_are_ours(theirs: Theirs, ours: VJEPA2) -> None:
    wanted = features(theirs, theirs.model.vjepa2, skip_predictor=True).last_hidden_state
    with torch.no_grad():
        torch.testing.assert_close(ours.encoder(theirs.video), wanted, atol=ATOL, rtol=0)
        # Low contrast makes the variance small enough for a wrong norm epsilon to show.
        small = theirs.model.vjepa2(1e-3 * theirs.video.transpose(1, 2), skip_predictor=True).last_hidden_state
        torch.testing.assert_close(ours.encoder(1e-3 * theirs.video), small, atol=ATOL, rtol=0)


def test_predictions_agree_with_their_mask_token_and_not_with_the_trained_one(theirs: Theirs, ours: VJEPA2) -> None:
    output = features(theirs, theirs.model.vjepa2, context_mask=[theirs.context], target_mask=[theirs.target])
    wanted = output.predictor_output.last_hidden_state
    assert ours.predictor is not None
    with torch.no_grad():
        kept = output.last_hidden_state.gather(1, theirs.context.unsqueeze(-1).expand(-1, -1, 132))
        found = ours.predictor(kept, theirs.context, theirs.target, mask_token=1)
        other = ours.predictor(kept, theirs.context, theirs.target)
    torch.testing.assert_close(found, wanted, atol=ATOL, rtol=0)
    assert (other - wanted).abs().max() > 0.01


def test_logits_of_their_classifier_are_ours_also_where_the_norm_epsilon_shows(theirs: Theirs, ours: VJEPA2) -> None:
    assert ours.class_names == LABELS and ours.probe is not None and ours.probe.config.norm_eps == 1e-6
    for contrast in (1.0, 1e-3):
        with torch.no_grad():
            wanted = theirs.model(contrast * theirs.video.transpose(1, 2)).logits
            torch.testing.assert_close(ours(contrast * theirs.video), wanted, atol=ATOL, rtol=0)
    with pytest.raises(ShapeError, match="whole clip"):
        ours(theirs.video, layers=[0])


def test_round_trip_of_their_folder_is_bit_for_bit(theirs: Theirs, ours: VJEPA2, tmp_path: Path) -> None:
    to_huggingface(ours, tmp_path, image_size=48)
    before, after = read_checkpoint(theirs.folder), read_checkpoint(tmp_path)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    known, written = (json.loads((folder / "config.json").read_text()) for folder in (theirs.folder, tmp_path))
    for values in (known, written):
        values.pop("transformers_version", None)
        values.pop("label2id")
    assert written == known


def test_classifier_exported_by_us_opens_there_and_gives_the_same_logits(theirs: Theirs, tmp_path: Path) -> None:
    model = build_ours()
    to_huggingface(model, tmp_path, image_size=48)
    loaded, report = theirs.library.VJEPA2ForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.config.id2label == dict(enumerate(LABELS))
    with torch.no_grad():
        torch.testing.assert_close(features(theirs, loaded.eval()).logits, model(theirs.video), atol=ATOL, rtol=0)
    assert state_digest(from_huggingface(tmp_path)) == state_digest(model)


def test_encoder_and_predictor_exported_by_us_open_there_and_predict_the_same(theirs: Theirs, tmp_path: Path) -> None:
    model = build_ours()
    assert model.predictor is not None
    to_huggingface(VJEPA2(model.encoder, model.predictor), tmp_path, image_size=48)
    loaded, report = theirs.library.VJEPA2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    output = features(theirs, loaded.eval(), context_mask=[theirs.context], target_mask=[theirs.target])
    with torch.no_grad():
        kept = model.encoder(theirs.video, token_ids=theirs.context)
        full = model.encoder(theirs.video)
        context = full.gather(1, theirs.context.unsqueeze(-1).expand(-1, -1, 96))
        predicted = model.predictor(context, theirs.context, theirs.target, mask_token=1)
    torch.testing.assert_close(output.last_hidden_state, full, atol=ATOL, rtol=0)
    torch.testing.assert_close(output.predictor_output.last_hidden_state, predicted, atol=ATOL, rtol=0)
    assert (kept - context).abs().max() > 0.01, "there the context has seen the targets, in ours it has not"


def test_encoder_alone_is_exported_without_inventing_a_predictor(theirs: Theirs, tmp_path: Path) -> None:
    encoder = build_ours().encoder
    to_huggingface(encoder, tmp_path, image_size=48)
    loaded, report = theirs.library.VJEPA2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"] and all(key.startswith("predictor.") for key in report["missing_keys"])
    assert len(loaded.predictor.layer) == 0
    for skip in (True, False):
        found = features(theirs, loaded.eval(), skip_predictor=skip).last_hidden_state
        with torch.no_grad():
            torch.testing.assert_close(found, encoder(theirs.video), atol=ATOL, rtol=0)
    back = from_huggingface(tmp_path)
    assert back.predictor is None and back.probe is None and back.config == encoder.config
    assert state_digest(back.encoder) == state_digest(encoder)


def test_single_precision_is_restored_and_half_precision_is_kept_on_disk(tmp_path: Path) -> None:
    encoder = build_ours().encoder.bfloat16()
    to_huggingface(encoder, tmp_path, image_size=48)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert read_checkpoint(tmp_path)["encoder.layernorm.weight"].dtype == torch.bfloat16
    assert state_digest(load_encoder(tmp_path)) == state_digest(encoder.float())


def test_export_tells_the_video_processor_what_the_networks_expect(tmp_path: Path) -> None:
    to_huggingface(build_ours().encoder, tmp_path, image_size=384)
    settings = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert settings["video_processor_type"] == "VJEPA2VideoProcessor"
    assert settings["size"] == {"shortest_edge": 438} and settings["crop_size"] == {"height": 384, "width": 384}
    assert json.loads((tmp_path / "config.json").read_text())["crop_size"] == 384


def test_what_transformers_would_compute_differently_is_not_exported(tmp_path: Path) -> None:
    model = build_ours()
    upstream = AttentiveProbe(AttentiveProbeConfig(embed_dim=96, num_classes=3, num_heads=2, depth=3))
    cases: list[tuple[Any, int, str]] = [
        (VJEPA2(model.encoder, probe=upstream), 48, "num_heads 2 .* computes with 3; probe norm_eps 1e-05"),
        (VideoEncoder(replace(model.config, rope_layout="interleaved")), 48, "rope_layout interleaved"),
        (model.encoder, 50, "image_size 50"),
        (model.predictor, 48, "MaskedPredictor has no Hugging Face layout"),
    ]
    with torch.device("meta"):
        cases.append((VideoEncoder(encoder_2_1("vit_base")), 384, "image_tokenizer.*levels"))
    for module, size, message in cases:
        with pytest.raises(WeightsError, match=message):
            to_huggingface(module, tmp_path, image_size=size)
    assert not list(tmp_path.iterdir())


def test_sharded_folder_is_one_model_and_a_missing_shard_is_named(theirs: Theirs, tmp_path: Path) -> None:
    theirs.model.save_pretrained(tmp_path, max_shard_size="500KB")
    shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert state_digest(from_huggingface(tmp_path)) == state_digest(from_huggingface(theirs.folder))
    (tmp_path / shards[1]).unlink()
    for read in (from_huggingface, read_checkpoint, load_encoder, inspect_checkpoint):
        with pytest.raises(WeightsError, match=rf"missing {shards[1]}.*Download"):
            read(tmp_path)


def test_shard_that_lost_tensors_and_index_that_leaves_its_folder_are_refused(theirs: Theirs, tmp_path: Path) -> None:
    theirs.model.save_pretrained(tmp_path, max_shard_size="500KB")
    shards = sorted(path for path in tmp_path.glob("model-*.safetensors"))
    shutil.copy(shards[0], shards[1])
    with pytest.raises(WeightsError, match=rf"{shards[1].name} lacks tensors"):
        from_huggingface(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"encoder.layernorm.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(WeightsError, match=r"outside its folder"):
        from_huggingface(tmp_path)


def test_pickled_weights_of_older_folders_are_read_without_running_them(theirs: Theirs, copied: Path) -> None:
    torch.save(read_checkpoint(copied), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    assert state_digest(from_huggingface(copied)) == state_digest(from_huggingface(theirs.folder))


def _change_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json does not exist"),
        (lambda folder: (folder / "config.json").write_text("<html>"), r"config\.json cannot be read as JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"copied has no weights"),
        (_change_config(model_type="vit"), r"config\.json describes another architecture .*'vit'"),
        (_change_config(hidden_act="relu", qkv_bias=False), r"config\.json .*hidden_act 'relu', qkv_bias False"),
        (_change_config(drop_path_rate=0.1), r"config\.json .*drop_path_rate 0\.1"),
        (_change_config(layer_norm_eps=1e-5), r"config\.json .*layer_norm_eps 1e-05"),
        (_change_config(patch_size=[16, 16]), r"config\.json .*patch_size \[16, 16\]"),
        (_change_config(num_attention_heads=5), r"config\.json contradicts itself.*132 does not split"),
        (_change_config(num_hidden_layers=4), r"copied does not fit .*missing: encoder\.layer\.3"),
        (_change_config(pred_num_mask_tokens=10), r"mask_tokens \(3, 1, 1, 64\) instead of \(10, 1, 1, 64\)"),
        (_change_config(id2label={"0": "a"}), r"wrong shape: classifier\.bias \(3,\) instead of \(1,\)"),
        (_change_config(id2label={"1": "a"}), r"config\.json names its classes incompletely"),
    ],
)
def test_damaged_folder_is_refused_with_the_file_and_a_remedy(
    damage: Callable[[Path], None], message: str, copied: Path
) -> None:
    damage(copied)
    with pytest.raises(WeightsError, match=message) as caught:
        from_huggingface(copied)
    assert caught.value.remedy


def test_nan_in_a_folder_is_refused_by_the_name_it_has_there(ours: VJEPA2, tmp_path: Path) -> None:
    model = build_ours()
    model.encoder.blocks[1].mlp.fc1.bias.data[0] = float("nan")
    to_huggingface(model, tmp_path, image_size=48)
    with pytest.raises(WeightsError, match=r"not finite: encoder\.layer\.1\.mlp\.fc1\.bias"):
        from_huggingface(tmp_path)
    problems = {part.name: part.problems for part in inspect_checkpoint(tmp_path).parts}
    assert problems["encoder"] and not problems["predictor"] and not problems["probe"]


def test_encoder_of_a_folder_is_also_reached_by_its_file(theirs: Theirs, ours: VJEPA2) -> None:
    for path in (theirs.folder, theirs.folder / "model.safetensors"):
        assert state_digest(load_encoder(path)) == state_digest(ours.encoder)
    with pytest.raises(WeightsError, match="no part target_encoder"):
        load_encoder(theirs.folder, part="target_encoder")
    with pytest.raises(WeightsError, match=r"img_size: given \(384, 384\), stored \(48, 48\)"):
        load_encoder(theirs.folder, img_size=(384, 384))
    with pytest.raises(WeightsError, match="is a file"):
        from_huggingface(theirs.folder / "config.json")


def test_folder_becomes_official_weights_and_comes_back(ours: VJEPA2, tmp_path: Path) -> None:
    assert ours.predictor is not None and ours.probe is not None
    parts = {"encoder": ours.encoder, "predictor": ours.predictor, "probe": ours.probe}
    official = {kind: from_official(kind, to_official(module), module.config) for kind, module in parts.items()}
    back = VJEPA2(official["encoder"], official["predictor"], official["probe"], ours.class_names)
    to_huggingface(back, tmp_path, image_size=48)
    assert state_digest(from_huggingface(tmp_path)) == state_digest(ours)


def test_file_beside_the_folders_weights_is_refused_not_replaced_by_them(ours: VJEPA2, copied: Path) -> None:
    assert state_digest(load_encoder(copied / "model.safetensors")) == state_digest(ours.encoder)
    shutil.copy(copied / "model.safetensors", copied / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other\.safetensors is not the weight file of its folder"):
        load_encoder(copied / "other.safetensors")


def test_inspection_tells_the_parts_of_a_folder(theirs: Theirs, ours: VJEPA2) -> None:
    found = inspect_checkpoint(theirs.folder)
    assert found.layout == "huggingface" and [part.name for part in found.parts] == ["encoder", "predictor", "probe"]
    assert found.parts[0].config == ours.config and not any(part.problems for part in found.parts)
    assert sum(part.parameters for part in found.parts) == sum(value.numel() for value in ours.parameters())
