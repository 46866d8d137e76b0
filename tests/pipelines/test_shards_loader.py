"""The loader: samples belong to the step, not to who asks; they follow the weights; failures are replaced by rule."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.preprocessing import training_box
from pipelines import schemas
from pipelines.errors import InputError
from pipelines.shards.geometry import ClipGeometry, draw, draws, nearest_frames
from pipelines.shards.index import INDEX_FILE, ShardError, ShardIndex
from pipelines.shards.loader import Batch, ClipLoader

GEOMETRY = ClipGeometry(frames=4, fps=4, height=16, width=24, static_share=0.25)


def loader(folder: Path, rank: int = 0, world: int = 1, **options: object) -> ClipLoader:
    return ClipLoader(folder, GEOMETRY, seed=3, phase="pretrain", global_batch=8, rank=rank, world=world, **options)  # type: ignore[arg-type]


def same(first: Batch, second: Batch) -> bool:
    return (
        first.clip_ids == second.clip_ids
        and torch.equal(first.video, second.video)
        and all(
            np.array_equal(getattr(first, name), getattr(second, name))
            for name in ("global_indices", "times_s", "boxes", "flips")
        )
    )


@pytest.mark.parametrize("world", [2, 4])
def test_the_union_over_ranks_is_the_same_global_batch(made_shards: Path, world: int) -> None:
    alone = loader(made_shards)
    ranks = [loader(made_shards, rank, world) for rank in range(world)]
    for step in (0, 5, 1000):
        whole, parts = alone.batch(step), [rank.batch(step) for rank in ranks]
        assert whole.clip_ids == list(itertools.chain.from_iterable(part.clip_ids for part in parts))
        assert torch.equal(whole.video, torch.cat([part.video for part in parts]))
        assert np.array_equal(whole.times_s, np.concatenate([part.times_s for part in parts]))
        assert np.array_equal(whole.boxes, np.concatenate([part.boxes for part in parts]))
        assert np.array_equal(whole.global_indices, np.arange(step * 8, step * 8 + 8))


@given(stop_at=st.integers(0, 12))
@settings(max_examples=8, deadline=None)
def test_resuming_at_any_step_gives_the_same_batches(made_shards: Path, stop_at: int) -> None:
    straight = list(loader(made_shards).batches(0, 12))
    resumed = [*loader(made_shards).batches(0, stop_at), *loader(made_shards).batches(stop_at, 12)]
    assert len(resumed) == 12 and all(map(same, straight, resumed))


def test_a_cache_too_small_for_one_clip_changes_nothing(made_shards: Path) -> None:
    small, large = loader(made_shards, cache_bytes=1000), loader(made_shards)
    assert all(same(small.batch(step), large.batch(step)) for step in range(3))
    assert small.cache.nbytes == 0 and 0 < large.cache.nbytes <= large.cache.max_bytes


def test_the_cache_stays_within_its_bytes(made_shards: Path) -> None:
    bounded = loader(made_shards, cache_bytes=150_000)
    for step in range(10):
        bounded.batch(step)
        assert bounded.cache.nbytes <= 150_000
    assert bounded.cache.nbytes > 0


def test_seed_and_phase_change_the_order(made_shards: Path) -> None:
    index = ShardIndex(made_shards)
    rows = [tuple(draws(index, GEOMETRY, seed, phase, 0, 64).row) for seed, phase in ((0, "a"), (1, "a"), (0, "b"))]
    assert len(set(rows)) == 3


@given(first=st.integers(0, 2**40), count=st.integers(1, 20), item=st.integers(0, 19))
@settings(max_examples=50, deadline=None)
def test_a_draw_does_not_depend_on_the_stretch_it_is_drawn_in(made_shards: Path, first: int, count: int, item: int) -> None:
    index = ShardIndex(made_shards)
    item %= count
    together, alone = draws(index, GEOMETRY, 7, "p", first, count)[item], draw(index, GEOMETRY, 7, "p", first + item)
    assert (together.row, together.start_s, together.step_s, together.static, together.flip) == (
        alone.row, alone.start_s, alone.step_s, alone.static, alone.flip,
    )  # fmt: skip
    assert np.array_equal(together.words, alone.words)


def test_draws_follow_the_weights(made_shards: Path) -> None:
    index = ShardIndex(made_shards)
    count = 100_000
    drawn = draws(index, GEOMETRY, 0, "pretrain", 0, count)
    expected = index.weight / index.weight.sum() * count
    assert scipy.stats.chisquare(np.bincount(drawn.row, minlength=len(index)), expected).pvalue > 0.001
    assert abs(drawn.static.mean() - 0.25) < 0.01 and abs(drawn.flip.mean() - 0.5) < 0.01


def test_a_clip_of_weight_zero_is_never_drawn(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    rows = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()
    for position in (0, len(rows) - 1):
        rows[position]["weight"] = 0.0
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), folder / INDEX_FILE, schemas.SHARD_INDEX)
    drawn = set(draws(ShardIndex(folder), GEOMETRY, 0, "p", 0, 20_000).row.tolist())
    assert drawn == set(range(1, len(rows) - 1))


def test_starts_are_uniform_and_every_instant_lies_in_the_clip(made_shards: Path) -> None:
    index = ShardIndex(made_shards)
    drawn = draws(index, GEOMETRY, 1, "p", 0, 20_000)
    last = drawn.start_s + drawn.step_s * (GEOMETRY.frames - 1)
    assert (drawn.start_s >= index.first_s[drawn.row] - 1e-9).all() and (last <= index.last_s[drawn.row] + 1e-9).all()
    row = int(np.argmax(index.last_s - index.first_s))
    moving = (drawn.row == row) & ~drawn.static
    slack = index.last_s[row] - index.first_s[row] - 0.75
    assert slack > 0
    shares = (drawn.start_s[moving] - index.first_s[row]) / slack
    assert scipy.stats.kstest(shares, "uniform").pvalue > 0.001
    assert np.allclose(drawn.step_s[moving], 0.25)


def test_a_clip_too_short_for_the_frame_rate_is_covered_whole(made_shards: Path) -> None:
    index = ShardIndex(made_shards)
    drawn = draws(index, ClipGeometry(frames=16, fps=2, height=16, width=16), 0, "p", 0, 200)
    assert np.allclose(drawn.start_s, index.first_s[drawn.row])
    assert np.allclose(drawn.start_s + 15 * drawn.step_s, index.last_s[drawn.row])


def test_static_samples_repeat_one_frame(made_shards: Path) -> None:
    still = ClipLoader(made_shards, ClipGeometry(4, 4, 16, 16, static_share=1.0), seed=0, phase="p", global_batch=8)
    batch = still.batch(0)
    assert (batch.video == batch.video[:, :, :1]).all() and (np.ptp(batch.times_s, axis=1) == 0).all()


def test_frames_shown_are_those_at_the_reported_times(made_shards: Path) -> None:
    """The made videos tell their frame number by their grey level."""
    clips = loader(made_shards)
    table = {row["clip_id"]: row for row in clips.index.table.to_pylist()}
    for step in range(5):
        batch = clips.batch(step)
        assert batch.video.shape == (8, 3, 4, 16, 24) and batch.video.dtype == torch.uint8
        for item, clip_id in enumerate(batch.clip_ids):
            row = table[clip_id]
            numbers = np.round((row["source_start_s"] + batch.times_s[item]) * row["frame_rate"])
            levels = batch.video[item].float().mean(dim=(0, 2, 3)).numpy()
            np.testing.assert_allclose(levels, 20 + 3 * numbers, atol=1.4)


def test_boxes_of_the_default_recipe_keep_to_their_ranges(made_shards: Path) -> None:
    drawn = draws(ShardIndex(made_shards), GEOMETRY, 0, "p", 0, 2000)
    boxes = np.array([training_box(112, 150, words, GEOMETRY.crop_scale, GEOMETRY.crop_aspect) for words in drawn.words])
    share, aspect = boxes[:, 2] * boxes[:, 3] / (112 * 150), boxes[:, 3] / boxes[:, 2]
    assert share.min() >= 0.29 and share.max() <= 1.0 and aspect.min() >= 0.73 and aspect.max() <= 1.37
    assert np.ptp(boxes[:, 0]) > 20 and np.ptp(boxes[:, 1]) > 40


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30, unique=True), st.lists(st.floats(-10, 110), min_size=1, max_size=10))
@settings(deadline=None)
def test_nearest_frame_is_nearest(times: list[float], wanted: list[float]) -> None:
    clock, instants = np.array(sorted(times)), np.array(wanted)
    chosen = nearest_frames(clock, instants)
    assert np.array_equal(np.abs(clock[chosen] - instants), np.abs(clock[:, None] - instants).min(axis=0))


def test_a_damaged_clip_stops_the_run_and_is_named(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    damaged = loader(folder)
    row = int(draws(damaged.index, GEOMETRY, 3, "pretrain", 0, 1).row[0])
    entry = damaged.index.entry(row)
    data = bytearray((folder / entry.shard).read_bytes())
    data[entry.offset + 40] ^= 255
    (folder / entry.shard).write_bytes(data)
    with pytest.raises(ShardError, match=entry.clip_id):
        next(damaged.batches(0, 4))


def undecodable(folder: Path, rows: list[int]) -> None:
    """Make rows of the index hold honest bytes that are no video."""
    table = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()
    for row in rows:
        entry = table[row]
        path = folder / entry["shard"]
        data = bytearray(path.read_bytes())
        data[entry["offset"] : entry["offset"] + entry["length"]] = bytes(entry["length"])
        path.write_bytes(data)
        entry["sha256"] = hashlib.sha256(bytes(entry["length"])).hexdigest()
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, table), folder / INDEX_FILE, schemas.SHARD_INDEX)


def test_a_sample_that_does_not_decode_is_replaced_the_same_way_for_all_ranks(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    undecodable(folder, [1])
    bad = ShardIndex(folder).column("clip_id")[1]
    alone = loader(folder, max_failure_share=1.0)
    ranks = [loader(folder, rank, 2, max_failure_share=1.0) for rank in range(2)]
    for step in range(10):
        whole, parts = alone.batch(step), [rank.batch(step) for rank in ranks]
        assert bad not in whole.clip_ids
        assert torch.equal(whole.video, torch.cat([part.video for part in parts]))
    assert alone.replacements and alone.replacements == {**ranks[0].replacements, **ranks[1].replacements}
    assert all(bad in item.reason for item in alone.replacements.values())


def test_too_many_failures_stop_the_run(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    undecodable(folder, [0, 1, 2, 3])
    with pytest.raises(ShardError, match="too many"):
        for _ in loader(folder).batches(0, 100):
            pass


def test_a_batch_that_ranks_cannot_share_is_refused(made_shards: Path) -> None:
    with pytest.raises(InputError, match="multiple"):
        loader(made_shards, 0, 3)
