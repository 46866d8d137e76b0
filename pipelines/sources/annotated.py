"""An annotated data set over a local root: which of the files there its annotations name, and in which split.

Annotations name videos by id or path, roots are laid out in many ways: a file is found by its name, and where several
have it, by as many of its folders as agree. What is named and not there, or there and not named, is counted and listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.errors import InputError
from pipelines.sources.annotations import READERS, Annotation, annotation_files, read_annotations
from pipelines.sources.folder import (
    NAMES_KEPT,
    NAMES_SHOWN,
    VIDEO_SUFFIXES,
    LeftOut,
    Listing,
    SourceFile,
    first_names,
    left_out,
    scan_folder,
    utf8,
)

KINDS = tuple(READERS)
Clip = tuple[tuple[float, float] | None, str]
"""(span in s or None for the whole video, label)."""


@dataclass(frozen=True)
class AnnotatedFile:
    """A file under the root with what its annotations say. Clips are sorted and distinct; a whole video has one."""

    file: SourceFile
    split: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Annotated:
    """Every file that is there and named, sorted by path, and what was left out; then the first names that were looked
    for in vain, and the first that are there."""

    files: tuple[AnnotatedFile, ...]
    left_out: tuple[LeftOut, ...]
    looked_for: tuple[str, ...]
    there: tuple[str, ...]


@dataclass
class _Gathered:
    """What the entries for one file add up to."""

    splits: set[str] = field(default_factory=set)
    clips: set[Clip] = field(default_factory=set)
    url: str = ""


def read_annotated(kind: str, annotations: Any, root: Path, base: Path | None = None) -> Annotated:
    """Match the annotations of a data set with the video files below `root`; relative annotation paths start at `base`.

    A file that both splits name counts as evaluation, since nothing of it may be trained on.
    """
    files, others = scan_folder(root)
    found = match(read_annotations(kind, annotation_files(kind, annotations, base or Path())), files, root)
    return replace(found, left_out=(*found.left_out, *others))


def match(entries: Iterable[Annotation], files: Sequence[SourceFile], root: Path) -> Annotated:
    """Find the file or files that each entry names. One pass over the entries, memory bounded by the files."""
    places = [PurePosixPath(Path(file.path).relative_to(root).as_posix()) for file in files]
    index: dict[str, list[int]] = {}
    for number, place in enumerate(places):
        index.setdefault(_bare(place.name), []).append(number)
    gathered: dict[int, _Gathered] = {}
    absent, former = 0, ""
    absent_names: list[str] = []
    for entry in entries:
        numbers = _named(entry.names, places, index)
        name = entry.names[0]
        if not numbers and name != former:  # the segments of one video come one after another
            absent, former = absent + 1, name
            if len(absent_names) < NAMES_KEPT:
                absent_names.append(utf8(name))
        for number in numbers:
            own = gathered.setdefault(number, _Gathered())
            own.splits.add(entry.split)
            own.clips.add((entry.span, utf8(entry.label)))
            own.url = max(own.url, utf8(entry.url))
    both = [files[number].path for number, own in gathered.items() if len(own.splits) > 1]
    several = [files[number].path for number, own in gathered.items() if max(Counter(span for span, label in own.clips if label).values(), default=0) > 1]
    return Annotated(
        tuple(_told(files[number], gathered[number]) for number in sorted(gathered)),
        (
            *((LeftOut("videos that the annotations name and that are not there", absent, tuple(absent_names)),) if absent else ()),
            *left_out("files that the annotations do not name", [file.path for number, file in enumerate(files) if number not in gathered]),
            *left_out("files in both splits, which count as evaluation", both),
            *left_out("files with two labels for one span, of which the first by name counts", several),
        ),
        tuple(absent_names[:NAMES_SHOWN]), tuple(str(place) for place in places[:NAMES_SHOWN]),
    )  # fmt: skip


def _bare(name: str) -> str:
    """A file's name without a video suffix; ids may have dots of their own."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else name


def _named(names: Sequence[str], places: Sequence[PurePosixPath], index: dict[str, list[int]]) -> list[int]:
    """The files that the first matching name means: those with that file name whose folders agree the most."""
    for name in names:
        wanted = PurePosixPath(name)
        candidates = index.get(_bare(wanted.name), [])
        if len(candidates) > 1:
            agreement = [_agreeing(wanted.parts[:-1], places[number].parts[:-1]) for number in candidates]
            candidates = [number for number, count in zip(candidates, agreement, strict=True) if count == max(agreement)]
        if candidates:
            return candidates
    return []


def _agreeing(one: Sequence[str], other: Sequence[str]) -> int:
    """How many folders agree, counted from the file upwards."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _told(file: SourceFile, own: _Gathered) -> AnnotatedFile:
    labels: dict[tuple[float, float] | None, str] = {}
    for span, label in sorted(own.clips, key=lambda clip: (clip[0] or (-1.0, -1.0), not clip[1], clip[1])):
        labels.setdefault(span, label)
    distinct = {label for label in labels.values() if label}
    label = distinct.pop() if len(distinct) == 1 else ""
    return AnnotatedFile(replace(file, url=own.url, label=label), "eval" if "eval" in own.splits else "train", tuple(labels.items()))


def list_annotated(kind: str, annotations: Path, root: Path) -> Listing:
    """The training videos of an annotated data set, for a pool; its evaluation videos are left out, by name."""
    found = read_annotated(kind, str(annotations), root)
    held_out = left_out("evaluation videos, kept out of the pool", [item.file.path for item in found.files if item.split == "eval"])
    return Listing(tuple(item.file for item in found.files if item.split == "train"), (*held_out, *found.left_out))


def annotated_or_error(kind: str, annotations: Any, root: Path, base: Path | None = None) -> Annotated:
    """`read_annotated`, or `InputError` when the annotations fit nothing below the root."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", expected=f"the folder with the videos of {kind}", found="nothing there", remedy="check the root")
    found = read_annotated(kind, annotations, root, base)
    if not found.files:
        raise InputError(
            f"the annotations of {kind} fit no video below {root}",
            expected="files named as in the annotations: " + (first_names(found.looked_for) or "they name none"),
            found=first_names(found.there) or "no video file", remedy="name the folder that holds the videos, and the annotations that belong to them",
        )  # fmt: skip
    return found
