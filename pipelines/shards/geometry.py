"""What a training sample is cut from: which clip, which instants, which box; drawn by counter, so that order and rank cannot matter.

Sample `g` of a phase owns words 32*g .. 32*g+31 of one Philox stream keyed by (seed, phase, salt). Whoever computes a
stretch of samples, in whatever order and on however many ranks, reads the same words.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.errors import InputError
from pipelines.identity import stable_seed
from pipelines.recipes import Phase
from pipelines.shards.index import ShardIndex

WORDS = 32  # per sample; 4 + CROP_WORDS are used
CROP_WORDS = 22  # uniforms of models.preprocessing.training_box


@dataclass(frozen=True)
class ClipGeometry:
    """Form of one training sample (paper section 2.3, appendix A; upstream's pretraining transform).

    `frames` at `fps` per s; output `height` x `width` px; `crop_scale` is a share of the clip's area, `crop_aspect` is
    width over height, log-uniform; `flip` and `static_share` are probabilities. A static sample is one frame repeated:
    how the paper's mixture feeds images to a video network.
    """

    frames: int
    fps: float
    height: int
    width: int
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    flip: float = 0.5
    static_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_aspect"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (float(low), float(high)))
            if not 0 < low <= high:
                raise InputError(f"{name} is not a range", expected="0 < low <= high", found=f"{low}, {high}", remedy="mend the recipe")
        if min(self.frames, self.height, self.width) < 1 or self.fps <= 0 or not (0 <= self.flip <= 1 and 0 <= self.static_share <= 1):
            raise InputError(
                "the clip geometry makes no sense", expected="positive sizes and fps, probabilities in [0, 1]", found=str(self),
                remedy="mend the recipe's phase",
            )  # fmt: skip

    @classmethod
    def of_phase(cls, phase: Phase) -> ClipGeometry:
        """The geometry a recipe's phase asks for."""
        return cls(
            frames=phase.frames, fps=phase.fps, height=phase.height, width=phase.width, crop_scale=phase.crop_scale,
            crop_aspect=phase.crop_aspect, flip=phase.flip, static_share=phase.static_share,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClipGeometry:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Draw:
    """One sample. Instants are `start_s + i * step_s` on the clip's own clock (s); `words` are the crop's uniforms in [0, 1)."""

    row: int
    start_s: float
    step_s: float
    static: bool
    flip: bool
    words: np.ndarray

    def times_s(self, frames: int) -> np.ndarray:
        """The instants asked for, (frames,) float64."""
        return self.start_s + self.step_s * np.arange(frames)


@dataclass(frozen=True)
class Draws:
    """Samples `first` .. `first + n - 1` as columns of length n; `words` is (n, CROP_WORDS)."""

    row: np.ndarray
    start_s: np.ndarray
    step_s: np.ndarray
    static: np.ndarray
    flip: np.ndarray
    words: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, item: int) -> Draw:
        return Draw(
            int(self.row[item]), float(self.start_s[item]), float(self.step_s[item]), bool(self.static[item]),
            bool(self.flip[item]), self.words[item],
        )  # fmt: skip


def draws(index: ShardIndex, geometry: ClipGeometry, seed: int, phase: str, first: int, count: int, salt: int = 0) -> Draws:
    """Samples `first` to `first + count` of (seed, phase); `salt` above 0 gives the stand-ins of samples that failed.

    The clip follows the index's weights and the start is uniform over all starts that fit. A clip shorter than
    (frames - 1) / fps is covered whole with its stride compressed; a static sample's instant is uniform over the clip.
    """
    stream = np.random.Philox(key=np.array([stable_seed("draw", seed, phase), salt], np.uint64))
    stream.advance(first * (WORDS // 4))  # one Philox4x64 counter step yields four words
    uniforms = (stream.random_raw(count * WORDS).reshape(count, WORDS) >> np.uint64(11)) * 2.0**-53
    row = np.minimum(np.searchsorted(index.cumulative, uniforms[:, 0], side="right"), len(index) - 1)
    static = uniforms[:, 2] < geometry.static_share
    extent = index.last_s[row] - index.first_s[row]
    span = np.minimum((geometry.frames - 1) / geometry.fps, extent)
    span = np.where(static, 0.0, span)
    start = index.first_s[row] + uniforms[:, 1] * (extent - span)
    step = span / max(geometry.frames - 1, 1)
    words = uniforms[:, 4 : 4 + CROP_WORDS]
    return Draws(row, start, step, static, uniforms[:, 3] < geometry.flip, words)


def draw(index: ShardIndex, geometry: ClipGeometry, seed: int, phase: str, global_sample: int, salt: int = 0) -> Draw:
    """Sample `global_sample` alone: equal to the same row of any `draws` that covers it."""
    return draws(index, geometry, seed, phase, global_sample, 1, salt)[0]


def nearest_frames(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """Index of the frame nearest in time to each wanted instant (the earlier one on a tie); `times_s` ascending."""
    after = np.clip(np.searchsorted(times_s, wanted_s), 1, max(len(times_s) - 1, 1))
    if len(times_s) == 1:
        return np.zeros(len(wanted_s), np.int64)
    return np.where(wanted_s - times_s[after - 1] <= times_s[after] - wanted_s, after - 1, after)
