"""What trainings showed, as columns: a row for each clip of each phase, summed by video, source, licence or uploader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schemas
from pipelines.lineage.spans import merge_by_group
from pipelines.lineage.trainings import Pool, Training
from pipelines.reporting import Progress
from pipelines.store import Artefact

GROUPS = ("source", "licence", "uploader")
UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class Videos:
    """What the `videos` artefacts know, one row a video: video_id, path (the first of several equal files), source, licence, uploader,
    duration_s."""

    table: pa.Table

    @classmethod
    def of(cls, artefacts: Iterable[Artefact]) -> Videos:
        columns = ["video_id", "path", "source", "licence", "uploader", "duration_s"]
        paths = [item.path / "videos.parquet" for item in artefacts if item.asset == "videos"]
        empty = pa.schema([schemas.VIDEOS.field(name) for name in columns]).empty_table()
        whole = pa.concat_tables([empty, *(schemas.read_table(path, schemas.VIDEOS, columns).cast(empty.schema) for path in paths if path.is_file())])
        whole = whole.sort_by([("video_id", "ascending"), ("path", "ascending")]).combine_chunks()
        ids = whole.column("video_id")
        first = np.concatenate([[True], pc.not_equal(ids[1:], ids[:-1]).to_numpy()]) if len(whole) else np.zeros(0, bool)
        return cls(whole.filter(pa.array(first)))

    def column(self, name: str, video_ids: pa.Array) -> pa.Array:
        """One value for each of `video_ids`, null where no table knows the video."""
        rows = pc.index_in(video_ids, value_set=self.table.column("video_id"))
        return self.table.column(name).combine_chunks().take(rows)


def clips_of(pool: Pool, videos: Videos) -> pa.Table:
    """clip_id, video_id, source, licence and uploader of a pool, row by row; what the shards do not tell is taken from `videos`."""
    table = pa.table({name: pa.array(pool.column(name), pa.string()) for name in ("clip_id", "video_id", *GROUPS)})
    table = table.set_column(1, "video_id", pc.coalesce(table.column("video_id"), table.column("clip_id")))
    for place, name in enumerate(table.schema.names):
        if name in GROUPS:
            known = pc.coalesce(table.column(name), videos.column(name, table.column("video_id").combine_chunks()))
            table = table.set_column(place, name, pc.if_else(pc.equal(known, ""), None, known))
    return table


@dataclass(frozen=True, eq=False)
class Shown:
    """`clips`: a row for each clip of each phase (clip_id, video_id, source, licence, uploader, phase, samples, seconds,
    seconds_of_clip). `span_row` (k,) and `spans` (k, 2): what was shown of the source file, in s, and of which row."""

    clips: pa.Table
    span_row: np.ndarray
    spans: np.ndarray

    def __len__(self) -> int:
        return len(self.clips)

    def where(self, mask: np.ndarray) -> Shown:
        """The rows that `mask` (n,) bool names."""
        kept = np.flatnonzero(mask)
        renumbered = np.full(len(mask), -1)
        renumbered[kept] = np.arange(len(kept))
        own = mask[self.span_row]
        return Shown(self.clips.take(pa.array(kept)), renumbered[self.span_row[own]], self.spans[own])

    def numbers(self, name: str) -> np.ndarray:
        return self.clips.column(name).to_numpy()

    @property
    def total(self) -> dict[str, Any]:
        """Of all rows together: videos, clips (shown), samples, seconds, distinct_seconds."""
        seen = self.where(self.numbers("samples") > 0)
        _, distinct = seen.merged(_codes(seen.clips.column("video_id"))[0])
        return {
            "videos": pc.count_distinct(seen.clips.column("video_id")).as_py(), "clips": pc.count_distinct(seen.clips.column("clip_id")).as_py(),
            "samples": int(self.numbers("samples").sum()), "seconds": float(self.numbers("seconds").sum()),
            "distinct_seconds": float((distinct[:, 1] - distinct[:, 0]).sum()),
        }  # fmt: skip

    def merged(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct spans of each group: `codes` (n,) is every row's group; returns groups (m,) and spans (m, 2)."""
        return merge_by_group(codes[self.span_row], self.spans)

    def by(self, name: str) -> list[dict[str, Any]]:
        """Sums of what was shown, by one column, most seconds first: name, videos, clips, samples, seconds, distinct_seconds, share_of_samples."""
        seen = self.where(self.numbers("samples") > 0)
        group, values = _codes(pc.fill_null(seen.clips.column(name), UNKNOWN))
        samples, seconds = (np.bincount(group, seen.numbers(column), len(values)) for column in ("samples", "seconds"))
        video, _ = _codes(seen.clips.column("video_id"))
        clip, _ = _codes(seen.clips.column("clip_id"))
        pairs, pair = np.unique(group * len(seen) + video, return_inverse=True)  # a code is below the number of rows
        of_pair, spans = seen.merged(pair)
        distinct = np.bincount(pairs[of_pair] // max(1, len(seen)), spans[:, 1] - spans[:, 0], len(values))
        videos, clips = (np.bincount(both // max(1, len(seen)), minlength=len(values)) for both in (pairs, np.unique(group * len(seen) + clip)))
        whole = max(1.0, float(samples.sum()))
        rows = [
            {"name": value, "videos": int(videos[place]), "clips": int(clips[place]), "samples": int(samples[place]), "seconds": float(seconds[place]),
             "distinct_seconds": float(distinct[place]), "share_of_samples": float(samples[place] / whole)}
            for place, value in enumerate(values)
        ]  # fmt: skip
        return sorted(rows, key=lambda row: (-row["seconds"], row["name"]))


def shown_by(trainings: Sequence[Training], videos: Videos, others: Sequence[Pool] = ()) -> Shown:
    """What `trainings` showed; `others` are shards that no training drew from, whose clips come in with no samples."""
    parts = [_undrawn(pool, videos) for pool in others]
    with Progress("lineage", len(trainings), "trainings") as progress:
        for done, training in enumerate(trainings, start=1):
            parts.append(shown_in(training, videos))
            progress(done, text=f"{training.checkpoint.key} {training.spec.phase}")
    return join(parts)


def shown_in(training: Training, videos: Videos) -> Shown:
    """What one training showed, with a row for every clip of its pool."""
    pool, shown = training.pool, training.shown
    # From the clip's own clock to the source's: the writer starts every clip at 0. Shards that were found, not cut here, know
    # no source: their clips are files of their own.
    shift = np.nan_to_num(pool.source_start_s[shown.span_row] - pool.first_s[shown.span_row])
    spans = shown.spans + shift[:, None]
    return Shown(_clips_with(pool, videos, training.spec.phase, shown.samples, shown.seconds), shown.span_row, spans)


def join(parts: Sequence[Shown]) -> Shown:
    """Several in one, each row on its own."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    rows = [part.span_row + start for part, start in zip(parts, starts[:-1], strict=True)]
    clips = pa.concat_tables([_no_clips(), *(part.clips for part in parts)]).combine_chunks()
    return Shown(clips, np.concatenate([np.zeros(0, np.int64), *rows]), np.concatenate([np.zeros((0, 2)), *(part.spans for part in parts)]))


def _undrawn(pool: Pool, videos: Videos) -> Shown:
    nothing = np.zeros(len(pool))
    return Shown(_clips_with(pool, videos, "", nothing.astype(np.int64), nothing), np.zeros(0, np.int64), np.zeros((0, 2)))


def _clips_with(pool: Pool, videos: Videos, phase: str, samples: np.ndarray, seconds: np.ndarray) -> pa.Table:
    columns = {
        "phase": pa.repeat(phase, len(pool)), "samples": pa.array(samples, pa.int64()), "seconds": pa.array(seconds, pa.float64()),
        "seconds_of_clip": pa.array(np.asarray(pool.last_s - pool.first_s + _frame_s(pool), np.float64)),
    }  # fmt: skip
    table = clips_of(pool, videos)
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _frame_s(pool: Pool) -> np.ndarray:
    """How long the last frame of each clip shows, in s; 0 where no frame rate is known."""
    rate = np.nan_to_num(np.asarray(pool.frame_rate, np.float64))
    return np.divide(1.0, rate, out=np.zeros(len(rate)), where=rate > 0)


def video_rows(shown: Shown, videos: Videos) -> list[dict[str, Any]]:
    """One row for each video that was shown or lies in the shards, by path: video_id, path, source, licence, uploader, duration_s, clips (in
    the shards), clip_seconds (their length), samples and seconds (shown, repeats counted), distinct_seconds (each second of the
    source once), phases {phase: samples}, spans_s (which seconds of the source file)."""
    clips = shown.clips
    video, ids = _codes(clips.column("video_id"))
    count = len(ids)
    samples, seconds = (np.bincount(video, shown.numbers(name), count) for name in ("samples", "seconds"))
    _, first_of_clip = np.unique(_codes(clips.column("clip_id"))[0], return_index=True)
    own = np.bincount(video[first_of_clip], minlength=count)
    length = np.bincount(video[first_of_clip], shown.numbers("seconds_of_clip")[first_of_clip], count)
    _, first_of_video = np.unique(video, return_index=True)
    group, spans = shown.merged(video)
    distinct = np.bincount(group, spans[:, 1] - spans[:, 0], count)
    edges = np.searchsorted(group, np.arange(count + 1))
    phase, names = _codes(clips.column("phase"))
    by_phase = np.bincount(video * max(1, len(names)) + phase, shown.numbers("samples"), count * len(names)).reshape(count, len(names))
    known = {name: videos.column(name, pa.array(ids, pa.string())).to_pylist() for name in ("path", "duration_s")}
    told = {name: clips.column(name).take(pa.array(first_of_video)).to_pylist() for name in GROUPS}
    rows = [
        {
            "video_id": ids[at], "path": known["path"][at] or "", **{name: told[name][at] for name in GROUPS}, "duration_s": known["duration_s"][at],
            "clips": int(own[at]), "clip_seconds": float(length[at]), "samples": int(samples[at]), "seconds": float(seconds[at]),
            "distinct_seconds": float(distinct[at]), "phases": {name: int(by_phase[at, place]) for place, name in enumerate(names) if by_phase[at, place]},
            "spans_s": spans[edges[at] : edges[at + 1]].tolist(),
        }
        for at in range(count)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["path"], row["video_id"]))


def _codes(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, list[Any]]:
    """(n,) numbers and the values they stand for."""
    encoded = pa.chunked_array(column).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _no_clips() -> pa.Table:
    words, numbers = ("clip_id", "video_id", *GROUPS, "phase"), {"samples": pa.int64(), "seconds": pa.float64(), "seconds_of_clip": pa.float64()}
    return pa.schema([*((name, pa.string()) for name in words), *numbers.items()]).empty_table()
