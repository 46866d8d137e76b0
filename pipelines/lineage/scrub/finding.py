"""What a scrub says: findings, each a disagreement with its remedy, and notes, which are there to be known."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

SHOWN = 3  # names in one sentence
LONGEST = 300  # characters of what was found


class Kind(enum.StrEnum):
    """What does not agree: the only kinds a finding may have."""

    STORE_MARKER = "store_marker"
    MANIFEST = "manifest"
    MISPLACED = "misplaced"
    MEMBER_MISSING = "member_missing"
    MEMBER_SIZE = "member_size"
    MEMBER_SHA256 = "member_sha256"
    UNLISTED = "unlisted"
    SYMLINK = "symlink"
    REDACTION = "redaction"
    DIGEST = "digest"
    IDENTITY = "identity"
    DUPLICATE_IDENTITY = "duplicate_identity"
    INPUT_GONE = "input_gone"
    INPUT_DIGEST = "input_digest"
    CYCLE = "cycle"
    POINTER_GONE = "pointer_gone"
    POINTER_ELSEWHERE = "pointer_elsewhere"
    POINTER_DIGEST = "pointer_digest"
    NOT_VALIDATED = "not_validated"
    MARKER = "marker"
    UNREADABLE = "unreadable"
    TABLE_MISSING = "table_missing"
    DUPLICATE_KEY = "duplicate_key"
    CODE = "code"
    BATCH = "batch"
    UNKNOWN_VIDEO = "unknown_video"
    CLIP_ID = "clip_id"
    CLIP_TIMES = "clip_times"
    ROWS = "rows"
    VECTORS = "vectors"
    ENCODER = "encoder"
    FAN_IN = "fan_in"
    CLIPS_LOST = "clips_lost"
    CLIPS_TWICE = "clips_twice"
    CLIP_ROWS = "clip_rows"
    TWIN_UNKNOWN = "twin_unknown"
    TWIN_REMOVED = "twin_removed"
    ASSIGNMENTS = "assignments"
    CLUSTER = "cluster"
    STATISTICS = "statistics"
    UNKNOWN_CLIP = "unknown_clip"
    WEIGHTS = "weights"
    SHARD_CLIPS = "shard_clips"
    SHARD_WEIGHTS = "shard_weights"
    SHARD_ROWS = "shard_rows"
    SHARD_BYTES = "shard_bytes"
    SERVED = "served"
    TAKEDOWN = "takedown"
    EPISODE_VIDEO = "episode_video"
    EPISODE_STEPS = "episode_steps"
    EXPOSURE = "exposure"
    PARENT = "parent"
    NETWORK = "network"
    BUNDLE = "bundle"
    ROBOT_POINTER = "robot_pointer"
    RECORDED = "recorded"


@dataclass(frozen=True)
class Finding:
    """One disagreement. `artefact` is its key and digest, "" for what belongs to the store as a whole; `file` is a path in the store."""

    kind: Kind
    artefact: str
    file: str
    expected: str
    found: str
    remedy: str


@dataclass(frozen=True)
class Note:
    """What is no disagreement and should be known: leftovers, and what was not compared and why."""

    artefact: str
    file: str
    text: str


Told: TypeAlias = Iterator[Finding | Note]


def several(names: Iterable[Any]) -> str:
    """How many, and the first few by name."""
    known = [str(name) for name in names]
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"{len(known)} ({', '.join(known[:SHOWN])}{more})" if known else "none"


def words_of(error: BaseException) -> str:
    """An exception in one line that is not too long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]
