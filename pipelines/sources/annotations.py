"""Annotation files of known data sets: which videos they name, in which split, with which label and span.

Formats as their authors publish them (read from their own repositories):

=============== ========================================================================================================
yt_temporal_1b  CSV with a column video_id, JSON lines (also .gz) with an id, or one id a line; split by file name
kinetics        CSV label,youtube_id,time_start,time_end,split; or lists "path label" as for Kinetics-710 (split by file name)
ssv2            JSON lists of {id, template, ...}: -train, -validation, -test (ids only); the label is the template
coin            COIN.json: database of {subset, class, recipe_type, annotation: [{segment: [start, end]}]}; the label is the class
epic_kitchens   EPIC_100_train/validation/test_timestamps.csv: video_id, start_timestamp, stop_timestamp, verb_class, noun_class
=============== ========================================================================================================
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import InputError
from pipelines.sources.folder import first_names

YOUTUBE = "https://www.youtube.com/watch?v="
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "test", "testing", "eval", "evaluation", "heldout"), "eval"),
}
"""Words that data sets have for their splits. All that is not for training is evaluation, which must stay out of a pool."""


@dataclass(frozen=True)
class Annotation:
    """One entry: names the video file may have, the most exact first ("folder/name", the suffix may be there or not);
    split "train" or "eval"; label "" where there is none; span (start, end) in s, None for the whole video."""

    names: tuple[str, ...]
    split: str
    label: str = ""
    span: tuple[float, float] | None = None
    url: str = ""


@dataclass(frozen=True)
class AnnotationFile:
    """One file to read; `split` "" means that the file itself, or its name, tells."""

    path: Path
    split: str = ""


Reader = Callable[[AnnotationFile], Iterator[Annotation]]


def annotation_files(kind: str, named: Any, base: Path) -> list[AnnotationFile]:
    """The files that `named` means: a file, a folder, a list of these, or a mapping of split to these.

    Relative paths start at `base`. In a folder those files count whose names the kind's authors use.
    """
    if isinstance(named, Mapping):
        return [AnnotationFile(file.path, split_of(str(word), "the key of annotations")) for word, part in named.items() for file in annotation_files(kind, part, base)]
    if isinstance(named, list | tuple):
        return [file for part in named for file in annotation_files(kind, part, base)]
    path = base / Path(str(named)).expanduser()
    if not path.exists():
        raise InputError(f"{path} does not exist", expected=f"annotation files of {kind}", found="nothing there", remedy="check the path")
    if not path.is_dir():
        return [AnnotationFile(path)]
    pattern = NAMES[kind]
    found = [AnnotationFile(file) for file in sorted(path.iterdir()) if file.is_file() and pattern.search(file.name)]
    if not found:
        raise InputError(
            f"{path} has no annotation file of {kind}", expected=f"names like {EXAMPLES[kind]}",
            found=first_names(sorted(file.name for file in path.iterdir())) or "an empty folder", remedy="name the file itself",
        )  # fmt: skip
    return found


def read_annotations(kind: str, files: Iterable[AnnotationFile]) -> Iterator[Annotation]:
    """All entries of these files. Raises `InputError` when a file is not of this kind."""
    for file in files:
        try:
            yield from READERS[kind](file)
        except (OSError, EOFError, ValueError, csv.Error, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{file.path} is no annotation file of {kind}", expected=f"the format of {EXAMPLES[kind]}", found=f"{type(error).__name__}: {error}",
                remedy="name the file that the authors of the data set publish, or another kind",
            ) from error  # fmt: skip


def split_of(word: str, where: str) -> str:
    """ "train" or "eval" from a data set's own word; raises `InputError` for another word."""
    split = SPLIT_WORDS.get(word.strip().lower())
    if split is None:
        raise InputError(
            f"{where} names an unknown split", expected="train, or one of " + ", ".join(word for word, kind in SPLIT_WORDS.items() if kind == "eval"),
            found=repr(word), remedy="use one of these words",
        )  # fmt: skip
    return split


def split_of_name(path: Path) -> str:
    """The split that a file's name tells; raises `InputError` when it tells none, or two."""
    words = re.split(r"[^a-z]+", path.name.lower())
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if len(found) != 1:
        raise InputError(
            f"the name of {path} does not tell its split", expected="one of the words train, val, validation, test, eval in the file's name",
            found=path.name, remedy="rename the file, or say it: annotations: {train: FILE, eval: FILE}",
        )  # fmt: skip
    return found.pop()


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file that are not blank, also of a .gz."""
    opened: Any = gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else open(path, encoding="utf-8-sig")  # noqa: SIM115
    with opened as handle:
        for line in handle:
            if line.strip():
                yield line.strip()


def _table(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    """Rows of a CSV with a header; raises `KeyError` when it lacks a needed column."""
    reader = csv.DictReader(_lines(path))
    for name in needed:
        if name not in (reader.fieldnames or []):
            raise KeyError(f"no column {name} among {', '.join(reader.fieldnames or [])}")
    yield from reader


def _header(path: Path) -> list[str]:
    return next(_lines(path), "").lower().split(",")


def _yt_temporal_1b(file: AnnotationFile) -> Iterator[Annotation]:
    split = file.split or split_of_name(file.path)
    if "video_id" in _header(file.path):
        ids: Iterable[str] = (row["video_id"] for row in _table(file.path, "video_id"))
    else:
        ids = map(_identity, _lines(file.path))
    for video in ids:
        yield Annotation((video,), split, url=YOUTUBE + video)


def _identity(line: str) -> str:
    """The id in one line: the line, or what its JSON object has under id, video_id or info.id."""
    if not line.startswith(("{", '"')):
        return line
    record = json.loads(line)
    if isinstance(record, str):
        return record
    found = record.get("id") or record.get("video_id") or record["info"]["id"]
    return str(found)


def _kinetics(file: AnnotationFile) -> Iterator[Annotation]:
    if "youtube_id" not in _header(file.path):
        yield from _path_list(file)
        return
    for row in _table(file.path, "youtube_id"):
        split = split_of(row["split"], f"{file.path}, column split,") if row.get("split") else file.split or split_of_name(file.path)
        video, label = row["youtube_id"], row.get("label") or ""
        start, end = row.get("time_start"), row.get("time_end")
        # As the hosted copies name them; downloads of one's own often have the id alone.
        exact = (f"{label}/{video}_{int(float(start)):06d}_{int(float(end)):06d}",) if start and end else ()
        yield Annotation((*exact, f"{label}/{video}"), split, label, url=YOUTUBE + video)


def _path_list(file: AnnotationFile) -> Iterator[Annotation]:
    """Lists for training code: "path label" or "path,label"; "path 0 -1" (VideoMAE's pre-training) has no label."""
    split = file.split or split_of_name(file.path)
    for line in _lines(file.path):
        fields = line.split()
        if len(fields) >= 3 and fields[-1] == "-1":
            yield Annotation((line.rsplit(None, 2)[0].strip('"'),), split)
            continue
        path, _, label = line.rpartition(",") if "," in line else line.rpartition(" ")
        yield Annotation(((path or label).strip(' "'),), split, label.strip() if path else "")


def _ssv2(file: AnnotationFile) -> Iterator[Annotation]:
    split = file.split or split_of_name(file.path)
    for entry in json.loads(file.path.read_text(encoding="utf-8")):
        # The test list has ids only; the labels file spells templates without the brackets.
        yield Annotation((str(entry["id"]),), split, str(entry.get("template") or "").replace("[", "").replace("]", ""))


def _coin(file: AnnotationFile) -> Iterator[Annotation]:
    for video, entry in json.loads(file.path.read_text(encoding="utf-8"))["database"].items():
        split = split_of(entry["subset"], f"{file.path}, video {video},")
        spans: list[tuple[float, float] | None] = [(float(part["segment"][0]), float(part["segment"][1])) for part in entry.get("annotation") or []]
        for span in spans or [None]:
            names = (f"{entry.get('recipe_type', '')}/{video}",)
            yield Annotation(names, split, str(entry["class"]), span, entry.get("video_url") or YOUTUBE + video)


def _epic_kitchens(file: AnnotationFile) -> Iterator[Annotation]:
    split = file.split or split_of_name(file.path)
    verbs, nouns = (_class_names(file.path.parent / f"EPIC_100_{word}_classes.csv") for word in ("verb", "noun"))
    for row in _table(file.path, "video_id", "start_timestamp", "stop_timestamp"):
        label = ""
        if row.get("verb_class") and row.get("noun_class"):  # the test list has neither
            verb, noun = row["verb_class"], row["noun_class"]
            label = f"{verbs.get(verb, f'verb {verb}')} {nouns.get(noun, f'noun {noun}')}"
        names = (f"{row.get('participant_id') or row['video_id'].split('_')[0]}/videos/{row['video_id']}",)
        yield Annotation(names, split, label, (seconds_of(row["start_timestamp"]), seconds_of(row["stop_timestamp"])))


def _class_names(path: Path) -> dict[str, str]:
    """id -> name of a class, from the table beside the annotations where it is there."""
    return {row["id"]: row["key"] for row in _table(path, "id", "key")} if path.is_file() else {}


def seconds_of(timestamp: str) -> float:
    """Seconds of "HH:MM:SS.ss"."""
    hours, minutes, seconds = timestamp.strip().split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


READERS: dict[str, Reader] = {
    "yt_temporal_1b": _yt_temporal_1b, "kinetics": _kinetics, "ssv2": _ssv2, "coin": _coin, "epic_kitchens": _epic_kitchens,
}  # fmt: skip
NAMES = {
    "yt_temporal_1b": re.compile(r"(train|val).*\.(csv|txt|jsonl)(\.gz)?$", re.I),
    "kinetics": re.compile(r"(train|val|test).*\.(csv|txt|list)$", re.I),
    "ssv2": re.compile(r"(train|validation|test)\.json$", re.I),
    "coin": re.compile(r"^coin.*\.json$", re.I),
    "epic_kitchens": re.compile(r"^EPIC_100_(train|validation|test_timestamps)\.csv$"),
}
"""What the kinds' files are called, for a folder of them."""
EXAMPLES = {
    "yt_temporal_1b": "yttemporal1b_ids_train.csv and yttemporal1b_ids_val.csv", "kinetics": "train.csv, val.csv and test.csv",
    "ssv2": "something-something-v2-train.json and -validation.json", "coin": "COIN.json",
    "epic_kitchens": "EPIC_100_train.csv and EPIC_100_validation.csv",
}  # fmt: skip
