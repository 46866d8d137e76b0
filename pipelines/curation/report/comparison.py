"""Two curations side by side: what both draw, who gained, who lost, and why a clip is in one and not in the other."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.curation.report.chain import Chain, created
from pipelines.curation.report.losses import Row, find_clips
from pipelines.curation.report.pool import GROUPS, UNKNOWN
from pipelines.curation.report.sides import Side, common_clusters, credits_of, videos_of
from pipelines.errors import InputError, MissingArtefact
from pipelines.store import MANIFEST, Artefact, Store

ASSET = "curated_clips"
SHOWN = 24  # clips listed of those that gained and of those that lost
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Curation:
    """One selection in the store: when it was made (s since 1970), how many clips, whether it passed its checks and is in use."""

    artefact: Artefact
    created: float
    validated: bool
    current: bool

    @property
    def clips(self) -> int:
        return int(self.artefact.summary.get("clips", 0))


@dataclass(frozen=True)
class Change:
    """Shares of the draws of one group before and after, and in clips."""

    name: str
    before: float
    after: float
    clips_before: int
    clips_after: int

    @property
    def change(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class ClipChange:
    """One clip's share of the draws before and after; `clip` is its row; where one side does not draw it at all,
    `why` says what became of it there."""

    clip: Row
    before: float
    after: float
    why: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found. Overlaps are shares: `jaccard` of the sets of clips, `overlap` of the draws (1 - total variation),
    and the same over videos, which a new splitter leaves alone. `groups` are changes by cluster, target, source and so on,
    largest first; `reasons` count why clips are drawn by one alone; `differences` are (stage, option, before, after)."""

    before: Curation
    after: Curation
    both: int
    jaccard: float
    overlap: float
    video_jaccard: float
    video_overlap: float
    groups: dict[str, list[Change]]
    gained: list[ClipChange]
    lost: list[ClipChange]
    reasons: dict[str, dict[str, tuple[int, float]]]
    differences: list[tuple[str, str, str, str]]
    codebook: str
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        sides = {name: {"digest": side.artefact.digest, "created": side.created, "clips": side.clips} for name, side in (("before", self.before), ("after", self.after))}
        clips = {
            name: [{"clip_id": row.clip["clip_id"], "path": row.clip["path"], "start_s": row.clip["start_s"], "end_s": row.clip["end_s"],
                    "before": row.before, "after": row.after, "why": row.why} for row in rows]
            for name, rows in (("gained", self.gained), ("lost", self.lost))
        }  # fmt: skip
        overlaps = {name: getattr(self, name) for name in ("both", "jaccard", "overlap", "video_jaccard", "video_overlap", "codebook")}
        groups = {name: [{**vars(row), "change": row.change} for row in rows] for name, rows in self.groups.items()}
        reasons = {way: {why: {"clips": count, "share": share} for why, (count, share) in found.items()} for way, found in self.reasons.items()}
        return {
            **sides, **overlaps, "groups": groups, **clips, "reasons": reasons, "notes": list(self.notes),
            "differences": [dict(zip(("stage", "option", "before", "after"), row, strict=True)) for row in self.differences],
        }  # fmt: skip


def curations(store: Store) -> list[Curation]:
    """Every selection in the store, newest first."""
    used = store.latest(ASSET)
    found = [store.load(path.parent) for path in (store.root / "artefacts" / ASSET).glob("*/[!.]*/" + MANIFEST)]
    listed = [Curation(item, created(item), store.is_validated(item), used is not None and item.path == used.path) for item in found]
    return sorted(listed, key=lambda item: (-item.created, item.artefact.digest))


def find_curation(store: Store, name: str) -> Curation:
    """The selection called `current`, `previous` (the newest that passed its checks before it) or by the start of its digest.

    Raises `InputError` when that is none or several, `MissingArtefact` when there is no selection at all.
    """
    found = curations(store)
    if not found:
        raise MissingArtefact(
            f"the store {store.root} holds no selection", expected="two artefacts of curated_clips", found="none", remedy="materialize curated_clips first",
        )  # fmt: skip
    if name == "current":
        matching = [item for item in found if item.current]
    elif name == "previous":
        used = next((item for item in found if item.current), None)
        older = [item for item in found if not item.current and item.validated and (used is None or item.created <= used.created)]
        matching = older[:1]
    else:
        matching = [item for item in found if len(name) >= 4 and item.artefact.digest.startswith(name)]
    if len(matching) != 1:
        raise InputError(
            f"no one selection is called {name}", expected="current, previous, or the start of a digest (4 characters or more)",
            found="; ".join(described(item) for item in found), remedy="name two of these",
        )  # fmt: skip
    return matching[0]


def described(item: Curation) -> str:
    """One selection in a line: digest, date, clips."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(item.created))
    state = ", current" if item.current else "" if item.validated else ", did not pass its checks"
    return f"{item.artefact.digest} ({when}, {item.clips:,} clips{state})"


def compare(store: Store, before: str = "previous", after: str = "current") -> Comparison:
    """Compare two selections of a store, by `find_curation`'s names.

    Clusters are those of the newer codebook; clips that it never saw go to the nearest of its leaves. Raises
    `InputError` for names that do not name one selection each, or name the same twice.
    """
    first, second = find_curation(store, before), find_curation(store, after)
    if first.artefact.path == second.artefact.path:
        raise InputError(
            "a selection cannot be compared with itself", expected="two selections", found=f"{before} and {after} are both {first.artefact.digest}",
            remedy="name two of these: " + "; ".join(described(item) for item in curations(store)),
        )  # fmt: skip
    a, b = Side.of(store, first.artefact), Side.of(store, second.artefact)
    ids = pa.chunked_array([a.pool.ids, b.pool.ids]).unique()
    weights = a.weight(ids), b.weight(ids)
    drawn = (weights[0] > 0) | (weights[1] > 0)
    ids, (w_a, w_b) = ids.filter(pa.array(drawn)), (weights[0][drawn], weights[1][drawn])
    clusters, version, notes = common_clusters(a, b, ids)
    groups = {"cluster": changes_by([str(number) if number >= 0 else UNKNOWN for number in clusters], w_a, w_b)}
    groups["target"] = _target_changes(a, b)
    for name in GROUPS:
        changes = _group_changes(a, b, name)
        if len(changes) > 1 or changes[0].name != UNKNOWN:
            groups[name] = changes
    videos = videos_of(a, b, ids)
    per_video = changes_by(videos, w_a, w_b)
    shared = sum(row.clips_before > 0 and row.clips_after > 0 for row in per_video)
    rows, reasons = _clip_changes(a, b, ids, videos, w_a, w_b, clusters)
    both = int(((w_a > 0) & (w_b > 0)).sum())
    return Comparison(
        first, second, both, both / max(1, len(ids)), float(np.minimum(w_a, w_b).sum()), shared / max(1, len(per_video)),
        float(sum(min(row.before, row.after) for row in per_video)), groups, rows["gained"], rows["lost"], reasons,
        _differences(a.chain, b.chain), version, notes,
    )  # fmt: skip


def changes_by(names: list[str], before: Vector, after: Vector) -> list[Change]:
    """Changes of the groups that the clips' `names` (N,) make, largest first."""
    order, codes = np.unique(np.array(names, object).astype(str), return_inverse=True)
    sums = [np.bincount(codes, values, minlength=len(order)) for values in (before, after, before > 0, after > 0)]
    rows = [Change(str(name), float(sums[0][at]), float(sums[1][at]), int(sums[2][at]), int(sums[3][at])) for at, name in enumerate(order)]
    return sorted(rows, key=lambda row: (-abs(row.change), row.name))


def _group_changes(a: Side, b: Side, name: str) -> list[Change]:
    sides = []
    for side in (a, b):
        column, weight = side.pool.groups[name], side.pool.weight
        assert weight is not None
        shares, clips = column.sums(weight), column.sums((weight > 0).astype(np.float64))
        sides.append({word: (float(shares[code]), int(clips[code])) for code, word in enumerate(column.names)})
    return _joined(*sides)


def _joined(before: Mapping[str, tuple[float, int]], after: Mapping[str, tuple[float, int]]) -> list[Change]:
    nothing = (0.0, 0)
    rows = [
        Change(name, before.get(name, nothing)[0], after.get(name, nothing)[0], before.get(name, nothing)[1], after.get(name, nothing)[1])
        for name in sorted({*before, *after})
    ]
    return sorted(rows, key=lambda row: (-abs(row.change), row.name))


def _target_changes(a: Side, b: Side) -> list[Change]:
    """By target: each clip's draws go to the targets that pay for them, where the selection says so, else to the strongest."""
    return _joined(credits_of(a.selection), credits_of(b.selection))


def _clip_changes(
    a: Side, b: Side, ids: pa.Array, videos: list[str], w_a: Vector, w_b: Vector, clusters: NDArray[np.int64]
) -> tuple[dict[str, list[ClipChange]], dict[str, dict[str, tuple[int, float]]]]:  # fmt: skip
    """The clips that gained and lost most, spread over clusters, and for clips that one side alone draws the reasons, counted."""
    rows: dict[str, list[ClipChange]] = {}
    reasons: dict[str, dict[str, tuple[int, float]]] = {}
    for way, change, only, absent, other in (
        ("gained", w_b - w_a, w_a == 0, a, "the newer"), ("lost", w_a - w_b, w_b == 0, b, "the older"),
    ):  # fmt: skip
        alone = np.flatnonzero(only)
        fates = absent.fates(ids.take(pa.array(alone)).to_pylist(), [videos[row] for row in alone], other)
        fate_of = dict(zip(alone.tolist(), fates, strict=True))
        counted: dict[str, tuple[int, float]] = {}
        for row, fate in fate_of.items():
            count, share = counted.get(fate, (0, 0.0))
            counted[fate] = count + 1, share + float(change[row])
        reasons[way] = dict(sorted(counted.items(), key=lambda item: (-item[1][1], item[0])))
        order = [int(row) for row in np.argsort(-change, kind="stable") if change[row] > 0]
        chosen = _spread(order, clusters, SHOWN)
        clips = find_clips([b.distinct, a.distinct], set(ids.take(pa.array(chosen, pa.int64())).to_pylist()))
        rows[way] = [ClipChange(clips[ids[row].as_py()][0], float(w_a[row]), float(w_b[row]), fate_of.get(row, "")) for row in chosen]
    return rows, reasons


def _spread(order: list[int], clusters: NDArray[np.int64], count: int) -> list[int]:
    """The first `count` of `order`, at most an eighth of them from one cluster while others are left."""
    most = max(1, count // 8)
    used: dict[int, int] = {}
    taken: list[int] = []
    spare: list[int] = []
    for place, row in enumerate(order):
        cluster = int(clusters[row])
        used[cluster] = used.get(cluster, 0) + 1
        (taken if used[cluster] <= most else spare).append(place)
        if len(taken) == count:
            break
    return [order[place] for place in sorted((taken + spare)[:count])]


def _differences(a: Chain, b: Chain) -> list[tuple[str, str, str, str]]:
    """Options and inputs in which the two chains differ, as (stage, option, before, after)."""
    stages = [{item.key: item for item in chain.artefacts() if item.asset != "training_shards"} for chain in (a, b)]
    found = []
    for key in dict.fromkeys([*stages[0], *stages[1]]):
        old, new = stages[0].get(key), stages[1].get(key)
        if old is None or new is None:
            found.append((key, "taken in", "yes" if old else "no", "yes" if new else "no"))
            continue
        before, after = (_flat(item.config) for item in (old, new))
        changed = [(key, name, before.get(name, "not there"), after.get(name, "not there")) for name in dict.fromkeys([*before, *after])]
        found += [row for row in changed if row[2] != row[3]]
        if old.digest != new.digest and old.config == new.config and old.inputs == new.inputs:
            found.append((key, "bytes", old.digest, new.digest))
    return found


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested options by dotted names, as text."""
    if isinstance(value, Mapping) and (value or not name):
        return {path: text for key, inner in value.items() for path, text in _flat(inner, f"{name}.{key}" if name else str(key)).items()}
    return {name: json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}
