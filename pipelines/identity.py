"""Digests: the one way anything in Tubelet gets a name that depends on content alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values have equal text (NaN refused)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest_of(value: Any, length: int = 16) -> str:
    """First `length` hex characters of the sha256 over the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def clip_id(video_id: str, start_pts: int, end_pts: int, time_base: tuple[int, int], splitter: str) -> str:
    """Identity of a span of a video: `start_pts` inclusive, `end_pts` exclusive, in units of `time_base` (num, den) s."""
    return digest_of(["clip", video_id, start_pts, end_pts, list(time_base), splitter], length=20)


def stable_seed(*parts: Any) -> int:
    """A 63-bit seed that is a pure function of its parts (JSON values)."""
    return int(digest_of(list(parts)), 16) >> 1
