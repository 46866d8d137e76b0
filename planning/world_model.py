"""The world model in use: frozen encoder, action-conditioned predictor, and the preprocessing that belongs to them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.action_predictor import ActionConditionedPredictor
from models.encoder import VideoEncoder, encode_frames, layer_norm_features
from models.errors import ShapeError
from models.preprocessing import Preprocess
from models.weights import load_module
from pipelines.episodes.episode import integrate
from pipelines.errors import InputError


class WorldModel:
    """Images to tokens, and tokens under commands to the next tokens; all layer-normed without affine.

    Runs under inference_mode on the threads the caller has set. `calls` counts predictor evaluations (samples x steps).
    """

    def __init__(self, encoder: VideoEncoder, predictor: ActionConditionedPredictor, preprocess: Preprocess) -> None:
        size = (preprocess.height, preprocess.width)
        if tuple(predictor.config.img_size) != size or predictor.config.embed_dim != encoder.config.embed_dim:
            raise ShapeError(
                "encoder, predictor and preprocessing do not belong together",
                expected=f"images of {size}, width {encoder.config.embed_dim}",
                found=f"predictor for {tuple(predictor.config.img_size)}, width {predictor.config.embed_dim}",
                remedy="take all three from one world_model artefact",
            )
        self.encoder, self.predictor, self.preprocess = encoder.eval(), predictor.eval(), preprocess
        self.calls = 0

    @classmethod
    def load(cls, folder: Path, weights: Path | None = None) -> WorldModel:
        """Read `encoder`, `predictor` (safetensors and json) and `preprocess.json` from a folder.

        `weights`: take the two networks from there instead (the random-encoder control keeps them in a subfolder).
        """
        source = weights or folder
        try:
            preprocess = Preprocess.from_dict(json.loads((folder / "preprocess.json").read_text()))
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(
                f"{folder} is not a world model", expected="encoder.*, predictor.*, preprocess.json", found=str(error),
                remedy="point at a world_model artefact or at a bundle",
            ) from error  # fmt: skip
        return cls(load_module(source, "encoder"), load_module(source, "predictor"), preprocess)

    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> Tensor:
        """image (H, W, 3) uint8 RGB -> tokens (N, D) float32, layer-normed."""
        frame = self.preprocess(torch.from_numpy(np.ascontiguousarray(image))[None])[:, 0]  # (C, H, W)
        return layer_norm_features(encode_frames(self.encoder, frame[None]))[0]

    @torch.inference_mode()
    def predict(self, tokens: Tensor, actions: Tensor, poses: Tensor) -> Tensor:
        """tokens (B or 1, N, D), actions (B, 7), poses (B or 1, 7) -> the next frame's tokens (B, N, D)."""
        self.calls += len(actions)
        return layer_norm_features(self.predictor(tokens, actions[:, None], poses[:, None]))

    @torch.inference_mode()
    def rollout(self, tokens: Tensor, pose7: np.ndarray, actions: Tensor) -> Tensor:
        """tokens (N, D), pose7 (7,), actions (B, H, 7) -> tokens after the last step (B, N, D).

        Every step sees all earlier ones (block-causal context) and poses integrated from the commands, as upstream.
        """
        samples, horizon = actions.shape[:2]
        pose = torch.as_tensor(pose7, dtype=torch.float32)[None]
        if horizon == 1:
            return self.predict(tokens[None], actions[:, 0], pose)
        frames, poses = tokens.expand(samples, -1, -1), [pose.expand(samples, -1)]
        for step in range(horizon):
            states = torch.stack(poses, dim=1)
            predicted = self.predictor(frames, actions[:, : step + 1], states)[:, -len(tokens) :]
            self.calls += samples
            frames = torch.cat([frames, layer_norm_features(predicted)], dim=1)
            moved = integrate(poses[-1].double().numpy(), actions[:, step].double().numpy())
            moved[:, 6] = np.clip(moved[:, 6], 0.0, 1.0)
            poses.append(torch.as_tensor(moved, dtype=torch.float32))
        return frames[:, -len(tokens) :]
