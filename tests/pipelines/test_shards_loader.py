"""The loader: samples belong to the step, not to who asks; they follow the weights; failures are replaced by rule."""

from __future__ import annotations

import hashlib
import itertools
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines.shards.loader as loader_module
from models.preprocessing import training_box
from pipelines import schemas
from pipelines.errors import InputError
from pipelines.shards.decode import nearest_frames
from pipelines.shards.geometry import ClipGeometry, Draws, Sampler
from pipelines.shards.index import INDEX_FILE, ShardError, ShardIndex
from pipelines.shards.loader import Batch, ClipLoader, Reading
from pipelines.shards.mixture import WHOLE, open_mixture
from pipelines.tombstones import Tombstones

GEOMETRY = ClipGeometry(frames=4, fps=4, height=16, width=24, static_share=0.25)


def loader(folder: Path, rank: int = 0, world: int = 1, geometry: ClipGeometry = GEOMETRY, **options: object) -> ClipLoader:
    reading = Reading(**options)  # type: ignore[arg-type]
    return ClipLoader(
        open_mixture(WHOLE, folder), geometry, seed=3, phase="pretrain", global_batch=8, rank=rank, world=world, reading=reading
    )


def sampler(folder: Path, geometry: ClipGeometry = GEOMETRY, seed: int = 0, phase: str = "p") -> Sampler:
    return Sampler(open_mixture(WHOLE, folder), geometry, seed, phase)


def entries(clips: ClipLoader) -> list[dict[str, object]]:
    return schemas.read_table(Path(clips.mixture.sets[0].index.folder) / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()


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


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_makes_the_same_batches(made_shards: Path, workers: int) -> None:
    alone, many = loader(made_shards, workers=1, prefetch=0), loader(made_shards, workers=workers, prefetch=3)
    for one, other in zip(alone.batches(0, 12), many.batches(0, 12), strict=True):
        assert same(one, other) and [item.sha256 for item in one.shown] == [item.sha256 for item in other.shown]


def test_another_number_of_ranks_in_the_middle_keeps_the_order(made_shards: Path) -> None:
    straight = [batch.clip_ids for batch in loader(made_shards).batches(0, 9)]
    changing: list[list[str]] = []
    for world, first, last in ((1, 0, 3), (4, 3, 5), (2, 5, 9)):
        ranks = [loader(made_shards, rank, world) for rank in range(world)]
        for parts in zip(*(rank.batches(first, last) for rank in ranks), strict=True):
            changing.append(list(itertools.chain.from_iterable(part.clip_ids for part in parts)))
    assert changing == straight


def test_what_fits_into_memory_changes_nothing(made_shards: Path) -> None:
    small, large = loader(made_shards, cache_bytes=1000), loader(made_shards)
    assert large.keeps_decoded and not small.keeps_decoded
    assert all(same(small.batch(step), large.batch(step)) for step in range(12))
    assert small.cache.nbytes == 0 and 0 < large.cache.nbytes <= large.cache.max_bytes


def test_seed_and_phase_change_the_order(made_shards: Path) -> None:
    rows = [tuple(sampler(made_shards, seed=seed, phase=phase).draws(0, 64).row) for seed, phase in ((0, "a"), (1, "a"), (0, "b"))]
    assert len(set(rows)) == 3


@given(first=st.integers(0, 2**40), count=st.integers(1, 20), item=st.integers(0, 19), salt=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_draw_does_not_depend_on_the_stretch_it_is_drawn_in(made_shards: Path, first: int, count: int, item: int, salt: int) -> None:
    drawn, item = sampler(made_shards), item % count
    together, alone = drawn.draws(first, count, salt)[item], drawn.draw(first + item, salt)
    assert (together.row, together.start_s, together.step_s, together.static, together.flip) == (
        alone.row, alone.start_s, alone.step_s, alone.static, alone.flip,
    )  # fmt: skip
    assert np.array_equal(together.words, alone.words)


def test_a_stride_takes_every_so_many_frames_at_any_rate(made_shards: Path) -> None:
    clips = loader(made_shards, geometry=ClipGeometry(4, None, 16, 24, stride=3))
    rates = dict(zip(clips.mixture.column("clip_id"), clips.mixture.frame_rate, strict=True))
    for batch in clips.batches(0, 6):
        for clip_id, times in zip(batch.clip_ids, batch.times_s, strict=True):
            np.testing.assert_allclose(np.diff(times) * rates[clip_id], 3, atol=0.02)
    for fps, stride in ((None, None), (4.0, 3), (0.0, None), (None, -1)):
        with pytest.raises(InputError, match="fps or stride"):
            ClipGeometry(4, fps, 16, 24, stride=stride)


def test_still_samples_and_flips_have_their_shares(made_shards: Path) -> None:
    drawn = sampler(made_shards).draws(0, 100_000)
    assert abs(drawn.static.mean() - 0.25) < 0.01 and abs(drawn.flip.mean() - 0.5) < 0.01


def test_a_clip_of_weight_zero_is_never_drawn(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    rows = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()
    for position in (0, len(rows) - 1):
        rows[position]["weight"] = 0.0
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), folder / INDEX_FILE, schemas.SHARD_INDEX)
    drawn = {row for salt in range(3) for row in sampler(folder).draws(0, 20_000, salt).row.tolist()}
    assert drawn == set(range(1, len(rows) - 1))


def test_starts_are_uniform_and_every_instant_lies_in_the_clip(made_shards: Path) -> None:
    index = ShardIndex(made_shards)
    drawn: Draws = sampler(made_shards, seed=1).draws(0, 20_000)
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
    drawn = sampler(made_shards, ClipGeometry(frames=16, fps=2, height=16, width=16)).draws(0, 200)
    assert np.allclose(drawn.start_s, index.first_s[drawn.row])
    assert np.allclose(drawn.start_s + 15 * drawn.step_s, index.last_s[drawn.row])


def test_static_samples_repeat_one_frame(made_shards: Path) -> None:
    batch = loader(made_shards, geometry=ClipGeometry(4, 4, 16, 16, static_share=1.0)).batch(0)
    assert (batch.video == batch.video[:, :, :1]).all() and (np.ptp(batch.times_s, axis=1) == 0).all()


def test_frames_shown_are_those_at_the_reported_times(made_shards: Path) -> None:
    """The made videos tell their frame number by their grey level."""
    clips = loader(made_shards)
    table = {row["clip_id"]: row for row in entries(clips)}
    for step in range(5):
        batch = clips.batch(step)
        assert batch.video.shape == (8, 3, 4, 16, 24) and batch.video.dtype == torch.uint8
        for item, clip_id in enumerate(batch.clip_ids):
            row = table[clip_id]
            numbers = np.round((row["source_start_s"] + batch.times_s[item]) * row["frame_rate"])
            levels = batch.video[item].float().mean(dim=(0, 2, 3)).numpy()
            np.testing.assert_allclose(levels, 20 + 3 * numbers, atol=1.4)


def test_boxes_of_the_default_recipe_keep_to_their_ranges(made_shards: Path) -> None:
    drawn = sampler(made_shards).draws(0, 2000)
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
    entry = damaged.mixture.sets[0].index.entry(damaged.sampler.draw(0).row)
    data = bytearray((folder / entry.shard).read_bytes())
    data[entry.offset + 40] ^= 255
    (folder / entry.shard).write_bytes(data)
    with pytest.raises(ShardError, match=entry.clip_id):
        next(damaged.batches(0, 4))


def test_what_was_shown_is_told_by_the_bytes(made_shards: Path) -> None:
    clips = loader(made_shards, cache_bytes=0)
    table = {row["clip_id"]: row for row in entries(clips)}
    for batch in clips.batches(0, 6):
        for item, shown in enumerate(batch.shown):
            assert shown.clip_id == batch.clip_ids[item] and shown.sha256 == table[shown.clip_id]["sha256"] and shown.salt == 0
            np.testing.assert_allclose(shown.pts * float(shown.time_base), batch.times_s[item])


def test_a_member_of_another_name_is_not_taken_for_the_clip(shards_copy: Callable[[], Path]) -> None:
    """Equal bytes under another name would be logged, and taken down, as the wrong clip."""
    folder = shards_copy()
    index = ShardIndex(folder)
    entry = index.entry(0)
    data = (folder / entry.shard).read_bytes()
    renamed = entry.clip_id[:-1] + ("0" if entry.clip_id[-1] != "0" else "1")
    header = tarfile.TarInfo(f"{renamed}.mp4")
    header.size, header.mode = entry.length, 0o644
    start = entry.offset - tarfile.BLOCKSIZE
    (folder / entry.shard).write_bytes(data[:start] + header.tobuf(tarfile.USTAR_FORMAT) + data[entry.offset :])
    with pytest.raises(ShardError, match=renamed):
        ShardIndex(folder).read(entry)


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: b"", lambda data: bytes(len(data))])
def test_a_damaged_index_is_named(shards_copy: Callable[[], Path], damage: Callable[[bytes], bytes]) -> None:
    folder = shards_copy()
    (folder / INDEX_FILE).write_bytes(damage((folder / INDEX_FILE).read_bytes()))
    with pytest.raises(ShardError, match=f"index of {folder} cannot be read"):
        open_mixture(WHOLE, folder)


def test_a_missing_shard_is_named(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    entry = ShardIndex(folder).entry(0)
    (folder / entry.shard).unlink()
    with pytest.raises(ShardError, match=entry.shard):
        for _ in loader(folder).batches(0, 20):
            pass


def test_a_truncated_shard_is_named(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    entry = ShardIndex(folder).entry(0)
    with open(folder / entry.shard, "r+b") as handle:
        handle.truncate(entry.offset + entry.length - 1)
    with pytest.raises(ShardError, match=f"{entry.clip_id}.*{entry.shard}"):
        ShardIndex(folder).read(entry)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_takedown_counts_from_the_next_step_and_changes_nothing_before(made_shards: Path, workers: int) -> None:
    untouched = [batch.clip_ids for batch in loader(made_shards).batches(0, 8)]
    clips = loader(made_shards, workers=workers)
    gone = Tombstones(clip_ids=frozenset({clips.mixture.clip_id(len(clips.mixture) - 1)}))  # the heaviest
    served = []
    for batch in clips.batches(0, 8):
        served.append(batch.clip_ids)
        if batch.step == 3:
            shares = clips.exclude(gone, 4)
    assert served[:4] == untouched[:4] and served[4:] != untouched[4:]
    assert any(gone.clip_ids & set(batch) for batch in served[:4]) and not any(gone.clip_ids & set(batch) for batch in served[4:])
    weights = clips.mixture.weight
    assert shares.unserved == pytest.approx(weights[-1] / weights.sum())
    resumed = loader(made_shards)
    resumed.exclude(gone, 4)
    assert [batch.clip_ids for batch in resumed.batches(4, 8)] == served[4:]
    assert not any(gone.clip_ids & set(batch.clip_ids) for batch in resumed.batches(0, 4))  # not even where it was shown once


def test_a_clip_redacted_under_way_has_a_stand_in(shards_copy: Callable[[], Path]) -> None:
    """Its bytes are gone before the training has heard of the takedown."""
    folder = shards_copy()
    entry = ShardIndex(folder).entry(len(ShardIndex(folder)) - 1)
    with open(folder / entry.shard, "r+b") as handle:
        handle.seek(entry.offset)
        handle.write(bytes(entry.length))
    clips = loader(folder)
    with pytest.raises(ShardError, match=entry.clip_id):
        list(clips.batches(0, 8))
    clips.taken_down = lambda: Tombstones(clip_ids=frozenset({entry.clip_id}))
    batches = list(clips.batches(0, 20))  # more of them than may fail to decode
    replaced = [item for batch in batches for item in batch.replaced]
    assert replaced and all("taken down" in item.reason for item in replaced)
    assert not any(entry.clip_id in batch.clip_ids for batch in batches)


def test_batches_made_ahead_of_a_takedown_leave_no_stand_in_behind(made_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made again in the new order; a lineage that still named their stand-ins would be drawn again wrongly."""
    render_before = loader_module.render
    monkeypatch.setattr(loader_module, "render", lambda *options: (time.sleep(0.002), render_before(*options)))
    clips = loader(made_shards, prefetch=4)
    gone = Tombstones(clip_ids=frozenset({clips.mixture.clip_id(len(clips.mixture) - 1)}))
    for batch in clips.batches(0, 8):
        assert [item.global_sample for item in batch.replaced] == batch.global_indices[[bool(shown.salt) for shown in batch.shown]].tolist() == []
        if batch.step == 1:
            clips.exclude(gone, 2)
            time.sleep(0.1)  # a checkpoint is written before the next batch is asked for


def test_samples_of_before_a_large_takedown_can_be_read_again(made_shards: Path) -> None:
    """A training that goes on measures its health on its first clips, of which nearly all may be gone: that is no damage."""
    clips = loader(made_shards)
    clips.exclude(Tombstones(clip_ids=frozenset(map(clips.mixture.clip_id, range(1, len(clips.mixture))))), 9)
    for step in range(9):
        assert set(clips.batch(step).clip_ids) == {clips.mixture.clip_id(0)}
    assert clips.failures == 0


@pytest.mark.parametrize("wrong", [{"prefetch": -1}, {"workers": 0}, {"cache_bytes": -1}])
def test_reading_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="mend workers, prefetch"):
        Reading(**wrong)  # type: ignore[arg-type]


def test_large_pictures_are_not_taken_for_small_ones(shards_copy: Callable[[], Path]) -> None:
    """The pixels of a long 4K clip are more than 32 bits count."""
    folder = shards_copy()
    rows = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()
    rows = [{**row, "width": 3840, "height": 2160, "frames": 600} for row in rows]
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), folder / INDEX_FILE, schemas.SHARD_INDEX)
    assert open_mixture(WHOLE, folder).decoded_bytes() == len(rows) * 600 * 3840 * 2160 * 3 // 2


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
    replaced = []
    for step in range(10):
        whole, parts = alone.batch(step), [rank.batch(step) for rank in ranks]
        assert bad not in whole.clip_ids
        assert torch.equal(whole.video, torch.cat([part.video for part in parts]))
        assert whole.replaced == [item for part in parts for item in part.replaced]
        assert [(item.global_sample, item.salt) for item in whole.replaced] == [
            (int(sample), shown.salt) for sample, shown in zip(whole.global_indices, whole.shown, strict=True) if shown.salt
        ]  # fmt: skip
        replaced += whole.replaced
    assert replaced and all(bad in item.reason and item.damage for item in replaced) and alone.failures == len(replaced)


def test_too_many_failures_stop_the_run(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    undecodable(folder, [0, 1, 2, 3])
    with pytest.raises(ShardError, match="too many"):
        for _ in loader(folder).batches(0, 100):
            pass


def test_a_batch_that_ranks_cannot_share_is_refused(made_shards: Path) -> None:
    with pytest.raises(InputError, match="multiple"):
        loader(made_shards, 0, 3)
