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
from models.encoder import EncoderConfig, VideoEncoder, encode_frames, layer_norm_features
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import AnticipationProbe, AnticipationProbeConfig, AttentiveProbe, AttentiveProbeConfig

GOLDEN = Path(os.environ.get("TUBELET_SHARED", "")) / "golden"
pytestmark = pytest.mark.skipif("TUBELET_SHARED" not in os.environ, reason="TUBELET_SHARED is not set")

ENCODERS = ["encoder_hd32", "encoder_hd64", "encoder_hd80"]


def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["config"]), tensors


def weights_of(name: str, module_class: Any, config_class: Any, **changed: Any) -> Any:
    """The network of `name`.weights with the configuration and weights of the file."""
    config, weights = read(f"{name}.weights")
    return build(module_class(config_class.from_dict(config | changed)), weights)


def build(module: torch.nn.Module, weights: dict[str, Tensor]) -> Any:
    module.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    return module.eval()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)


def same_loss(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=0)


def gradient_norm(module: torch.nn.Module) -> Tensor:
    """Norm of all gradients there are, accumulated in float64."""
    norms = [parameter.grad.double().norm() for parameter in module.parameters() if parameter.grad is not None]
    return torch.stack(norms).norm()


def same_gradients(module: torch.nn.Module, io: dict[str, Tensor], prefix: str) -> None:
    """Every gradient of the file named `prefix` + parameter, within 5e-5 of its norm."""
    expected_by_name = {key.removeprefix(prefix): value for key, value in io.items() if key.startswith(prefix)}
    assert expected_by_name
    for name, expected in expected_by_name.items():
        found = module.get_parameter(name).grad
        assert found is not None and (found - expected).norm() < 5e-5 * expected.norm(), name


def encoder(name: str) -> tuple[VideoEncoder, dict[str, Tensor]]:
    return weights_of(name, VideoEncoder, EncoderConfig), read(f"{name}.io")[1]


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
    model, io = weights_of("predictor", MaskedPredictor, PredictorConfig), read("predictor.io")[1]
    for index in (0, 1, 2, 3, 5):
        close(model(io["z"], io["masks_x"], io["masks_y"], mask_token=index), io[f"out_mask_index{index}"])
    close(model(io["z_small"], io["masks_x"], io["masks_y"]), io["out_small"])


@torch.no_grad()
def test_action_predictor_gives_official_predictions_for_one_two_and_all_steps() -> None:
    model, io = (
        weights_of("ac_predictor", ActionConditionedPredictor, ActionPredictorConfig),
        read("ac_predictor.io")[1],
    )
    z, actions, states = io["z"], io["actions"], io["states"]
    close(model(z, actions, states), io["y"])
    close(model(z[:, :16], actions[:, :1], states[:, :1]), io["y_T1"])
    close(model(z[:, :32], actions[:, :2], states[:, :2]), io["y_T2"])
    close(model(io["z_small"], actions * 0.001, states * 0.001), io["y_small"])


@pytest.mark.parametrize("suffix", ["", "_extrinsics"])
@torch.no_grad()
def test_action_predictor_gives_official_predictions_and_rollout_step_by_step(suffix: str) -> None:
    model = weights_of("ac_predictor", ActionConditionedPredictor, ActionPredictorConfig, use_extrinsics=bool(suffix))
    conditions = ("actions", "states", "extrinsics")[: 3 if suffix else 2]
    io = read("ac_predictor.io")[1]
    past, predicted = None, []
    for step, frame in enumerate(io["z"].split(16, dim=1)):
        found, past = model.step(frame, *(io[name][:, step] for name in conditions), past=past)
        predicted.append(found)
    close(torch.cat(predicted, dim=1), io[f"y{suffix}"])

    io = read("ac_step.io")[1]  # from the first frame on, the frames are predictions
    frame, past, imagined = io["h"][:, :16], None, []
    for step in range(2):
        found, past = model.step(frame, *(io[name][:, step].float() for name in conditions), past=past)
        frame = layer_norm_features(found)
        imagined.append(frame)
    close(torch.cat(imagined, dim=1), io[f"z_ar{suffix}"])


@torch.no_grad()
def test_action_predictor_with_extrinsics_gives_official_predictions() -> None:
    model = weights_of("ac_predictor", ActionConditionedPredictor, ActionPredictorConfig, use_extrinsics=True)
    io = read("ac_predictor.io")[1]
    close(model(io["z"], io["actions"], io["states"], io["extrinsics"]), io["y_extrinsics"])


@torch.no_grad()
def test_attentive_probe_gives_official_logits() -> None:
    model = weights_of("attentive_classifier", AttentiveProbe, AttentiveProbeConfig)
    io = read("attentive_classifier.io")[1]
    close(model.pooler(io["x"]), io["pooled"])
    close(model(io["x"]), io["logits"])
    close(model(io["x_small"]), io["logits_small"])


@torch.no_grad()
def test_anticipation_probe_gives_official_logits() -> None:
    model = weights_of("anticipation_classifier", AnticipationProbe, AnticipationProbeConfig)
    io = read("anticipation_classifier.io")[1]
    logits = model(io["x"])
    assert list(logits) == ["verb", "noun", "action"]
    for task, found in logits.items():
        close(found, io[task])


def test_pretraining_step_has_the_official_tensors_losses_and_gradients() -> None:
    student = weights_of("pretrain_encoder", VideoEncoder, EncoderConfig)
    teacher = weights_of("pretrain_target_encoder", VideoEncoder, EncoderConfig)
    predictor = weights_of("pretrain_predictor", MaskedPredictor, PredictorConfig)
    io = read("pretrain_step.io")[1]
    contexts_at, targets_at = [[io[f"masks_{side}_{i}"] for i in (0, 1)] for side in ("enc", "pred")]
    with torch.no_grad():
        targets = layer_norm_features(teacher(io["clips"]))
    context_tokens = student(io["clips"], contexts_at)
    predicted = predictor(context_tokens, contexts_at, targets_at)
    close(targets, io["h"])
    for strategy in (0, 1):
        close(context_tokens[strategy], io[f"context_tokens_{strategy}"])
        close(predicted[strategy], io[f"pred_{strategy}"])

    rows = torch.arange(len(targets)).unsqueeze(1)
    losses = [(z - targets[rows, ids]).abs().mean() for z, ids in zip(predicted, targets_at, strict=True)]
    same_loss(torch.stack(losses), io["loss_per_strategy"])
    loss = torch.stack(losses).mean()
    same_loss(loss, io["loss"])

    loss.backward()
    norms = json.loads((GOLDEN / "pretrain_grad_norms.json").read_text())
    parts: dict[str, torch.nn.Module] = {"encoder": student, "predictor": predictor}
    for part, module in parts.items():
        same_gradients(module, io, f"grad.{part}.")
        torch.testing.assert_close(gradient_norm(module), io[f"grad_norm_{part}"], rtol=1e-5, atol=0)
        parameters = dict(module.named_parameters())
        assert parameters.keys() == norms[part].keys()
        for name, expected in norms[part].items():
            gradient = parameters[name].grad
            if gradient is None or expected is None:  # the mask token that no strategy uses
                assert gradient is expected, name
            else:
                assert float(gradient.double().norm()) == pytest.approx(expected, rel=5e-5), name


@pytest.mark.parametrize("suffix", ["", "_extrinsics"])
def test_action_conditioned_step_has_the_official_tensors_losses_and_gradients(suffix: str) -> None:
    encoder = weights_of("ac_step_encoder", VideoEncoder, EncoderConfig)
    predictor = weights_of(
        "ac_predictor", ActionConditionedPredictor, ActionPredictorConfig, use_extrinsics=bool(suffix)
    )
    configs, io = read("ac_step.io")
    steps, patches = configs["T"], 16
    with torch.no_grad():
        frames = encode_frames(encoder, io["clips"].transpose(1, 2).flatten(0, 1))  # (B * T, N, D)
        h = layer_norm_features(frames.unflatten(0, (-1, steps)).flatten(1, 2))  # (B, T * N, D)
    close(h, io["h"])

    def predict_next(tokens: Tensor) -> Tensor:
        count = tokens.shape[1] // patches
        camera = io["extrinsics"][:, :count] if suffix else None
        return layer_norm_features(predictor(tokens, io["actions"][:, :count], io["states"][:, :count], camera))

    forced = predict_next(h[:, :-patches])
    rolled = [forced[:, :patches]]
    for _ in range(1, configs["auto_steps"]):  # from the first frame and its own predictions, with the true states
        rolled.append(predict_next(torch.cat([h[:, :patches], *rolled], dim=1))[:, -patches:])
    rollout = torch.cat(rolled, dim=1)
    close(forced, io[f"z_tf{suffix}"])
    close(rollout, io[f"z_ar{suffix}"])

    forced_loss = (forced - h[:, patches:]).abs().mean()
    rollout_loss = (rollout - h[:, patches : patches + rollout.shape[1]]).abs().mean()
    same_loss(forced_loss, io[f"jloss{suffix}"])
    same_loss(rollout_loss, io[f"sloss{suffix}"])
    same_loss(forced_loss + rollout_loss, io[f"loss{suffix}"])

    (forced_loss + rollout_loss).backward()
    same_gradients(predictor, io, f"grad{suffix}.")
    torch.testing.assert_close(gradient_norm(predictor), io[f"grad_norm_predictor{suffix}"], rtol=1e-5, atol=0)
