"""Running a frozen network so that a clip's features depend on that clip alone: full batches, fixed threads, exact kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.embedding import EmbeddingSettings, unit_rows
from pipelines.errors import InputError

if TYPE_CHECKING:
    import torch

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""A batch of pictures or clips (B, ..., H, W, 3) uint8 -> features (B, D) float32."""


def in_batches(items: NDArray[np.uint8], batch: int, run: Run, dimensions: int) -> NDArray[np.float32]:
    """(N, ...) -> (N, D): `run` on batches of exactly `batch` items, the last one filled up with black.

    Kernels are chosen by shape and may add in another order for another one: with one shape, features do not depend on
    how many items came together. Raises `InputError` when features are not finite.
    """
    features = np.empty((len(items), dimensions), np.float32)
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        padded = np.zeros((batch, *items.shape[1:]), np.uint8)
        padded[: len(part)] = part
        features[start : start + len(part)] = run(padded)[: len(part)]
    if not np.isfinite(features).all():
        raise InputError(
            "the encoder's features are not finite", expected="numbers", found="NaN or infinity",
            remedy="look at its weights (tubelet weights inspect), and embed with precision fp32",
        )  # fmt: skip
    return features


def mean_over_frames(frames: NDArray[np.uint8], batch: int, run: Run, dimensions: int) -> NDArray[np.float32]:
    """Clips (N, T, H, W, 3) through an image encoder, frame by frame: (N, D), the mean of the frames' unit vectors."""
    clips, count = frames.shape[:2]
    features = in_batches(frames.reshape(clips * count, *frames.shape[2:]), batch, run, dimensions)
    return unit_rows(features).reshape(clips, count, dimensions).mean(axis=1)


@contextlib.contextmanager
def exact_torch(settings: EmbeddingSettings) -> Iterator[None]:
    """Inside, torch runs without gradients on the settings' threads and with repeatable full-precision convolutions."""
    import torch

    former = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(former)


@contextlib.contextmanager
def autocast(settings: EmbeddingSettings) -> Iterator[None]:
    """bf16 arithmetic where the settings ask for it."""
    import torch

    with torch.autocast("cuda", torch.bfloat16) if settings.precision == "bf16" else contextlib.nullcontext():
        yield


def device_of(settings: EmbeddingSettings) -> torch.device:
    """The device that the settings name; raises `InputError` when this machine has none such, and on bf16 without a GPU."""
    import torch

    try:
        device = torch.device(settings.device)
    except RuntimeError as error:
        raise InputError(f"there is no device {settings.device}", expected="cpu, cuda or cuda:1", found=settings.device, remedy="name one of these") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no GPU to embed on", expected="a CUDA device", found="none", remedy="embed with device cpu")
    if settings.precision == "bf16" and device.type != "cuda":
        raise InputError("bf16 is for GPUs", expected="a CUDA device (a CPU is slower in bf16 than in fp32)", found=settings.device, remedy="embed with precision fp32")
    return device


def arithmetic(settings: EmbeddingSettings, batch: int) -> dict[str, object]:
    """What of batches, threads and device can change the last bits of a vector, for the digest."""
    return {"batch": batch, "threads": settings.threads, "device": settings.device.partition(":")[0], "precision": settings.precision}
