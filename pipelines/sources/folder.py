"""A folder of video files, and what every kind of source gives: files with what is known of them, and what was left out."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import InputError

logger = logging.getLogger("tubelet.sources")

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"}
    | {".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
NAMES_KEPT = 10_000  # of the files left out for one reason; their count is exact
NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)  # a pool may have millions
class SourceFile:
    """One candidate file: absolute path (see `pipelines.video.media`), size in bytes, modification time in ns.

    The words are empty where the source says nothing of this file. `problem` is why it must not be opened: it ends in
    quarantine with these words. `tries` is how often it was tried in vain before.
    """

    path: str
    bytes: int
    mtime_ns: int
    url: str = ""
    licence: str = ""
    uploader: str = ""
    language: str = ""
    label: str = ""
    problem: str = ""
    tries: int = 0


@dataclass(frozen=True)
class LeftOut:
    """What a source holds or names that is not taken in, for one reason: how many, and the names of the first."""

    reason: str
    count: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.names[:NAMES_SHOWN])
        return f"{self.reason}: {self.count}" + (f" ({shown}{', ...' if self.count > NAMES_SHOWN else ''})" if shown else "")


@dataclass(frozen=True)
class Listing:
    """What a source gives: the files to take in, sorted by path, and what is left out."""

    files: tuple[SourceFile, ...]
    left_out: tuple[LeftOut, ...] = ()


def left_out(reason: str, names: Iterable[str]) -> list[LeftOut]:
    """One `LeftOut` for these names, sorted; none when there is no name."""
    listed = sorted(names)
    return [LeftOut(reason, len(listed), tuple(listed[:NAMES_KEPT]))] if listed else []


def scan_folder(root: Path) -> tuple[list[SourceFile], Counter[str]]:
    """Candidate files below `root`, sorted by path, and how many other files there are by suffix.

    Candidates are regular files with a common video suffix; hidden files and folders are not looked at.
    """
    return scan_suffixes(root, VIDEO_SUFFIXES)


def scan_suffixes(root: Path, suffixes: frozenset[str]) -> tuple[list[SourceFile], Counter[str]]:
    """As `scan_folder`, for files with other suffixes (lower case, with the dot)."""
    found: list[SourceFile] = []
    ignored: Counter[str] = Counter()

    def cannot_list(error: OSError) -> None:
        logger.warning("%s cannot be listed (%s): its files are not in the pool", error.filename, error.strerror)

    for folder, subfolders, names in os.walk(root, onerror=cannot_list):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(folder, name)
            suffix = path.suffix.lower()
            try:
                status = path.stat()
                str(path).encode()  # tables and records are UTF-8
            except OSError:
                ignored["broken links"] += 1
                continue
            except UnicodeEncodeError:
                ignored["names that are not UTF-8"] += 1
                continue
            if suffix not in suffixes:
                ignored[suffix or "no suffix"] += 1
            elif not stat.S_ISREG(status.st_mode):
                ignored["not regular files"] += 1
            else:
                found.append(SourceFile(str(path), status.st_size, status.st_mtime_ns))
    return sorted(found, key=lambda file: file.path), ignored


def has_video(root: Path) -> bool:
    """Whether there is a candidate file below a folder; stops at the first."""
    for _, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if any(Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".") for name in names):
            return True
    return False


def list_folder(path: Path, root: Path) -> Listing:
    """The candidate files below a folder."""
    files, ignored = scan_folder(path)
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
    return Listing(tuple(files), (LeftOut(f"others ignored ({listed})", ignored.total()),) if ignored else ())


def insist_on_folder(root: Path, kinds: str, remedy: str) -> None:
    """Raise `InputError` unless `root` is a folder that can be read and has something in it."""
    if not root.exists():
        raise InputError(f"{root} does not exist", expected=kinds, found="nothing there", remedy=remedy)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", expected=kinds, found="a file", remedy=remedy)
    if not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"{root} cannot be read", expected=kinds, found="no permission", remedy="mend its permissions")
    if not any(root.iterdir()):
        raise InputError(f"{root} is empty", expected=kinds, found="an empty folder", remedy=remedy)


def first_names(names: Sequence[str]) -> str:
    """The first names of a list, for an error."""
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")
