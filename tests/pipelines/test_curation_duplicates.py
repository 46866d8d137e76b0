"""Distinct clips: planted duplicates and leaks are removed and explained, and nothing depends on how the pool came to be."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_files import write_vectors

from pipelines.checks import failed
from pipelines.curation.duplicates import DuplicatesConfig, build_distinct, check_distinct
from pipelines.curation.embedding import build_embeddings, check_embeddings, read_vectors, unit_rows
from pipelines.curation.pairs import PairRules
from pipelines.curation.scenes import build_clips, check_clips
from pipelines.errors import InputError, Removal
from pipelines.schemas import CLIPS, QUARANTINE, REMOVALS, read_table, table_of, write_table
from pipelines.sources.registry import Batch, SourceFile
from pipelines.sources.targets import build_target_videos
from pipelines.video.encode import ffmpeg_binary, write_video
from pipelines.video.probe import build_videos

RATE = 10.0


def film(seed: int, frames: int = 24) -> np.ndarray:
    """(T, 96, 128, 3) uint8: a square moving its own way over a shaded background that all films share."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:96, 0:128]
    base = (60 + rows + 40 * np.sin(columns / 9.0))[..., None] * np.array([1.0, 0.9, 0.8])
    start, end = random.uniform((5, 5), (70, 100), (2, 2))
    made = np.repeat(base.clip(0, 255).astype(np.uint8)[None], frames, axis=0)
    for number in range(frames):
        row, column = (start + (end - start) * number / frames).astype(int)
        made[number, row : row + 22, column : column + 22] = (230, 40, 40)
    return made


def embed(folder: Path, clips_folder: Path) -> None:
    """Embeddings without a network: each clip's mean picture as a unit vector."""
    looks = np.load(clips_folder / "looks.npy").astype(np.float32)
    pictures = looks.mean(axis=1).reshape(len(looks), looks.shape[2] * looks.shape[3])
    write_vectors(folder, read_table(clips_folder / "clips.parquet", CLIPS).column("clip_id").to_pylist(), unit_rows(pictures))
    (folder / "encoder.json").write_text(json.dumps({"name": "mean picture", "digest": "mean picture"}))


def ingest(root: Path, key: str, paths: list[Path]) -> tuple[Path, Path]:
    """Folders of clips and embeddings of one batch."""
    folders = [root / f"{key}-{stage}" for stage in ("videos", "clips", "embeddings")]
    for folder in folders:
        folder.mkdir()
    build_videos(folders[0], Batch(key, "pool", tuple(SourceFile(str(path), path.stat().st_size, 0) for path in paths), "", ""))
    build_clips(folders[1], folders[0])
    embed(folders[2], folders[1])
    return folders[1], folders[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Batch one: eight films. Batch two: a remux, an exact copy, a worse encoded copy, a mirrored one, one new film, and two
    leaks, one of them mirrored."""
    root = tmp_path_factory.mktemp("distinct")
    first = [root / f"film_{number}.mp4" for number in range(8)]
    for number, path in enumerate(first):
        write_video(path, film(number if number != 7 else 9), RATE)  # by chance 5 and 7 move alike

    def ffmpeg(*arguments: Any) -> None:
        subprocess.run([ffmpeg_binary(), "-y", "-loglevel", "error", *map(str, arguments)], check=True)

    second = [root / name for name in ("remux.mkv", "copy.mp4", "worse.mp4", "new.mp4", "leak.mp4", "mirror.mp4", "turned.mp4")]
    ffmpeg("-i", first[0], "-c", "copy", second[0])
    shutil.copy(first[1], second[1])
    ffmpeg("-i", first[2], "-vf", "scale=96:72", "-c:v", "libx264", "-crf", 32, second[2])
    write_video(second[3], film(20), RATE)
    targets = root / "targets"
    for number, (split, label) in enumerate((s, x) for s in ("train", "eval") for x in ("a", "b")):
        (targets / "push" / split / label).mkdir(parents=True)
        write_video(targets / "push" / split / label / "one.mp4", film(40 + number), RATE)
    ffmpeg("-i", targets / "push" / "eval" / "a" / "one.mp4", "-c:v", "libx264", "-crf", 30, second[4])
    ffmpeg("-i", first[3], "-vf", "hflip", "-c:v", "libx264", "-crf", 24, second[5])
    ffmpeg("-i", targets / "push" / "eval" / "b" / "one.mp4", "-vf", "hflip", "-c:v", "libx264", "-crf", 24, second[6])
    for name in ("targets-clips", "targets-embeddings"):
        (root / name).mkdir()
    build_target_videos(root / "targets-clips", targets)
    embed(root / "targets-embeddings", root / "targets-clips")
    batches = {"pool-0001": ingest(root, "pool-0001", first), "pool-0002": ingest(root, "pool-0002", second)}
    return {"root": root, "batches": batches, "targets": (root / "targets-clips", root / "targets-embeddings")}


def distinct(world: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    return build_distinct(folder, options.pop("batches", world["batches"]), *world["targets"], **options)


def names_of(world: dict[str, Any]) -> dict[str, str]:
    """File name of every clip, pool and targets, by clip_id (of copies: the one that comes last)."""
    folders = [clips for clips, _ in world["batches"].values()] + [world["targets"][0]]
    return {row["clip_id"]: Path(row["path"]).name for folder in folders for row in read_table(folder / "clips.parquet", CLIPS).to_pylist()}


def removals_of(folder: Path) -> list[dict[str, Any]]:
    return read_table(folder / "removals.parquet", REMOVALS).to_pylist()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an artefact by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_planted_duplicates_and_the_leaks_are_removed_and_explained(world: dict[str, Any], tmp_path: Path) -> None:
    summary = distinct(world, tmp_path)
    names, removals = names_of(world), removals_of(tmp_path)
    assert sorted(row["reason"] for row in removals) == [
        Removal.EVALUATION_LEAK, Removal.EVALUATION_LEAK, Removal.EXACT, Removal.EXACT, Removal.FINGERPRINT,
    ]  # fmt: skip
    by_name = {names[row["clip_id"]]: row for row in removals}
    worse = by_name["worse.mp4"]
    assert names[worse["twin_id"]] == "film_2.mp4" and worse["similarity"] > 0.8 and 0 <= worse["distance"] < 0.2
    assert "film_2.mp4" in worse["detail"] and "motion to 0.9" in worse["detail"]
    leaks = {name: row for name, row in by_name.items() if row["reason"] == Removal.EVALUATION_LEAK}
    assert set(leaks) == {"leak.mp4", "turned.mp4"} and all("push" in row["detail"] for row in leaks.values())
    details = {row["detail"].split(" than ")[0].split(" as ")[0] for row in removals if row["reason"] == Removal.EXACT}
    assert details == {"the same span of the same stream", "the same stream, in another container"}
    kept = sorted(Path(row["path"]).stem for row in read_table(tmp_path / "clips.parquet", CLIPS).to_pylist())
    assert len(kept) == 10 and {"new", "mirror"} <= set(kept) and all(f"film_{number}" in kept for number in range(2, 8))
    assert summary["clips_in"] == summary["clips"] + summary["removed"] == 15 and not failed(check_distinct(tmp_path))


def test_rows_of_all_files_agree(world: dict[str, Any], tmp_path: Path) -> None:
    distinct(world, tmp_path)
    clips = read_table(tmp_path / "clips.parquet", CLIPS).to_pylist()
    ids, vectors = read_vectors(tmp_path)
    looks = np.load(tmp_path / "looks.npy")
    assert ids == [clip["clip_id"] for clip in clips] == sorted(ids)
    for folder, embeddings in world["batches"].values():
        own = {row["clip_id"]: number for number, row in enumerate(read_table(folder / "clips.parquet", CLIPS).to_pylist())}
        own_looks, own_vectors = np.load(folder / "looks.npy"), read_vectors(embeddings)[1]
        for place, clip in enumerate(clips):
            if clip["path"].startswith(str(world["root"])) and clip["batch"] == folder.name[:9]:
                row = own[clip["clip_id"]]
                assert np.array_equal(looks[place], own_looks[row]) and np.array_equal(vectors[place], own_vectors[row])


def test_leaks_are_reported_by_target_set_and_rule(world: dict[str, Any], tmp_path: Path) -> None:
    distinct(world, tmp_path)
    report = json.loads((tmp_path / "leaks.json").read_text())
    assert (report["evaluation_clips"], report["evaluation_videos"], report["clips"], report["videos"]) == (2, 2, 2, 2)
    assert report["targets"]["push"] == {"evaluation_clips": 2, "clips": 2, "videos": 2, "same video": 0, "same look": 2, "via component": 0}
    assert [row["rule"] for row in report["nearest"]] == ["same look"] * 2
    assert report["nearest"][0]["similarity"] >= report["nearest"][1]["similarity"] > 0.5 and report["nearest"][0]["distance"] < 0.1


def test_mirrored_copies_are_removed_when_asked(world: dict[str, Any], tmp_path: Path) -> None:
    distinct(world, tmp_path, config=DuplicatesConfig(duplicate=PairRules(mirrored=True)))
    names = names_of(world)
    mirrored = [row for row in removals_of(tmp_path) if row["reason"] == Removal.MIRRORED]
    assert [{names[row["clip_id"]], names[row["twin_id"]]} for row in mirrored] == [{"film_3.mp4", "mirror.mp4"}]
    assert "mirrored" in mirrored[0]["detail"]


def test_result_does_not_depend_on_the_order_of_batches(world: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for number, batches in enumerate((world["batches"], dict(reversed(world["batches"].items())))):
        (tmp_path / str(number)).mkdir()
        distinct(world, tmp_path / str(number), batches=batches)
        found.append(contents(tmp_path / str(number)))
    assert found[0] == found[1]


def test_a_new_batch_alone_is_searched_for_with_the_same_bytes(world: dict[str, Any], tmp_path: Path) -> None:
    for name in ("first", "both", "again", "scratch"):
        (tmp_path / name).mkdir()
    distinct(world, tmp_path / "first", batches={"pool-0001": world["batches"]["pool-0001"]})
    grown = distinct(world, tmp_path / "both", previous=tmp_path / "first")
    scratch = distinct(world, tmp_path / "scratch")
    assert scratch["searched"] - grown["searched"] == 8
    assert contents(tmp_path / "both") == contents(tmp_path / "scratch")
    assert distinct(world, tmp_path / "again", previous=tmp_path / "both")["searched"] == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "scratch")


def test_pairs_of_another_rule_or_encoder_are_not_taken_over(world: dict[str, Any], tmp_path: Path) -> None:
    for name in ("former", "other", "scratch"):
        (tmp_path / name).mkdir()
    distinct(world, tmp_path / "former")
    config = DuplicatesConfig(duplicate=PairRules(eps=0.0))
    summary = distinct(world, tmp_path / "other", config=config, previous=tmp_path / "former")
    distinct(world, tmp_path / "scratch", config=config)
    assert summary["searched"] > 0 and contents(tmp_path / "other") == contents(tmp_path / "scratch")
    assert summary["reasons"] == {Removal.EVALUATION_LEAK: 2, Removal.EXACT: 2}  # eps 0: only equal vectors


def test_a_second_pass_removes_nothing(world: dict[str, Any], tmp_path: Path) -> None:
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    first = distinct(world, tmp_path / "once")
    second = distinct(world, tmp_path / "twice", batches={"pool-0001": (tmp_path / "once", tmp_path / "once")})
    assert second["clips"] == second["clips_in"] == first["clips"] and second["removed"] == 0
    assert (tmp_path / "twice" / "clips.parquet").read_bytes() == (tmp_path / "once" / "clips.parquet").read_bytes()


def test_finished_parts_are_used_again(world: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    distinct(world, tmp_path / "one", work=tmp_path / "work")
    shutil.rmtree(next((tmp_path / "work").glob("verify-0001-*")))
    summary = distinct(world, tmp_path / "two", work=tmp_path / "work")
    assert summary["cost"]["parts"] - summary["cost"]["parts_found"] == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_superseded_files_give_way_and_filters_are_opt_in(world: dict[str, Any], tmp_path: Path) -> None:
    stale = {"pool-0001": [str(world["root"] / "film_7.mp4")]}
    summary = distinct(world, tmp_path, superseded=stale)
    assert summary["superseded_clips"] == 1 and summary["clips"] == 9 and summary["searched"] == 13
    sizes = {"min_side": (97, Removal.FILTERED_SMALL), "min_seconds": (9.0, Removal.FILTERED_SHORT), "min_motion": (99.0, Removal.FILTERED_MOTION)}
    for name, (value, reason) in {**sizes, "filter_static": (True, Removal.FILTERED_STATIC), "filter_black": (True, Removal.FILTERED_BLACK)}.items():
        (tmp_path / name).mkdir()
        options = {name: value, "static_share": 0.0, "black_share": 0.0}
        summary = distinct(world, tmp_path / name, config=DuplicatesConfig(**options), previous=tmp_path)
        assert summary["clips"] == summary["searched"] == 0 and summary["reasons"] == {Removal.EVALUATION_LEAK: 2, reason: 13}
        assert set(failed(check_distinct(tmp_path / name))) == {"not_empty"}


def test_a_known_licence_is_preferred_among_equals(world: dict[str, Any], tmp_path: Path) -> None:
    copies = tmp_path / "licensed"
    shutil.copytree(world["batches"]["pool-0001"][0], copies)
    rows = read_table(copies / "clips.parquet", CLIPS).to_pylist()
    write_table(table_of(CLIPS, [{**row, "licence": "CC-BY-4.0"} for row in rows]), copies / "clips.parquet", CLIPS)
    batches = {"pool-0001": world["batches"]["pool-0001"], "pool-0002": (copies, world["batches"]["pool-0001"][1])}
    (tmp_path / "out").mkdir()
    distinct(world, tmp_path / "out", batches=batches)
    assert {row["licence"] for row in read_table(tmp_path / "out" / "clips.parquet", CLIPS).to_pylist()} == {"CC-BY-4.0"}


def test_black_bars_do_not_make_a_copy_the_better_one(world: dict[str, Any], tmp_path: Path) -> None:
    barred = tmp_path / "barred.mp4"
    source = world["root"] / "film_4.mp4"
    subprocess.run([ffmpeg_binary(), "-y", "-loglevel", "error", "-i", str(source), "-vf", "pad=iw:ih+64:0:32:black", str(barred)], check=True)
    batches = {**world["batches"], "pool-0003": ingest(tmp_path, "pool-0003", [barred])}
    (tmp_path / "out").mkdir()
    distinct(world, tmp_path / "out", batches=batches)
    gone = [row["clip_id"] for row in removals_of(tmp_path / "out")]
    assert read_table(batches["pool-0003"][0] / "clips.parquet", CLIPS).column("clip_id")[0].as_py() in gone
    assert str(source) in read_table(tmp_path / "out" / "clips.parquet", CLIPS).column("path").to_pylist()


def test_a_batch_without_a_video_passes_through(world: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "none.mp4").write_text("no video")
    batches = {**world["batches"], "pool-0003": ingest(tmp_path, "pool-0003", [tmp_path / "none.mp4"])}
    made, embeddings = batches["pool-0003"][0], tmp_path / "embedded"
    embeddings.mkdir()
    build_embeddings(embeddings, made)
    assert not failed(check_clips(made, 0)) and failed(check_clips(made)) and not failed(check_embeddings(embeddings, 0))
    (tmp_path / "out").mkdir()
    assert distinct(world, tmp_path / "out", batches=batches)["clips_in"] == 15


def test_vectors_of_another_encoder_are_refused(world: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(world["targets"][1], other)
    (other / "encoder.json").write_text(json.dumps({"name": "x", "digest": "other"}))
    with pytest.raises(InputError, match="different encoders"):
        build_distinct(tmp_path, world["batches"], world["targets"][0], other)


def test_clips_without_vector_are_left_out_only_where_quarantined(world: dict[str, Any], tmp_path: Path) -> None:
    clips, embeddings = world["batches"]["pool-0001"]
    short = tmp_path / "short"
    shutil.copytree(embeddings, short)
    ids, vectors = read_vectors(embeddings)
    np.save(short / "embeddings.npy", np.delete(vectors, 2, axis=0))
    (short / "clip_ids.json").write_text(json.dumps(ids[:2] + ids[3:]))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="does not embed the clips"):
        distinct(world, tmp_path / "out", batches={"pool-0001": (clips, short)})
    row = read_table(clips / "clips.parquet", CLIPS).to_pylist()[2]
    reject = {"path": row["path"], "batch": row["batch"], "source": row["source"], "code": "decode_error", "detail": f"{ids[2]}: no frame", "attempts": 1, "poison": False}
    write_table(table_of(QUARANTINE, [reject]), short / "quarantine.parquet", QUARANTINE)
    summary = distinct(world, tmp_path / "out", batches={"pool-0001": (clips, short)})
    assert summary["clips_without_vector"] == 1 and summary["clips"] == 7


def test_clips_of_an_older_version_without_looks_are_refused(world: dict[str, Any], tmp_path: Path) -> None:
    clips, embeddings = world["batches"]["pool-0001"]
    shutil.copytree(clips, tmp_path / "clips")
    (tmp_path / "clips" / "looks.npy").unlink()
    with pytest.raises(InputError, match="looks"):
        distinct(world, tmp_path, batches={"pool-0001": (tmp_path / "clips", embeddings)})


def test_removal_without_its_twin_fails_the_check(world: dict[str, Any], tmp_path: Path) -> None:
    distinct(world, tmp_path)
    table = read_table(tmp_path / "clips.parquet", CLIPS)
    kept = [row for row in table.to_pylist() if not row["path"].endswith("film_2.mp4")]
    write_table(table_of(CLIPS, kept), tmp_path / "clips.parquet", CLIPS)
    assert {"removals_explained", "not_empty"} == set(failed(check_distinct(tmp_path)))
