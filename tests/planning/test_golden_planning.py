"""Planning against the official numbers, given the same networks and the same noise."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from models.action_predictor import ActionPredictorConfig
from models.encoder import EncoderConfig, VideoEncoder, layer_norm_features
from models.preprocessing import Preprocess
from models.weights import from_official
from pipelines.episodes.episode import integrate
from planning.energy import latent_energy
from planning.planners import CEM, Problem, Visit
from planning.world_model import WorldModel


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    if "TUBELET_SHARED" not in os.environ:
        pytest.skip("TUBELET_SHARED is not set: the golden tensors are not at hand")
    return load_file(Path(os.environ["TUBELET_SHARED"]) / "golden" / "planning.io.safetensors")


@pytest.fixture(scope="module")
def world(golden: dict[str, torch.Tensor]) -> WorldModel:
    folder = Path(os.environ["TUBELET_SHARED"]) / "golden"
    with safe_open(folder / "planning.io.safetensors", "pt") as file:
        values = json.loads(file.metadata()["config"])
    fields = {name: value for name, value in values.items() if name in ActionPredictorConfig.__dataclass_fields__}
    weights = {name: tensor.float() for name, tensor in load_file(folder / "ac_predictor.weights.safetensors").items()}
    predictor = from_official("action_predictor", weights, ActionPredictorConfig.from_dict(fields))
    encoder = VideoEncoder(EncoderConfig(embed_dim=128, depth=1, num_heads=2, img_size=(64, 64), num_frames=2))
    return WorldModel(encoder, predictor, Preprocess(height=64, width=64))


def problem_of(golden: dict[str, torch.Tensor]) -> Problem:
    tokens, goal, pose = golden["z"][0, :16], golden["z"][0, 16:], golden["states"][0, 0].numpy()
    return Problem(tokens, goal, pose, (Visit(pose, tokens, 1.0),), 1)


@pytest.mark.parametrize("plan_memory", [2 * 1024**3, 0], ids=["all_plans_at_once", "one_by_one"])
@pytest.mark.parametrize("steps", [1, 2])
def test_rollout_and_energy_equal_the_official_energy_notebook(
    world: WorldModel, golden: dict[str, torch.Tensor], steps: int, plan_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "plan_memory", plan_memory)
    problem = problem_of(golden)
    before = world.calls
    tokens = world.rollout(problem.tokens, problem.pose7, golden["actions_grid"][:, None].expand(-1, steps, -1))
    assert world.calls - before == 27 * steps
    torch.testing.assert_close(tokens, golden[f"z_pred_steps{steps}"], atol=3e-5, rtol=0)
    energy = latent_energy(tokens, problem.goal_tokens).double()
    torch.testing.assert_close(energy, golden[f"energy_steps{steps}"], atol=3e-6, rtol=0)


@torch.no_grad()
def test_network_alone_gives_the_official_frames_at_the_official_poses(
    world: WorldModel, golden: dict[str, torch.Tensor]
) -> None:
    """No pose arithmetic of ours: the second step sees the official pose, whole and from the kept first step."""
    first, pose, actions = golden["z"][:, :16], golden["states"][:, 0], golden["actions_grid"]
    predicted, past = world.predictor.step(first, actions, pose)
    second = layer_norm_features(predicted)
    torch.testing.assert_close(second, golden["z_pred_steps1"], atol=3e-5, rtol=0)
    kept, _ = world.predictor.step(second, actions, golden["pose_steps1"], past=past)
    frames = torch.cat([first.expand(27, -1, -1), second], dim=1)
    states = torch.stack([pose.expand(27, -1), golden["pose_steps1"]], dim=1)
    whole = world.predictor(frames, actions[:, None].expand(-1, 2, -1), states)[:, 16:]
    for last in (kept, whole):
        torch.testing.assert_close(layer_norm_features(last), golden["z_pred_steps2"], atol=3e-5, rtol=0)


@pytest.mark.parametrize("horizon", [1, 2, 5])
@torch.no_grad()
def test_rollout_of_any_length_and_part_size_equals_the_uncached_network(
    world: WorldModel, golden: dict[str, torch.Tensor], horizon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(golden)
    actions = 0.1 * torch.randn(7, horizon, 7, generator=torch.Generator().manual_seed(0))
    poses = [torch.as_tensor(problem.pose7, dtype=torch.float32).expand(7, -1)]
    frames = problem.tokens.expand(7, -1, -1)
    for step in range(horizon):
        predicted = world.predictor(frames, actions[:, : step + 1], torch.stack(poses, dim=1))[:, -16:]
        frames = torch.cat([frames, layer_norm_features(predicted)], dim=1)
        moved = integrate(poses[-1].numpy(), actions[:, step].numpy())
        moved[:, 6] = moved[:, 6].clip(0, 1)
        poses.append(torch.as_tensor(moved, dtype=torch.float32))
    # Shared inputs and parts mean matrix products of other sizes, which round otherwise, anew at every step.
    for at_once in (7, 3, 1):
        monkeypatch.setattr(world, "plan_memory", at_once * world.predictor.plan_bytes(horizon))
        found = world.rollout(problem.tokens, problem.pose7, actions)
        torch.testing.assert_close(found, frames[:, -16:], atol=1e-5 * horizon, rtol=0)


def test_plans_imagined_at_once_stay_within_the_memory_given(
    world: WorldModel, golden: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, sizes = problem_of(golden), []
    monkeypatch.setattr(world, "plan_memory", 4 * world.predictor.plan_bytes(2))
    hook = world.predictor.register_forward_pre_hook(lambda _, given: sizes.append(len(given[1])))
    tokens = world.rollout(problem.tokens, problem.pose7, torch.zeros(10, 2, 7))
    hook.remove()
    assert sizes == [4, 4, 2] and len(tokens) == 10
    each = world.predict(tokens, torch.zeros(10, 7), torch.zeros(10, 7))
    monkeypatch.setattr(world, "plan_memory", 3 * world.predictor.plan_bytes(1))
    torch.testing.assert_close(world.predict(tokens, torch.zeros(10, 7), torch.zeros(10, 7)), each, atol=1e-5, rtol=0)


def test_cem_equals_the_official_planner_given_its_noise(world: WorldModel, golden: dict[str, torch.Tensor]) -> None:
    cem = CEM(samples=16, iterations=3, elites=4, horizon=2, box=0.075, momentum_mean=0.15, momentum_std=0.75, momentum_gripper=0.15, gripper=True)
    found = cem.search(world, problem_of(golden), golden["cem_noise"])
    torch.testing.assert_close(found.energies, golden["cem_energies"], atol=3e-5, rtol=0)
    torch.testing.assert_close(found.actions, golden["cem_action"][0], atol=3e-6, rtol=0)


def test_cem_searches_a_box_not_the_ball_the_paper_names(world: WorldModel, golden: dict[str, torch.Tensor]) -> None:
    plan = CEM(samples=8, iterations=1, elites=2, box=1e-4).plan(world, problem_of(golden))
    assert np.abs(plan.action7[:3]).max() <= 1e-4 + 1e-9
    assert not plan.action7[3:].any()
