"""A small store with every stage's artefacts in it, all in agreement, for the tests of scrub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pipelines import schemas
from pipelines.curation.increment import update_clusters
from pipelines.curation.retrieval import build_selection
from pipelines.identity import clip_id, file_sha256
from pipelines.lineage.exposure import ExposureSpec
from pipelines.recipes import OWN_SHARDS
from pipelines.shards.exposure_log import rows_of
from pipelines.shards.form import ShardConfig
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.loader import ClipLoader
from pipelines.shards.mixture import WHOLE, open_mixture
from pipelines.shards.writer import build_shards
from pipelines.sources import registry
from pipelines.store import MANIFEST, Artefact, Store
from pipelines.tombstones import write_tombstones

Rows = list[dict[str, Any]]
DIMENSIONS = 8
GEOMETRY = ClipGeometry(frames=4, fps=4, height=16, width=16)
ENCODER = {"name": "made", "digest": "encoder-1"}
BATCHES = {"made-0001": ("a", "b"), "made-0002": ("c", "copy-of-a", "d")}
SCHEMAS = {
    "videos": schemas.VIDEOS, "quarantine": schemas.QUARANTINE, "clips": schemas.CLIPS, "removals": schemas.REMOVALS, "selection": schemas.SELECTION,
    "assignments": schemas.ASSIGNMENTS, "shard_index": schemas.SHARD_INDEX, "episodes": schemas.EPISODES, "steps": schemas.STEPS,
    "exposure_log": schemas.EXPOSURE_LOG,
}  # fmt: skip


def write(folder: Path, name: str, rows: Rows) -> None:
    schemas.write_table(schemas.table_of(SCHEMAS[name], rows), folder / f"{name}.parquet", SCHEMAS[name])


def read(folder: Path, name: str) -> Rows:
    return schemas.read_table(folder / f"{name}.parquet", SCHEMAS[name]).to_pylist()


def write_vectors(folder: Path, clip_ids: list[str]) -> None:
    """A unit vector that depends on the clip alone."""
    vectors = [np.random.default_rng(int.from_bytes(name.encode()[:6], "big")).normal(size=DIMENSIONS) for name in clip_ids]
    unit = np.array([vector / np.linalg.norm(vector) for vector in vectors], np.float32).reshape(-1, DIMENSIONS)
    np.save(folder / "embeddings.npy", unit)
    (folder / "clip_ids.json").write_text(json.dumps(clip_ids))
    (folder / "encoder.json").write_text(json.dumps(ENCODER))


def write_looks(folder: Path, count: int) -> None:
    np.save(folder / "looks.npy", np.zeros((count, 8, 24, 24), np.uint8))


class Maker:
    """Makes the artefacts of one small store, stage after stage, real ones where they are quick."""

    def __init__(self, root: Path, made_clips: Path) -> None:
        self.store = Store.open(root)
        self.made: dict[str, Artefact] = {}
        self.pool = root.parent / "pool"
        self.pool.mkdir()
        self.made_clips = made_clips
        self.rows: dict[str, Rows] = {}
        for row in read(made_clips, "clips"):
            self.rows.setdefault(row["video_id"].removeprefix("video-"), []).append(row)

    def produce(self, asset: str, build: Callable[[Path], dict[str, Any] | None], inputs: list[str], partition: str | None = None, **config: Any) -> Artefact:
        made = self.store.produce(asset, lambda folder: build(folder) or {}, inputs=[self.made[key] for key in inputs], partition=partition, config=config)
        self.store.accept(made, {})
        self.made[made.key] = made
        return made

    def clips_of(self, name: str, batch: str) -> Rows:
        """Clips of one file: those of the made videos, of a second copy of `a`, or of `d`, which is like `c` and was never cut."""
        like = {"copy-of-a": "a", "d": "c"}.get(name, name)
        rows = [{**row, "batch": batch, "path": str(self.pool / f"{name}.mp4"), "label": ""} for row in self.rows[like]]
        if name == "d":
            for row in rows:
                base = (row["time_base_num"], row["time_base_den"])
                row.update(video_id="video-d", clip_id=clip_id("video-d", row["start_pts"], row["end_pts"], base, row["splitter"]))
        return rows

    def batch(self, key: str) -> None:
        names = BATCHES[key]
        for name in names:
            shutil.copyfile(self.made_clips / f"{ {'copy-of-a': 'a', 'd': 'c'}.get(name, name)}.mp4", self.pool / f"{name}.mp4")
        registry.register_source(self.store, "made", self.pool)
        assert registry.new_batches(self.store) == [key]
        clips = [row for name in names for row in self.clips_of(name, key)]

        def videos(folder: Path) -> None:
            first = {row["path"]: row for row in reversed(clips)}
            write(folder, "videos", [
                {
                    "video_id": row["video_id"], "batch": key, "path": path, "start_pts": 0, "time_base_num": row["time_base_num"],
                    "time_base_den": row["time_base_den"], "frames": 60, "duration_s": 3.0,
                }
                for path, row in sorted(first.items())
            ])  # fmt: skip
            write(folder, "quarantine", [])

        def cut(folder: Path) -> None:
            write(folder, "clips", clips)
            write(folder, "quarantine", [{"path": str(self.pool / "z.mp4"), "batch": key, "source": "made", "code": "too_short", "detail": "made"}])
            write_looks(folder, len(clips))

        def embed(folder: Path) -> None:
            write_vectors(folder, [row["clip_id"] for row in clips])
            write(folder, "quarantine", [])

        self.produce("videos", videos, [], key, batch=registry.read_batch(self.store, key).digest)
        self.produce("clips", cut, [f"videos[{key}]"], key)
        self.produce("clip_embeddings", embed, [f"clips[{key}]"], key)

    def targets(self) -> None:
        rows = [{**row, "batch": "targets", "source": f"set/{split}", "label": "x"} for row, split in zip(self.clips_of("d", "t"), ["train"], strict=True)]
        rows += [{**row, "batch": "targets", "source": f"set/{split}", "label": "y"} for row, split in zip(self.clips_of("b", "t"), ["train", "train", "eval"], strict=True)]

        def videos(folder: Path) -> None:
            write(folder, "clips", rows)
            write_looks(folder, len(rows))
            (folder / "targets.json").write_text(json.dumps([{"name": "set", "weight": 1.0, "split": "train", "files": []}]))

        self.produce("target_videos", videos, [])
        self.produce("target_embeddings", lambda folder: write_vectors(folder, [row["clip_id"] for row in rows]), ["target_videos"])

    def curation(self) -> None:
        batches = {key: self.made[f"clips[{key}]"].path for key in BATCHES}
        rows = [row for folder in batches.values() for row in read(folder, "clips")]
        kept = sorted((row for row in rows if Path(row["path"]).stem in "abc"), key=lambda row: row["clip_id"])
        (film,) = (row for row in kept if row["video_id"] == "video-c")

        def distinct(folder: Path) -> dict[str, Any]:
            write(folder, "clips", kept)
            copies = [row for row in rows if Path(row["path"]).stem == "copy-of-a"]
            removed = [{"clip_id": row["clip_id"], "video_id": row["video_id"], "reason": "exact", "twin_id": row["clip_id"], "similarity": 1.0} for row in copies]
            like = [row for row in rows if row["video_id"] == "video-d"]
            removed += [{"clip_id": row["clip_id"], "video_id": row["video_id"], "reason": "near_duplicate", "twin_id": film["clip_id"], "similarity": 0.9} for row in like]
            write(folder, "removals", removed)
            write_vectors(folder, [row["clip_id"] for row in kept])
            write_looks(folder, len(kept))
            digests = {key: json.loads((path / MANIFEST).read_text())["files"]["clips.parquet"]["sha256"][:16] for key, path in batches.items()}
            (folder / "batches.json").write_text(json.dumps(digests))
            return {"batch_digests": {key: self.made[f"clip_embeddings[{key}]"].digest for key in BATCHES}}

        targets = ["target_videos", "target_embeddings"]
        self.produce("distinct_clips", distinct, [f"{asset}[{key}]" for key in BATCHES for asset in ("clips", "clip_embeddings")] + targets, superseded={})
        paths = {name: self.made[name].path for name in ("distinct_clips", *targets)}
        clusters = self.produce("clip_clusters", lambda folder: update_clusters(folder, None, *paths.values()), ["distinct_clips", *targets])
        selection = self.produce(
            "curated_clips", lambda folder: build_selection(folder, paths["distinct_clips"], clusters.path, paths["target_videos"]), ["distinct_clips", "clip_clusters", *targets]
        )
        config = ShardConfig(short_side=32, shard_bytes=12_000)
        self.produce(
            "training_shards", lambda folder: build_shards(folder, paths["distinct_clips"], selection.path, config=config, progress=lambda *_: None),
            ["distinct_clips", "curated_clips"],
        )  # fmt: skip

    def training(self) -> None:
        shards = self.made["training_shards"].digest

        def phase(name: str) -> dict[str, Any]:
            source = {"name": OWN_SHARDS, "shards": OWN_SHARDS, "weight": 1.0, "digest": shards}
            return asdict(ExposureSpec(phase=name, seed=5, steps=3, global_batch=2, geometry=GEOMETRY.to_dict(), sources=[source]))

        def checkpoint(parent: Artefact | None, phases: list[dict[str, Any]]) -> Callable[[Path], None]:
            def build(folder: Path) -> None:
                loader = ClipLoader(open_mixture(WHOLE, self.made["training_shards"].path), GEOMETRY, seed=5, phase=phases[-1]["phase"], global_batch=2)
                if parent is not None:  # one training that wrote down what it showed, and one that did not
                    write(folder, "exposure_log", [row for batch in loader.batches(0, 3) for row in rows_of(batch)])
                save_file({"weight": torch.ones(3, 2), "count": torch.ones(2, dtype=torch.int64)}, folder / "encoder.safetensors")
                lineage = {"shards": shards, "parent": parent.digest if parent else None, "exposures": phases}
                (folder / "lineage.json").write_text(json.dumps(lineage))

            return build

        pretrained = self.produce("pretrained_encoder", checkpoint(None, [phase("pretrain")]), ["training_shards"], "nano")
        both = [phase("pretrain"), phase("cooldown")]
        self.produce("cooled_encoder", checkpoint(pretrained, both), ["training_shards", "pretrained_encoder[nano]"], "nano")

    def robot(self) -> None:
        def episodes(folder: Path) -> None:
            (folder / "videos").mkdir()
            rows, steps = [], []
            for number in range(2):
                video = folder / "videos" / f"e{number}.mp4"
                video.write_bytes(b"frames of " + bytes([number]))
                rows.append({"episode_id": f"e{number}", "source": "simulated", "steps": 3, "step_s": 0.5, "video": f"videos/e{number}.mp4", "sha256": file_sha256(video)})
                steps += [{"episode_id": f"e{number}", "step": step, "t_s": 0.5 * step, "x": 0.1} for step in range(3)]
            write(folder, "episodes", rows)
            write(folder, "steps", steps)

        def world_model(folder: Path) -> None:
            save_file({"weight": torch.zeros(2)}, folder / "predictor.safetensors")
            (folder / "lineage.json").write_text(json.dumps({"episodes": {"train": ["e0"], "validation": ["e1"]}}))

        def bundle(folder: Path) -> dict[str, Any]:
            inner = folder / "bundle-1"
            inner.mkdir()
            known = {key: item.digest for key, item in self.made.items()}
            (inner / "lineage.json").write_text(json.dumps({"made_from": known}))
            (inner / "manifest.json").write_text(json.dumps({"bundle": "bundle-1", "files": {"lineage.json": file_sha256(inner / "lineage.json")}}))
            return {"bundle": "bundle-1", "folder": "bundle-1"}

        self.produce("robot_episodes", episodes, [], "simulated")
        self.produce("world_model", world_model, ["cooled_encoder[nano]", "robot_episodes[simulated]"], "nano")
        made = self.produce("robot_bundle", bundle, ["world_model[nano]"], "nano")
        self.produce("robot_deployment", lambda folder: {"bundle": "bundle-1"}, ["robot_bundle[nano]"], "sim")
        folder = self.store.root / "targets" / "sim"
        folder.mkdir(parents=True)
        pointer = {"robot": "sim", "bundle": "bundle-1", "path": f"{made.path.relative_to(self.store.root)}/bundle-1"}
        (folder / "current.json").write_text(json.dumps(pointer))

    def takedown(self) -> None:
        write_tombstones(self.store.root, "first", [{"clip_id": None, "video_id": "video-of-nobody", "takedown": "first", "rule": "video"}])
        (self.store.root / "takedowns" / "first").mkdir(parents=True)
