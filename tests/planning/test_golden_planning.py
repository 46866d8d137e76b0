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
from models.encoder import EncoderConfig, VideoEncoder
from models.preprocessing import Preprocess
from models.weights import from_official
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


@pytest.mark.parametrize("steps", [1, 2])
def test_rollout_and_energy_equal_the_official_energy_notebook(world: WorldModel, golden: dict[str, torch.Tensor], steps: int) -> None:
    problem = problem_of(golden)
    before = world.calls
    tokens = world.rollout(problem.tokens, problem.pose7, golden["actions_grid"][:, None].expand(-1, steps, -1))
    assert world.calls - before == 27 * steps
    torch.testing.assert_close(tokens, golden[f"z_pred_steps{steps}"], atol=3e-5, rtol=0)
    energy = latent_energy(tokens, problem.goal_tokens).double()
    torch.testing.assert_close(energy, golden[f"energy_steps{steps}"], atol=3e-6, rtol=0)


def test_cem_equals_the_official_planner_given_its_noise(world: WorldModel, golden: dict[str, torch.Tensor]) -> None:
    cem = CEM(samples=16, iterations=3, elites=4, horizon=2, box=0.075, momentum_mean=0.15, momentum_std=0.75, momentum_gripper=0.15, gripper=True)
    found = cem.search(world, problem_of(golden), golden["cem_noise"])
    torch.testing.assert_close(found.energies, golden["cem_energies"], atol=3e-5, rtol=0)
    torch.testing.assert_close(found.actions, golden["cem_action"][0], atol=3e-6, rtol=0)


def test_cem_searches_a_box_not_the_ball_the_paper_names(world: WorldModel, golden: dict[str, torch.Tensor]) -> None:
    plan = CEM(samples=8, iterations=1, elites=2, box=1e-4).plan(world, problem_of(golden))
    assert np.abs(plan.action7[:3]).max() <= 1e-4 + 1e-9
    assert not plan.action7[3:].any()
