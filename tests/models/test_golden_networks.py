"""The networks against numbers computed by the public V-JEPA 2 code (TUBELET_SHARED/golden, atol 3e-5)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import EncoderConfig, VideoEncoder, layer_norm_features
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import AttentiveProbe, AttentiveProbeConfig

GOLDEN = Path(os.environ.get("TUBELET_SHARED", "")) / "golden"
pytestmark = pytest.mark.skipif("TUBELET_SHARED" not in os.environ, reason="TUBELET_SHARED is not set")

ENCODERS = ["encoder_hd32", "encoder_hd64", "encoder_hd80"]


def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["config"]), tensors


def build(module: torch.nn.Module, weights: dict[str, Tensor]) -> Any:
    module.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    return module.eval()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)


def encoder(name: str) -> tuple[VideoEncoder, dict[str, Tensor]]:
    config, weights = read(f"{name}.weights")
    return build(VideoEncoder(EncoderConfig(**config)), weights), read(f"{name}.io")[1]


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_encoder_gives_official_tokens(name: str) -> None:
    model, io = encoder(name)
    close(model(io["x"]), io["y"])


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_encoder_gives_official_masked_tokens_for_both_groups_in_one_pass(name: str) -> None:
    model, io = encoder(name)
    close(torch.cat(model(io["x"], [io["mask0"], io["mask1"]])), io["y_masked"])


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_encoder_gives_official_intermediate_layers(name: str) -> None:
    model, io = encoder(name)
    layers = sorted(int(key.removeprefix("y_layer")) for key in io if key.startswith("y_layer"))
    for layer, found in zip(layers, model(io["x"], layers=layers), strict=True):
        close(found, io[f"y_layer{layer}"])
    for layer, found in zip(layers, model(io["x"], [io["mask0"], io["mask1"]], layers=layers), strict=True):
        close(torch.cat(found), io[f"y_masked_layer{layer}"])


@torch.no_grad()
def test_encoder_layer_norm_epsilon_and_non_square_grid_are_official() -> None:
    model, io = encoder("encoder_hd64")
    close(model(io["x_small"]), io["y_small"])
    close(model(io["x_nonsquare"]), io["y_nonsquare"])


@torch.no_grad()
def test_predictor_gives_official_predictions_for_every_mask_token() -> None:
    config, weights = read("predictor.weights")
    model, io = build(MaskedPredictor(PredictorConfig(**config)), weights), read("predictor.io")[1]
    for index in (0, 1, 2, 3, 5):
        close(model(io["z"], io["masks_x"], io["masks_y"], mask_token=index), io[f"out_mask_index{index}"])
    close(model(io["z_small"], io["masks_x"], io["masks_y"]), io["out_small"])


@torch.no_grad()
def test_action_predictor_gives_official_predictions_for_one_two_and_all_steps() -> None:
    config, weights = read("ac_predictor.weights")
    model, io = build(ActionConditionedPredictor(ActionPredictorConfig(**config)), weights), read("ac_predictor.io")[1]
    z, actions, states = io["z"], io["actions"], io["states"]
    close(model(z, actions, states), io["y"])
    close(model(z[:, :16], actions[:, :1], states[:, :1]), io["y_T1"])
    close(model(z[:, :32], actions[:, :2], states[:, :2]), io["y_T2"])
    close(model(io["z_small"], actions * 0.001, states * 0.001), io["y_small"])


@torch.no_grad()
def test_action_predictor_with_extrinsics_gives_official_predictions() -> None:
    config, weights = read("ac_predictor.weights")
    config["use_extrinsics"] = True
    model, io = build(ActionConditionedPredictor(ActionPredictorConfig(**config)), weights), read("ac_predictor.io")[1]
    close(model(io["z"], io["actions"], io["states"], io["extrinsics"]), io["y_extrinsics"])


@torch.no_grad()
def test_attentive_probe_gives_official_logits() -> None:
    config, weights = read("attentive_classifier.weights")
    model, io = build(AttentiveProbe(AttentiveProbeConfig(**config)), weights), read("attentive_classifier.io")[1]
    close(model(io["x"]), io["logits"])
    close(model(io["x_small"]), io["logits_small"])


def test_pretraining_step_has_the_official_loss_and_gradients() -> None:
    configs, io = read("pretrain_step.io")
    student = build(VideoEncoder(EncoderConfig(**configs["encoder"])), read("pretrain_encoder.weights")[1])
    teacher = build(VideoEncoder(EncoderConfig(**configs["encoder"])), read("pretrain_target_encoder.weights")[1])
    config, weights = read("pretrain_predictor.weights")
    predictor = build(MaskedPredictor(PredictorConfig(**config)), weights)
    contexts_at, targets_at = [[io[f"masks_{side}_{i}"] for i in (0, 1)] for side in ("enc", "pred")]
    with torch.no_grad():
        targets = layer_norm_features(teacher(io["clips"]))
    predicted = predictor(student(io["clips"], contexts_at), contexts_at, targets_at)
    rows = torch.arange(len(targets)).unsqueeze(1)
    losses = [(z - targets[rows, ids]).abs().mean() for z, ids in zip(predicted, targets_at, strict=True)]
    loss = torch.stack(losses).mean()
    loss.backward()
    torch.testing.assert_close(loss.double(), io["loss"], rtol=1e-6, atol=0)
    parts: dict[str, torch.nn.Module] = {"encoder": student, "predictor": predictor}
    for name, expected in io.items():
        if name.startswith("grad."):
            _, part, key = name.split(".", 2)
            error = (parts[part].get_parameter(key).grad - expected).norm() / expected.norm()
            assert error < 5e-5, name
