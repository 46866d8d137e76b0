"""The one definition of resize, crop and normalise for training, evaluation and robots; tensors in and out.

Resizing is bilinear with an antialiasing filter when it shrinks, everywhere and on every device: the choice that makes
a 180 px robot camera and a 720 px recording of the same scene look alike to the encoder. (Upstream mixes three resizers
that differ when they shrink.) A frame that already has the asked size passes through untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ConfigError, ShapeError
from models.layers import config_from_dict

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_EVALUATION_CROP = 256 / 224  # short side before the centre crop, relative to the crop
_DROID_ASPECTS = (0.75, 1.35)  # width / height outside this range is cropped
PreprocessMode = Literal["squash", "short_side_crop", "official_droid_crop"]


def normalise(video: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """(B, C, T, H, W) or (C, T, H, W) with values 0..255 -> float32 of the same shape, ``(v / 255 - mean) / std``.

    Runs where the video is, so that training batches travel to the device as uint8.
    """
    if video.dim() not in (4, 5) or video.shape[-4] != len(mean):
        raise ShapeError(
            "normalise needs the channels before time",
            expected=f"(B, {len(mean)}, T, H, W) or ({len(mean)}, T, H, W)",
            found=str(tuple(video.shape)),
            remedy="Move the channel axis.",
        )
    means = torch.tensor(mean, device=video.device).view(-1, 1, 1, 1)
    stds = torch.tensor(std, device=video.device).view(-1, 1, 1, 1)
    return (video * (1.0 / (255.0 * stds))).sub_(means / stds)


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, C, H, W) float -> (T, C, h, w) float, antialiased bilinear; untouched when the size is already right."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.interpolate(frames, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Frames of a camera or a file -> the video an encoder reads. Its fields travel with the weights.

    squash: resize to (height, width) whatever the aspect.
    short_side_crop: short side to int(height * 256 / 224), centre crop; square only. Upstream evaluation.
    official_droid_crop: a centre crop to aspect 1.35 (or 0.75 for tall frames) at full height (width), then squash; what
        upstream's "random resized crop" of 2-AC always does, because its scale range can never fit.
    """

    height: int
    width: int
    mode: PreprocessMode = "squash"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # JSON brings lists
        object.__setattr__(self, "std", tuple(self.std))
        if self.mode not in ("squash", "short_side_crop", "official_droid_crop"):
            raise ConfigError(
                "Unknown preprocessing mode",
                expected="squash, short_side_crop or official_droid_crop",
                found=str(self.mode),
            )
        if self.height < 1 or self.width < 1 or (self.mode == "short_side_crop" and self.height != self.width):
            raise ConfigError(
                "The preprocessing size cannot be used",
                expected="positive, and square for short_side_crop",
                found=f"{self.height} x {self.width}",
            )

    def __call__(self, frames: Tensor) -> Tensor:
        """frames (T, H, W, C) uint8 RGB -> video (C, T, height, width) float32. Raises ShapeError on anything else."""
        if frames.dim() != 4 or frames.dtype != torch.uint8 or frames.shape[-1] != len(self.mean) or 0 in frames.shape:
            raise ShapeError(
                "Preprocessing needs decoded frames",
                expected=f"(T, H, W, {len(self.mean)}) uint8",
                found=f"{tuple(frames.shape)} {frames.dtype}",
                remedy="Pass RGB frames as decoded, channels last.",
            )
        top, left, height, width = self.crop_box(frames.shape[1], frames.shape[2])
        channels_first = frames[:, top : top + height, left : left + width].permute(0, 3, 1, 2).float()
        if self.mode == "short_side_crop":
            channels_first = self._short_side(channels_first)
        else:
            channels_first = resize(channels_first, (self.height, self.width))
        return normalise(channels_first.transpose(0, 1).contiguous(), self.mean, self.std)

    def crop_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) in source pixels kept before resizing."""
        crop_height, crop_width = height, width
        if self.mode == "official_droid_crop":
            lowest, highest = _DROID_ASPECTS
            if width / height < lowest:
                crop_height = round(width / lowest)
            elif width / height > highest:
                crop_width = round(height * highest)
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width

    def _short_side(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        short = int(self.height * _EVALUATION_CROP)
        size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
        resized = resize(frames, size)
        top, left = (size[0] - self.height) // 2, (size[1] - self.width) // 2
        return resized[..., top : top + self.height, left : left + self.width]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        return config_from_dict(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
