"""Which videos a takedown means: one selector, resolved against every table that the store ever made."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.lineage.takedown.sightings import sightings
from pipelines.store import Store

RULES = ("video", "source", "uploader", "licence")
COLUMNS = {"video": ("video_id", "path"), "source": ("source", "path"), "uploader": ("uploader",), "licence": ("licence",)}
NEAR = 3  # near misses that are named
CLOSE = 0.5  # likeness of two words from which on one may be meant by the other


@dataclass(frozen=True)
class Selector:
    """What was asked: `rule` is one of RULES. A source is meant by the beginning of its name or of its files' paths."""

    rule: str
    value: str


@dataclass
class Match:
    """A video that is meant, with all that any table says of it, and why it is meant."""

    video_id: str
    paths: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    licences: set[str] = field(default_factory=set)
    uploaders: set[str] = field(default_factory=set)
    why: set[str] = field(default_factory=set)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {name: value if isinstance(value, str) else sorted(value) for name, value in vars(self).items()}


def selector_of(**values: str | None) -> Selector:
    """The one of RULES that was given; raises `InputError` when there is none, or more than one."""
    given = [(rule, value) for rule in RULES if (value := values.get(rule)) is not None]
    if len(given) != 1 or not given[0][1].strip():
        raise InputError(
            "a takedown needs to know what to take down", expected="exactly one of " + ", ".join(f"--{rule}" for rule in RULES),
            found=", ".join(f"--{rule} {value!r}" for rule, value in given) or "none", remedy="name one of them; ask again for each of several",
        )  # fmt: skip
    return Selector(*given[0])


def match_videos(store: Store, selector: Selector) -> list[Match]:
    """The videos that `selector` means, by id. A path that no table knows, but where a video lies, means the videos of that stream.

    Raises `InputError` that names near misses when it means none.
    """
    why = _meant(store, selector)
    if not why and selector.rule == "video" and os.path.isfile(selector.value):
        from pipelines.video.probe import probe_file

        stream = probe_file(selector.value).get("video_id", "")
        why = {video: {f"is the stream of {selector.value}"} for video in _meant(store, Selector("video", stream))} if stream else {}
    if not why:
        raise InputError(
            f"nothing in the store {store.root} has {selector.rule} {selector.value}", expected=_expectation(selector),
            found="no such row in any table" + _near_misses(store, selector), remedy="name it as `tubelet lineage` and the artefacts' tables do",
        )  # fmt: skip
    found = {video: Match(video, why=words) for video, words in why.items()}
    wanted = pa.array(sorted(why), pa.string())
    for seen in sightings(store):
        for row in seen.facts.filter(pc.is_in(seen.facts.column("video_id"), value_set=wanted)).to_pylist():
            match = found[row["video_id"]]
            for values, value in ((match.paths, "path"), (match.sources, "source"), (match.licences, "licence"), (match.uploaders, "uploader")):
                values |= {row[value]} - {None, ""}
    return [found[video] for video in sorted(found)]


def _meant(store: Store, selector: Selector) -> dict[str, set[str]]:
    """video_id -> why it is meant, in words."""
    found: dict[str, set[str]] = {}
    for seen in sightings(store):
        for column in COLUMNS[selector.rule]:
            for row in seen.facts.filter(pa.array(_fits(seen.facts.column(column), column, selector))).select(["video_id", column]).to_pylist():
                found.setdefault(row["video_id"], set()).add(f"its {column.replace('_', ' ')} is {row[column]}")
    return found


def _fits(values: pa.ChunkedArray, column: str, selector: Selector) -> NDArray[np.bool_]:
    asked = {selector.value}
    if column == "path":  # "clips/ann/" is no beginning of clips/annabelle
        asked.add(str(Path(selector.value).absolute()) + ("/" if selector.value.endswith("/") else ""))
    if selector.rule == "source":
        hits = [pc.starts_with(values, pattern=text) for text in sorted(asked)]
    else:
        hits = [pc.is_in(values, value_set=pa.array(sorted(asked), pa.string()))]
    return np.logical_or.reduce([np.asarray(pc.fill_null(hit, False), bool) for hit in hits])


def _expectation(selector: Selector) -> str:
    return {
        "video": "a video_id, or the path of a file that was taken in", "source": "the beginning of a source's name or of a path",
        "uploader": "an uploader, letter by letter", "licence": "a licence, letter by letter",
    }[selector.rule]  # fmt: skip


def _near_misses(store: Store, selector: Selector) -> str:
    """Values that may have been meant, as the end of a sentence."""
    values: set[str] = set()
    for seen in sightings(store):
        for column in COLUMNS[selector.rule]:
            values |= set(pc.drop_null(pc.unique(seen.facts.column(column))).to_pylist()) - {""}
    near = _nearest(selector.value, values)
    return f"; near misses: {', '.join(near)}" if near else f"; there are {len(values)} others" if values else ""


def _nearest(asked: str, values: Iterable[str]) -> list[str]:
    low = asked.lower()
    parts = {value for value in values if low in value.lower() or Path(low).name == Path(value.lower()).name}
    by_word = {value.lower(): value for value in sorted(values)}
    close = [by_word[word] for word in difflib.get_close_matches(low, by_word, NEAR, CLOSE)]
    return list(dict.fromkeys([*sorted(parts)[:NEAR], *close]))[:NEAR]
