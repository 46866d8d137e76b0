"""Scrub: a sound store is found sound, each planted disagreement is found by its kind and place and nothing else is, and no damage stops it."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from pipelines import schemas
from pipelines.curation.increment import update_clusters
from pipelines.curation.retrieval import build_selection
from pipelines.errors import InputError, MissingArtefact
from pipelines.identity import clip_id, file_sha256
from pipelines.lineage.exposure import ExposureSpec
from pipelines.lineage.scrub.finding import Kind
from pipelines.lineage.scrub.store import COMPARISONS, scrub
from pipelines.lineage.scrub.text import scrub_markdown, scrub_text
from pipelines.lineage.takedown.match import Selector
from pipelines.lineage.takedown.take_down import take_down
from pipelines.recipes import OWN_SHARDS
from pipelines.shards.exposure_log import rows_of
from pipelines.shards.form import ShardConfig
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.loader import ClipLoader
from pipelines.shards.mixture import WHOLE, open_mixture
from pipelines.shards.verify import verification
from pipelines.shards.writer import build_shards
from pipelines.sources import registry
from pipelines.store import MANIFEST, Artefact, Store
from pipelines.tombstones import REDACTIONS, write_tombstones

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


@pytest.fixture(scope="module")
def sound(made_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a store with every stage's artefacts in it, all in agreement. Not to be changed: see `store`."""
    maker = Maker(tmp_path_factory.mktemp("scrub") / "store", made_clips)
    for key in BATCHES:
        maker.batch(key)
    maker.targets()
    maker.curation()
    maker.training()
    maker.robot()
    maker.takedown()
    return maker.store.root


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Store:
    """A private copy with linked files: what is changed must be replaced, never written into."""
    return Store(Path(shutil.copytree(sound, tmp_path / "store", copy_function=os.link)))


def test_after_a_takedown_all_agrees_but_what_is_still_drawn_until_it_is_overwritten(sound: Path, tmp_path: Path) -> None:
    store = Store.open(shutil.copytree(sound, tmp_path / "store"))
    shards = store.current("training_shards")
    take_down(store, Selector("video", "video-c"), "asked")
    assert found_in(store.root) == {Found(Kind.SERVED, place(shards, "shard_index.parquet"))}
    take_down(store, Selector("video", "video-c"), "asked", compact=True)
    assert found_in(store.root) == set()
    text, whole = verification(None, store.root)
    assert whole and "5 clips (5 drawn from), 1 taken down" in text


def test_a_sound_store_has_no_findings(sound: Path) -> None:
    found = scrub(sound)
    assert not found.findings, scrub_text(found)
    assert not found.notes, scrub_text(found)
    assert found.artefacts == 18 and found.bytes_read > 0
    assert scrub_text(found).endswith("everything agrees")
    assets = {path.name for path in (sound / "artefacts").iterdir()}
    assert all(assets >= set(comparison.assets) for comparison in COMPARISONS), "every comparison has something to compare here"


# -- ways to plant ---------------------------------------------------------------------------------------------------


NUMBERS = itertools.count()


def forge(
    store: Store, key: str, change: Callable[[Path], None] = lambda _: None, swap: dict[str, Artefact] | None = None, **summary: Any
) -> Artefact:
    """A second artefact beside the current one, with `change`d files and a seal that fits them, as a stage that is wrong would
    make it; `swap` gives it other inputs. Nobody's pointer names it."""
    asset, _, partition = key.removesuffix("]").partition("[")
    like = store.current(asset, partition or None)

    def build(folder: Path) -> dict[str, Any]:
        for name in json.loads((like.path / MANIFEST).read_text())["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(like.path / name, folder / name)
        change(folder)
        return {**like.summary, **summary}

    inputs = [(swap or {}).get(item.key, item) for item in store.inputs_of(like)]
    return store.produce(asset, build, inputs=inputs, partition=partition or None, config={**like.config, "forged": next(NUMBERS)})


def place(made: Artefact, name: str = "") -> str:
    return "/".join(made.path.parts[-4:]) + (f"/{name}" if name else "")


def rows_changed(name: str, change: Callable[[Rows], Rows | None]) -> Callable[[Path], None]:
    """Change the rows of one table of a folder."""

    def apply(folder: Path) -> None:
        rows = read(folder, name)
        write(folder, name, change(rows) or rows)

    return apply


def json_changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        put(folder / name, json.dumps(change(content) or content).encode())

    return apply


def array_changed(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = np.load(folder / name)
        found = change(values)
        np.save(folder / name, values if found is None else found)

    return apply


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # it may be a link to the sound store's
    path.write_bytes(content)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    put(path, bytes(content))


def first(**values: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[0].update(values)


def manifest_of(made: Artefact, change: Callable[[Any], Any]) -> str:
    json_changed(MANIFEST, change)(made.path)
    return place(made, MANIFEST)


PLANTS: list[tuple[str, Kind, Callable[[Store], str]]] = []
ALONE = {"tombstones that cannot be read"}
"""What keeps others from being found, which is said in notes."""


def plant(name: str, kind: Kind) -> Callable[[Callable[[Store], str]], Callable[[Store], str]]:
    """Register a function that plants one disagreement and returns the file at which it must be found."""

    def register(function: Callable[[Store], str]) -> Callable[[Store], str]:
        PLANTS.append((name, kind, function))
        return function

    return register


def sealed(name: str, kind: Kind, key: str, file: str, change: Callable[[Path], None], **summary: Any) -> None:
    """Plant something into an artefact whose bytes agree with its manifest."""
    PLANTS.append((name, kind, lambda store: place(forge(store, key, change, **summary), file)))


# -- files -----------------------------------------------------------------------------------------------------------


@plant("a store of another version", Kind.STORE_MARKER)
def _(store: Store) -> str:
    put(store.root / "STORE.json", b'{"version": 99}')
    return "STORE.json"


@plant("a manifest that is cut off", Kind.MANIFEST)
def _(store: Store) -> str:
    made = forge(store, "robot_deployment[sim]")
    put(made.path / MANIFEST, (made.path / MANIFEST).read_bytes()[:-40])
    return place(made, MANIFEST)


@plant("a folder without its manifest", Kind.MANIFEST)
def _(store: Store) -> str:
    made = forge(store, "videos[made-0001]")
    (made.path / MANIFEST).unlink()
    return place(made, MANIFEST)


@plant("a manifest that leads out of the store", Kind.MANIFEST)
def _(store: Store) -> str:
    return manifest_of(forge(store, "videos[made-0001]"), lambda content: content["files"].update({"../../x": {"bytes": 1, "sha256": ""}}))


@plant("a member that is gone", Kind.MEMBER_MISSING)
def _(store: Store) -> str:
    made = forge(store, "clips[made-0001]")
    (made.path / "looks.npy").unlink()
    return place(made, "looks.npy")


@plant("a member that has grown", Kind.MEMBER_SIZE)
def _(store: Store) -> str:
    made = forge(store, "world_model[nano]")
    put(made.path / "predictor.safetensors", (made.path / "predictor.safetensors").read_bytes() + b"x")
    return place(made, "predictor.safetensors")


@plant("a flipped byte in a tar", Kind.MEMBER_SHA256)
def _(store: Store) -> str:
    made = forge(store, "training_shards")
    flip(made.path / "shard-000000.tar")
    return place(made, "shard-000000.tar")


@plant("a flipped byte in a table", Kind.MEMBER_SHA256)
def _(store: Store) -> str:
    made = forge(store, "clips[made-0001]")
    flip(made.path / "clips.parquet")
    return place(made, "clips.parquet")


@plant("a digest of a member changed in the manifest", Kind.MEMBER_SHA256)
def _(store: Store) -> str:
    return manifest_of(forge(store, "clips[made-0001]"), lambda content: content["files"]["looks.npy"].update(sha256="0" * 64))


@plant("a file that nobody lists", Kind.UNLISTED)
def _(store: Store) -> str:
    made = forge(store, "curated_clips")
    put(made.path / "notes.txt", b"?")
    return place(made, "notes.txt")


@plant("a file among the artefacts", Kind.UNLISTED)
def _(store: Store) -> str:
    put(store.root / "artefacts" / "clips" / "notes.txt", b"?")
    return "artefacts/clips/notes.txt"


@plant("a link in the place of a member", Kind.SYMLINK)
def _(store: Store) -> str:
    made = forge(store, "robot_episodes[simulated]")
    elsewhere = store.root / "elsewhere.mp4"
    shutil.move(made.path / "videos" / "e0.mp4", elsewhere)
    (made.path / "videos" / "e0.mp4").symlink_to(elsewhere)
    return place(made, "videos/e0.mp4")


@plant("another digest in the manifest", Kind.DIGEST)
def _(store: Store) -> str:
    return manifest_of(forge(store, "clips[made-0001]"), lambda content: content.update(digest="0" * 16))


@plant("another config in the manifest", Kind.IDENTITY)
def _(store: Store) -> str:
    return manifest_of(forge(store, "clips[made-0001]"), lambda content: content["config"].update(extra=1))


@plant("another partition in the manifest", Kind.MISPLACED)
def _(store: Store) -> str:
    return manifest_of(forge(store, "clips[made-0001]"), lambda content: content.update(partition="made-0009"))


@plant("one artefact in two folders", Kind.DUPLICATE_IDENTITY)
def _(store: Store) -> str:
    made = forge(store, "clips[made-0001]")
    shutil.copytree(made.path, made.path.with_name("copy"))
    return place(made).replace(made.identity, "copy")


def redacted(store: Store, entry: dict[str, Any]) -> tuple[Artefact, str]:
    """Shards whose first tar has this entry in REDACTIONS.json."""
    made = forge(store, "training_shards")
    tar = read(made.path, "shard_index")[0]["shard"]
    sha256 = json.loads((made.path / MANIFEST).read_text())["files"][tar]["sha256"]
    put(made.path / REDACTIONS, json.dumps({tar: {"sha256": sha256, "clips": [], "takedown": "first"} | entry}).encode())
    return made, tar


@plant("an overwriting that was interrupted", Kind.REDACTION)
def _(store: Store) -> str:
    made, tar = redacted(store, {"sha256": None})
    return place(made, tar)


@plant("a redaction of a tar that is not there", Kind.REDACTION)
def _(store: Store) -> str:
    made = forge(store, "training_shards")
    put(made.path / REDACTIONS, json.dumps({"other.tar": {"sha256": "0", "clips": [], "takedown": "first"}}).encode())
    return place(made, REDACTIONS)


@plant("a redacted tar with other bytes than those after the redaction", Kind.MEMBER_SHA256)
def _(store: Store) -> str:
    made, tar = redacted(store, {"sha256": "0" * 64})
    return place(made, tar)


# -- graph -----------------------------------------------------------------------------------------------------------


@plant("an input that is gone", Kind.INPUT_GONE)
def _(store: Store) -> str:
    parent = forge(store, "robot_episodes[simulated]")
    made = forge(store, "world_model[nano]", swap={parent.key: parent})
    shutil.rmtree(parent.path)
    return place(made)


@plant("an input of another digest", Kind.INPUT_DIGEST)
def _(store: Store) -> str:
    return manifest_of(forge(store, "world_model[nano]"), lambda content: content["inputs"].update({"robot_episodes[simulated]": "0" * 16}))


@plant("a ring of inputs", Kind.CYCLE)
def _(store: Store) -> str:
    clips = forge(store, "clips[made-0001]")
    vectors = forge(store, "clip_embeddings[made-0001]", swap={clips.key: clips})
    return manifest_of(clips, lambda content: content["input_paths"].update({"videos[made-0001]": place(vectors)}))


def point(store: Store, asset: str, partition: str, digest: str, path: str) -> str:
    put(store.root / "current" / asset / f"{partition}.json", json.dumps({"digest": digest, "path": path}).encode())
    return f"current/{asset}/{partition}.json"


@plant("a pointer to nothing", Kind.POINTER_GONE)
def _(store: Store) -> str:
    return point(store, "clips", "nowhere", "0" * 16, "artefacts/clips/nowhere/0000")


@plant("a pointer to another partition", Kind.POINTER_ELSEWHERE)
def _(store: Store) -> str:
    made = store.current("clips", "made-0001")
    return point(store, "clips", "elsewhere", made.digest, place(made))


@plant("a pointer with another digest", Kind.POINTER_DIGEST)
def _(store: Store) -> str:
    return point(store, "videos", "made-0002", "0" * 16, place(store.current("videos", "made-0002")))


@plant("a pointer that cannot be read", Kind.UNREADABLE)
def _(store: Store) -> str:
    put(store.root / "current" / "clips" / "damaged.json", b'{"digest": ')
    return "current/clips/damaged.json"


@plant("a current artefact that never passed its checks", Kind.NOT_VALIDATED)
def _(store: Store) -> str:
    made = store.produce("planning_results", lambda folder: {}, partition="nano")
    (store.root / "current" / "planning_results").mkdir()
    return point(store, "planning_results", "nano", made.digest, place(made))


@plant("a marker of another asset", Kind.MARKER)
def _(store: Store) -> str:
    made = forge(store, "robot_deployment[sim]", lambda folder: put(folder / "marked.txt", b"1"))
    put(store.root / "validated" / f"{made.digest}.json", json.dumps({"asset": "clips", "partition": "_", "digest": made.digest}).encode())
    return f"validated/{made.digest}.json"


@plant("a marker that cannot be read", Kind.UNREADABLE)
def _(store: Store) -> str:
    made = forge(store, "robot_deployment[sim]", lambda folder: put(folder / "marked.txt", b"2"))
    put(store.root / "validated" / f"{made.digest}.json", b"[]")
    return f"validated/{made.digest}.json"


# -- tables: the bytes agree with the manifest, the rows do not agree with one another ---------------------------------


def of_version(folder: Path) -> None:
    table = pq.read_table(folder / "selection.parquet")
    pq.write_table(table.replace_schema_metadata({b"tubelet.table": b"selection", b"tubelet.version": b"99"}), folder / "selection.parquet")


def last_out(rows: Rows) -> Rows:
    return rows[:-1]


def last_twice(rows: Rows) -> Rows:
    return [*rows, rows[-1]]


def clip_twice(folder: Path) -> None:
    """A row twice, with a look for each: only the key is wrong."""
    rows_changed("clips", last_twice)(folder)
    array_changed("looks.npy", lambda looks: np.concatenate([looks, looks[-1:]]))(folder)


CLIPS = "clips[made-0001]"
sealed("a table of another version", Kind.UNREADABLE, "curated_clips", "selection.parquet", of_version)
sealed("a table that was never written", Kind.TABLE_MISSING, CLIPS, "clips.parquet", lambda folder: (folder / "clips.parquet").unlink())
sealed("a video twice", Kind.DUPLICATE_KEY, "videos[made-0001]", "videos.parquet", rows_changed("videos", last_twice))
sealed("a clip twice", Kind.DUPLICATE_KEY, CLIPS, "clips.parquet", clip_twice)
sealed("a clip twice in the shards", Kind.DUPLICATE_KEY, "training_shards", "shard_index.parquet", rows_changed("shard_index", last_twice))
sealed("a clip assigned twice", Kind.DUPLICATE_KEY, "clip_clusters", "assignments.parquet", rows_changed("assignments", last_twice))
sealed("a clip selected twice", Kind.DUPLICATE_KEY, "curated_clips", "selection.parquet", rows_changed("selection", last_twice))
sealed("a code that nobody knows", Kind.CODE, CLIPS, "quarantine.parquet", rows_changed("quarantine", first(code="bad_luck")))
sealed("a file of the batch without a row", Kind.BATCH, "videos[made-0001]", "videos.parquet", rows_changed("videos", last_out))
sealed("a clip of a video of another batch", Kind.UNKNOWN_VIDEO, "clips[made-0002]", "clips.parquet", rows_changed("clips", lambda rows: [
    {**row, "video_id": "video-z", "clip_id": new_id(row, video_id="video-z")} if row is rows[0] else row for row in rows
]))  # fmt: skip
sealed("a clip_id that is not its span's", Kind.CLIP_ID, CLIPS, "clips.parquet", rows_changed("clips", first(splitter="another")))
sealed("seconds that are not the time stamps'", Kind.CLIP_TIMES, CLIPS, "clips.parquet", rows_changed("clips", lambda rows: rows[0].update(end_s=rows[0]["end_s"] + 0.01)))
sealed("a look too few", Kind.ROWS, CLIPS, "looks.npy", array_changed("looks.npy", lambda looks: looks[:-1]))
sealed("a vector too many", Kind.ROWS, "clip_embeddings[made-0001]", "embeddings.npy", array_changed("embeddings.npy", lambda vectors: np.concatenate([vectors, vectors[:1]])))
sealed("vectors in another order", Kind.ROWS, "clip_embeddings[made-0001]", "clip_ids.json", json_changed("clip_ids.json", lambda ids: ids[::-1]))
sealed("a vector of another length", Kind.VECTORS, "clip_embeddings[made-0001]", "embeddings.npy", array_changed("embeddings.npy", lambda vectors: np.concatenate([vectors[:1] * 2, vectors[1:]])))
sealed("a vector that is not a number", Kind.VECTORS, "target_embeddings", "embeddings.npy", array_changed("embeddings.npy", lambda vectors: np.where(np.arange(DIMENSIONS) == 1, np.nan, vectors).astype(np.float32)))
sealed("a batch with another digest", Kind.FAN_IN, "distinct_clips", "batches.json", json_changed("batches.json", lambda content: content | {"made-0001": "0" * 16}))
sealed("vectors of a batch with another digest", Kind.FAN_IN, "distinct_clips", "", lambda _: None, batch_digests={"made-0001": "0" * 16})


@plant("a batch that another encoder embedded", Kind.ENCODER)
def _(store: Store) -> str:
    odd = forge(store, "clip_embeddings[made-0002]", json_changed("encoder.json", lambda content: content | {"digest": "encoder-2"}))
    made = store.current("distinct_clips").summary["batch_digests"]
    forge(store, "distinct_clips", swap={odd.key: odd}, batch_digests=made | {"made-0002": odd.digest})
    return place(odd, "encoder.json")


def without_one(folder: Path) -> None:
    """Lose a distinct clip that is nobody's twin, with its vector and look."""
    row = [row["video_id"] for row in read(folder, "clips")].index("video-b")
    rows_changed("clips", lambda rows: rows[:row] + rows[row + 1 :])(folder)
    json_changed("clip_ids.json", lambda ids: ids[:row] + ids[row + 1 :])(folder)
    for name in ("embeddings.npy", "looks.npy"):
        array_changed(name, lambda values: np.delete(values, row, axis=0))(folder)


def new_id(row: dict[str, Any], **values: Any) -> str:
    row = row | values
    return clip_id(row["video_id"], row["start_pts"], row["end_pts"], (row["time_base_num"], row["time_base_den"]), row["splitter"])


def twin_of_the_copy(value: str) -> Callable[[Rows], None]:
    """Change the twin of the one near duplicate."""

    def change(rows: Rows) -> None:
        (copy,) = (row for row in rows if row["reason"] == "near_duplicate")
        copy["twin_id"] = copy["clip_id"] if value == "removed" else value

    return change


REMOVALS = "removals.parquet"
sealed("a clip neither kept nor removed", Kind.CLIPS_LOST, "distinct_clips", "clips.parquet", without_one)
sealed("a clip kept and removed", Kind.CLIPS_TWICE, "distinct_clips", "clips.parquet", rows_changed("removals", lambda rows: [*rows, rows[0]]))
sealed("a kept clip with another licence", Kind.CLIP_ROWS, "distinct_clips", "clips.parquet", rows_changed("clips", first(licence="proprietary")))
sealed("a twin that nobody knows", Kind.TWIN_UNKNOWN, "distinct_clips", REMOVALS, rows_changed("removals", twin_of_the_copy("nobody")))
sealed("a twin that was removed itself", Kind.TWIN_REMOVED, "distinct_clips", REMOVALS, rows_changed("removals", twin_of_the_copy("removed")))
sealed("a clip without a cluster", Kind.ASSIGNMENTS, "clip_clusters", "assignments.parquet", rows_changed("assignments", last_out))
sealed("a cluster that the codebook lacks", Kind.CLUSTER, "clip_clusters", "assignments.parquet", rows_changed("assignments", first(cluster=999)))
sealed("statistics of other clips", Kind.STATISTICS, "clip_clusters", "leaf_statistics.npz", array_changed("distances.npy", lambda distances: distances[::-1] + 0.5))
sealed("a selected clip that is not distinct", Kind.UNKNOWN_CLIP, "curated_clips", "selection.parquet", rows_changed("selection", first(clip_id="nobody")))
sealed("a selected clip of another video", Kind.UNKNOWN_VIDEO, "curated_clips", "selection.parquet", rows_changed("selection", first(video_id="video-z")))
sealed("weights that do not sum to 1", Kind.WEIGHTS, "curated_clips", "selection.parquet", rows_changed("selection", lambda rows: rows[0].update(weight=rows[0]["weight"] + 0.01)))
sealed("a weight that is not a number", Kind.WEIGHTS, "curated_clips", "selection.parquet", rows_changed("selection", first(weight=float("nan"))))

SHARDS, INDEX = "training_shards", "shard_index.parquet"


@plant("a clip drawn that was not selected", Kind.SHARD_CLIPS)
def _(store: Store) -> str:
    weights = [row["weight"] for row in read(store.current("curated_clips").path, "selection")]
    fewer = forge(store, "curated_clips", rows_changed("selection", lambda rows: [{**row, "weight": row["weight"] / sum(weights[:-1])} for row in rows[:-1]]))
    return place(forge(store, SHARDS, swap={fewer.key: fewer}), INDEX)


sealed("a selected clip that is not drawn", Kind.SHARD_CLIPS, SHARDS, INDEX, rows_changed("shard_index", first(weight=0.0)))
sealed("a clip drawn too often", Kind.SHARD_WEIGHTS, SHARDS, INDEX, rows_changed("shard_index", lambda rows: rows[0].update(weight=rows[0]["weight"] * 1.5)))
sealed("a negative weight", Kind.SHARD_WEIGHTS, SHARDS, INDEX, rows_changed("shard_index", first(weight=-1.0)))
sealed("a clip under another licence", Kind.SHARD_ROWS, SHARDS, INDEX, rows_changed("shard_index", first(licence="proprietary")))
sealed("a clip at another offset", Kind.SHARD_BYTES, SHARDS, INDEX, rows_changed("shard_index", lambda rows: rows[0].update(offset=rows[0]["offset"] + 512)))


@plant("a clip that was taken down and is still drawn", Kind.SERVED)
def _(store: Store) -> str:
    made = store.current(SHARDS)
    row = [row for row in read(made.path, "shard_index") if row["weight"] > 0][-1]
    write_tombstones(store.root, "second", [{"clip_id": row["clip_id"], "video_id": row["video_id"], "takedown": "second", "rule": "video"}])
    return place(made, INDEX)


@plant("a takedown without tombstones", Kind.TAKEDOWN)
def _(store: Store) -> str:
    (store.root / "takedowns" / "third").mkdir()
    return "takedowns/third"


@plant("tombstones that cannot be read", Kind.UNREADABLE)
def _(store: Store) -> str:
    put(store.root / "tombstones" / "first.parquet", b"PAR1?")
    return "tombstones/first.parquet"


# -- robots and training -----------------------------------------------------------------------------------------------

LINEAGE = "lineage.json"


def last_phase(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return json_changed(LINEAGE, lambda content: change(content["exposures"][-1]) and None)


def broken_network(folder: Path) -> None:
    save_file({"weight": torch.tensor([1.0, float("nan")])}, folder / "predictor.safetensors")


def bundle_lineage(folder: Path) -> None:
    json_changed(LINEAGE, lambda content: content["made_from"].update({"training_shards": "0" * 16}))(folder / "bundle-1")
    json_changed("manifest.json", lambda content: content | {"files": {LINEAGE: file_sha256(folder / "bundle-1" / LINEAGE)}})(folder / "bundle-1")


sealed("an episode's video with another digest", Kind.EPISODE_VIDEO, "robot_episodes[simulated]", "episodes.parquet", rows_changed("episodes", first(sha256="0" * 64)))
sealed("an episode without its last step", Kind.EPISODE_STEPS, "robot_episodes[simulated]", "steps.parquet", rows_changed("steps", last_out))
sealed("a step twice", Kind.DUPLICATE_KEY, "robot_episodes[simulated]", "steps.parquet", rows_changed("steps", last_twice))
sealed("a checkpoint that saw other shards", Kind.EXPOSURE, "pretrained_encoder[nano]", LINEAGE, last_phase(lambda phase: phase["sources"][0].update(digest="0" * 16)))
sealed("a checkpoint of another parent", Kind.PARENT, "cooled_encoder[nano]", LINEAGE, json_changed(LINEAGE, lambda content: content | {"parent": "0" * 16}))
sealed("a phase that its parent does not know", Kind.EXPOSURE, "cooled_encoder[nano]", LINEAGE, json_changed(LINEAGE, lambda content: content["exposures"][0].update(steps=99)))
sealed("a training under a takedown without tombstones", Kind.TAKEDOWN, "pretrained_encoder[nano]", LINEAGE, last_phase(lambda phase: phase.update(exclusions=[[1, ["lost"]]])))
sealed("a log of other clips", Kind.EXPOSURE, "cooled_encoder[nano]", "exposure_log.parquet", rows_changed("exposure_log", first(clip_id="0" * 20)))
sealed("a log without its last sample", Kind.EXPOSURE, "cooled_encoder[nano]", "exposure_log.parquet", rows_changed("exposure_log", last_out))
sealed("a log of other frames", Kind.EXPOSURE, "cooled_encoder[nano]", "exposure_log.parquet", rows_changed("exposure_log", first(pts=[0, 0, 0, 0])))
sealed("a world model of other episodes", Kind.EXPOSURE, "world_model[nano]", LINEAGE, json_changed(LINEAGE, lambda content: content["episodes"]["train"].append("e9")))
sealed("a weight that is no number", Kind.NETWORK, "world_model[nano]", "predictor.safetensors", broken_network)
sealed("a weight file that is none", Kind.UNREADABLE, "world_model[nano]", "predictor.safetensors", lambda folder: put(folder / "predictor.safetensors", b"12345678?"))
sealed("a bundle made from other shards", Kind.PARENT, "robot_bundle[nano]", f"bundle-1/{LINEAGE}", bundle_lineage)
sealed("a bundle of another name", Kind.BUNDLE, "robot_bundle[nano]", "bundle-1/manifest.json", json_changed("bundle-1/manifest.json", lambda content: content | {"bundle": "bundle-2"}))
sealed("an agent that ran another bundle", Kind.BUNDLE, "robot_deployment[sim]", "", lambda _: None, bundle="bundle-2")


@plant("a robot that points to no bundle", Kind.ROBOT_POINTER)
def _(store: Store) -> str:
    json_changed("current.json", lambda content: content | {"path": "artefacts/robot_bundle/nano/0000/bundle-1"})(store.root / "targets" / "sim")
    return "targets/sim/current.json"


# -- what is found ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    kind: Kind
    file: str


def found_in(root: Path, **options: Any) -> set[Found]:
    return {Found(one.kind, one.file) for one in scrub(root, **options).findings}


@pytest.mark.parametrize(("kind", "do"), [pytest.param(kind, do, id=name) for name, kind, do in PLANTS])
def test_a_planted_disagreement_is_found_and_nothing_else(store: Store, kind: Kind, do: Callable[[Store], str]) -> None:
    file = do(store)
    found = scrub(store.root)
    assert {Found(one.kind, one.file) for one in found.findings} == {Found(kind, file)}, scrub_text(found)
    (finding,) = found.findings
    assert finding.expected and finding.found and finding.remedy and finding.expected != finding.found
    assert file in scrub_text(found) and kind.value in scrub_markdown(found.findings)


def test_all_planted_at_once_are_all_found(store: Store) -> None:
    planted = {Found(kind, do(store)) for name, kind, do in PLANTS if name not in ALONE}
    assert found_in(store.root) == planted and len(planted) >= 60


def test_clips_overwritten_without_a_takedown_are_named(store: Store) -> None:
    clip = read(store.current("training_shards").path, "shard_index")[0]["clip_id"]
    made, _ = redacted(store, {"clips": [clip]})
    assert Found(Kind.REDACTION, place(made, REDACTIONS)) in found_in(store.root, quick=True)
    write_tombstones(store.root, "second", [{"clip_id": clip, "video_id": "v", "takedown": "second", "rule": "video"}])
    assert not {one for one in found_in(store.root, quick=True) if one.kind is Kind.REDACTION}


def test_a_redacted_tar_is_judged_by_its_digest_of_after(store: Store) -> None:
    made = forge(store, "training_shards")
    tar = made.path / read(made.path, "shard_index")[0]["shard"]
    flip(tar)
    assert place(made, tar.name) in {one.file for one in found_in(store.root)}
    put(made.path / REDACTIONS, json.dumps({tar.name: {"sha256": file_sha256(tar), "clips": [], "takedown": "first"}}).encode())
    assert place(made, tar.name) not in {one.file for one in found_in(store.root)}


def test_a_quick_scrub_reads_tables_and_sizes_only(store: Store) -> None:
    flip(forge(store, "robot_episodes[simulated]").path / "videos" / "e0.mp4")
    short = forge(store, "world_model[nano]")
    put(short.path / "predictor.safetensors", b"")
    rows = forge(store, CLIPS, rows_changed("clips", first(splitter="another")))
    found = scrub(store.root, quick=True)
    assert {Found(one.kind, one.file) for one in found.findings} == {
        Found(Kind.MEMBER_SIZE, place(short, "predictor.safetensors")), Found(Kind.CLIP_ID, place(rows, "clips.parquet")),
    }  # fmt: skip
    assert found.bytes_read == 0 and "sizes and tables only" in scrub_text(found)


def test_only_the_assets_asked_for_are_looked_at(store: Store) -> None:
    forge(store, CLIPS, rows_changed("clips", first(splitter="another")))
    forge(store, "curated_clips", rows_changed("selection", first(weight=float("nan"))))
    point(store, "clips", "made-0002", "0" * 16, place(store.current("clips", "made-0002")))
    assert {one.kind for one in found_in(store.root, assets=["curated_clips"])} == {Kind.WEIGHTS}
    assert {one.kind for one in found_in(store.root, assets=["clips"])} == {Kind.CLIP_ID, Kind.POINTER_DIGEST}
    assert {one.kind for one in found_in(store.root, assets=["clips[made-0002]"])} == {Kind.POINTER_DIGEST}
    with pytest.raises(InputError, match=r"clips\[made-0001\]"):
        scrub(store.root, ["klips"])


def test_what_damage_kept_from_being_compared_is_said(store: Store) -> None:
    made = store.current("clips", "made-0001")
    flip(made.path / "clips.parquet")
    found = scrub(store.root)
    assert {Found(one.kind, one.file) for one in found.findings} == {Found(Kind.MEMBER_SHA256, place(made, "clips.parquet"))}
    assert any(note.artefact.startswith("distinct_clips") and "clips kept and removed not compared" in note.text for note in found.notes)
    assert "not compared" in scrub_text(found)


def test_leftovers_are_told_and_are_no_disagreement(store: Store) -> None:
    made = store.current("clips", "made-0001")
    for name, hours in (("old", 30), ("young", 0)):
        draft = made.path.with_name(f".draft-{name}-12345678")
        draft.mkdir()
        put(draft / "clips.parquet", b"half of one")
        for path in (draft / "clips.parquet", draft):
            os.utime(path, (time.time() - 3600 * hours,) * 2)
    put(made.path / f".{REDACTIONS}.0123abcd", b"{")
    put(store.root / "validated" / ("f" * 16 + ".json"), json.dumps({"asset": "clips", "partition": "gone", "digest": "f" * 16}).encode())
    found = scrub(store.root)
    assert not found.findings
    told = [(note.file, note.text) for note in found.notes]
    assert len(told) == 3 and any(".draft-old-" in file and "30.0 h" in text for file, text in told)


def test_a_folder_that_is_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="make demo"):
        scrub(tmp_path)


# -- damage ----------------------------------------------------------------------------------------------------------

DAMAGE = {
    "nothing": b"", "half": b'{"a": [1, {"b"', "a list": b"[]", "a dict": b"{}", "null": b"null", "a number": b"1e999", "not a number": b'{"digest": NaN}',
    "not text": bytes(range(256)), "deep": b"[" * 100_000, "half a pair": b'{"\\ud800": "\\ud800"}', "twisted": b'{"exposures": {"a": 1}, "files": 7, "bundle": []}',
    "a list of lists": b"[[[]], null, {}]",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_json_is_found_and_stops_nothing(store: Store, damage: bytes) -> None:
    """In every JSON file of the store that is no manifest, and in members whose damage is sealed: nothing but the content tells."""
    sealed_places = []
    for path in sorted(store.root.glob("artefacts/*/*/*/*.json")):
        if path.name == MANIFEST:
            continue
        asset, partition = path.relative_to(store.root / "artefacts").parts[:2]
        key = asset if partition == "_" else f"{asset}[{partition}]"
        made = forge(store, key, lambda folder, name=path.name: put(folder / name, damage))
        if path.name in ("clip_ids.json", "encoder.json", "batches.json", "lineage.json", "codebook.json"):
            sealed_places.append(place(made))
    found = scrub(store.root, quick=True)
    assert all(any(one.file.startswith(made) for one in found.findings) for made in sealed_places), scrub_text(found)
    for path in sorted(store.root.glob("**/*.json")):
        if path.name != MANIFEST:
            put(path, damage)
    found = scrub(store.root)
    assert Found(Kind.UNREADABLE, "current/clips/made-0001.json") in {Found(one.kind, one.file) for one in found.findings}
    scrub_text(found).encode()
    json.dumps(found.to_dict())


@pytest.mark.parametrize("seed", range(12))
def test_bytes_changed_at_random_never_stop_a_scrub(store: Store, seed: int) -> None:
    """In any file, manifests and tables too; what is changed in a file that a manifest covers, or in the manifest, is found."""
    draw = random.Random(seed)
    files = sorted(path for path in store.root.rglob("*") if path.is_file())
    for path in draw.sample(files, 6):
        content = bytearray(path.read_bytes())
        for _ in range(draw.randint(1, 20)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        put(path, bytes(content[: draw.randint(0, len(content))] if draw.random() < 0.3 else content))
    found = scrub(store.root, quick=draw.random() < 0.3)
    scrub_text(found).encode()
    assert found.findings or found.quick
