"""The kinds of source, and `describe_source`: what a path means, and what would be registered from it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.errors import InputError
from pipelines.sources import annotated, manifest, tars
from pipelines.sources.folder import (
    LeftOut,
    Listing,
    SourceFile,
    first_names,
    has_video,
    insist_on_folder,
    list_folder,
    scan_folder,
)

FOLDER, MANIFEST, TARS = "folder", "manifest", "tars"
LISTERS: dict[str, Callable[[Path, Path], Listing]] = {
    FOLDER: list_folder, MANIFEST: manifest.list_manifest, TARS: tars.list_tars,
    **{kind: partial(annotated.list_annotated, kind) for kind in annotated.KINDS},
}  # fmt: skip
"""For each kind, a function (path, root) -> what the source gives now."""
EXPECTED = (
    "a folder with video files (.mp4 .mkv .mov .avi .webm or another common suffix), a CSV or Parquet manifest, or a .tar or folder of .tar files"
)
REMEDY = "name a folder that holds video files, a manifest or tars, for example make demo VIDEOS=/path/to/videos"
_FIELDS = tuple(field.name for field in fields(SourceFile))
# How the CSV files of annotated kinds begin; a manifest has a column `path` instead.
_COLUMNS = {"kinetics": "youtube_id", "epic_kitchens": "start_timestamp", "yt_temporal_1b": "video_id"}


@dataclass(frozen=True)
class SourceDescription:
    """What would be registered: `path` and `root` are absolute. `root` is where a manifest's relative paths start, or the
    folder with the videos that annotations name; for a folder and for tars it is `path` itself."""

    kind: str
    path: str
    root: str
    files: tuple[SourceFile, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def lines(self) -> list[str]:
        """The description for a person, one fact a line."""
        usable = [file for file in self.files if not file.problem]
        missing = [file.path for file in usable if manifest.is_missing(file)]
        size = sum(file.bytes for file in usable)
        return [
            f"{self.kind.replace('_', ' ')} {self.path}" + (f", videos below {self.root}" if self.root != self.path else ""),
            f"{len(usable)} files, {size / 1e9:.2f} GB",
            *([f"{len(missing)} of them are missing: {first_names(missing)}"] if missing else []),
            *[f"{Path(file.path).name}: {file.problem}" for file in self.files if file.problem][:3],
            *map(str, self.left_out),
        ]


def describe_source(path: str | Path, kind: str | None = None, root: str | Path | None = None) -> SourceDescription:
    """What `path` gives as a source; `kind` is found out where it is not said.

    A folder is one of video files, or of tars when it holds no video file; a .tar is one; .csv, .tsv and .parquet are
    manifests. Annotations of a data set (a file, or the folder of its files) need `root`, the folder with the videos.
    Raises `InputError` when there is nothing to take in, with what to do.
    """
    named = Path(path).expanduser().absolute()
    chosen = kind or detect(named)
    if chosen not in LISTERS:
        raise InputError(f"there is no kind of source {chosen}", expected="one of " + ", ".join(LISTERS), found=chosen, remedy="name one of these")
    videos = _root(chosen, named, root)
    _insist_on_place(chosen, named, videos)
    listing = LISTERS[chosen](named, videos)
    if not any(not file.problem and not manifest.is_missing(file) for file in listing.files):
        raise _nothing_usable(chosen, named, videos, listing)
    return SourceDescription(chosen, str(named), str(videos), listing.files, listing.left_out)


def detect(path: Path) -> str:
    """The kind of source that a path looks like."""
    if path.is_dir():
        return TARS if not has_video(path) and (tars.tars_of(path) or tars.compressed_tars(path)) else FOLDER
    if path.suffix.lower() == ".tar" or tars.is_compressed(path):
        return TARS
    if path.suffix.lower() in manifest.SUFFIXES:
        return _kind_of_table(path)
    if path.name.lower() == "coin.json":
        return "coin"
    return FOLDER  # whose errors say what is expected


def _kind_of_table(path: Path) -> str:
    """A manifest, unless a CSV has the columns of an annotated kind and no `path`."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return MANIFEST
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as handle:
            header = [name.strip().lower() for name in next(csv.reader(handle), [])]
    except (OSError, csv.Error):
        return MANIFEST  # whose reader says what is wrong
    if "path" in header:
        return MANIFEST
    return next((kind for kind, column in _COLUMNS.items() if column in header), MANIFEST)


def _root(kind: str, path: Path, root: str | Path | None) -> Path:
    """Where the videos are; raises `InputError` when annotations come without it, or a folder or tar with another."""
    if root is not None:
        given = Path(root).expanduser().absolute()
        if kind in (FOLDER, TARS) and given != path:
            raise InputError(f"a source of kind {kind} has no other root", expected=str(path), found=str(given), remedy="leave the root out")
        return given
    if kind in annotated.KINDS:
        raise InputError(
            f"{path} looks like annotations of {kind}: they need the folder with the videos", expected="root, the folder with the videos",
            found="no root", remedy="name it (--root), or give a manifest with a column path",
        )  # fmt: skip
    return path.parent if kind == MANIFEST else path


def _insist_on_place(kind: str, path: Path, root: Path) -> None:
    """Raise the kind's `InputError` when there cannot be such a source at this place."""
    if kind == TARS:
        tars.tars_or_error(path)
    elif kind == FOLDER:
        insist_on_folder(path, EXPECTED, REMEDY)
    elif not path.exists():
        raise InputError(f"{path} does not exist", expected=EXPECTED, found="nothing there", remedy="check the path")
    elif kind == MANIFEST and path.is_dir():
        raise InputError(f"{path} is a folder", expected=manifest.EXPECTED, found="a folder", remedy="name the manifest file in it")
    if not root.exists():
        raise InputError(f"{root} is not a folder", expected="the folder with the videos", found="nothing there", remedy="check the root")


def _nothing_usable(kind: str, path: Path, root: Path, listing: Listing) -> InputError:
    """The error for a source that gives no file."""
    if kind == TARS:
        return tars.nothing_usable(path, listing)
    others = "; ".join(map(str, listing.left_out))
    if kind == FOLDER:
        return InputError(f"{path} has no video file", expected=EXPECTED, found=others or "only empty folders", remedy=REMEDY)
    if kind == MANIFEST:
        return InputError(
            f"{path} names no file that is there", expected="paths that are absolute, or relative to the manifest's folder or the root",
            found=first_names([file.path for file in listing.files]) or "no rows",
            remedy="mend the paths, or name the root they start at (nothing is downloaded: links are no paths)",
        )  # fmt: skip
    annotated.annotated_or_error(kind, str(path), root)
    return InputError(
        f"the annotations of {kind} leave no video for a pool", expected=f"training videos below {root}", found=others,
        remedy="add the training videos; evaluation videos belong into target sets",
    )  # fmt: skip


def deciding_files(kind: str, path: Path, root: Path) -> list[SourceFile]:
    """The files whose sizes and times decide whether a source has changed; found without reading tars or matching names."""
    if kind == TARS:
        return [file_at(side) for tar in tars.tars_of(path) for side in (tar, tar.with_suffix(".parquet")) if side.is_file()]
    if kind in annotated.KINDS:
        return [*(file_at(file.path) for file in annotated.annotation_files(kind, str(path), Path())), *scan_folder(root)[0]]
    return [*([file_at(path)] if kind == MANIFEST else []), *LISTERS[kind](path, root).files]


def file_at(path: Path) -> SourceFile:
    """A file by its size and time."""
    status = path.stat()
    return SourceFile(str(path), status.st_size, status.st_mtime_ns)


def recorded(file: SourceFile) -> dict[str, Any]:
    """A file as JSON-able data, without the words that are empty and the tries that were not."""
    named = ((name, getattr(file, name)) for name in _FIELDS)
    return {name: value for name, value in named if value != "" and (name != "tries" or value)}
