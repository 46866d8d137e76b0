"""A small store for tests of takedowns: videos with planted twins from the tables of sources to shards and trainings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vector_files import write_vectors

from pipelines.curation.duplicates import build_distinct, check_distinct
from pipelines.curation.embedding import unit_rows
from pipelines.curation.taken import read_taken_down
from pipelines.lineage.exposure import ExposureSpec
from pipelines.recipes import OWN_SHARDS
from pipelines.schemas import CLIPS, QUARANTINE, SELECTION, SHARD_INDEX, VIDEOS, read_table, table_of, write_table
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.index import INDEX_FILE
from pipelines.shards.tars import TarFile, shard_name, sidecar_text
from pipelines.store import Artefact, Store

CLIPS_A_VIDEO = 3
CLIPS_A_TAR = 4
SECONDS = 2.0
GEOMETRY = ClipGeometry(frames=4, fps=4, height=16, width=16)

Looks = NDArray[np.uint8]


def look_of(footage: int, copy: int = 0) -> Looks:
    """(8, 24, 24) uint8: blobs on ways of their own before a background of their own; a `copy` above 0 is darker and noisier."""
    random = np.random.default_rng(footage)
    rows, columns = np.mgrid[0:24, 0:24]
    back = 120 + 35 * sum(a * np.sin(rows / 3 * b + columns / 4 * c) for a, b, c in random.normal(size=(4, 3)))
    middles, sways, turns, phases = random.uniform((6, 3, 0.5, 0), (18, 7, 4, 7), (3, 2, 4)).transpose(2, 0, 1)
    look = np.empty((8, 24, 24))
    for picture in range(8):
        look[picture] = back
        for place in middles + sways * np.sin(turns * picture / 7 * 3 + phases):
            look[picture] += 120 * np.exp(-((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / 4)
    if copy:
        look = look * 0.92 + 4 + np.random.default_rng((footage, copy)).normal(0, 1.5, look.shape)
    return look.clip(0, 255).astype(np.uint8)


def vectors_of(looks: Looks) -> NDArray[np.float32]:
    project = np.random.default_rng(0).normal(size=(8 * 576, 24))
    return unit_rows((looks.reshape(len(looks), 8 * 576).astype(np.float64) @ project).astype(np.float32))


@dataclass(frozen=True)
class Video:
    """One made video: what it shows in each of its clips, as numbers of footage, and what its source says of it."""

    name: str
    footage: tuple[int, ...]
    copy: int = 0
    source: str = "pool"
    licence: str = "CC0"
    uploader: str = "ann"
    container: str = "mp4"
    """Another container of one stream has the same video_id, and other clip_ids where its time base is another."""
    cut: str = "made"

    @property
    def video_id(self) -> str:
        return f"v-{self.name}"

    def path(self, root: Path) -> Path:
        return root / self.source / f"{self.name}.{self.container}"

    def clip_id(self, number: int) -> str:
        ending = "" if (self.container, self.cut) == ("mp4", "made") else f"-{self.container}-{self.cut}"
        return f"c-{self.name}-{number}{ending}"


@dataclass
class World:
    """A store that is filled stage by stage; `media` is where its sources' files lie."""

    root: Path
    batches: dict[str, list[Video]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = Store.open(self.root / "store")
        self.media = self.root / "media"
        self._make("target_videos", lambda folder: write_clips(folder, self.media, "targets", []))
        self._make("target_embeddings", lambda folder: embed(folder, self.store.current("target_videos").path), ["target_videos"])

    def _make(self, asset: str, fill: Callable[[Path], Any], inputs: Sequence[Any] = (), partition: str | None = None, config: Any = None) -> Artefact:
        found = [self.store.current(name) if isinstance(name, str) else name for name in inputs]

        def build(folder: Path) -> dict[str, Any]:
            fill(folder)
            return {"note": asset}

        artefact = self.store.produce(asset, build, inputs=found, partition=partition, config=config or {})
        self.store.accept(artefact, {})
        return artefact

    def ingest(self, batch: str, videos: Sequence[Video], config: Any = None, lost: Iterable[str] = ()) -> None:
        """Videos, clips and embeddings of a batch; `lost` videos have no vectors any more."""
        self.batches[batch] = list(videos)
        for video in videos:
            path = video.path(self.media)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(video.name.encode())

        def rows(folder: Path) -> None:
            found = [
                {"video_id": video.video_id, "batch": batch, "source": video.source, "path": str(video.path(self.media)), "licence": video.licence,
                 "uploader": video.uploader, "duration_s": SECONDS * len(video.footage)}
                for video in videos
            ]  # fmt: skip
            write_table(table_of(VIDEOS, found), folder / "videos.parquet", VIDEOS)
            write_table(table_of(QUARANTINE, []), folder / "quarantine.parquet", QUARANTINE)

        probed = self._make("videos", rows, partition=batch)
        kept = [video for video in videos if video.name not in lost]
        clips = self._make("clips", lambda folder: write_clips(folder, self.media, batch, kept), [probed], batch, config)
        self._make("clip_embeddings", lambda folder: embed(folder, clips.path), [clips], batch, config)

    def distinct(self, folder: Path | None = None) -> Artefact:
        """The distinct clips as the stage makes them, with what is taken down by now; the artefact passes its checks."""
        pairs = {key: (self.store.current("clips", key), self.store.current("clip_embeddings", key)) for key in self.store.partitions("clip_embeddings")}
        taken = read_taken_down(self.store, list(pairs.values()))
        targets = [self.store.current(name) for name in ("target_videos", "target_embeddings")]

        def fill(folder: Path) -> None:
            folders = {key: (clips.path, vectors.path) for key, (clips, vectors) in pairs.items()}
            build_distinct(folder, folders, targets[0].path, targets[1].path, taken=taken)

        config = {"tombstones": taken.tombstones.digest, "taken_from": sorted(taken.former)} if taken else {}
        artefact = self._make("distinct_clips", fill, [item for pair in pairs.values() for item in pair] + targets, config=config)
        checks = check_distinct(artefact.path, taken.tombstones)
        assert all(check.passed for check in checks.values()), checks
        return artefact

    def select(self) -> Artefact:
        distinct = self.store.current("distinct_clips")

        def fill(folder: Path) -> None:
            clips = read_table(distinct.path / "clips.parquet", CLIPS).to_pylist()
            rows = [{"clip_id": row["clip_id"], "video_id": row["video_id"], "cluster": 0, "weight": 1 / len(clips), "target": "push", "uniform_weight": 1.0} for row in clips]
            write_table(table_of(SELECTION, rows), folder / "selection.parquet", SELECTION)

        return self._make("curated_clips", fill, [distinct])

    def shard(self, links: Artefact | None = None, only: Callable[[dict[str, Any]], bool] = lambda _: True, **config: Any) -> Artefact:
        """Shards of the selection with made-up bytes for videos; with `links` its tars and rows are taken over by hard link."""
        distinct, selection = self.store.current("distinct_clips"), self.store.current("curated_clips")

        def fill(folder: Path) -> None:
            if links is not None:
                for path in links.path.glob("*.tar"):
                    os.link(path, folder / path.name)
                rows = read_table(links.path / INDEX_FILE, SHARD_INDEX).to_pylist()
            else:
                rows = write_shards(folder, [row for row in read_table(distinct.path / "clips.parquet", CLIPS).to_pylist() if only(row)])
            write_table(table_of(SHARD_INDEX, rows), folder / INDEX_FILE, SHARD_INDEX)

        return self._make("training_shards", fill, [distinct, selection], config={"links": links.digest if links else None, **config})

    def train(self, phase: str, steps: int, parents: Sequence[Artefact] = (), partition: str = "nano") -> Artefact:
        shards = self.store.current("training_shards")
        sources = [{"name": OWN_SHARDS, "weight": 1.0, "shards": OWN_SHARDS, "digest": shards.digest}]
        spec = ExposureSpec(phase=phase, seed=5, steps=steps, global_batch=8, geometry=GEOMETRY.to_dict(), sources=sources)

        def fill(folder: Path) -> None:
            (folder / "lineage.json").write_text(json.dumps({"exposures": [asdict(spec)]}))

        return self._make({"pretrain": "pretrained_encoder", "cooldown": "cooled_encoder"}[phase], fill, [shards, *parents], partition)

    def stand_on(self, asset: str, parent: Artefact, partition: str = "nano") -> Artefact:
        return self._make(asset, lambda folder: (folder / "note").write_text(asset), [parent], partition)

    def whole(self) -> World:
        """From the distinct clips to a bundle."""
        self.distinct()
        self.select()
        self.shard()
        pretrained = self.train("pretrain", 12)
        self.stand_on("robot_bundle", self.stand_on("world_model", self.train("cooldown", 3, [pretrained])))
        return self


def write_clips(folder: Path, media: Path, batch: str, videos: Sequence[Video]) -> None:
    """clips.parquet and looks.npy."""
    rows, looks = [], [np.empty((0, 8, 24, 24), np.uint8)]
    for video in videos:
        for number, footage in enumerate(video.footage):
            start = SECONDS * number
            rows.append({
                "clip_id": video.clip_id(number), "video_id": video.video_id, "batch": batch, "path": str(video.path(media)), "start_pts": int(24 * start),
                "end_pts": int(24 * (start + SECONDS)), "time_base_num": 1, "time_base_den": 24, "start_s": start, "end_s": start + SECONDS, "frames": 48,
                "width": 320 - 2 * video.copy, "height": 240, "frame_rate": 24.0, "splitter": video.cut, "motion": 5.0, "brightness": 120.0, "fingerprint": "",
                "source": video.source, "licence": video.licence, "uploader": video.uploader, "label": "", "static": 0.0, "black": 0.0, "language": "",
            })  # fmt: skip
            looks.append(look_of(footage, video.copy)[None])
    write_table(table_of(CLIPS, rows), folder / "clips.parquet", CLIPS)
    write_table(table_of(QUARANTINE, []), folder / "quarantine.parquet", QUARANTINE)
    np.save(folder / "looks.npy", np.concatenate(looks))


def embed(folder: Path, clips: Path) -> None:
    looks = np.load(clips / "looks.npy")
    write_vectors(folder, read_table(clips / "clips.parquet", CLIPS).column("clip_id").to_pylist(), vectors_of(looks))
    (folder / "encoder.json").write_text(json.dumps({"name": "made", "digest": "made"}))


def data_of(clip_id: str) -> bytes:
    """Bytes that stand for a clip's mp4: others for every clip, of odd lengths."""
    return np.random.default_rng(list(clip_id.encode())).bytes(700 + 37 * (sum(clip_id.encode()) % 23))


def write_shards(folder: Path, clips: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tars of a few clips each; returns the rows of their index."""
    rows = []
    for first in range(0, len(clips), CLIPS_A_TAR):
        name = shard_name(first // CLIPS_A_TAR)
        tar = TarFile(folder / name)
        for clip in clips[first : first + CLIPS_A_TAR]:
            data = data_of(clip["clip_id"])
            sidecar = sidecar_text({key: clip[key] for key in ("clip_id", "video_id", "source", "licence")})
            offset = tar.add(clip["clip_id"], sidecar, data)
            rows.append({
                "clip_id": clip["clip_id"], "video_id": clip["video_id"], "shard": name, "offset": offset, "length": len(data),
                "sha256": hashlib.sha256(data).hexdigest(), "frames": 48, "first_pts_s": 0.0, "last_pts_s": 47 / 24, "frame_rate": 24.0,
                "weight": 1 / len(clips), "source": clip["source"], "licence": clip["licence"], "source_start_s": clip["start_s"],
                "source_end_s": clip["end_s"], "width": 320, "height": 240, "form": "encoded", "uploader": clip["uploader"],
            })  # fmt: skip
        tar.close()
    return sorted(rows, key=lambda row: row["clip_id"])


def kept_ids(distinct: Artefact) -> set[str]:
    return set(read_table(distinct.path / "clips.parquet", CLIPS, ["clip_id"]).column("clip_id").to_pylist())
