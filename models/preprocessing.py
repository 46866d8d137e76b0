"""The one definition of resize, crop and normalise for training, evaluation and robots; tensors in and out.

Resizing is bilinear with half-pixel centres. Shrinking filters against aliasing by default (``antialias``): the choice
that makes a 180 px robot camera and a 720 px recording of the same scene look alike to the encoder. A frame that already
has the asked size passes through untouched. What upstream does when it shrinks:

* without filter: pretraining and 2-AC post-training (float interpolation), the video and anticipation probes (OpenCV,
  which also rounds to whole grey levels);
* with filter: the ImageNet probe (Pillow), the demo notebook on tensors and the Hugging Face processors (torchvision
  since 0.17).

So ``antialias=False`` is the faithful choice for the first group and ``True``, the default, for the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ConfigError, ShapeError
from models.layers import config_from_dict

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Box = tuple[int, int, int, int]
"""Top, left, height, width in px of the source frame."""
PreprocessMode = Literal["squash", "short_side_crop", "official_droid_crop", "random_resized_crop"]

_TRAINING_ASPECTS = (0.75, 1.35)  # width / height, in pretraining and 2-AC alike
_CROP_ATTEMPTS = 10


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


def resize(frames: Tensor, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """(T, C, H, W) uint8 or float -> (T, C, h, w) float, bilinear; values untouched when the size is already right."""
    frames = frames if frames.is_floating_point() else frames.float()
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.interpolate(frames, size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias)


def crop_and_resize(frames: Tensor, box: Box, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """(T, C, H, W) uint8 or float -> the box of every frame at (h, w): (T, C, h, w) float. The box must lie inside."""
    top, left, height, width = box
    bottom, right = top + height, left + width
    if min(top, left) < 0 or min(height, width) < 1 or bottom > frames.shape[-2] or right > frames.shape[-1]:
        raise ShapeError(
            "The crop box does not lie in the frame",
            expected=f"(top, left, height, width) within {frames.shape[-2]} x {frames.shape[-1]} px",
            found=str(tuple(box)),
            remedy="Draw the box for the size of these frames.",
        )
    return resize(frames[..., top:bottom, left:right], size, antialias)


def training_box(
    height: int,
    width: int,
    uniforms: Sequence[float],
    scale: tuple[float, float] = (0.3, 1.0),
    aspect: tuple[float, float] = _TRAINING_ASPECTS,
) -> Box:
    """Upstream's random-resized-crop box for frames of height x width px; one box serves all frames of a clip.

    Ten tries at (share of the area uniform in ``scale``, width / height log-uniform in ``aspect``); the first that fits
    is placed uniformly, and when none fits the box is ``centred_box``. ``uniforms``: 22 numbers in [0, 1), namely area
    and aspect of each try, then top and left.
    """
    if len(uniforms) != 2 * _CROP_ATTEMPTS + 2:
        raise ShapeError(
            "A crop box is drawn from a fixed count of uniforms",
            expected=str(2 * _CROP_ATTEMPTS + 2),
            found=str(len(uniforms)),
            remedy="Pass area and aspect of every try, then top and left.",
        )
    low, high = (math.log(bound) for bound in aspect)
    for attempt in range(_CROP_ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * float(uniforms[2 * attempt]))
        ratio = math.exp(low + (high - low) * float(uniforms[2 * attempt + 1]))
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = float(uniforms[-2]) * (height - box_height + 1), float(uniforms[-1]) * (width - box_width + 1)
            return int(top), int(left), box_height, box_width
    return centred_box(height, width, aspect)


def centred_box(height: int, width: int, aspect: tuple[float, float]) -> Box:
    """The largest centred box of a height x width px frame whose width / height lies within ``aspect``."""
    box_height, box_width = height, width
    if width / height < aspect[0]:
        box_height = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        box_width = max(1, round(height * aspect[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Frames of a camera or a file -> the video an encoder reads. Its fields travel with the weights.

    squash: resize to (height, width) whatever the aspect.
    short_side_crop: short side to int(height * 256 / 224), centre crop; square only. Upstream evaluation.
    official_droid_crop: a centre crop to aspect 1.35 (or 0.75 for tall frames) at full height (width), then squash; what
        upstream's "random resized crop" of 2-AC always does, because its scale range can never fit.
    random_resized_crop: the box given with each call (see ``training_box``), then squash. Upstream pretraining.
    antialias: filter when shrinking; the module's text says which numbers of the paper used which.
    """

    height: int
    width: int
    mode: PreprocessMode = "squash"
    antialias: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # JSON brings lists
        object.__setattr__(self, "std", tuple(self.std))
        if self.mode not in get_args(PreprocessMode):
            raise ConfigError(
                "Unknown preprocessing mode",
                expected=", ".join(get_args(PreprocessMode)),
                found=str(self.mode),
                remedy="Choose one of these modes.",
            )
        if self.height < 1 or self.width < 1 or (self.mode == "short_side_crop" and self.height != self.width):
            raise ConfigError(
                "The preprocessing size cannot be used",
                expected="positive, and square for short_side_crop",
                found=f"{self.height} x {self.width}",
                remedy="Give height and width in px.",
            )

    def __call__(self, frames: Tensor, box: Box | None = None) -> Tensor:
        """frames (T, H, W, C) uint8 RGB, or one image (H, W, C) -> video (C, T, height, width) float32.

        ``box`` is needed by the mode random_resized_crop and refused by the others. Raises ShapeError on anything else.
        """
        channels_first = self._checked(frames)
        if (box is None) == (self.mode == "random_resized_crop"):
            raise ShapeError(
                f"The mode {self.mode} {'needs a' if box is None else 'chooses its own'} crop box",
                expected="(top, left, height, width) in px" if box is None else "no box",
                found=str(box),
                remedy="Draw it with training_box." if box is None else "Use the mode random_resized_crop.",
            )
        size = (self.height, self.width)
        if self.mode == "short_side_crop":
            # Rounded half to even, as upstream: odd margins fall on either side.
            resized = self._short_side(channels_first, self.height * 256 // 224)
            top, left = (round((found - wanted) / 2) for found, wanted in zip(resized.shape[-2:], size, strict=True))
            prepared = resized[..., top : top + self.height, left : left + self.width]
        else:
            height, width = channels_first.shape[-2:]
            if self.mode == "official_droid_crop":
                box = centred_box(height, width, _TRAINING_ASPECTS)
            prepared = crop_and_resize(channels_first, box or (0, 0, height, width), size, self.antialias)
        return self._normalised(prepared)

    def spatial_views(self, frames: Tensor, count: int = 3) -> Tensor:
        """Square views along the long side: (T, H, W, C) uint8 -> (count, C, T, height, width) float32.

        Upstream's probe evaluation with several views, whatever the mode: short side to ``height``, views at equal
        whole-pixel steps from the top or left, so that the last may end short of the border. Average the softmax of
        the views. Raises ConfigError unless the size is square, ShapeError on other frames.
        """
        if self.height != self.width or count < 2:
            raise ConfigError(
                "Spatial views cannot be cut",
                expected="a square size and at least 2 views",
                found=f"{self.height} x {self.width}, {count} views",
                remedy="Call the preprocessing itself for one view.",
            )
        side = self.height
        resized = self._short_side(self._checked(frames), side)
        height, width = resized.shape[-2:]
        step = (max(height, width) - side) // (count - 1)
        starts = [(view * step, 0) if height > width else (0, view * step) for view in range(count)]
        return torch.stack(
            [self._normalised(resized[..., top : top + side, left : left + side]) for top, left in starts]
        )

    def _checked(self, frames: Tensor) -> Tensor:
        """Decoded frames as (T, C, H, W) uint8."""
        clip = frames.unsqueeze(0) if frames.dim() == 3 else frames
        if clip.dim() != 4 or clip.dtype != torch.uint8 or clip.shape[-1] != len(self.mean) or 0 in clip.shape:
            raise ShapeError(
                "Preprocessing needs decoded frames",
                expected=f"(T, H, W, {len(self.mean)}) or (H, W, {len(self.mean)}) uint8",
                found=f"{tuple(frames.shape)} {frames.dtype}",
                remedy="Pass RGB frames as decoded, channels last.",
            )
        return clip.permute(0, 3, 1, 2)

    def _short_side(self, frames: Tensor, short: int) -> Tensor:
        """Resize to a short side of ``short`` px; the long side is cut to a whole pixel, as upstream."""
        height, width = frames.shape[-2:]
        size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
        return resize(frames, size, self.antialias)

    def _normalised(self, frames: Tensor) -> Tensor:
        return normalise(frames.transpose(0, 1).contiguous(), self.mean, self.std)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        return config_from_dict(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
