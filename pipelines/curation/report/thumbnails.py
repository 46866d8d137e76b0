"""Thumbnails: the middle frame of a clip as a small JPEG, decoded in killable workers and kept in the page's folder."""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.recipes import Part
from pipelines.video.media import media_stat
from pipelines.video.workers import Crew

logger = logging.getLogger("tubelet.curation")

SHOOT = "pipelines.curation.report.thumbnails:shoot"
GONE = "source is gone"
CHUNK = 16  # clips between two looks at the clock


class ThumbnailConfig(Part):
    """Thumbnails are `width` px wide and at most as high. After `budget_s` seconds in all, what is missing stays grey: it
    is made by the next write, which finds the others in their folder."""

    width: int = 160
    quality: int = 72
    workers: int = 2
    seconds_per_clip: float = 20.0
    budget_s: float = 180.0


@dataclass(frozen=True)
class Thumbnail:
    """`data` is a JPEG, empty when there is none; then `missing` says why in a few words."""

    data: bytes = b""
    missing: str = ""


@dataclass(frozen=True)
class Shot:
    """One frame to take: `pts` in the stream's own time base, `size` (height, width) in px."""

    path: str
    pts: int
    size: tuple[int, int]
    quality: int


def shoot(shot: Shot) -> bytes:
    """The frame as JPEG. Runs in a worker."""
    from PIL import Image

    from pipelines.video.decode import frames_at

    (frame,) = frames_at(shot.path, [shot.pts], size=shot.size)
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=shot.quality, optimize=True)
    return buffer.getvalue()


def thumbnails(
    clips: Iterable[Mapping[str, Any]], folder: Path | None, config: ThumbnailConfig | None = None, progress: Callable[..., None] | None = None
) -> dict[str, Thumbnail]:
    """Thumbnails of clip rows by clip_id, each once. Those found in `folder` are not decoded again, and those of other clips
    are deleted there: a picture must not outlive its clip's place on the page. None keeps nothing.

    A clip whose source is not there has none, whatever the folder holds.
    """
    config = config or ThumbnailConfig()
    wanted = {clip["clip_id"]: clip for clip in clips}
    found: dict[str, Thumbnail] = {}
    missing: list[str] = []
    for clip_id, clip in wanted.items():
        kept = _kept(folder, clip_id, config)
        if not is_there(clip["path"]):
            found[clip_id] = Thumbnail(missing=GONE)
        elif kept is not None and kept.is_file():
            found[clip_id] = Thumbnail(kept.read_bytes())
        else:
            missing.append(clip_id)
    if folder is not None:
        _forget(folder, {f"{name}.jpg" for name in wanted}, config)
    deadline = time.monotonic() + config.budget_s
    with Crew(SHOOT, config.workers) as crew:
        for start in range(0, len(missing), CHUNK):
            part = missing[start : start + CHUNK]
            if time.monotonic() > deadline:
                found.update(dict.fromkeys(part, Thumbnail(missing="no time left for it")))
                continue
            found.update(_take(crew, [wanted[name] for name in part], folder, config))
            if progress is not None:
                progress(start + len(part), len(missing), "thumbnails")
    return {clip_id: found[clip_id] for clip_id in wanted}


def _take(crew: Crew, clips: Sequence[Mapping[str, Any]], folder: Path | None, config: ThumbnailConfig) -> dict[str, Thumbnail]:
    shots = [Shot(clip["path"], middle(clip), thumbnail_size(clip, config.width), config.quality) for clip in clips]
    outcomes = crew.map(shots, timeout_s=config.seconds_per_clip, attempts=1)
    taken = {}
    for clip, outcome in zip(clips, outcomes, strict=True):
        if outcome.failure is not None:
            logger.info("no thumbnail of %s: %s", clip["path"], outcome.detail)
            taken[clip["clip_id"]] = Thumbnail(missing="cannot be decoded" if outcome.failure == "error" else "decoder hangs or dies")
            continue
        taken[clip["clip_id"]] = Thumbnail(outcome.value)
        kept = _kept(folder, clip["clip_id"], config)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            draft = kept.with_suffix(f".{os.getpid()}")
            draft.write_bytes(outcome.value)
            os.replace(draft, kept)
    return taken


def middle(clip: Mapping[str, Any]) -> int:
    """Presentation time in the middle of a clip."""
    return int(clip["start_pts"]) + (int(clip["end_pts"]) - int(clip["start_pts"])) // 2


def thumbnail_size(clip: Mapping[str, Any], width: int) -> tuple[int, int]:
    """(height, width) in px of the clip's picture inside a square of `width`."""
    scale = width / max(clip["width"], clip["height"])
    return max(1, round(clip["height"] * scale)), max(1, round(clip["width"] * scale))


def is_there(path: str) -> bool:
    """Whether a file or tar member can still be found."""
    try:
        media_stat(path)
    except OSError:
        return False
    return True


def _kept(folder: Path | None, clip_id: str, config: ThumbnailConfig) -> Path | None:
    return folder / _form(config) / f"{clip_id}.jpg" if folder is not None else None


def _form(config: ThumbnailConfig) -> str:
    return f"{config.width}px-q{config.quality}"


def _forget(folder: Path, names: set[str], config: ThumbnailConfig) -> None:
    """Delete pictures that no clip on the page has, and those of another form."""
    for path in folder.glob("*px-q*/*"):
        if path.parent.name != _form(config) or path.name not in names:
            path.unlink(missing_ok=True)
