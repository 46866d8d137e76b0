"""Reading a folder of shards against its index, byte by byte."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schemas
from pipelines.errors import InputError, StoreError
from pipelines.identity import file_sha256
from pipelines.reporting import Progress
from pipelines.shards.form import LONGEST_GOP, measure
from pipelines.shards.found import FOUND
from pipelines.shards.index import INDEX_FILE, LONG_NAME, Stored, long_name, member_name
from pipelines.shards.tars import BLOCK, REDACTED, SELF, SHARD_GLOB, Member, read_members, sidecar_text
from pipelines.store import MANIFEST, REDACTIONS, Store, redactions

SIDECAR_COLUMNS = {
    "clip_id": "clip_id", "video_id": "video_id", "frames": "frames", "start_s": "source_start_s", "end_s": "source_end_s", "sha256": "sha256",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Expected:
    """What one tar must hold: its part of the index, the clips that were taken out of it, the file's digest where one is on
    record, and the longest distance of key frames (frames)."""

    table: pa.Table
    redacted: frozenset[str] = frozenset()
    sha256: str | None = None
    gop: int = LONGEST_GOP

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows of the index by clip_id; made when they are asked for, since a million of them would not fit."""
        return {row["clip_id"]: row for row in self.table.to_pylist()}

    @property
    def in_form(self) -> bool:
        """Whether the writer made it. Tars that others made, and those of an index of version 1, are told by their clips' bytes alone."""
        found = pc.any(pc.equal(self.table.column("form"), FOUND)).as_py()
        return not found and self.table.column("width").null_count == 0


def verify_shards(folder: Path, workers: int = 2, progress: Callable[..., None] | None = None) -> list[str]:
    """Every disagreement between tars, index, manifest and redactions, in words (empty when there is none). Reads every byte."""
    try:
        expected = expected_tars(folder)
    except (StoreError, OSError, ValueError) as error:
        return [f"{INDEX_FILE}: {error}"]
    problems = _index_problems(folder, [tar.table for tar in expected.values()])
    problems += [f"{path.name}: not in the index" for path in sorted(folder.glob(SHARD_GLOB)) if path.name not in expected]
    report = progress or Progress("verify", len(expected), "shards")
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        found = pool.map(lambda name: tar_problems(folder / name, expected[name]), sorted(expected))
        for done, each in enumerate(found, start=1):
            problems += each
            report(done, len(expected))
    return problems


def expected_tars(folder: Path) -> dict[str, Expected]:
    """What each tar that the index, the manifest or the redactions name must hold.

    Raises `StoreError`, `OSError` or `ValueError` when one of these files cannot be read or the index names a clip twice.
    """
    table = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX)
    counts = pc.value_counts(table.column("clip_id"))
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise ValueError(f"clips with two rows: {', '.join(sorted(map(str, twice.to_pylist())))}")
    rows, manifest, redacted = by_shard(table), _json(folder / MANIFEST), redactions(folder)
    sealed = {name: entry["sha256"] for name, entry in manifest.get("files", {}).items() if name.endswith(".tar")}
    gop = manifest.get("config", {}).get("gop", LONGEST_GOP)
    return {
        name: Expected(
            rows.get(name, table.slice(0, 0)), frozenset(redacted.get(name, {}).get("clips", ())), redacted.get(name, {}).get("sha256", sealed.get(name)), gop
        )
        for name in sorted({*rows, *sealed, *redacted})
    }  # fmt: skip


def by_shard(index: pa.Table) -> dict[str, pa.Table]:
    """An index in parts, {shard: its rows by clip_id}."""
    index = index.sort_by([("shard", "ascending"), ("clip_id", "ascending")])
    parts, start = {}, 0
    for entry in pc.value_counts(index.column("shard")):  # in the order in which they come
        count = entry["counts"].as_py()
        parts[entry["values"].as_py()], start = index.slice(start, count), start + count
    return parts


def tar_problems(path: Path, expected: Expected, packets: bool = True) -> list[str]:
    """What is wrong with one tar; without `packets` the clips' own packets are not looked at."""
    if not path.is_file():
        return [f"{path.name}: missing"]
    rows, seen = expected.rows, Counter[str]()
    problems: list[str] = []
    try:
        if expected.in_form:
            for member in read_members(path):
                seen[member.name] += 1
                problems += [f"{path.name}: {member.name}: {words}" for words in _member_problems(member, rows, expected, packets)]
        else:
            problems += [f"{path.name}: {words}" for words in _indexed_problems(path, rows, expected.redacted)]
    except (tarfile.TarError, OSError) as error:
        problems.append(f"{path.name}: not readable as a tar: {error}")
    if not problems and expected.sha256 not in (None, file_sha256(path)):
        problems.append(f"{path.name}: sha256 differs from the one on record")
    wanted = [f"{name}.{kind}" for name in rows if name not in expected.redacted for kind in ("json", "mp4")] if expected.in_form else []
    problems += [f"{path.name}: {name}: missing" for name in wanted if not seen[name]]
    strangers = sorted(expected.redacted - set(rows))
    problems += [f"{path.name}: {name}: taken down by {REDACTIONS}, and not in the index" for name in strangers]
    return problems + [f"{path.name}: {name}: there {count} times" for name, count in seen.items() if count > 1]


def _indexed_problems(path: Path, rows: dict[str, dict[str, Any]], redacted: frozenset[str]) -> Iterator[str]:
    """What is not where the index says, as the loader reads it: each clip's header and bytes."""
    with path.open("rb") as handle:
        for name, row in rows.items():
            before = min(row["offset"], LONG_NAME)
            handle.seek(row["offset"] - before)
            headers, data = handle.read(before), handle.read(row["length"])
            member = long_name(headers) or member_name(headers[-BLOCK:])
            found = Stored(member, data, sha256(data).hexdigest())
            if name in redacted:
                if not member.startswith(REDACTED) or any(data):
                    yield f"{name}: was taken down and is still there"
            elif (found.clip_id, found.sha256) != (name, row["sha256"]):
                yield f"{name}: {len(data)} bytes of {member or 'no member'} with sha256 {found.sha256[:16]}, index says {row['length']} with {row['sha256'][:16]}"


def _member_problems(member: Member, rows: dict[str, dict[str, Any]], expected: Expected, packets: bool) -> list[str]:
    if member.name.startswith(REDACTED):
        problems = [] if expected.redacted else [f"taken out, and {REDACTIONS} does not say so"]
        return problems + (["taken out, and yet not all zeros"] if any(member.data) else [])
    problems = [] if member.plain else ["header or padding is not as it was written"]
    clip_id, _, kind = member.name.partition(".")
    row = rows.get(clip_id)
    if row is None:
        return [*problems, "not in the index"]
    if clip_id in expected.redacted:
        return [*problems, "was taken down and is still there"]
    if kind == "json":
        return problems + _sidecar_problems(member.data, row)
    if kind == "mp4":
        return problems + _video_problems(member, row, expected.gop, packets)
    return [*problems, "unknown kind of member"]


def _sidecar_problems(data: bytes, row: dict[str, Any]) -> list[str]:
    try:
        sidecar = json.loads(data)
        whole = sidecar_text({name: value for name, value in sidecar.items() if name != SELF}) == data
    except (ValueError, AttributeError) as error:
        return [f"not JSON: {error}"]
    problems = [] if whole else ["does not agree with its own digest"]
    return problems + [
        f"{inner} is {sidecar.get(inner)}, index says {row[outer]}" for inner, outer in SIDECAR_COLUMNS.items() if sidecar.get(inner) != row[outer]
    ]


def _video_problems(member: Member, row: dict[str, Any], gop: int, packets: bool) -> list[str]:
    problems = []
    if (member.offset, len(member.data)) != (row["offset"], row["length"]):
        problems.append(f"at {member.offset} with {len(member.data)} bytes, index says {row['offset']} with {row['length']}")
    if sha256(member.data).hexdigest() != row["sha256"]:
        return [*problems, "sha256 differs from the index"]
    if not packets:
        return problems
    try:
        found = measure(member.data)
    except (av.FFmpegError, InputError) as error:
        return [*problems, f"not readable as an mp4: {error}"]
    facts = {
        "frames": len(found.times), "first_pts_s": float(found.times[0]), "last_pts_s": float(found.times[-1]), "width": found.width,
        "height": found.height,
    }  # fmt: skip
    problems += [f"{name} is {value}, index says {row[name]}" for name, value in facts.items() if value != row[name]]
    return [*problems, words] if (words := found.problem(gop)) else problems


def _index_problems(folder: Path, parts: list[pa.Table]) -> list[str]:
    problems = [] if any(map(len, parts)) else [f"{INDEX_FILE}: no clips"]
    for part in parts:
        weight = part.column("weight").to_numpy()
        wrong = part.filter(pa.array(~(np.isfinite(weight) & (weight >= 0))))
        problems += [f"{INDEX_FILE}: {name}: weight {value}" for name, value in zip(wrong["clip_id"].to_pylist(), wrong["weight"].to_pylist(), strict=True)]
    return problems if index_is_sealed(folder) else [*problems, f"{INDEX_FILE}: sha256 differs from {MANIFEST}"]


def index_is_sealed(folder: Path) -> bool:
    """Whether the index is the one that the folder's manifest was written for (a bare folder has none)."""
    sealed = _json(folder / MANIFEST).get("files", {}).get(INDEX_FILE, {}).get("sha256")
    return sealed is None or file_sha256(folder / INDEX_FILE) == sealed


def _json(path: Path) -> dict[str, Any]:
    """A JSON file, {} when there is none. Raises `ValueError` when it is damaged."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    return found


def verification(folder: Path | None, store: Path) -> tuple[str, bool]:
    """What a person is told of `folder`, or of the store's current training_shards, and whether all is well."""
    folder = folder or Store.open(store, create=False).current("training_shards").path
    if not (folder / INDEX_FILE).is_file():
        raise InputError(f"{folder} holds no shards", expected=INDEX_FILE, found="none", remedy="name a folder of training_shards")
    problems = verify_shards(folder)
    if problems:
        return "\n".join([f"{folder}: {len(problems)} disagreements", *(f"  {words}" for words in problems)]), False
    tars = expected_tars(folder)
    clips, gone = (sum(len(part) for part in parts) for parts in ([tar.table for tar in tars.values()], [tar.redacted for tar in tars.values()]))
    drawn = [(tar, tar.table.column("clip_id").filter(pc.greater(tar.table.column("weight"), 0))) for tar in tars.values()]
    served = sum(name not in tar.redacted for tar, names in drawn for name in names.to_pylist())
    taken = f", {gone} taken down" if gone else ""
    what = "every byte is" if all(tar.in_form for tar in tars.values()) else "the clips' bytes are"
    return f"{folder}: {len(tars)} shards, {clips - gone} clips ({served} drawn from){taken}: {what} as the index says", True
