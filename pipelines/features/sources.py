"""Which videos a request means, and which of a folder's files it leaves alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from models.assembly import listed
from pipelines.errors import InputError
from pipelines.features.output import SourceVideo
from pipelines.sources.folder import scan_folder


@dataclass(frozen=True)
class Request:
    """Videos to read, and the names of other files that lie among them."""

    videos: tuple[SourceVideo, ...]
    others: tuple[str, ...]


def find_videos(source: Path) -> Request:
    """One file (whatever its name), or every file with a common video suffix in a folder and below; hidden ones are left.

    Raises InputError when there is nothing to read.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist", expected="a video or a folder with videos", found="nothing there", remedy="Check the path.")
    if not source.is_dir():
        status = source.stat()
        return Request((SourceVideo(source, source.name, status.st_size, status.st_mtime_ns),), ())
    files, _ = scan_folder(source)
    videos = tuple(SourceVideo(Path(file.path), Path(file.path).relative_to(source).as_posix(), file.bytes, file.mtime_ns) for file in files)
    taken = {video.name for video in videos}
    others = tuple(name for name in _all_files(source) if name not in taken)
    if not videos:
        raise InputError(
            f"{source} holds no video", expected="files such as .mp4 .mkv .mov .avi .webm, here or in folders below",
            found=listed(others) or "no files", remedy="Name another folder, or one file directly (then its suffix does not matter).",
        )  # fmt: skip
    return Request(videos, others)


def _all_files(root: Path) -> list[str]:
    """Relative paths of all files that are not hidden, sorted."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(folder, name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)
