"""Pairs of made-up pools: found across cells and batches, by rule and by brute force alike, whatever clips are called."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from vector_files import write_vectors

from pipelines.curation.copies import within_copies
from pipelines.curation.duplicates import DuplicatesConfig, build_distinct
from pipelines.curation.embedding import unit_rows
from pipelines.curation.leaks import find_leaks, open_evaluation
from pipelines.curation.merging import open_pool, stream_spans
from pipelines.curation.neighbours import Finder, SearchConfig, search_vectors, trained_on
from pipelines.curation.pairs import PairRules, Pairs, shorter_share
from pipelines.curation.pool_pairs import find_pool_pairs
from pipelines.curation.verification import LookRule, agreement, rhythm_of, same_footage
from pipelines.errors import Removal
from pipelines.parts import Parts
from pipelines.schemas import CLIPS, REMOVALS, read_table, table_of, write_table
from pipelines.video.fingerprint import fingerprint, fingerprints

Looks = NDArray[np.uint8]
SIZE = 24


def made_looks(count: int, seed: int, scenes: int = 4) -> Looks:
    """(count, 8, 24, 24) uint8 clips of a few scenes, each with blobs on ways of its own."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:24, 0:24]
    backs = []
    for scene in range(scenes):
        shades = np.random.default_rng(scene).normal(size=(4, 3))
        backs.append(120 + 35 * sum(a * np.sin(rows / 3 * b + columns / 4 * c) for a, b, c in shades))
    looks = np.empty((count, 8, 24, 24), np.uint8)
    for clip in range(count):
        middles, sways, turns, phases = random.uniform((6, 3, 0.5, 0), (18, 7, 4, 7), (3, 2, 4)).transpose(2, 0, 1)
        for picture in range(8):
            frame = backs[clip % scenes].copy()
            for place in middles + sways * np.sin(turns * picture / 7 * 3 + phases):
                frame += 120 * np.exp(-((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / 4)
            looks[clip, picture] = frame.clip(0, 255)
    return looks


def copies_of(looks: Looks, seed: int) -> Looks:
    """Darker, noisier copies."""
    noise = np.random.default_rng(seed).normal(0, 1.5, looks.shape)
    return (looks * 0.92 + 4 + noise).clip(0, 255).astype(np.uint8)


def vectors_of(looks: Looks, seed: int = 0) -> NDArray[np.float32]:
    """(N, 24) unit vectors that, like those of a network, see the scene more than the motion."""
    project = np.random.default_rng(seed).normal(size=(8 * 576, SIZE))
    return unit_rows((looks.reshape(len(looks), 8 * 576).astype(np.float64) @ project).astype(np.float32))


def write_batch(root: Path, key: str, looks: Looks, source: str = "pool", names: list[str] | None = None, **columns: Any) -> tuple[Path, Path]:
    """A clips artefact and its embeddings, in one folder each."""
    clips, embeddings = root / f"{key}-clips", root / f"{key}-embeddings"
    clips.mkdir(parents=True)
    embeddings.mkdir()
    names = names or [f"{key}-{number:05d}" for number in range(len(looks))]
    rows = [
        {
            "clip_id": name, "video_id": f"v-{name}", "batch": key, "path": f"/{key}/{name}.mp4", "start_pts": 0, "end_pts": 48,
            "time_base_num": 1, "time_base_den": 24, "start_s": 0.0, "end_s": 2.0, "frames": 48, "width": 320, "height": 240,
            "frame_rate": 24.0, "splitter": "made", "motion": 5.0, "brightness": 120.0, "fingerprint": fingerprint(look), "source": source,
            "licence": "", "uploader": "", "label": "", "static": 0.0, "black": 0.0, "language": "",
            **{column: values[number] for column, values in columns.items()},
        }
        for number, (name, look) in enumerate(zip(names, looks, strict=True))
    ]  # fmt: skip
    write_table(table_of(CLIPS, rows), clips / "clips.parquet", CLIPS)
    np.save(clips / "looks.npy", looks)
    write_vectors(embeddings, names, vectors_of(looks))
    (embeddings / "encoder.json").write_text(json.dumps({"name": "made", "digest": "made"}))
    return clips, embeddings


def no_targets(root: Path) -> tuple[Path, Path]:
    return write_batch(root, "targets", made_looks(0, 0))


def pairs_of(pool_folders: dict[str, tuple[Path, Path]], targets: tuple[Path, Path], config: DuplicatesConfig, work: Path) -> set[tuple[str, str]]:
    pool, evaluation = open_pool(pool_folders), open_evaluation(*targets)
    found = find_pool_pairs(Parts(work), pool, evaluation, config.search, config.duplicate, config.leak)
    ids = np.array(pool.table.column("clip_id").to_pylist())[pool.firsts]
    strict = found.pool.take(found.pool.strict)
    return {tuple(sorted((ids[one], ids[two]))) for one, two in zip(strict.first, strict.second, strict=True)}


@pytest.mark.parametrize("search", [SearchConfig(), SearchConfig(flat_limit=80, probes=8), SearchConfig(flat_limit=80, probes=8, codes="full")])
def test_planted_copies_are_found_across_cells_and_batches(tmp_path: Path, search: SearchConfig) -> None:
    originals = made_looks(160, 1)
    copied = np.arange(0, 160, 4)
    batches = {"a": write_batch(tmp_path, "a", originals), "b": write_batch(tmp_path, "b", copies_of(originals[copied], 2))}
    found = pairs_of(batches, no_targets(tmp_path), DuplicatesConfig(search=search), tmp_path / "work")
    planted = {(f"a-{row:05d}", f"b-{number:05d}") for number, row in enumerate(copied.tolist())}
    assert len(planted & found) >= 0.95 * len(planted)
    assert len(found - planted) <= 0


def test_every_removed_clip_has_a_kept_twin_with_a_verified_pair(tmp_path: Path) -> None:
    originals = made_looks(60, 3)
    batches = {"a": write_batch(tmp_path, "a", originals), "b": write_batch(tmp_path, "b", np.concatenate([copies_of(originals[:20], seed) for seed in (1, 2)]))}
    out = tmp_path / "out"
    out.mkdir()
    build_distinct(out, batches, *no_targets(tmp_path))
    kept = read_table(out / "clips.parquet", CLIPS).column("clip_id").to_pylist()
    removals = read_table(out / "removals.parquet", REMOVALS).to_pylist()
    assert len(removals) >= 36 and len(kept) + len(removals) == 100
    looks = dict(zip([f"a-{n:05d}" for n in range(60)] + [f"b-{n:05d}" for n in range(40)], np.concatenate([np.load(batches[k][0] / "looks.npy") for k in "ab"]), strict=True))
    first, second = (np.stack([looks[row[name]] for row in removals]) for name in ("clip_id", "twin_id"))
    assert {row["twin_id"] for row in removals} <= set(kept)
    assert same_footage(agreement(first, second), np.ones(len(removals)), LookRule()).all()
    cosines = np.einsum("ij,ij->i", vectors_of(first), vectors_of(second))
    assert np.allclose(cosines, [row["similarity"] for row in removals], atol=1e-5) and (cosines >= 1 - PairRules().eps).all()


def test_clips_that_a_chain_of_pairs_links_are_copies_by_the_looser_rule() -> None:
    first, second = np.array([0, 1, 0, 3, 4]), np.array([1, 2, 2, 4, 0])
    strict = np.array([True, True, False, True, False])
    measured = np.zeros(5, np.float32)
    pairs = Pairs(first, second, measured, measured, measured, measured, np.zeros(5, np.int16), strict, np.zeros(5, bool))
    assert within_copies(pairs, 6).tolist() == [0, 1, 2, 3]  # 0-2 by way of 1; nothing strict links 3 and 4 to 0


def test_more_copies_of_a_film_than_a_clip_has_neighbours_leave_one(tmp_path: Path) -> None:
    originals = made_looks(6, 14)
    crowd = np.concatenate([copies_of(originals[:1], seed) for seed in range(40)])
    batches = {"a": write_batch(tmp_path, "a", np.concatenate([originals, crowd]))}
    config = DuplicatesConfig(search=SearchConfig(neighbours=4, by_fingerprint=2))
    (tmp_path / "out").mkdir()
    summary = build_distinct(tmp_path / "out", batches, *no_targets(tmp_path), config)
    assert summary["clips"] == 6
    twins = {row["twin_id"] for row in read_table(tmp_path / "out" / "removals.parquet", REMOVALS).to_pylist()}
    assert len(twins) == 1 and twins <= set(read_table(tmp_path / "out" / "clips.parquet", CLIPS).column("clip_id").to_pylist())


def test_components_remove_more_with_a_looser_rule_and_eps_0_only_equal_vectors(tmp_path: Path) -> None:
    originals = made_looks(40, 4)
    batches = {"a": write_batch(tmp_path, "a", np.concatenate([originals, originals[:3]])), "b": write_batch(tmp_path, "b", copies_of(originals[:20], 1))}
    targets, gone = no_targets(tmp_path), []
    for number, eps in enumerate((0.0, 1e-4, 1e-3, 1e-2, 0.8)):
        out = tmp_path / str(number)
        out.mkdir()
        build_distinct(out, batches, *targets, DuplicatesConfig(cover="components", duplicate=PairRules(eps=eps)))
        gone.append({row["clip_id"] for row in read_table(out / "removals.parquet", REMOVALS).to_pylist()})
    assert gone[0] == {"a-00040", "a-00041", "a-00042"}
    assert all(fewer <= more for fewer, more in itertools.pairwise(gone)) and len(gone[-1]) >= 22


def test_names_of_clips_and_batches_decide_nothing_but_ties(tmp_path: Path) -> None:
    originals = made_looks(40, 5)
    looks = np.concatenate([originals, copies_of(originals[::3], 6)])
    sides = [(320 if number < 40 else 1280) + 2 * number for number in range(len(looks))]  # no ties in quality: copies are larger
    kept = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(looks))
        names = [f"n{place:05d}" for place in np.random.default_rng(seed + 9).permutation(len(looks))]
        cut = 20 + seed
        root, out = tmp_path / str(seed), tmp_path / f"out{seed}"
        out.mkdir()
        batches = {
            f"{'ab'[half ^ (seed % 2)]}": write_batch(root, f"{half}", looks[part], names=[names[row] for row in part], width=[sides[row] for row in part])
            for half, part in enumerate((order[:cut], order[cut:]))
        }
        build_distinct(out, batches, *no_targets(root))
        kept.append({sides.index(width) for width in read_table(out / "clips.parquet", CLIPS).column("width").to_pylist()})
    assert kept[0] == kept[1] == kept[2] and 40 <= len(kept[0]) < 45


def test_no_leak_is_left_by_brute_force(tmp_path: Path) -> None:
    pool_looks, held_out = made_looks(24, 7), made_looks(10, 8)
    mirrored = copies_of(held_out[5:8], 3)[..., ::-1]
    pool_looks = np.concatenate([pool_looks, copies_of(held_out[:5], 1), mirrored, copies_of(copies_of(held_out[:2], 4), 5)])
    targets = write_batch(tmp_path, "targets", held_out, source="push/eval")
    batches = {"a": write_batch(tmp_path, "a", pool_looks)}
    out, config = tmp_path / "out", DuplicatesConfig()
    out.mkdir()
    summary = build_distinct(out, batches, *targets, config)
    leaked = {row["clip_id"] for row in read_table(out / "removals.parquet", REMOVALS).to_pylist() if row["reason"] == Removal.EVALUATION_LEAK}
    assert {f"a-{row:05d}" for row in range(24, 34)} <= leaked and summary["evaluation_leaks"] <= 11
    left = np.load(out / "looks.npy")
    rows, columns = np.meshgrid(np.arange(len(left)), np.arange(len(held_out)), indexing="ij")
    for turned in (held_out, held_out[..., ::-1]):
        found = agreement(left[rows.ravel()], turned[columns.ravel()])
        assert not same_footage(found, np.ones(rows.size), config.leak.look).any()


def test_any_span_of_an_evaluation_video_and_what_is_like_it_leaks(tmp_path: Path) -> None:
    looks = made_looks(6, 9)
    looks[1] = copies_of(looks[:1], 1)[0]
    videos = ["film", "b", "c", "d", "e", "f"]
    batches = {"a": write_batch(tmp_path, "a", looks, video_id=videos, start_s=[30.0] + [0.0] * 5, end_s=[32.0] + [2.0] * 5)}
    targets = write_batch(tmp_path, "targets", made_looks(2, 10), source="push/eval", video_id=["film", "other"])
    pool, evaluation = open_pool(batches), open_evaluation(*targets)
    config = DuplicatesConfig()
    found = find_pool_pairs(Parts(tmp_path / "work"), pool, evaluation, config.search, config.duplicate, config.leak)
    leaks = find_leaks(pool, evaluation, found.evaluation, found.pool)
    assert leaks.streams.tolist() == [0, 1] and leaks.rules == ["same video", "via component"] and leaks.evaluation.tolist() == [0, 0]


def test_streams_are_numbered_by_their_first_clip_and_spans_may_differ_by_rounding(tmp_path: Path) -> None:
    looks = made_looks(6, 11)
    folder, _ = write_batch(
        tmp_path, "a", looks, video_id=["x", "y", "x", "x", "y", "x"], start_s=[0.0, 0.0, 2.0, 0.0009, 0.0, 0.0], end_s=[2.0, 2.0, 4.0, 2.0005, 2.5, 1.0],
    )  # fmt: skip
    stream, firsts = stream_spans(read_table(folder / "clips.parquet", CLIPS))
    assert stream.tolist() == [0, 1, 2, 0, 3, 4] and firsts.tolist() == [0, 1, 2, 4, 5]


def test_an_index_is_trained_on_what_came_before_alone() -> None:
    config = SearchConfig(flat_limit=100)
    totals = [50, 90, 150, 300, 599, 600, 5000]
    assert trained_on(totals, config) == [0, 0, 150, 150, 150, 600, 5000]
    for count in range(len(totals)):
        assert trained_on(totals[:count], config) == trained_on(totals, config)[:count]


@pytest.mark.parametrize("limit", [10**6, 100])
def test_neighbours_are_the_same_whether_clips_came_at_once_or_in_turns(limit: int) -> None:
    looks = made_looks(300, 12)
    by, codes = search_vectors(vectors_of(looks), rhythm_of(looks), 0.5), fingerprints(looks)
    config = SearchConfig(flat_limit=limit, neighbours=8, by_fingerprint=4)
    finders = [Finder(by.shape[1], config) for _ in range(2)]
    for number, finder in enumerate(finders):
        if limit < 300:
            finder.train(300, lambda rows: (by[rows], codes[rows]))
        for start in range(0, 300, 300 if number else 70):
            end = start + (300 if number else 70)
            finder.add(by[start:end], codes[start:end])
    one, two = (finder.search(by[:50], codes[:50]) for finder in finders)
    assert np.array_equal(one, two) and one.shape == (50, 14) and (one[:, 0] == np.arange(50)).all()


def test_rhythm_leads_to_the_copy_where_vectors_see_only_the_scene() -> None:
    looks = made_looks(400, 13, scenes=1)
    copies = copies_of(looks[:50], 1)
    scene_only = unit_rows(np.ones((450, 4), np.float32) + np.random.default_rng(0).normal(0, 0.01, (450, 4)).astype(np.float32))
    rhythms = rhythm_of(np.concatenate([looks, copies]))
    by = search_vectors(scene_only, rhythms, SearchConfig().rhythm)
    nearest = (by[400:] @ by[:400].T).argsort(axis=1)[:, -4:]
    assert np.mean([row in near for row, near in enumerate(nearest)]) > 0.9
    assert np.allclose(np.linalg.norm(by, axis=1), 1, atol=1e-5)
    assert shorter_share(np.array([2.0, 1.0]), np.array([1.0, 1.0])).tolist() == [0.5, 1.0]
