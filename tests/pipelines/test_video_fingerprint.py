"""Fingerprints of looks: copies lie near, other footage far, and bars do not count."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.video.fingerprint import BITS, fingerprint, fingerprints

seeds = st.integers(0, 2**31)


def look(seed: int) -> np.ndarray:
    """(8, 24, 24) uint8: smooth shapes that drift over the clip."""
    import cv2

    random = np.random.default_rng(seed)
    coarse = cv2.resize(random.integers(0, 255, (7, 7), dtype=np.uint8), (40, 40), interpolation=cv2.INTER_CUBIC)
    across, down = random.integers(0, 3, 2)
    return np.stack([coarse[down * step : down * step + 24, across * step : across * step + 24] for step in range(8)])


def apart(first: np.ndarray, second: np.ndarray) -> float:
    """Share of bits that differ."""
    one, two = fingerprints(np.stack([first, second]))
    return float(np.unpackbits(one ^ two).mean())


@settings(max_examples=40, deadline=None)
@given(seeds, seeds)
def test_noise_and_brightness_change_few_bits_and_other_footage_many(one: int, two: int) -> None:
    first, random = look(one), np.random.default_rng(one)
    copy = (first.astype(float) * 0.9 + 12 + random.normal(0, 1.5, first.shape)).clip(0, 255).astype(np.uint8)
    assert apart(first, copy) < 0.12
    if one != two:
        assert apart(first, look(two)) > apart(first, copy)


def test_texts_and_packed_rows_say_the_same() -> None:
    looks = np.stack([look(seed) for seed in range(5)])
    texts = [fingerprint(item) for item in looks]
    assert texts == [row.tobytes().hex() for row in fingerprints(looks)] and {len(text) for text in texts} == {BITS // 4}
