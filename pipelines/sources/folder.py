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
HIDDEN = "hidden files and folders, which are not looked at"


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


def utf8(text: str) -> str:
    """The text as tables and records can hold it: what is no Unicode (half of a character, odd bytes of a name) is spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def scan_folder(root: Path, below: bool = True) -> tuple[list[SourceFile], tuple[LeftOut, ...]]:
    """Candidate files in `root` and, with `below`, in its subfolders, sorted by path, and what else is there.

    Candidates are regular files with a common video suffix. Hidden files and folders and links to folders are left out by
    name, and so is every candidate that cannot be taken in; other files are counted by suffix.
    """
    return scan_suffixes(root, VIDEO_SUFFIXES, below)


def scan_suffixes(root: Path, suffixes: frozenset[str], below: bool = True) -> tuple[list[SourceFile], tuple[LeftOut, ...]]:
    """As `scan_folder`, for files with other suffixes (lower case, with the dot); videos among the other files are named."""
    found: list[SourceFile] = []
    others: Counter[str] = Counter()
    named: dict[str, list[str]] = {}

    def leave_out(reason: str, name: str) -> None:
        named.setdefault(reason, []).append(utf8(name))

    def cannot_list(error: OSError) -> None:
        logger.warning("%s cannot be listed (%s): its files are not taken in", utf8(str(error.filename)), error.strerror)
        leave_out("folders that cannot be listed", f"{error.filename} ({error.strerror})")

    for folder, subfolders, names in os.walk(root, onerror=cannot_list):
        for name in subfolders if below else ():
            path = Path(folder, name)
            if name.startswith("."):
                leave_out(HIDDEN, str(path))
            elif path.is_symlink():  # they may lead in circles, or out to the whole disk
                leave_out("links to folders, which are not followed", str(path))
        subfolders[:] = sorted(name for name in subfolders if below and not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            suffix = path.suffix.lower()
            if name.startswith("."):
                if suffix in suffixes:
                    leave_out(HIDDEN, str(path))
            elif suffix in suffixes:
                try:
                    status = path.stat()
                except OSError as error:
                    leave_out("broken links, and files that cannot be looked at", f"{path} ({error.strerror})")
                    continue
                if utf8(str(path)) != str(path):
                    leave_out("names that are not UTF-8", str(path))
                elif not stat.S_ISREG(status.st_mode):
                    leave_out("not regular files", str(path))
                else:
                    found.append(SourceFile(str(path), status.st_size, status.st_mtime_ns))
            elif suffix in VIDEO_SUFFIXES:
                leave_out("video files, which this kind of source does not take in", str(path))
            else:
                others[utf8(suffix) or "no suffix"] += 1
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    counted = [LeftOut(f"others ignored ({listed})", others.total())] if others else []
    return sorted(found, key=lambda file: file.path), (*counted, *(part for reason in sorted(named) for part in left_out(reason, named[reason])))


def has_video(root: Path) -> bool:
    """Whether there is a candidate file below a folder; stops at the first."""
    for _, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if any(Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".") for name in names):
            return True
    return False


def list_folder(path: Path, root: Path) -> Listing:
    """The candidate files below a folder."""
    files, others = scan_folder(path)
    return Listing(tuple(files), others)


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
