"""Fewer frames a second by leaving frames out: the kept ones are the source's own, at their own times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Thinning:
    """Time from a clip's first frame is divided into cells of equal length, and each cell's first frame is kept.

    The cell of a frame `ticks` after the first is floor((ticks + early) * numerator / denominator). Whole numbers, so
    that ffmpeg's double arithmetic and Python's give the same: a quotient of whole numbers below 2**53 never rounds onto
    the next whole number. `early` is a quarter of a source frame: containers round times to their clock's tick, and a
    frame on a cell's edge must not fall into the cell before.
    """

    early: int
    numerator: int
    denominator: int

    def kept(self, ticks: Sequence[int]) -> list[int]:
        """Positions of the frames that stay; `ticks` ascending, counted from the first frame."""
        cells = [(tick + self.early) * self.numerator // self.denominator for tick in ticks]
        return [place for place, cell in enumerate(cells) if place == 0 or cell > cells[place - 1]]

    @property
    def expression(self) -> str:
        """The same rule for ffmpeg's `select`, after `setpts` has made the first frame's pts 0."""
        now, last = (f"floor(({name}+{self.early})*{self.numerator}/{self.denominator})" for name in ("pts", "prev_pts"))
        return f"isnan(prev_pts)+gt({now},{last})"


def mean_rate(clip: dict[str, Any], frames: int) -> Fraction:
    """`frames` over the length of the clip's span, in 1/s."""
    return Fraction(frames * clip["time_base_den"], (clip["end_pts"] - clip["start_pts"]) * clip["time_base_num"])


def thinning_of(clip: dict[str, Any], frame_rate: float | None) -> Thinning | None:
    """How to bring a row of `clips` down to `frame_rate` (1/s); None when it has no more than that."""
    if frame_rate is None or mean_rate(clip, clip["frames"]) <= (rate := Fraction(str(frame_rate))):
        return None
    early = (clip["end_pts"] - clip["start_pts"]) // (4 * clip["frames"])
    cells_a_tick = rate * Fraction(clip["time_base_num"], clip["time_base_den"])
    return Thinning(early, cells_a_tick.numerator, cells_a_tick.denominator)
