"""Goal images: what a person shows the robot. PNG files, because a goal must not change by compression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.errors import InputError

MIN_SIDE = 16


def write_goal(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as PNG."""
    Image.fromarray(image).save(path, format="PNG")


def read_goal(path: Path) -> np.ndarray:
    """A goal image as (H, W, 3) uint8 RGB; raises InputError when the file is no usable picture."""
    try:
        with Image.open(path) as picture:
            image = np.array(picture.convert("RGB"))  # a copy, because tensors need writable memory
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(
            f"{path} is not a goal image", expected="a PNG taken by the robot's own camera", found=str(error),
            remedy="pose the robot at the goal and save one camera frame",
        ) from error  # fmt: skip
    if min(image.shape[:2]) < MIN_SIDE:
        raise InputError(f"{path} is too small for a goal image", expected=f"at least {MIN_SIDE} px a side", found=str(image.shape[:2]))
    return image
