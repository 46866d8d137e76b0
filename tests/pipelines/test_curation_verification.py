"""Verification of a pair of looks: copies are recognised however they were changed, the same scene with another motion is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.curation.alignment import best_windows, channels_of, refine
from pipelines.curation.verification import LookRule, agreement, moves_of, rhythm_of, same_footage
from pipelines.video.fingerprint import CELLS, PICTURES, without_bars

Film = NDArray[np.uint8]
FRAMES, SIDE = 48, 192


def film(scene: int, motion: int, objects: int = 3) -> Film:
    """(48, 192, 192) uint8: blobs that go their own ways over a textured scene."""
    random = np.random.default_rng(scene)
    back = cv2.resize(random.integers(40, 210, (12, 12), dtype=np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    ways = np.random.default_rng(10_000 + motion)
    starts, ends, bends = (ways.uniform(20, SIDE - 20, (objects, 2)) for _ in range(3))
    made = []
    for time in np.linspace(0, 1, FRAMES):
        frame = back.copy()
        for start, end, bend in zip(starts, ends, bends, strict=True):
            place = (1 - time) ** 2 * start + 2 * time * (1 - time) * bend + time**2 * end
            cv2.circle(frame, (int(place[0]), int(place[1])), 20, 250, -1)
        made.append(cv2.GaussianBlur(frame, (0, 0), 1.5))
    return np.stack(made)


def look(frames: Film) -> Film:
    """(8, 24, 24) look of a film: in each eighth the mean of what it shows."""
    grids = np.stack([cv2.resize(frame, (CELLS, CELLS), interpolation=cv2.INTER_AREA) for frame in frames])
    eighths = grids.repeat(PICTURES, axis=0).reshape(PICTURES, len(frames), CELLS, CELLS)
    return eighths.mean(axis=1).round().astype(np.uint8)


def found(first: Film, second: Film, shorter: float = 1.0) -> bool:
    return bool(same_footage(agreement(look(first)[None], look(second)[None]), np.array([shorter]), LookRule())[0])


def noisy(frames: Film, seed: int = 0) -> Film:
    """Coding noise of a few grey levels, in blocks."""
    random = np.random.default_rng(seed)
    blocks = random.normal(0, 3, (len(frames), SIDE // 8, SIDE // 8)).repeat(8, 1).repeat(8, 2)
    blocks = blocks[:, : frames.shape[1], : frames.shape[2]] if blocks.shape[1] >= frames.shape[1] else 0.0
    return (frames + blocks).clip(0, 255).astype(np.uint8)


def logo(frames: Film) -> Film:
    made = frames.copy()
    made[:, 12:40, 140:180] = 255
    made[:, 18:34, 148:160] = 60
    return made


CHANGES = {
    "encoded worse": noisy,
    "brighter, less contrast": lambda frames: (frames * 0.85 + 30).clip(0, 255).astype(np.uint8),
    "a crop of 0.8 in the middle": lambda frames: frames[:, 19:173, 19:173],
    "a crop of 0.8 at a corner": lambda frames: frames[:, 38:, :154],
    "narrower": lambda frames: frames[:, :, 24:168],
    "bars above and below": lambda frames: np.pad(frames, ((0, 0), (30, 30), (0, 0))),
    "bars at the sides": lambda frames: np.pad(frames, ((0, 0), (0, 0), (36, 36))),
    "with a logo": logo,
    "faster by a twentieth": lambda frames: frames[np.minimum(np.arange(46) * 48 // 46, 47)],
    "a frame fewer at each end": lambda frames: frames[1:-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_the_same_footage(change: str) -> None:
    for number in range(4):
        original = film(number, number)
        copy = CHANGES[change](original)
        assert found(original, copy, len(copy) / len(original)) and found(copy, original, len(copy) / len(original)), number


def test_the_same_scene_with_another_motion_is_other_footage() -> None:
    looks = np.stack([look(film(0, motion)) for motion in range(12)])
    first, second = np.triu_indices(len(looks), 1)
    result = agreement(looks[first], looks[second])
    assert result.levels.min() > 0.6  # the scene is seen to be the same
    assert not same_footage(result, np.ones(len(first)), LookRule()).any()


def test_a_small_thing_that_moves_in_a_still_scene_tells_clips_apart() -> None:
    """As a whole next to nothing moves, and what does lies in cells that a logo's rule might ignore."""
    back = film(3, 0, objects=0)

    def with_spot(row: int, column: int) -> Film:
        made = back.copy()
        for number in range(FRAMES):
            made[number, row : row + 4, column + number : column + number + 4] = 255
        return made

    one, two = with_spot(40, 20), with_spot(140, 90)
    assert moves_of(np.stack([look(one), look(two)])).max() < LookRule().still_below
    assert not found(one, two) and found(one, one)


def test_still_scenes_are_judged_by_their_pictures() -> None:
    one, other = film(1, 0, objects=0), film(2, 0, objects=0)
    assert found(one, noisy(one)) and not found(one, other)


def test_mirrored_pictures_are_not_taken_for_copies() -> None:
    original = film(5, 5)
    assert not found(original, original[:, :, ::-1]) and found(original[:, :, ::-1], original[:, :, ::-1])


def test_lengths_that_differ_are_other_footage_and_slight_retiming_needs_a_whole_picture() -> None:
    original = film(6, 6)
    assert found(original, original, 0.95) and not found(original, original, 0.9)
    captioned = original.copy()
    captioned[:, 140:180, 30:160] = 255 * (np.arange(130) // 8 % 2)
    assert found(original, captioned, 1.0) and not found(original, captioned, 0.95)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.7, 1.0), st.floats(0.7, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_alignment_finds_the_window_that_was_cut_out(scene: int, tall: float, wide: float, down: float, across: float) -> None:
    if abs(tall - wide) > 0.2:
        wide = tall
    original = film(scene, scene)
    height, width = int(SIDE * tall), int(SIDE * wide)
    top, left = int((SIDE - height) * down), int((SIDE - width) * across)
    one, two = (without_bars(look(frames)[None]) for frames in (original, original[:, top : top + height, left : left + width]))
    places = refine(one, two, best_windows(channels_of(one), channels_of(two))[0])[0]
    assert np.abs(places - np.array([top, height, left, width]) / SIDE).max() < 0.05


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_agreement_does_not_depend_on_the_company_of_a_pair(seed: int) -> None:
    random = np.random.default_rng(seed)
    looks = np.stack([look(film(int(scene), int(scene))) for scene in random.integers(0, 50, 3)])
    first, second = np.array([0, 0, 1, 2]), np.array([0, 1, 2, 2])
    together = agreement(looks[first], looks[second])
    for row in range(4):
        alone = agreement(looks[first[[row]]], looks[second[[row]]])
        assert np.allclose(alone.motion, together.motion[row], atol=1e-4) and np.allclose(alone.picture, together.picture[row], atol=1e-4)


def test_a_clip_agrees_with_itself_fully() -> None:
    looks = np.stack([look(film(number, number)) for number in range(3)])
    result = agreement(looks, looks)
    assert min(result.motion.min(), result.picture.min(), result.levels.min()) > 0.999 and result.distance.max() < 1e-3
    assert agreement(looks[:0], looks[:0]).motion.shape == (0,)


def test_rhythm_survives_crops_and_brightness_and_tells_motions_apart() -> None:
    original = film(7, 7)
    copies = np.stack([look(CHANGES[change](original)) for change in CHANGES])
    own = rhythm_of(look(original)[None])
    assert (rhythm_of(copies) @ own[0]).min() > 0.8
    others = rhythm_of(np.stack([look(film(7, motion)) for motion in range(20, 40)])) @ own[0]
    assert (others < (rhythm_of(copies) @ own[0]).min()).mean() > 0.6
