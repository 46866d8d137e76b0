"""WebDataset tars, as webdataset and video2dataset write them: videos that are read in place, with their sidecars.

The members of one sample share the name up to the first dot: "000012.mp4" with "000012.json". video2dataset also writes
a table of all samples beside each tar ("00000.tar" and "00000.parquet"), failed downloads among them.
"""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.errors import InputError
from pipelines.sources.folder import (
    VIDEO_SUFFIXES,
    LeftOut,
    Listing,
    SourceFile,
    first_names,
    insist_on_folder,
    left_out,
    scan_suffixes,
    utf8,
)
from pipelines.sources.manifest import facts_of
from pipelines.video.media import TarTable, display_name, member_path, tar_table

logger = logging.getLogger("tubelet.sources")

TAR = frozenset({".tar"})
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
BESIDE = frozenset({".parquet", ".json"})  # video2dataset's tables and statistics, beside the tars
MEMBER_SUFFIXES = VIDEO_SUFFIXES | {".video"}
FAILED = "failed_to_"  # how video2dataset's words for a sample that it lacks begin (download, subsample); others are the data set's own
SHARDS_KEPT = 1024  # listings of tars kept per process
KINDS = "a .tar, or a folder of .tar files, with videos in them (WebDataset)"


@dataclass(frozen=True)
class Shard:
    """What one tar gives. The names of the left-out lists say the tar too."""

    files: tuple[SourceFile, ...]
    failed: tuple[str, ...]
    without_video: tuple[str, ...]
    repeated: tuple[str, ...]
    bad_sidecars: tuple[str, ...]
    unnamed: int


def is_compressed(path: Path) -> bool:
    """Whether a file is named as a compressed tar."""
    return path.name.lower().endswith(COMPRESSED)


def list_tars(path: Path, root: Path) -> Listing:
    """The videos in a tar, or in every tar below a folder, sorted by path; a damaged tar gives what can be read of it."""
    tars, compressed, others = _found_at(path)
    shards = [read_shard(tar) for tar in tars]

    def every(field: str) -> list[str]:
        return [name for shard in shards for name in getattr(shard, field)]

    return Listing(
        tuple(sorted((file for shard in shards for file in shard.files), key=lambda file: file.path)),
        (
            *left_out("compressed tars, which are not read", [str(tar) for tar in compressed]),
            *left_out("samples without a video whose download failed", every("failed")),
            *left_out("samples without a video", every("without_video")),
            *left_out("members that are in their tar more than once, of which the last counts", every("repeated")),
            *left_out("json sidecars that cannot be read, whose videos are taken in without", every("bad_sidecars")),
            *left_out("tars with names that are not UTF-8", [str(tar) for tar, shard in zip(tars, shards, strict=True) if shard.unnamed]),
            *others,
        ),
    )  # fmt: skip


def _found_at(path: Path) -> tuple[list[Path], list[Path], tuple[LeftOut, ...]]:
    """(tars, compressed tars, what else is left out) of a folder, sorted, or of the tar itself."""
    if not path.is_dir():
        return [path], [path] if is_compressed(path) else [], ()
    files, others = scan_suffixes(path, TAR | BESIDE | {Path(ending).suffix for ending in COMPRESSED})
    places = [Path(file.path) for file in files]
    return [place for place in places if place.suffix.lower() in TAR], [place for place in places if is_compressed(place)], others


def tars_of(path: Path) -> list[Path]:
    """The tar itself, or all tars below a folder, sorted."""
    return _found_at(path)[0]


def compressed_tars(path: Path) -> list[Path]:
    """The compressed tars that a path names or a folder holds, sorted."""
    return _found_at(path)[1]


def tars_or_error(path: Path) -> None:
    """Raise `InputError` unless there is a tar to read and none that is compressed."""
    if path.is_dir():
        insist_on_folder(path, KINDS, "name a folder of tars")
    elif not path.is_file():
        raise InputError(f"{path} does not exist", expected=KINDS, found="nothing there", remedy="name a tar, or a folder of tars")
    compressed = compressed_tars(path)
    if compressed:
        raise InputError(
            f"compressed tars cannot be taken in from {path}", expected="plain .tar files: videos are read in place, which compression makes impossible",
            found=first_names([tar.name for tar in compressed]),
            remedy="unpack the compression (gunzip FILE.tar.gz leaves FILE.tar): videos hardly shrink by it",
        )  # fmt: skip
    if not path.is_dir():
        tar_table(path)
    elif not tars_of(path):
        raise InputError(f"{path} has no tar", expected=KINDS, found="no file named .tar", remedy="name a folder of tars")


def read_shard(tar: Path) -> Shard:
    """List one tar with the sidecars in it and beside it; read once per process while neither changes."""
    beside = tar.with_suffix(".parquet")
    stamps = tuple((file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None for file in (tar, beside))
    return _read_shard(tar, beside, stamps)


@functools.lru_cache(maxsize=SHARDS_KEPT)
def _read_shard(tar: Path, beside: Path, stamps: tuple[Any, ...]) -> Shard:
    try:
        status, table = tar.stat(), tar_table(tar)
    except (OSError, InputError) as error:
        # The tar itself becomes the row: a growing or foreign file among many must not stop the others.
        size, mtime_ns = stamps[0] or (0, 0)
        return Shard((SourceFile(str(tar), size, mtime_ns, problem=f"cannot be read as a tar: {error}"),), (), (), (), (), 0)
    records, bad = _json_sidecars(tar, table)
    listed = _table_beside(beside)
    videos = {name: _key(name) for name in table.members if _is_video(name)}
    files = []
    for name, key in videos.items():
        beside_it, own = listed.get(PurePosixPath(key).name, {}), records.get(key, {})
        facts: dict[str, Any] = {**facts_of(_flat(beside_it)), **facts_of(_flat(own))}
        file = SourceFile(member_path(tar, name), table.members[name][1], status.st_mtime_ns, problem=_failure(own) or _failure(beside_it))
        files.append(replace(file, **facts))
    if table.damage:
        words = f"the tar ends early ({table.damage}); the {len(files)} videos before that are taken in"
        files.append(SourceFile(str(tar), status.st_size, status.st_mtime_ns, problem=words))
    taken = set(videos.values())
    silent = [key for key in _keys(table.members) if key not in taken]
    reasons = {key: _failure(records.get(key, {})) or _failure(listed.get(PurePosixPath(key).name, {})) for key in silent}
    # Samples that left nothing in the tar are only in the table beside it.
    known = {PurePosixPath(key).name for key in (*taken, *silent)}
    reasons |= {key: _failure(record) or "not in the tar" for key, record in listed.items() if key not in known}
    return Shard(
        tuple(sorted(files, key=lambda file: file.path)),
        tuple(f"{tar.name}: {key} ({reason})" for key, reason in reasons.items() if reason),
        tuple(f"{tar.name}: {key}" for key, reason in reasons.items() if not reason),
        tuple(member_path(tar.name, name) for name in table.repeated), tuple(member_path(tar.name, name) for name in bad), table.unnamed,
    )  # fmt: skip


def _key(name: str) -> str:
    """The sample a member belongs to: its name up to the first dot of the last part, as webdataset has it."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.split(".", 1)[0])) if not path.name.startswith(".") else name


def _keys(names: Iterable[str]) -> list[str]:
    return sorted({_key(name) for name in names if not PurePosixPath(name).name.startswith(".")})


def _is_video(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in MEMBER_SUFFIXES and not path.name.startswith(".")


def _json_sidecars(tar: Path, table: TarTable) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """(key -> record) of the json members, and the names of those that are no JSON object."""
    records: dict[str, Mapping[str, Any]] = {}
    bad = []
    with open(tar, "rb") as handle:
        for name, (start, length) in table.members.items():
            if PurePosixPath(name).suffix.lower() != ".json" or PurePosixPath(name).name.startswith("."):
                continue
            handle.seek(start)
            try:
                record = json.loads(handle.read(length))
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                records[_key(name)] = {**records.get(_key(name), {}), **record}
            else:
                bad.append(name)
    return records, bad


def _table_beside(path: Path) -> dict[str, Mapping[str, Any]]:
    """(key -> record) of video2dataset's table; nothing when there is none, or the file is something else."""
    if not path.is_file():
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        wanted = [name for name in names if name in ("key", "status", "error_message", "yt_meta_dict", *_FACT_COLUMNS)]
        rows = pq.read_table(path, columns=wanted).to_pylist() if "key" in names else []
    except (OSError, pa.ArrowException) as error:
        logger.warning("%s cannot be read (%s): what it says of the videos in the tar is not known", path, error)
        return {}
    if not rows:
        logger.info("%s is no table of video2dataset: it has no column key, or no rows", path)
    return {str(row["key"]): row for row in rows}


_FACT_COLUMNS = ("url", "licence", "license", "uploader", "author", "language", "label")


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's own words, and where it lacks them those that video2dataset took over from YouTube."""
    metadata = record.get("yt_meta_dict")
    info = metadata.get("info") if isinstance(metadata, dict) else None
    told = {name: info[name] for name in ("licence", "license", "uploader", "language") if info.get(name)} if isinstance(info, dict) else {}
    return {**told, **{name: value for name, value in record.items() if value not in (None, "")}}


def _failure(record: Mapping[str, Any]) -> str:
    """Why video2dataset marked a sample as failed; "" when it did not."""
    status = str(record.get("status"))
    if not status.startswith(FAILED):
        return ""
    return utf8(f"video2dataset: {status}" + (f": {record['error_message']}" if record.get("error_message") else ""))


def nothing_usable(path: Path, listing: Listing) -> InputError:
    """The error for tars that give no video: what is wrong with those in them, or what is in them instead."""
    problems = [f"{display_name(file.path)}: {file.problem}" for file in listing.files if file.problem]
    if problems:
        return InputError(
            f"{path} has no video that can be taken in", expected="videos whose download did not fail, in tars that can be read",
            found=first_names(problems), remedy="download them again, or name other tars",
        )  # fmt: skip
    inside: Counter[str] = Counter()
    for tar in tars_of(path):
        inside += Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in tar_table(tar).members)
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(inside.items()))
    return InputError(
        f"{path} has no video in its tars", expected="members such as KEY.mp4, KEY.webm or KEY.video", found=listed or "no members",
        remedy="name tars that hold video files: frames, features or captions alone are not taken in",
    )  # fmt: skip
