"""A world model of random numbers, small enough for tests that only care about the way, not about where it leads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import EncoderConfig, VideoEncoder
from models.preprocessing import Preprocess
from models.weights import save_module
from pipelines.recipes import Recipe, load_recipe

SIDE = 48


@pytest.fixture(scope="session")
def smoke_recipe() -> Recipe:
    return load_recipe("smoke")


@pytest.fixture(scope="session")
def random_world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as a world_model artefact, with its control."""
    folder = tmp_path_factory.mktemp("world_model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for place in (folder, folder / "control"):
            place.mkdir(exist_ok=True)
            encoder = VideoEncoder(EncoderConfig(embed_dim=32, depth=1, num_heads=2, img_size=(SIDE, SIDE), num_frames=2))
            predictor = ActionConditionedPredictor(
                ActionPredictorConfig(
                    embed_dim=32, depth=1, num_heads=2, predictor_embed_dim=32, img_size=(SIDE, SIDE), num_frames=2,
                    residual=True, init_std=0.08, action_scale=20.0,
                )
            )  # fmt: skip
            save_module(encoder, place, "encoder")
            save_module(predictor, place, "predictor")
    (folder / "preprocess.json").write_text(json.dumps(Preprocess(height=SIDE, width=SIDE).to_dict()))
    return folder
