"""Weight files and official layouts: strict, complete, no pickles."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import EncoderConfig, VideoEncoder
from models.errors import ConfigError, WeightsError
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import (
    AnticipationProbe,
    AnticipationProbeConfig,
    AttentiveProbe,
    AttentiveProbeConfig,
    LinearProbe,
    LinearProbeConfig,
)
from models.weights import (
    from_official,
    infer_config,
    load_module,
    save_module,
    state_digest,
    to_official,
)

CONFIG = EncoderConfig(embed_dim=16, depth=1, num_heads=2, img_size=(32, 32), num_frames=4)
LEVELLED: dict[str, Any] = {"rope_layout": "interleaved", "rope_reference": 16, "modality_embeddings": True}
MODELS: dict[str, tuple[Any, Any]] = {
    "encoder": (VideoEncoder, CONFIG),
    "predictor": (MaskedPredictor, PredictorConfig(embed_dim=16, depth=1, num_heads=2, predictor_embed_dim=16)),
    "action_predictor": (
        ActionConditionedPredictor,
        ActionPredictorConfig(
            embed_dim=16, depth=1, num_heads=2, predictor_embed_dim=16, residual=True, state_center=(0.5,) * 7
        ),
    ),
    "probe": (AttentiveProbe, AttentiveProbeConfig(embed_dim=16, num_classes=3, num_heads=2, depth=2)),
    "anticipation_probe": (
        AnticipationProbe,
        AnticipationProbeConfig(embed_dim=16, verbs=3, nouns=4, actions=5, num_heads=2, depth=2),
    ),
    "encoder_2_1": (
        VideoEncoder,
        EncoderConfig(
            embed_dim=16, depth=2, num_heads=2, img_size=(32, 32), image_tokenizer=True, levels=(0, 1), **LEVELLED
        ),
    ),
    "predictor_2_1": (
        MaskedPredictor,
        PredictorConfig(
            embed_dim=16,
            depth=1,
            num_heads=2,
            predictor_embed_dim=16,
            levels=2,
            out_embed_dim=24,
            context_output=True,
            **LEVELLED,
        ),
    ),
    "linear": (LinearProbe, LinearProbeConfig(embed_dim=16, num_classes=3)),
}
OFFICIAL_KINDS = {
    "encoder": "encoder",
    "predictor": "predictor",
    "action_predictor": "action_predictor",
    "probe": "probe",
    "anticipation_probe": "probe",
    "encoder_2_1": "encoder",
    "predictor_2_1": "predictor",
}


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    return VideoEncoder(CONFIG)


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_survives_the_disk_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model_class, config = MODELS[kind]
    model = model_class(config)
    assert save_module(model, tmp_path, kind) == tmp_path / f"{kind}.safetensors"
    loaded = load_module(tmp_path, kind)
    assert type(loaded) is model_class and loaded.config == config
    assert state_digest(loaded) == state_digest(model)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("name", OFFICIAL_KINDS)
def test_official_weights_come_in_through_both_wrappers_and_go_out_complete(name: str) -> None:
    kind, (model_class, config) = OFFICIAL_KINDS[name], MODELS[name]
    model = model_class(config)
    wrapped = {f"module.backbone.{key}": value for key, value in to_official(model).items()}
    if kind in ("encoder", "predictor"):
        table = "pos_embed" if kind == "encoder" else "predictor_pos_embed"
        wrapped[f"module.backbone.{table}"] = torch.zeros(1, math.prod(config.grid), 16)
    loaded = from_official(kind, wrapped, config)
    assert state_digest(loaded) == state_digest(model)
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    assert state_digest(from_official(kind, wrapped, config)) == state_digest(model), "the caller's tensors changed"
    assert state_digest(from_official(kind, wrapped, config.to_dict())) == state_digest(model)


@pytest.mark.parametrize("name", OFFICIAL_KINDS)
def test_shapes_tell_the_config(name: str) -> None:
    kind, (model_class, config) = OFFICIAL_KINDS[name], MODELS[name]
    told = {"num_heads", "img_size", "num_frames", "levels", "residual", "state_center"}  # in no shape of these sizes
    given = {key: value for key, value in config.to_dict().items() if key in told}
    assert infer_config(kind, to_official(model_class(config)), **given) == config


def test_released_widths_tell_the_heads_and_other_widths_must_be_told() -> None:
    with torch.device("meta"):
        large = VideoEncoder(EncoderConfig(embed_dim=1024, depth=24, num_heads=16)).state_dict()
        odd = VideoEncoder(EncoderConfig(embed_dim=1024, depth=2, num_heads=16)).state_dict()
    assert infer_config("encoder", large) == EncoderConfig(embed_dim=1024, depth=24, num_heads=16, num_frames=64)
    table = torch.zeros(1, 32 * 24 * 24, 1)
    assert infer_config("encoder", large | {"pos_embed": table}).img_size == (384, 384)
    with pytest.raises(WeightsError, match=r"number of attention heads.*Pass num_heads"):
        infer_config("encoder", odd)
    with pytest.raises(WeightsError, match=r"embed_dim: given 1280, the weights say 1024; .*hidden"):
        infer_config("encoder", odd, num_heads=16, embed_dim=1280)
    with pytest.raises(ConfigError, match="no field heads"):
        infer_config("encoder", odd, heads=16)
    with pytest.raises(WeightsError, match="is no predictor"):
        infer_config("predictor", odd)


def test_digest_sees_values_names_and_precision(encoder: VideoEncoder) -> None:
    other = VideoEncoder(CONFIG)
    assert state_digest(other) != state_digest(encoder)
    other.load_state_dict(encoder.state_dict())
    assert state_digest(other) == state_digest(encoder) != state_digest(other.bfloat16())


def test_mismatch_lists_missing_unexpected_and_wrong_shaped_keys(encoder: VideoEncoder) -> None:
    tensors = to_official(encoder)
    del tensors["norm.bias"]
    tensors["cls_token"] = torch.zeros(1)
    tensors["norm.weight"] = torch.zeros(8)
    with pytest.raises(WeightsError) as caught:
        from_official("encoder", tensors, CONFIG)
    text = str(caught.value)
    assert "missing: norm.bias" in text and "unexpected: cls_token" in text
    assert "wrong shape: norm.weight (8,) instead of (16,)" in text


def test_long_lists_of_keys_are_cut_and_counted_and_none_is_left_out(encoder: VideoEncoder) -> None:
    tensors = {key: value for key, value in to_official(encoder).items() if not key.startswith("blocks")}
    tensors |= {f"blocks_of_others.{index}": torch.zeros(1) for index in range(30)} | {"norm.bias": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"missing: .* and 4 more; unexpected: .* and 22 more; wrong shape: norm"):
        from_official("encoder", tensors, CONFIG)


def test_fields_that_shapes_contradict_are_named_with_both_values(encoder: VideoEncoder) -> None:
    wrong = replace(CONFIG, embed_dim=32, depth=3, mlp_ratio=3.0, patch_size=8, tubelet_size=1, in_chans=1)
    with pytest.raises(WeightsError) as caught:
        from_official("encoder", to_official(encoder), wrong)
    text = str(caught.value)
    for phrase in ("embed_dim: the config says 32, the weights 16", "depth: the config says 3, the weights 1"):
        assert phrase in text
    for field in ("mlp_ratio", "patch_size", "tubelet_size", "in_chans", "missing: blocks.1", "wrong shape: blocks.0"):
        assert field in text
    model_class, config = MODELS["predictor"]
    with pytest.raises(WeightsError, match="num_mask_tokens: the config says 10, the weights 2"):
        from_official("predictor", to_official(model_class(config)), replace(config, num_mask_tokens=10))


def test_checkpoint_of_384_pixels_with_a_256_pixel_config_is_refused() -> None:
    config = EncoderConfig(embed_dim=16, depth=1, num_heads=2, num_frames=64)
    tensors = to_official(VideoEncoder(config)) | {"pos_embed": torch.zeros(1, 32 * 24 * 24, 1)}
    with pytest.raises(WeightsError, match=r"18432 positions \(for example 64 frames at 384 x 384 px\)") as caught:
        from_official("encoder", tensors, config)
    assert "64 frames at 256 x 256 px (8192 positions); set img_size" in str(caught.value)
    right = replace(config, img_size=(384, 384))
    assert from_official("encoder", tensors, right).config == infer_config("encoder", tensors, num_heads=2) == right


def test_nan_weights_are_refused_by_name(encoder: VideoEncoder) -> None:
    tensors = to_official(encoder)
    tensors["norm.weight"][0] = float("nan")
    with pytest.raises(WeightsError, match=r"not finite: norm\.weight"):
        from_official("encoder", tensors, CONFIG)


def test_config_of_another_part_is_refused(encoder: VideoEncoder) -> None:
    with pytest.raises(WeightsError, match="PredictorConfig"):
        from_official("predictor", to_official(encoder), CONFIG)
    with pytest.raises(WeightsError, match="kind"):
        from_official("backbone", to_official(encoder), CONFIG)


def test_folder_with_a_changed_description_is_refused(encoder: VideoEncoder, tmp_path: Path) -> None:
    save_module(encoder, tmp_path, "encoder")
    path = tmp_path / "encoder.json"
    description = json.loads(path.read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"format": 2}, "format"),
        ({"class": "Transformer"}, "class"),
        ({"config": {**description["config"], "depth": 2}}, "missing: blocks.1"),
    ]
    for change, message in changes:
        path.write_text(json.dumps(description | change))
        with pytest.raises(WeightsError, match=message):
            load_module(tmp_path, "encoder")
    with pytest.raises(WeightsError, match="does not exist"):
        load_module(tmp_path, "absent")


def test_only_models_of_the_project_are_saved(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="Linear"):
        save_module(torch.nn.Linear(1, 1), tmp_path, "linear")
