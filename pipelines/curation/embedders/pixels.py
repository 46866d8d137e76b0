"""From a decoded frame to the pixels an encoder is given: one resize, one crop, whole grey levels.

Runs where frames are decoded, so that only pictures of the encoder's own size travel between processes. Each encoder
says how its weights were trained: squeezed by libswscale's area filter, or resized by Pillow, whose bilinear and bicubic
filters widen when a picture shrinks (no aliasing) and round to whole grey levels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.video.decode import to_array

Filter = Literal["area", "bilinear", "bicubic"]

_PILLOW: dict[Filter, Image.Resampling] = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Geometry:
    """Pictures of `height` x `width` px: squeezed into it, or with `short_side` resized to that and the centre cut out.

    `filter`: "area" is libswscale's, the others are Pillow's. `odd_margin`: where the crop lies when the margin is odd:
    "down" (transformers) or "even" (to the even pixel, as upstream's V-JEPA 2 evaluation and `models.preprocessing`).
    """

    height: int
    width: int
    short_side: int | None = None
    filter: Filter = "area"
    odd_margin: Literal["down", "even"] = "down"

    def to_dict(self) -> dict[str, Any]:
        """For digests and records: the fields, and whose the filter is."""
        return {**asdict(self), "resizer": "libswscale" if self.filter == "area" else "pillow"}


def fit(frame: av.VideoFrame, geometry: Geometry) -> NDArray[np.uint8]:
    """The frame, upright, as the encoder is given it: (height, width, 3) uint8 RGB."""
    if geometry.filter == "area":
        return to_array(frame, (geometry.height, geometry.width))
    return resize_and_crop(to_array(frame), geometry)


def resize_and_crop(picture: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of any size -> (height, width, 3) uint8 by one of Pillow's filters."""
    size = geometry.height, geometry.width
    if geometry.short_side is not None:
        height, width = picture.shape[:2]
        short = geometry.short_side
        size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    resized = picture
    if size != picture.shape[:2]:
        resized = np.asarray(Image.fromarray(picture).resize(size[::-1], _PILLOW[geometry.filter]))
    top, left = (_margin(found - wanted, geometry) for found, wanted in zip(size, (geometry.height, geometry.width), strict=True))
    return np.ascontiguousarray(resized[top : top + geometry.height, left : left + geometry.width])


def _margin(spare: int, geometry: Geometry) -> int:
    return round(spare / 2) if geometry.odd_margin == "even" else spare // 2
