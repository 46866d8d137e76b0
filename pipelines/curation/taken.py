"""Clips of the pool that may not be used any more: those that were taken down, and whatever shows their footage.

Taken clips stay in the pool's tables, so a copy that arrives in a later batch is compared with them: what a chain of strict
pairs links to one goes, as leaks do. Two things outlast even that: a clip that was named by itself covers its seconds however
its video is cut later, and taken clips that the pool has lost (their files are gone, and the clips were made anew since) are
still compared with, as long as vectors of the same encoder are in the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import schemas
from pipelines.curation.cover import component_leaks
from pipelines.curation.merging import ClipPool, Rows, open_pool
from pipelines.curation.neighbours import SearchConfig
from pipelines.curation.pairs import GrowingFinder, PairRules, Pairs, find_pairs, side_of
from pipelines.curation.pool_pairs import PoolPairs
from pipelines.lineage.spans import shares_footage
from pipelines.lineage.takedown.sightings import SPAN_SCHEMA, clips_by_id
from pipelines.lineage.tree import every_artefact, input_paths
from pipelines.parts import Parts
from pipelines.store import Artefact, Store
from pipelines.tombstones import Tombstones, read_tombstones, tombstone_rows


@dataclass(frozen=True, eq=False)
class TakenDown:
    """What was taken down: `tombstones` with their `rows`, the `spans` of clips that were named by themselves, and older
    artefacts of clips and embeddings (`former`) that hold taken clips which the pool may have lost."""

    tombstones: Tombstones = field(default_factory=Tombstones)
    rows: pa.Table = field(default_factory=schemas.TOMBSTONES.empty_table)
    spans: pa.Table = field(default_factory=SPAN_SCHEMA.empty_table)
    former: Mapping[str, tuple[Path, Path]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tombstones)

    @cached_property
    def _first(self) -> dict[tuple[str | None, str | None], int]:
        """(clip_id, None), or (None, video_id) of a whole video, to the first row that names it."""
        clips, videos = (self.rows.column(name).to_pylist() for name in ("clip_id", "video_id"))
        found: dict[tuple[str | None, str | None], int] = {}
        for row, (clip, video) in enumerate(zip(clips, videos, strict=True)):
            found.setdefault((clip, None) if clip else (None, video), row)
        return found

    def told(self, clip_id: str, video_id: str) -> str:
        """Which takedown covers a clip, and its reason; "" for a clip that none covers."""
        rows = [self._first[key] for key in ((clip_id, None), (None, video_id)) if key in self._first]
        return ": ".join(str(self.rows.column(name)[min(rows)].as_py()) for name in ("takedown", "reason")) if rows else ""


@dataclass(frozen=True, eq=False)
class TakenClips:
    """Clips of a pool that may not be used: `rows` (L,), ascending. For each the taken clip that it shows ("" where it is taken
    itself), their cosine and the distance of their looks (NaN where they were not compared), and a sentence."""

    rows: Rows
    twins: list[str]
    similarity: NDArray[np.float64]
    distance: NDArray[np.float64]
    details: list[str]


def read_taken_down(store: Store, batches: Sequence[tuple[Artefact, Artefact]]) -> TakenDown:
    """What is taken down in a store whose pool is made of these artefacts of clips and embeddings."""
    tombstones = read_tombstones(store.root)
    if not tombstones:
        return TakenDown()
    spans = clips_by_id(store, tombstones.clip_ids)
    return TakenDown(tombstones, tombstone_rows(store.root), spans, _former(store, batches, tombstones))


def _former(store: Store, batches: Sequence[tuple[Artefact, Artefact]], tombstones: Tombstones) -> dict[str, tuple[Path, Path]]:
    """Older clips and embeddings by the pool's encoder that hold taken clips for which the pool has no vector, by key and digest."""
    encoders, current = {_encoder(vectors.path) for _, vectors in batches}, {vectors.path for _, vectors in batches}
    there, found = _embedded(current), dict[str, tuple[Path, Path]]()
    for vectors in every_artefact(store):
        if vectors.asset != "clip_embeddings" or vectors.path in current or _encoder(vectors.path) not in encoders:
            continue
        for clips in (store.root / path for key, path in input_paths(vectors).items() if key.startswith("clips")):
            if (clips / "looks.npy").is_file() and _taken_in(clips, vectors.path, tombstones) - there:
                found[f"{vectors.key} {vectors.digest}"] = (clips, vectors.path)
    return found


def _taken_in(clips: Path, vectors: Path, tombstones: Tombstones) -> set[str]:
    """Ids of the taken clips that have a vector."""
    table = schemas.read_table(clips / "clips.parquet", schemas.CLIPS, ["clip_id", "video_id"])
    taken = table.filter(pa.array(tombstones.among(table.column("clip_id"), table.column("video_id"))))
    return set(taken.column("clip_id").to_pylist()) & _embedded([vectors])


def _embedded(folders: Iterable[Path]) -> set[str]:
    return {name for folder in folders for name in json.loads((folder / "clip_ids.json").read_text())}


def _encoder(folder: Path) -> str:
    return str(json.loads((folder / "encoder.json").read_text())["digest"])


def find_taken(parts: Parts, pool: ClipPool, found: PoolPairs, taken: TakenDown, search: SearchConfig, strict: PairRules) -> TakenClips:
    """The clips of the pool that may not be used. `found.pool` are the pool's pairs, of which the strict ones link."""
    if not taken:
        return TakenClips(np.empty(0, np.int64), [], np.empty(0), np.empty(0), [])
    ids, videos = (pool.table.column(name) for name in ("clip_id", "video_id"))
    own = taken.tombstones.among(ids, videos) | _in_spans(pool, taken.spans)
    pairs = found.pool.take(found.pool.strict)
    clips = np.flatnonzero(own)
    streams, place = np.unique(pool.stream[clips], return_index=True)
    # Seeds: taken clips by their ids, each with the streams of the pool that lead to it, its cosine and its distance to them.
    seeds = ids.take(pa.array(clips[place])).to_pylist()
    links = {stream: (number, 1.0, 0.0) for number, stream in enumerate(streams.tolist())}
    for stream, name, similarity, distance in _like_former(parts, pool, found, taken, search, strict):
        if stream not in links:
            seeds.append(name)
            links[stream] = (len(seeds) - 1, similarity, distance)
    reached = component_leaks(len(pool.firsts), np.stack([pairs.first, pairs.second], axis=1), {stream: link[0] for stream, link in links.items()})
    links = {**_direct(pairs, set(streams.tolist()), links), **links}
    rows = np.flatnonzero(np.isin(pool.stream, np.array(sorted(reached), np.int64)) & pool.live)
    twins, alike, apart, details = [], [], [], []
    for row, clip_id, video_id in zip(rows.tolist(), ids.take(pa.array(rows)).to_pylist(), videos.take(pa.array(rows)).to_pylist(), strict=True):
        stream = int(pool.stream[row])
        number, similarity, distance = links.get(stream, (reached[stream], np.nan, np.nan))
        why = taken.told(clip_id, video_id)
        twins.append("" if why else seeds[number])
        alike.append(np.nan if why else similarity)
        apart.append(np.nan if why else distance)
        details.append(f"taken down by {why}" if why else f"shows what {seeds[number]} shows, which was taken down" + ("" if stream in links else ", by a chain of copies"))
    return TakenClips(rows, twins, np.array(alike, np.float64), np.array(apart, np.float64), details)


def _in_spans(pool: ClipPool, spans: pa.Table) -> NDArray[np.bool_]:
    """(N,) which clips show the seconds of a span of their own video."""
    by_video: dict[str, list[tuple[float, float]]] = {}
    for row in spans.to_pylist():
        by_video.setdefault(row["video_id"], []).append((row["start_s"], row["end_s"]))
    mask = np.zeros(len(pool), bool)
    rows = np.flatnonzero(pc.is_in(pool.table.column("video_id"), value_set=pa.array(sorted(by_video), pa.string())).to_numpy())
    columns = [pool.table.column(name).take(pa.array(rows)).to_pylist() for name in ("video_id", "start_s", "end_s")]
    for row, video_id, start_s, end_s in zip(rows.tolist(), *columns, strict=True):
        mask[row] = any(shares_footage(start_s, end_s, *span) for span in by_video[video_id])
    return mask


def _direct(pairs: Pairs, streams: set[int], links: Mapping[int, tuple[int, float, float]]) -> dict[int, tuple[int, float, float]]:
    """For streams that have a pair with a taken one, the most similar of these: (its seed, cosine, distance)."""
    best: dict[int, tuple[int, float, float]] = {}
    for number in np.lexsort((pairs.second, pairs.first, -pairs.cosine)).tolist():
        for here, there in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
            one, two = int(here[number]), int(there[number])
            if two in streams and one not in links:
                best.setdefault(one, (links[two][0], float(pairs.cosine[number]), float(pairs.distance[number])))
    return best


def _like_former(
    parts: Parts, pool: ClipPool, found: PoolPairs, taken: TakenDown, search: SearchConfig, strict: PairRules
) -> list[tuple[int, str, float, float]]:
    """(stream, taken clip, cosine, distance) of streams like a taken clip that the pool has lost; the most similar first."""
    if not taken.former:
        return []
    former = open_pool(taken.former)
    ids = former.table.column("clip_id")
    gone = taken.tombstones.among(ids, former.table.column("video_id")) & ~pc.is_in(ids, value_set=pool.table.column("clip_id").combine_chunks()).to_numpy()
    side = side_of(former, former.firsts[np.isin(np.arange(len(former.firsts)), former.stream[gone])], parts, "taken-signs")
    if len(side) == 0:
        return []
    finder = partial(GrowingFinder(side, search, [len(side)]).up_to, len(side))
    like = find_pairs(parts, "taken", found.side, np.arange(len(found.side)), side, finder, search, strict, found.linked)
    like = like.take(like.strict)
    names = ids.take(pa.array(side.clips)).to_pylist()
    order = np.lexsort((like.second, like.first, -like.cosine)).tolist()
    return [(int(like.first[number]), names[like.second[number]], float(like.cosine[number]), float(like.distance[number])) for number in order]
