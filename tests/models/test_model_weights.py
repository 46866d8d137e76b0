"""Weight files and official layouts: strict, complete, no pickles."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import EncoderConfig, VideoEncoder
from models.errors import WeightsError
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import AttentiveProbe, AttentiveProbeConfig, LinearProbe, LinearProbeConfig
from models.weights import from_official, load_module, read_checkpoint, save_module, state_digest, to_official

CONFIG = EncoderConfig(embed_dim=16, depth=1, num_heads=2, img_size=(32, 32), num_frames=4)
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
    "linear": (LinearProbe, LinearProbeConfig(embed_dim=16, num_classes=3)),
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


@pytest.mark.parametrize("kind", ["encoder", "predictor", "action_predictor", "probe"])
def test_official_weights_come_in_through_both_wrappers_and_go_out_complete(kind: str) -> None:
    model_class, config = MODELS[kind]
    model = model_class(config)
    wrapped = {f"module.backbone.{key}": value for key, value in to_official(model).items()}
    wrapped |= {
        "module.backbone.pos_embed": torch.zeros(1, 8, 16),
        "module.backbone.predictor_pos_embed": torch.zeros(1),
    }
    loaded = from_official(kind, wrapped, config)
    assert state_digest(loaded) == state_digest(model)
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    assert state_digest(from_official(kind, wrapped, config)) == state_digest(model), "the caller's tensors changed"


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


def test_checkpoint_with_several_parts_needs_an_explicit_choice(encoder: VideoEncoder, tmp_path: Path) -> None:
    path, student = tmp_path / "latest.pt", to_official(encoder)
    teacher = {key: value + 1 for key, value in student.items()}
    torch.save({"encoder": student, "target_encoder": teacher, "epoch": 3, "opt": {"state": {}}}, path)
    with pytest.raises(WeightsError, match="encoder, target_encoder"):
        read_checkpoint(path)
    assert torch.equal(read_checkpoint(path, part="target_encoder")["norm.bias"], teacher["norm.bias"])
    with pytest.raises(WeightsError, match="no part ema"):
        read_checkpoint(path, part="ema")
    torch.save(student, path)
    assert read_checkpoint(path).keys() == student.keys()
    assert read_checkpoint(save_module(encoder, tmp_path, "ours")).keys() == student.keys()


class _Intruder:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("intruder-was-here"),))


def test_foreign_truncated_and_dangerous_files_are_refused(
    encoder: VideoEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dangerous = tmp_path / "dangerous.pt"
    dangerous.write_bytes(pickle.dumps({"encoder": _Intruder()}, protocol=2))
    weights = save_module(encoder, tmp_path, "encoder")
    weights.write_bytes(weights.read_bytes()[:-100])
    text = tmp_path / "text.pt"
    text.write_text("<html>404</html>")
    for path in (dangerous, weights, text, tmp_path / "absent.pt", tmp_path / "absent.safetensors"):
        with pytest.raises(WeightsError, match=path.name):
            read_checkpoint(path)
    assert not (tmp_path / "intruder-was-here").exists()
    with pytest.raises(WeightsError, match=r"encoder\.safetensors"):
        load_module(tmp_path, "encoder")


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


def test_linear_probe_averages_tokens() -> None:
    probe = LinearProbe(LinearProbeConfig(embed_dim=16, num_classes=3))
    tokens = torch.randn(2, 5, 16)
    torch.testing.assert_close(probe(tokens), probe(tokens.mean(dim=1)))
