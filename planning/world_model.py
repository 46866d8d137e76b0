"""The world model in use: frozen encoder, action-conditioned predictor, and the preprocessing that belongs to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    `plan_memory` (bytes) bounds how many plans are imagined at once: more are cut into parts, equal up to rounding.
    """

    def __init__(
        self,
        encoder: VideoEncoder,
        predictor: ActionConditionedPredictor,
        preprocess: Preprocess,
        plan_memory: int = 2 * 1024**3,
    ) -> None:
        size = (preprocess.height, preprocess.width)
        if tuple(predictor.config.img_size) != size or predictor.config.embed_dim != encoder.config.embed_dim:
            raise ShapeError(
                "encoder, predictor and preprocessing do not belong together",
                expected=f"images of {size}, width {encoder.config.embed_dim}",
                found=f"predictor for {tuple(predictor.config.img_size)}, width {predictor.config.embed_dim}",
                remedy="take all three from one world_model artefact",
            )
        self.encoder, self.predictor, self.preprocess = encoder.eval(), predictor.eval(), preprocess
        self.calls, self.plan_memory = 0, plan_memory

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
        return self._imagine(tokens, actions[:, None], [poses])

    @torch.inference_mode()
    def rollout(self, tokens: Tensor, pose7: np.ndarray, actions: Tensor) -> Tensor:
        """tokens (N, D), pose7 (7,), actions (B, H, 7) -> tokens after the last step (B, N, D).

        Every step sees all earlier ones (block-causal context) and poses integrated from the commands, as upstream.
        """
        poses = [torch.as_tensor(pose7, dtype=torch.float32)[None]]
        for action in actions.unbind(1)[:-1]:
            moved = integrate(poses[-1].double().numpy(), action.double().numpy())
            moved[:, 6] = np.clip(moved[:, 6], 0.0, 1.0)
            poses.append(torch.as_tensor(moved, dtype=torch.float32))
        return self._imagine(tokens[None], actions, poses)

    def _imagine(self, tokens: Tensor, actions: Tensor, poses: Sequence[Tensor]) -> Tensor:
        """The last frame (B, N, D) of plans from tokens (B or 1, N, D) under actions (B, H, 7) at H poses (B or 1, 7).

        Plans go through the predictor as many at a time as `plan_memory` holds, at least one.
        """
        samples, horizon = actions.shape[:2]
        self.calls += samples * horizon
        at_once = max(1, self.plan_memory // self.predictor.plan_bytes(horizon))
        last = []
        for start in range(0, samples, at_once):
            plans = slice(start, start + at_once)
            states = [_of(pose, plans) for pose in poses]
            frame, past = _of(tokens, plans), None
            for step in range(horizon - 1):
                predicted, past = self.predictor.step(frame, actions[plans, step], states[step], past=past)
                frame = layer_norm_features(predicted)
            predicted = self.predictor(frame, actions[plans, -1:], states[-1][:, None], past=past)
            last.append(layer_norm_features(predicted))
        return torch.cat(last)


def _of(shared_or_each: Tensor, plans: slice) -> Tensor:
    """The rows of some plans, or the one row that all share."""
    return shared_or_each if len(shared_or_each) == 1 else shared_or_each[plans]
