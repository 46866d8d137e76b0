"""The order of samples: exact shares, caps that hold, permutations that are permutations, mixtures, and takedowns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import schemas
from pipelines.errors import InputError
from pipelines.recipes import MixtureSource, PretrainRecipe, load_recipe
from pipelines.shards.geometry import ClipGeometry, Sampler
from pipelines.shards.index import INDEX_FILE
from pipelines.shards.mixture import open_mixture
from pipelines.shards.sampling import Shares, permuted, share_out, visited
from pipelines.tombstones import Tombstones

ONE = np.ones(1)


def alone(weight: np.ndarray, excluded: np.ndarray | None = None, cap: float | None = None) -> Shares:
    return share_out(weight, np.zeros(len(weight), np.int8), ONE, excluded, cap)


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_every_key_names_a_permutation(size: int, key: int) -> None:
    found = permuted(np.arange(size, dtype=np.uint64), size, np.full(size, key, np.uint64))
    assert np.array_equal(np.sort(found), np.arange(size))


@pytest.mark.parametrize("size", [2, 5, 7, 12, 100])
def test_every_place_is_as_likely_for_every_clip(size: int) -> None:
    keys = np.random.default_rng(size).integers(0, 2**63, 40_000).astype(np.uint64)
    for place in range(min(size, 5)):
        found = permuted(np.full(len(keys), place, np.uint64), size, keys)
        assert scipy.stats.chisquare(np.bincount(found.astype(np.int64), minlength=size)).pvalue > 1e-4


def test_a_million_draws_follow_the_weights() -> None:
    """Exact shares are closer to the weights than chance would be; the second law looks at chance alone, the stand-ins'."""
    weight = np.random.default_rng(0).pareto(1.2, 20_000) + 0.01
    shares = alone(weight)
    counts = np.bincount(visited(shares, 7, "p", 0, np.arange(1_000_000)), minlength=len(weight))
    expected = weight / weight.sum() * 1_000_000
    assert counts.sum() == 1_000_000 and scipy.stats.chisquare(counts, expected).pvalue > 0.001
    assert np.abs(counts - expected).max() <= 4  # in 50 epochs
    stand_ins = np.random.default_rng(1).integers(0, 2**64, 1_000_000, dtype=np.uint64) % shares.ends[-1]
    likely = expected > 5
    drawn = np.bincount(shares.row(stand_ins), minlength=len(weight))[likely]
    assert scipy.stats.chisquare(drawn, expected[likely] / expected[likely].sum() * drawn.sum()).pvalue > 0.001


@given(
    weight=st.lists(st.one_of(st.just(0.0), st.floats(0.001, 1000)), min_size=1, max_size=40).filter(any), cap=st.one_of(st.none(), st.floats(1, 4)),
    epoch=st.integers(0, 50),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_clip_is_above_its_cap_in_any_epoch_and_each_has_its_share(weight: list[float], cap: float | None, epoch: int) -> None:
    weights = np.array(weight)
    shares = alone(weights, cap=cap)
    rows = visited(shares, 3, "p", 0, np.arange(epoch * shares.epoch, (epoch + 1) * shares.epoch))
    counts = np.bincount(rows, minlength=len(weights))
    assert (counts[weights == 0] == 0).all() and counts.sum() == shares.epoch == (weights > 0).sum()
    assert (np.floor(shares.draws - 1e-6) <= counts).all() and (counts <= np.ceil(shares.draws + 1e-6)).all()
    if cap is not None:
        assert counts.max() <= np.ceil(cap)
        free = shares.draws < cap - 1e-9
        ratio = shares.draws[free & (weights > 0)] / weights[free & (weights > 0)]
        assert ratio.size == 0 or np.allclose(ratio, ratio[0])  # what the cap takes goes to the others alike
    else:
        assert np.allclose(shares.draws, weights / weights.sum() * shares.epoch)


def test_order_within_an_epoch_is_not_that_of_the_clips() -> None:
    rows = visited(alone(np.ones(1000)), 0, "p", 0, np.arange(2000))
    first, second = rows[:1000], rows[1000:]
    assert sorted(first) == sorted(second) == list(range(1000))
    assert abs(scipy.stats.spearmanr(first, np.arange(1000)).statistic) < 0.1 and abs(scipy.stats.spearmanr(first, second).statistic) < 0.1


def test_what_is_taken_down_goes_to_the_others_and_is_told() -> None:
    weight = np.array([1.0, 2.0, 3.0, 4.0])
    shares = alone(weight, np.array([False, False, False, True]))
    assert shares.unserved == pytest.approx(0.4) and shares.epoch == 3
    assert np.allclose(shares.draws, [0.5, 1.0, 1.5, 0.0])
    with pytest.raises(InputError, match="nothing can be drawn"):
        alone(weight, np.ones(4, bool))


def test_a_cap_that_leaves_no_room_is_refused_with_the_one_that_would_do() -> None:
    source, share = np.array([0, 1, 1, 1], np.int8), np.array([0.5, 0.5])
    with pytest.raises(InputError, match=r"a cap of 2\.00 or more"):
        share_out(np.ones(4), source, share, repeat_cap=1.5, names=("few", "many"))
    assert share_out(np.ones(4), source, share, repeat_cap=2.0).draws.tolist() == [2.0, *([2 / 3] * 3)]


@pytest.mark.parametrize("cap", [5e9, 1e300])
def test_a_cap_that_nothing_reaches_is_none(cap: float) -> None:
    weight = np.array([1.0, 2.0, 3.3])
    assert np.array_equal(alone(weight, cap=cap).ends, alone(weight).ends)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_shares_and_caps_are_numbers(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        MixtureSource(name="all", weight=value)
    with pytest.raises(ValueError, match="finite"):
        PretrainRecipe.model_validate({**load_recipe("nano").resolved()["pretraining"], "repeat_cap": value})


def test_hundreds_of_sources_keep_apart(made_shards: Path) -> None:
    mixture = open_mixture([MixtureSource(name=str(number), weight=1 + number % 2) for number in range(300)], made_shards)
    drawn = Sampler(mixture, ClipGeometry(4, 4, 16, 16), 0, "p").draws(0, 9 * 1800)
    counts = np.bincount(mixture.source[drawn.row], minlength=300)
    assert np.abs(counts - 9 * 1800 * (1 + np.arange(300) % 2) / 450).max() <= 6  # a draw for each of a source's clips
    assert [mixture.place(row)[0].source.name for row in (0, 5, 6 * 299)] == ["0", "0", "299"]


def test_a_takedown_ends_no_training_a_cap_and_an_empty_source_give_way() -> None:
    source, share = np.array([0, 0, 1, 1, 1], np.int16), np.array([0.5, 0.5])
    tight = share_out(np.ones(5), source, share, np.array([True, False, False, False, False]), repeat_cap=1.5, names=("few", "many"))
    assert np.allclose(tight.draws, [0, 2, 2 / 3, 2 / 3, 2 / 3]) and tight.unserved == pytest.approx(0.25)
    without = share_out(np.ones(5), source, share, np.array([True, True, False, False, False]), names=("few", "many"))
    assert np.allclose(without.draws, [0, 0, 1, 1, 1]) and without.unserved == pytest.approx(0.5)
    for one in (tight, without):
        rows = visited(one, 0, "p", 0, np.arange(one.epoch * 50))
        assert np.abs(np.bincount(rows, minlength=5) - 50 * one.draws).max() <= 2


def test_sources_have_their_shares_and_still_ones_stand_still(made_shards: Path, shards_copy: Callable[[], Path]) -> None:
    sources = (
        MixtureSource(name="moving", weight=3.0), MixtureSource(name="pictures", weight=1.0, shards=str(shards_copy()), still=True),
    )  # fmt: skip
    mixture = open_mixture(sources, made_shards)
    assert len(mixture) == 12 and mixture.names == ("moving", "pictures")
    drawn = Sampler(mixture, ClipGeometry(4, 4, 16, 16), 0, "p").draws(0, 12_000)
    assert np.bincount(mixture.source[drawn.row]).tolist() == [9_000, 3_000]
    assert np.array_equal(drawn.static, mixture.source[drawn.row] == 1)
    found, own = mixture.place(9)
    assert found.source.name == "pictures" and own == 3 and mixture.clip_id(9) == mixture.column("clip_id")[9]


def test_a_source_can_be_part_of_one_index(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    rows = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()
    for number, row in enumerate(rows):
        row["source"] = "even" if number % 2 == 0 else "odd"
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), folder / INDEX_FILE, schemas.SHARD_INDEX)
    mixture = open_mixture([MixtureSource(name="half", weight=1, only="odd")], folder)
    assert mixture.column("clip_id") == [row["clip_id"] for row in rows[1::2]]
    with pytest.raises(InputError, match="even, odd"):
        open_mixture([MixtureSource(name="none", weight=1, only="neither")], folder)


def test_the_papers_mixture_is_a_preset_that_asks_for_its_shards(made_shards: Path) -> None:
    recipe = load_recipe("nano").resolved()["pretraining"]
    vm22m = PretrainRecipe.model_validate({**recipe, "mixture": "vm22m"}).mixture
    assert {source.name: source.weight for source in vm22m} == {
        "ssv2": 0.056, "kinetics": 0.188, "howto100m": 0.318, "yt1b_curated": 0.188, "imagenet": 0.25,
    }  # fmt: skip
    assert [source.name for source in vm22m if source.still] == ["imagenet"]
    with pytest.raises(InputError, match="ssv2 has no shards"):
        open_mixture(vm22m, made_shards)
    with pytest.raises(InputError, match="vm22m"):
        PretrainRecipe.model_validate({**recipe, "mixture": "vm23m"})
    with pytest.raises(ValueError, match="a name of its own"):
        PretrainRecipe.model_validate({**recipe, "mixture": [vm22m[0].model_dump(), vm22m[0].model_dump()]})


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_taken_down_clip_is_never_drawn_again_and_earlier_samples_stay(made_shards: Path, data: st.DataObject) -> None:
    mixture = open_mixture([MixtureSource(name="all", weight=1)], made_shards)
    straight = Sampler(mixture, ClipGeometry(4, 4, 16, 16), 0, "p")
    ids, videos = mixture.column("clip_id"), mixture.column("video_id")
    gone = data.draw(st.sets(st.sampled_from(ids), max_size=4))
    video = data.draw(st.sets(st.sampled_from(sorted(set(videos))), max_size=1))
    first = data.draw(st.integers(0, 60))
    changed = Sampler(mixture, ClipGeometry(4, 4, 16, 16), 0, "p")
    tombstones = Tombstones(clip_ids=frozenset(gone), video_ids=frozenset(video))
    covered = mixture.covered(tombstones)
    assert covered.tolist() == [tombstones.covers(*pair) for pair in zip(ids, videos, strict=True)]
    if covered.all():
        with pytest.raises(InputError, match="taken down"):
            changed.exclude(first, covered)
        return
    changed.exclude(first, covered)
    before, after = straight.draws(0, 400), changed.draws(0, 400)
    assert np.array_equal(before.row[:first], after.row[:first]) and np.array_equal(before.words, after.words)
    assert not covered[after.row[first:]].any()
    stand_ins = changed.draws(first, 200, salt=1).row
    assert not covered[stand_ins].any()
    assert covered.any() or np.array_equal(before.row, after.row) or first > 0
