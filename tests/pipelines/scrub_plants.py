"""Disagreements that scrub must find, each planted into a private copy of a sound store: PLANTS holds (name, kind, how)."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from scrub_world import DIMENSIONS, Rows, read, write

from pipelines.identity import clip_id, file_sha256
from pipelines.lineage.scrub.finding import Kind
from pipelines.store import MANIFEST, REDACTIONS, Artefact, Store
from pipelines.tombstones import write_tombstones

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
