"""Distinct clips: the star cover's promises, planted duplicates and leaks, and batches merged whatever their order."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.checks import failed
from pipelines.curation.cover import component_leaks, star_cover
from pipelines.curation.duplicates import DuplicatesConfig, build_distinct, check_distinct
from pipelines.curation.embedding import build_embeddings, read_vectors, unit_rows
from pipelines.curation.neighbours import SearchConfig
from pipelines.curation.scenes import build_clips
from pipelines.errors import InputError, Removal
from pipelines.schemas import CLIPS, REMOVALS, read_table, table_of, write_table
from pipelines.sources.registry import Batch, SourceFile
from pipelines.sources.targets import build_target_videos
from pipelines.video.encode import ffmpeg_binary, write_video
from pipelines.video.probe import build_videos

RATE = 10.0

graphs = st.integers(1, 14).flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] < pair[1])),
        st.permutations(range(count)),
    )
)


@given(graphs)
def test_every_removed_row_is_covered_by_a_kept_direct_neighbour(graph: tuple[int, set[tuple[int, int]], list[int]]) -> None:
    count, edges, order = graph
    cover = star_cover(count, edges, order)
    for row, keeper in enumerate(cover):
        assert cover[keeper] == keeper
        assert keeper == row or (min(row, keeper), max(row, keeper)) in edges


@given(graphs)
def test_no_two_kept_rows_are_neighbours_and_a_second_pass_removes_nothing(graph: tuple[int, set[tuple[int, int]], list[int]]) -> None:
    count, edges, order = graph
    kept = {row for row, keeper in enumerate(star_cover(count, edges, order)) if row == keeper}
    inner = [pair for pair in edges if kept.issuperset(pair)]
    assert not inner
    assert all(star_cover(count, inner, order)[row] == row for row in kept)


@given(graphs)
def test_cover_does_not_depend_on_the_order_in_which_pairs_were_found(graph: tuple[int, set[tuple[int, int]], list[int]]) -> None:
    count, edges, order = graph
    assert star_cover(count, sorted(edges), order) == star_cover(count, sorted(edges, reverse=True), order)


def test_chain_keeps_its_far_end() -> None:
    assert star_cover(3, [(0, 1), (1, 2)], [0, 1, 2]) == [0, 0, 2]


@given(graphs, st.sets(st.integers(0, 13)))
def test_leaks_take_the_whole_component_and_nothing_else(graph: tuple[int, set[tuple[int, int]], list[int]], seeds: set[int]) -> None:
    count, edges, _ = graph
    direct = {row: 100 + row for row in seeds if row < count}
    reached = component_leaks(count, edges, direct)
    assert direct.items() <= reached.items()
    assert all((first in reached) == (second in reached) for first, second in edges)
    assert set(reached.values()) <= set(direct.values())


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


def ingest(root: Path, key: str, paths: list[Path]) -> tuple[Path, Path]:
    """Folders of clips and embeddings of one batch."""
    folders = [root / f"{key}-{stage}" for stage in ("videos", "clips", "embeddings")]
    for folder in folders:
        folder.mkdir()
    build_videos(folders[0], Batch(key, "pool", tuple(SourceFile(str(path), path.stat().st_size, 0) for path in paths), "", ""))
    build_clips(folders[1], folders[0])
    build_embeddings(folders[2], folders[1])
    return folders[1], folders[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Batch one: eight films. Batch two: a remux, an exact copy, a worse encoded copy, one new film, and one leak."""
    root = tmp_path_factory.mktemp("distinct")
    first = [root / f"film_{number}.mp4" for number in range(8)]
    for number, path in enumerate(first):
        write_video(path, film(number if number != 7 else 9), RATE)  # by chance 5 and 7 move alike

    def ffmpeg(*arguments: Any) -> None:
        subprocess.run([ffmpeg_binary(), "-y", "-loglevel", "error", *map(str, arguments)], check=True)

    second = [root / name for name in ("remux.mkv", "copy.mp4", "worse.mp4", "new.mp4", "leak.mp4")]
    ffmpeg("-i", first[0], "-c", "copy", second[0])
    shutil.copy(first[1], second[1])
    ffmpeg("-i", first[2], "-vf", "scale=96:72", "-c:v", "libx264", "-crf", 32, second[2])
    write_video(second[3], film(20), RATE)
    targets = root / "targets"
    for number, (split, label) in enumerate((s, x) for s in ("train", "eval") for x in ("a", "b")):
        (targets / "push" / split / label).mkdir(parents=True)
        write_video(targets / "push" / split / label / "one.mp4", film(40 + number), RATE)
    ffmpeg("-i", targets / "push" / "eval" / "a" / "one.mp4", "-c:v", "libx264", "-crf", 30, second[4])
    for name in ("targets-clips", "targets-embeddings"):
        (root / name).mkdir()
    build_target_videos(root / "targets-clips", targets)
    build_embeddings(root / "targets-embeddings", root / "targets-clips")
    batches = {"pool-0001": ingest(root, "pool-0001", first), "pool-0002": ingest(root, "pool-0002", second)}
    return {"root": root, "batches": batches, "targets": (root / "targets-clips", root / "targets-embeddings")}


def distinct(world: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    return build_distinct(folder, options.pop("batches", world["batches"]), *world["targets"], **options)


def test_planted_duplicates_and_the_leak_are_removed_and_explained(world: dict[str, Any], tmp_path: Path) -> None:
    summary = distinct(world, tmp_path)
    clips = {row["clip_id"]: Path(row["path"]).name for pair in world["batches"].values() for row in read_table(pair[0] / "clips.parquet", CLIPS).to_pylist()}
    removals = read_table(tmp_path / "removals.parquet", REMOVALS).to_pylist()
    assert sorted(row["reason"] for row in removals) == [
        Removal.EVALUATION_LEAK, Removal.EXACT, Removal.EXACT, Removal.FINGERPRINT,
    ]  # fmt: skip
    by_name = {clips[row["clip_id"]]: row for row in removals}
    assert clips[by_name["worse.mp4"]["twin_id"]] == "film_2.mp4" and by_name["worse.mp4"]["similarity"] > 0.8
    assert "leak.mp4" in by_name
    kept = sorted(Path(row["path"]).stem for row in read_table(tmp_path / "clips.parquet", CLIPS).to_pylist())
    assert len(kept) == 9 and "new" in kept and all(f"film_{number}" in kept for number in range(2, 8))
    assert summary["clips_in"] == summary["clips"] + summary["removed"] == 13 and not failed(check_distinct(tmp_path))
    assert read_vectors(tmp_path)[0] == read_table(tmp_path / "clips.parquet", CLIPS).column("clip_id").to_pylist()


def test_result_does_not_depend_on_the_order_of_batches(world: dict[str, Any], tmp_path: Path) -> None:
    contents = []
    for number, batches in enumerate((world["batches"], dict(reversed(world["batches"].items())))):
        (tmp_path / str(number)).mkdir()
        distinct(world, tmp_path / str(number), batches=batches)
        contents.append([(tmp_path / str(number) / name).read_bytes() for name in ("clips.parquet", "removals.parquet", "embeddings.npy", "batches.json")])
    assert contents[0] == contents[1]


def test_large_pools_search_through_ivf_and_find_planted_pairs_across_cells() -> None:
    random = np.random.default_rng(0)
    vectors = unit_rows(random.normal(size=(1200, 32)).astype(np.float32))
    vectors[600:] = unit_rows(vectors[:600] + random.normal(scale=0.02, size=(600, 32)).astype(np.float32))
    prints = random.integers(0, 256, (1200, 5, 32), dtype=np.uint8)
    features = Features(vectors, prints, np.ones(1200), np.zeros(1200), np.ones(1200), [str(row) for row in range(1200)])
    planted = {(row, row + 600) for row in range(600)}
    for limit in (10**6, 0):
        first, second = candidate_pairs(features, SearchConfig(flat_limit=limit, probes=8))
        assert (first < second).all()
        assert len(planted & set(zip(first.tolist(), second.tolist(), strict=True))) >= 0.95 * len(planted)


def test_superseded_files_give_way_and_filters_are_opt_in(world: dict[str, Any], tmp_path: Path) -> None:
    stale = {"pool-0001": [str(world["root"] / "film_7.mp4")]}
    summary = distinct(world, tmp_path, superseded=stale)
    assert summary["superseded_clips"] == 1 and summary["clips"] == 8
    (tmp_path / "filtered").mkdir()
    summary = distinct(world, tmp_path / "filtered", config=DuplicatesConfig(filter_static=True, static_below=255.0))
    assert summary["clips"] == 0 and summary["reasons"][Removal.FILTERED_STATIC] == 12
    assert set(failed(check_distinct(tmp_path / "filtered"))) == {"not_empty"}


def test_vectors_of_another_encoder_are_refused(world: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(world["targets"][1], other)
    (other / "encoder.json").write_text(json.dumps({"name": "x", "digest": "other"}))
    with pytest.raises(InputError, match="different encoders"):
        build_distinct(tmp_path, world["batches"], world["targets"][0], other)


def test_removal_without_its_twin_fails_the_check(world: dict[str, Any], tmp_path: Path) -> None:
    distinct(world, tmp_path)
    table = read_table(tmp_path / "clips.parquet", CLIPS)
    kept = [row for row in table.to_pylist() if not row["path"].endswith("film_2.mp4")]
    write_table(table_of(CLIPS, kept), tmp_path / "clips.parquet", CLIPS)
    assert "removals_explained" in failed(check_distinct(tmp_path))
