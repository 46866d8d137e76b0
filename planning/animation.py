"""Small animated pictures of an episode: what the camera saw beside the goal image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipelines.errors import InputError

SIDE = 192
CAPTION_HEIGHT = 18
MAX_BYTES = 400_000


def write_episode_gif(path: Path, images: Sequence[np.ndarray], goal: np.ndarray, captions: Sequence[str], *, frame_s: float = 0.5) -> None:
    """Write one frame per image (H, W, 3) uint8 with the goal image (H, W, 3) at its right and its caption below.

    Colours and then size are reduced until the file is at most `MAX_BYTES`. Deterministic.
    """
    if not images or len(images) != len(captions):
        raise InputError("an animation needs one caption per image", expected=f"{len(images)} captions", found=str(len(captions)))
    for side, colours in ((SIDE, 128), (SIDE, 64), (SIDE // 2, 64), (SIDE // 2, 16)):
        frames = [_panel(image, goal, caption, side).quantize(colours) for image, caption in zip(images, captions, strict=True)]
        durations = [round(1000 * frame_s)] * (len(frames) - 1) + [2000]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            return


def _panel(image: np.ndarray, goal: np.ndarray, caption: str, side: int) -> Image.Image:
    panel = Image.new("RGB", (2 * side + 4, side + CAPTION_HEIGHT), (20, 22, 26))
    for left, picture in ((0, image), (side + 4, goal)):
        panel.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR), (left, 0))
    draw = ImageDraw.Draw(panel)
    draw.text((4, side + 3), caption, fill=(235, 235, 235))
    draw.text((side + 8, side + 3), "goal", fill=(235, 235, 235))
    return panel
