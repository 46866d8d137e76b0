"""From windows to features: batches through a frozen encoder, and the same for one video in a notebook."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.encoder import VideoEncoder
from pipelines.errors import InputError
from pipelines.features.settings import FeatureSettings, settings_for
from pipelines.features.windows import Window, windows_of

_TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 32768}  # 2 and 16 windows of 16 frames at 256 px: larger batches gain little


@dataclass(frozen=True, eq=False)
class WindowFeatures:
    """Features of one window: times in s from the video's first frame, `filled` frames repeated at the end, and
    `values` without batch axis: (D,) for pool clip, (T', D) for frame, (T', H', W', D) for dense; layers come before."""

    number: int
    start_s: float
    end_s: float
    filled: int
    values: NDArray[Any]


def video_features(
    encoder: VideoEncoder, path: str | Path, settings: FeatureSettings | None = None, *, batch: int | None = None, **options: Any
) -> Iterator[WindowFeatures]:
    """Features of every window of one video, in order, on the device the encoder is on.

    Pass `settings`, or the options of `settings_for` (fps, frames, size, mode, pool, layers ...). One hour of video needs
    no more memory than one batch. Raises RejectedVideo when the file is not a video or is damaged.
    """
    if settings is None:
        settings = settings_for(encoder.config, **options)
    elif options:
        raise InputError("Settings and single options contradict each other", expected="one of the two", found=", ".join(options), remedy="Pass either.")
    if not Path(path).exists():
        raise InputError(f"{path} does not exist", expected="a video", found="nothing there", remedy="Check the path.")
    windows = windows_of(Path(path), settings)
    while together := list(islice(windows, batch or default_batch(encoder, settings))):
        for window, values in zip(together, encode(encoder, together, settings), strict=True):
            yield WindowFeatures(window.number, window.start_s, window.end_s, window.filled, values)


def default_batch(encoder: VideoEncoder, settings: FeatureSettings) -> int:
    """Windows to encode together: by tokens, so that long windows do not fill the memory."""
    time, rows, columns = settings.grid
    return max(1, _TOKENS_AT_ONCE.get(_device_of(encoder).type, 4096) // (time * rows * columns))


@torch.inference_mode()
def encode(encoder: VideoEncoder, windows: Sequence[Window], settings: FeatureSettings) -> NDArray[Any]:
    """Features of windows as one array (n, ...) in the settings' stored type; see FeatureSettings for the axes behind n."""
    device = _device_of(encoder)
    video = torch.stack([window.video for window in windows]).to(device, non_blocking=True)  # (n, C, T, H, W)
    half = settings.precision == "bf16"
    encoder.eval()
    with torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext():
        found = encoder(video, layers=list(settings.layers) or None)
    pooled = [_pool(tokens, settings) for tokens in (found if settings.layers else [found])]
    features = torch.stack(pooled, dim=1) if settings.layers else pooled[0]
    array = features.cpu().numpy().astype(np.dtype(settings.stored))
    if not np.isfinite(array).all():
        raise InputError(
            "The encoder's features are not finite", expected="numbers", found="NaN or infinity",
            remedy="Look at the weights with `tubelet weights inspect`; try --dtype float32 and --precision fp32.",
        )  # fmt: skip
    return array


def _pool(tokens: Tensor, settings: FeatureSettings) -> Tensor:
    """(n, N, D) -> (n, D), (n, T', D) or (n, T', H', W', D) float32."""
    grid = tokens.float().unflatten(1, settings.grid)
    if settings.pool == "clip":
        return grid.mean((1, 2, 3))
    return grid.mean((2, 3)) if settings.pool == "frame" else grid


def _device_of(encoder: VideoEncoder) -> torch.device:
    return next(encoder.parameters()).device
