"""Frames and windows of episodes, and what an encoder, or plain pixels, make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.encoder import VideoEncoder, encode_frames
from models.preprocessing import Preprocess
from pipelines.episodes.episode import Episode
from pipelines.errors import InputError
from pipelines.identity import stable_seed

PIXEL_GRID = 24
"""Side (px) of the downsampled frames in the flattened pixel baseline."""
WINDOW_PIXEL_GRID = 8
_BATCH = 64


@dataclass(frozen=True, eq=False)
class FrameSet:
    """n frames: images (n, H, W, 3) uint8, pose xyz (n, 3) m, cube xy (n, 2) m or None, episode (n,) int64."""

    images: NDArray[np.uint8]
    positions: NDArray[np.float64]
    cubes: NDArray[np.float64] | None
    episodes: NDArray[np.int64]

    def targets(self) -> tuple[NDArray[np.float64], tuple[str, ...]]:
        """What a frame probe reads out (n, k), and the names of its columns."""
        names = ("ee_x", "ee_y", "ee_z")
        if self.cubes is None:
            return self.positions, names
        return np.concatenate([self.positions, self.cubes], axis=1), (*names, "cube_x", "cube_y")


@dataclass(frozen=True, eq=False)
class WindowSet:
    """n windows of T consecutive frames: clips (n, T, H, W, 3) uint8, moved (n, 3) m from first to last, episode (n,)."""

    clips: NDArray[np.uint8]
    moved: NDArray[np.float64]
    episodes: NDArray[np.int64]

    def with_reversed(self) -> WindowSet:
        """Every window and, right after it, the same played backwards: order-blind features are then at chance."""
        clips = np.stack([self.clips, self.clips[:, ::-1]], axis=1)
        moved = np.stack([self.moved, -self.moved], axis=1)
        return WindowSet(clips.reshape(-1, *self.clips.shape[1:]), moved.reshape(-1, 3), np.repeat(self.episodes, 2))


def draw(
    episodes: Sequence[Episode], indices: Sequence[int], *, frames: int, windows: int, length: int, seed: int,
    progress: Callable[[], None] | None = None,
) -> tuple[FrameSet, WindowSet]:  # fmt: skip
    """About `frames` frames and `windows` windows of `length` frames, spread over the named episodes.

    Each video is decoded once. Raises InputError when no episode is long enough for a window.
    """
    images, positions, cubes, owners = [], [], [], []
    clips, moved, clip_owners = [], [], []
    with_cube = all(episodes[index].cube_xy is not None for index in indices)
    frames_each = max(1, -(-frames // len(indices)))
    long_enough = [index for index in indices if len(episodes[index]) >= length]
    windows_left = windows
    for index in indices:
        episode = episodes[index]
        random = np.random.default_rng(stable_seed("probe frames", seed, episode.episode_id))
        pixels = episode.read_frames()
        rows = np.sort(random.choice(len(episode), min(frames_each, len(episode)), replace=False))
        images.append(pixels[rows])
        positions.append(episode.poses[rows, :3])
        if with_cube and episode.cube_xy is not None:
            cubes.append(episode.cube_xy[rows])
        owners += [index] * len(rows)
        if index in long_enough and windows_left > 0:
            share = -(-windows_left // (len(long_enough) - long_enough.index(index)))
            firsts = random.choice(
                len(episode) - length + 1, min(share, len(episode) - length + 1), replace=False
            )
            for first in np.sort(firsts):
                clips.append(pixels[first : first + length])
                moved.append(episode.poses[first + length - 1, :3] - episode.poses[first, :3])
                clip_owners.append(index)
            windows_left -= len(firsts)
        if progress is not None:
            progress()
    if not clips:
        raise InputError(
            "no episode is long enough for a motion probe", expected=f"episodes of at least {length} frames",
            found="shorter ones", remedy="lower probes.clip_steps, or record longer episodes",
        )  # fmt: skip
    frame_set = FrameSet(
        np.concatenate(images), np.concatenate(positions), np.concatenate(cubes) if with_cube else None, np.asarray(owners)
    )
    return frame_set, WindowSet(np.stack(clips), np.stack(moved), np.asarray(clip_owners))


@torch.inference_mode()
def frame_tokens(encoder: VideoEncoder, images: NDArray[np.uint8], preprocess: Preprocess) -> Tensor:
    """images (n, H, W, 3) uint8, each encoded alone as a static tubelet -> tokens (n, N, D) float32."""
    parts, device = torch.from_numpy(images).split(_BATCH), _device_of(encoder)
    return torch.cat([encode_frames(encoder, preprocess(part).transpose(0, 1).to(device)).cpu() for part in parts])


@torch.inference_mode()
def clip_tokens(encoder: VideoEncoder, clips: NDArray[np.uint8], preprocess: Preprocess) -> Tensor:
    """clips (n, T, H, W, 3) uint8 -> tokens (n, T / tubelet, N, D) float32."""
    steps, device = clips.shape[1] // encoder.config.tubelet_size, _device_of(encoder)
    encoded = []
    for part in torch.from_numpy(np.ascontiguousarray(clips)).split(_BATCH // 4):
        flat = preprocess(part.flatten(0, 1))  # (3, b * T, h, w)
        encoded.append(encoder(flat.unflatten(1, part.shape[:2]).transpose(0, 1).to(device)).cpu())
    return torch.cat(encoded).unflatten(1, (steps, -1))


def _device_of(encoder: VideoEncoder) -> torch.device:
    return next(encoder.parameters()).device


def clips_by_time(encoder: VideoEncoder, clips: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float64]:
    """clips (n, T, H, W, 3) uint8 -> (n, t * D), as `pooled_by_time`; all tokens of many clips at once would not fit into memory."""
    return np.concatenate([pooled_by_time(clip_tokens(encoder, clips[first : first + _BATCH], preprocess)) for first in range(0, len(clips), _BATCH)])


def pooled_clips(encoder: VideoEncoder, clips: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float64]:
    """clips (n, T, H, W, 3) uint8 -> the mean over all tokens of each, (n, D)."""
    by_time = clips_by_time(encoder, clips, preprocess)
    return by_time.reshape(len(clips), clips.shape[1] // encoder.config.tubelet_size, -1).mean(1)


def pooled_frames(encoder: VideoEncoder, images: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float64]:
    """images (n, H, W, 3) uint8, each alone as a static tubelet -> the mean over its tokens, (n, D)."""
    return np.concatenate([pooled(frame_tokens(encoder, images[first : first + _BATCH], preprocess)) for first in range(0, len(images), _BATCH)])


def pooled(tokens: Tensor) -> NDArray[np.float64]:
    """Mean over a frame's tokens: (n, N, D) -> (n, D)."""
    return tokens.double().mean(1).numpy()


def pooled_by_time(tokens: Tensor) -> NDArray[np.float64]:
    """Mean over space, time kept: (n, t, N, D) -> (n, t * D)."""
    return tokens.double().mean(2).flatten(1).numpy()


def flattened(tokens: Tensor) -> NDArray[np.float64]:
    """Every number of every token: (n, ..., D) -> (n, all)."""
    return tokens.flatten(1).double().numpy()


def pixel_vectors(images: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """(n, H, W, 3) uint8 averaged down to side x side pixels -> (n, side * side * 3) in 0..1."""
    batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(batch, size=(side, side), mode="area")
    return (small.flatten(1).double() / 255).numpy()


def pixel_patches(images: NDArray[np.uint8], patch: int, preprocess: Preprocess) -> NDArray[np.float64]:
    """The mean patch of each frame, (n, patch * patch * 3): pixels pooled the way mean pooling treats tokens."""
    vectors = []
    for part in torch.from_numpy(images).split(_BATCH):
        video = preprocess(part).transpose(0, 1)  # (b, 3, h, w)
        cut = video.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))  # (b, 3, rows, patch, columns, patch)
        vectors.append(cut.mean((2, 4)).flatten(1))
    return torch.cat(vectors).double().numpy()


def pixel_windows(clips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, T, H, W, 3) uint8 -> (n, T * side * side * 3): coarse pixels of every frame, in order."""
    flat = clips.reshape(-1, *clips.shape[2:])
    return pixel_vectors(flat, WINDOW_PIXEL_GRID).reshape(len(clips), -1)
