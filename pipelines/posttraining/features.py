"""What post-training learns from: every frame of every episode, encoded once by the frozen encoder and kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.encoder import VideoEncoder, encode_frames, layer_norm_features
from models.preprocessing import Preprocess
from models.weights import state_digest
from pipelines.episodes.episode import Episode, actions_from_poses
from pipelines.errors import InputError
from pipelines.identity import digest_of, stable_seed

STEP_TOLERANCE = 0.1
_ENCODE_BATCH = 64


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """F frames of E episodes, one after the other; episode e owns frames starts[e] to starts[e + 1].

    tokens (F, N, D) float16, layer-normed without affine. poses (F, 7) float32 (m, rad, gripper 0..1). actions (F, 7)
    float32 lead from a frame to the next one of its episode; those of last frames are zero and never used.
    """

    tokens: Tensor
    poses: Tensor
    actions: Tensor
    starts: Tensor

    def __len__(self) -> int:
        return len(self.starts) - 1

    def windows(self, episodes: Sequence[int], frames: int) -> Tensor:
        """First frames (W,) int64 of all windows of `frames` consecutive frames inside the named episodes."""
        firsts = [
            torch.arange(int(self.starts[episode]), int(self.starts[episode + 1]) - frames + 1) for episode in episodes
        ]
        return torch.cat(firsts) if firsts else torch.empty(0, dtype=torch.int64)

    def episode_of(self, frames: Tensor) -> Tensor:
        """Episode index of each frame index."""
        return torch.searchsorted(self.starts, frames, right=True) - 1


def split_episodes(episode_ids: Sequence[str], validation_share: float) -> tuple[list[int], list[int]]:
    """Indices of (training, validation) episodes, by a hash of each id: adding episodes never moves one across.

    Only when one side would be empty does the episode with the extreme hash change sides. Raises InputError below two.
    """
    if len(episode_ids) < 2:
        raise InputError(
            "too few robot episodes to learn from and to validate on", expected="at least 2", found=str(len(episode_ids)),
            remedy="record or read in more episodes",
        )  # fmt: skip
    places = [stable_seed("validation split", episode_id) / 2**63 for episode_id in episode_ids]
    validation = {index for index, place in enumerate(places) if place < validation_share}
    by_place = sorted(range(len(places)), key=lambda index: places[index])
    if not validation:
        validation = {by_place[0]}
    elif len(validation) == len(places):
        validation.discard(by_place[-1])
    training = [index for index in range(len(places)) if index not in validation]
    return training, sorted(validation)


def common_step(episodes: Sequence[Episode]) -> float:
    """Physical time between observations (s); raises InputError when episodes disagree, because an action means nothing
    without its duration."""
    steps = np.array([episode.step_s for episode in episodes])
    median = float(np.median(steps))
    far = np.flatnonzero(np.abs(steps - median) > STEP_TOLERANCE * median)
    if len(far):
        raise InputError(
            "robot episodes have different time steps", expected=f"{median:.3f} s, as most have",
            found=f"{steps[far[0]]:.3f} s in {episodes[far[0]].episode_id} and {len(far) - 1} others",
            remedy="normalise them to one step_s when they are read in",
        )  # fmt: skip
    return median


@torch.inference_mode()
def encode_episodes(
    encoder: VideoEncoder, episodes: Sequence[Episode], preprocess: Preprocess, *,
    progress: Callable[..., None] | None = None,
) -> FrameFeatures:  # fmt: skip
    """Decode and encode every frame alone (as a static tubelet), the way V-JEPA 2-AC sees the world."""
    encoder.eval()
    tokens: list[Tensor] = []
    for done, episode in enumerate(episodes, start=1):
        video = preprocess(torch.from_numpy(episode.read_frames())).transpose(0, 1)  # (T, C, H, W)
        tokens += [
            layer_norm_features(encode_frames(encoder, part)).to(torch.float16) for part in video.split(_ENCODE_BATCH)
        ]
        if progress is not None:
            progress(done, len(episodes))
    actions = [np.concatenate([actions_from_poses(episode.poses), np.zeros((1, 7))]) for episode in episodes]
    lengths = [len(episode) for episode in episodes]
    return FrameFeatures(
        tokens=torch.cat(tokens),
        poses=torch.from_numpy(np.concatenate([episode.poses for episode in episodes])).float(),
        actions=torch.from_numpy(np.concatenate(actions)).float(),
        starts=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64),
    )


def cached_features(
    path: Path, encoder: VideoEncoder, episodes: Sequence[Episode], preprocess: Preprocess, *,
    progress: Callable[..., None] | None = None,
) -> FrameFeatures:  # fmt: skip
    """`encode_episodes`, kept at `path`; a file made from other weights, episodes or sizes is made again."""
    key = digest_of(
        [state_digest(encoder), preprocess.to_dict(), [[item.episode_id, item.poses.tolist()] for item in episodes]]
    )
    found = _read(path, key)
    if found is not None:
        return found
    features = encode_episodes(encoder, episodes, preprocess, progress=progress)
    draft = path.with_name(f".{path.name}.draft")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(features, name).contiguous() for name in FrameFeatures.__dataclass_fields__}
    save_file(tensors, draft, metadata={"key": key})
    draft.replace(path)
    return features


def _read(path: Path, key: str) -> FrameFeatures | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return FrameFeatures(**{name: file.get_tensor(name) for name in FrameFeatures.__dataclass_fields__})
    except SafetensorError:  # cut short by a full disk or a power cut: it is only a cache
        return None
