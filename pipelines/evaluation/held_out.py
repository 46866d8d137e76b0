"""Measures without labels, on evaluation clips that no training saw: for those who adapt an encoder and have labelled nothing.

What they show is less than a probe shows. Finding a clip's other half among all clips asks that an encoder tells clips apart and keeps
what stays the same within one; colours alone go a long way. Predicting hidden parts is what was trained, measured against the network's
own features: a lower number says that the training carries over to new clips, not that features have become more useful.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.encoder import VideoEncoder
from models.predictor import MaskedPredictor
from models.preprocessing import Preprocess
from pipelines.evaluation.features import pooled_clips
from pipelines.identity import stable_seed
from pipelines.pretraining.masks import sample_masks
from pipelines.pretraining.objective import JEPA, constant_floor, strategy_losses, target_tokens
from pipelines.recipes import Recipe
from pipelines.schemas import CLIPS, read_table
from pipelines.sources.targets import EVALUATION
from pipelines.video.decode import frames_at

Array = NDArray[np.float64]
MOST = 512
"""Clips at most. Where a tenth of the answers change, as many leave an interval of plus and minus 2.7 points."""
FLOOR_CLIPS = 64


@dataclass(frozen=True, eq=False)
class HeldOut:
    """n evaluation clips: `first` and `second` (n, T, h, w, 3) uint8, a window in the middle of each half; `videos` (n,) whose they are."""

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]
    videos: NDArray[np.str_]


def read_held_out(folder: Path, frames: int, size: tuple[int, int], fps: float) -> HeldOut | None:
    """The evaluation clips of a `target_videos` artefact, labelled or not, `frames` frames at `fps` of each half (closer together where
    a half is shorter); None when there are fewer than two. Beyond `MOST`, those with the smallest ids, which are digests."""
    rows = {row["clip_id"]: row for row in read_table(folder / "clips.parquet", CLIPS).to_pylist() if row["source"].endswith(EVALUATION)}
    chosen = [rows[name] for name in sorted(rows)[:MOST]]
    if len(chosen) < 2:
        return None
    with ThreadPoolExecutor(2) as pool:  # the decoder leaves Python's lock
        windows = np.stack(list(pool.map(lambda row: _windows(folder, row, frames, size, fps), chosen)))
    return HeldOut(windows[:, :frames], windows[:, frames:], np.array([row["video_id"] for row in chosen]))


def _windows(folder: Path, row: dict[str, Any], frames: int, size: tuple[int, int], fps: float) -> NDArray[np.uint8]:
    """(2 * frames, h, w, 3): a window in each half of a clip."""
    length, tick = row["end_pts"] - row["start_pts"], row["time_base_num"] / row["time_base_den"]
    step = min((1 / fps) / tick, length / 2 / frames)
    offsets = (np.arange(frames) - frames / 2) * step
    wanted = [row["start_pts"] + round(length * middle + offset) for middle in (0.25, 0.75) for offset in offsets]
    path = Path(row["path"])
    return np.stack(frames_at(path if path.is_absolute() else folder / path, wanted, size=size))


def halves_found(encoder: VideoEncoder, held_out: HeldOut, preprocess: Preprocess) -> Array:
    """(n,) for each clip, in how many of two searches, from first half to second and back, the nearest of all n is its own: 0, 1/2 or 1.

    Features are means over all tokens, less their mean over the clips, compared by cosine.
    """
    first, second = (pooled_clips(encoder, part, preprocess) for part in (held_out.first, held_out.second))
    centre = np.concatenate([first, second]).mean(0)
    one, two = (_unit(part - centre) for part in (first, second))
    alike, own = one @ two.T, np.arange(len(one))
    return ((alike.argmax(1) == own).astype(float) + (alike.argmax(0) == own)) / 2


def prediction_errors(networks: dict[str, nn.Module], held_out: HeldOut, preprocess: Preprocess, recipe: Recipe) -> Array:
    """(n,) L1 of the predicted hidden tokens of each clip's first half, over that of a constant guess, the mean target: 1 has learned nothing.

    `networks` are encoder, target_encoder and predictor. Masks are those of the recipe's first phase, the same for every network.
    """
    phase, seed = recipe.pretraining.pretrain, stable_seed("held-out masks", recipe.seed)
    encoder, target = cast(VideoEncoder, networks["encoder"]), networks["target_encoder"]
    predictor = cast(MaskedPredictor, networks["predictor"])
    student = JEPA(encoder, predictor, len(phase.masks), predictor.config.context_output)
    config, device = encoder.config, next(encoder.parameters()).device
    grid = (held_out.first.shape[1] // config.tubelet_size, preprocess.height // config.patch_size, preprocess.width // config.patch_size)
    errors, targets_seen = np.empty(len(held_out.first)), []
    with torch.inference_mode():
        for number, clip in enumerate(held_out.first):
            masks = [mask.to(device) for mask in sample_masks(phase.masks, grid, seed=seed, phase="held out", step=number, global_batch=1)]
            video = preprocess(torch.from_numpy(clip))[None].to(device)
            targets = target_tokens(target, video)
            errors[number] = float(strategy_losses(student(video, masks), targets, masks).mean())
            if number < FLOOR_CLIPS:
                targets_seen.append(targets.cpu())
    return errors / float(constant_floor(torch.cat(targets_seen)))


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
