"""What a name means: an artefact, a clip, or a source video; and tables searched for single rows, by column."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schemas
from pipelines.errors import InputError, MissingArtefact
from pipelines.lineage.takedown.sightings import VIDEO_TABLES
from pipelines.lineage.tree import SHORTEST, every_artefact, matches
from pipelines.store import Artefact, Store
from pipelines.tombstones import tombstone_rows

NEAREST = 5
COMPARED = 20_000  # file names that a wrong one is compared with, letter by letter


@dataclass(frozen=True)
class Subject:
    """What is asked about. `artefact` is None for a clip and a video, whose id is `name`."""

    kind: Literal["artefact", "clip", "video"]
    name: str
    artefact: Artefact | None = None


def subject_of(store: Store, name: str) -> Subject:
    """The one thing that `name` means: an artefact (see `tree.find`), a clip_id or a video_id (or 8 or more characters of its start),
    or the path or file name of a source video.

    A whole name goes before the start of another. Raises `InputError` that lists the candidates, or the nearest names.
    """
    artefacts = every_artefact(store)
    if not artefacts:
        raise MissingArtefact(f"the store {store.root} holds no artefact yet", expected=name, found="none", remedy="run `make demo` first")
    found = [Subject("artefact", item.key, item) for item in _one_of_equal_bytes(matches(store, name))]
    if found and not _is_start_of_an_id(name):
        return _only(store, name, found)
    tables = Tables(store, artefacts)
    found += [Subject("clip", clip_id) for clip_id in tables.starting("clip_id", name) if len(name) >= SHORTEST or clip_id == name]
    found += [Subject("video", video_id) for video_id in tables.starting("video_id", name) if len(name) >= SHORTEST or video_id == name]
    whole = [subject for subject in found if name in (subject.name, subject.artefact.digest if subject.artefact else "")]
    found = whole or found or [Subject("video", video_id) for video_id in tables.of_path(name)]
    if not found:
        raise _unknown(store, name, tables)
    return _only(store, name, found)


def _one_of_equal_bytes(items: Sequence[Artefact]) -> list[Artefact]:
    return list({item.digest: item for item in reversed(items)}.values())[::-1]


def _is_start_of_an_id(name: str) -> bool:
    return len(name) >= SHORTEST and all(letter in "0123456789abcdef" for letter in name)


def _only(store: Store, name: str, found: list[Subject]) -> Subject:
    if len(found) == 1:
        return found[0]
    words = [f"{one.kind} {one.name}" + (f" {one.artefact.digest}" if one.artefact else "") for one in found]
    raise InputError(
        f"{name} may mean {len(found)} things", expected="a name of one of them", found=", ".join(words[:NEAREST]) + (", ..." if len(words) > NEAREST else ""),
        remedy="give more characters of it, or for a file more folders of its path",
    )  # fmt: skip


def _unknown(store: Store, name: str, tables: Tables) -> InputError:
    rejected = tables.rejected(name)
    if rejected:
        key, row = rejected[0]
        return InputError(
            f"{row['path']} never became a video", expected="a file that was probed", found=f"quarantined in {key}: {row['code']} ({row['detail']})",
            remedy="mend the file and ingest it again; no checkpoint has seen it",
        )  # fmt: skip
    close = tables.nearest(name)
    return InputError(
        f"nothing in {store.root} is called {name}",
        expected="an asset, asset[partition], digest or folder; a clip_id or video_id, or 8 characters of its start; a source video's path or file name",
        found=f"nearest: {', '.join(close)}" if close else "nothing like it", remedy="`tubelet lineage` alone shows the deployed bundle, with all names below it",
    )  # fmt: skip


class Tables:
    """The tables of a store that know clips and videos."""

    def __init__(self, store: Store, artefacts: Sequence[Artefact]) -> None:
        self.store, self.artefacts = store, artefacts

    def _columns(self, name: str) -> Iterator[pa.ChunkedArray]:
        for item in self.artefacts:
            file, schema = VIDEO_TABLES.get(item.asset, ("", schemas.VIDEOS))
            if file and name in schema.names and (item.path / file).is_file():
                yield schemas.read_table(item.path / file, schema, [name]).column(name)
        if name in schemas.TOMBSTONES.names:
            yield tombstone_rows(self.store.root).column(name)

    def starting(self, column: str, start: str) -> list[str]:
        """Values of an id column that begin with `start`, sorted."""
        return sorted({value for values in self._columns(column) for value in values.filter(pc.starts_with(values, start)).unique().to_pylist() if value})

    def of_path(self, name: str) -> list[str]:
        """video_ids of the files at the path `name`: as it is written, from the current folder, or as the end of a path."""
        wanted = pa.array([name, str(Path(name).absolute())])
        exact: dict[str, None] = {}
        ends: dict[str, None] = {}
        for item in self.artefacts:
            file, schema = VIDEO_TABLES.get(item.asset, ("", schemas.SHARD_INDEX))
            if "path" not in schema.names or not (item.path / file).is_file():
                continue
            table = schemas.read_table(item.path / file, schema, ["path", "video_id"])
            for mask, into in ((pc.is_in(table["path"], value_set=wanted), exact), (pc.ends_with(table["path"], _ending(name)), ends)):
                into.update(dict.fromkeys(table["video_id"].filter(mask).unique().to_pylist()))
        return list(exact or ends)

    def rejected(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """(artefact, quarantine row) of probed files that `name` is the path or the end of the path of."""
        found = []
        for item in self.artefacts:
            if item.asset == "videos" and (item.path / "quarantine.parquet").is_file():
                table = schemas.read_table(item.path / "quarantine.parquet", schemas.QUARANTINE)
                mask = pc.or_(pc.equal(table["path"], str(Path(name).absolute())), pc.ends_with(table["path"], _ending(name)))
                found += [(f"{item.key} {item.digest}", row) for row in table.filter(mask).to_pylist()]
        return found

    def partners(self, known: str, value: str, wanted: str) -> list[str]:
        """Every clip_id of a video, or the video_id of a clip, by any table that has both; sorted."""
        found: set[str] = set()
        for item in self.artefacts:
            file, schema = VIDEO_TABLES.get(item.asset, ("", schemas.VIDEOS))
            if known in schema.names and wanted in schema.names:
                found |= {row[wanted] for row in rows_where(item.path / file, schema, known, [value])}
        stones = tombstone_rows(self.store.root)
        return sorted(found | {row for row in stones[wanted].filter(pc.equal(stones[known], value)).to_pylist() if row})

    def nearest(self, name: str) -> list[str]:
        """A few names that are like `name`: artefacts by key, ids with the longest equal beginning, files by name."""
        keys = sorted({item.key for item in self.artefacts})
        close = difflib.get_close_matches(name, keys, NEAREST)
        for length in range(min(len(name) - 1, 32) if _is_start_of_an_id(name) else 0, 4, -1):
            starts = [*self.starting("clip_id", name[:length]), *self.starting("video_id", name[:length])]
            if starts:
                return [*close, *starts][:NEAREST]
        paths = {value for values in self._columns("path") for value in values.unique().to_pylist()}
        files = {path.rpartition("/")[2] for path in paths}
        if len(files) > COMPARED:
            files = {file for file in files if file[:3] == Path(name).name[:3]}
        return [*close, *difflib.get_close_matches(Path(name).name, sorted(files)[:COMPARED], NEAREST)][:NEAREST]


def _ending(name: str) -> str:
    return "/" + name.removeprefix("./").lstrip("/")


def rows_where(path: Path, schema: pa.Schema, column: str, values: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of a table whose `column` is one of `values`; only that column is read where there are none. No file, no rows."""
    if not path.is_file():
        return []
    found = pc.indices_nonzero(pc.is_in(schemas.read_table(path, schema, [column]).column(column), value_set=pa.array(list(values), pa.string())))
    return schemas.read_table(path, schema).take(found).to_pylist() if len(found) else []
