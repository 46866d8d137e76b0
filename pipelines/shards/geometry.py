"""What a training sample is cut from: which clip, which instants, which box; drawn by counter, so that order and rank cannot matter.

The clip comes from the phase's order (sampling.py); sample `g` also owns words 32*g .. 32*g+31 of one Philox stream keyed by
(seed, phase, salt) for the rest. Whoever computes a stretch of samples, in whatever order and on however many ranks,
reads the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.identity import stable_seed
from pipelines.recipes import Phase
from pipelines.shards.mixture import Mixture
from pipelines.shards.sampling import Shares, share_out, visited

WORDS = 32  # per sample; 4 + CROP_WORDS are used
CROP_WORDS = 22  # uniforms of models.preprocessing.training_box


@dataclass(frozen=True)
class ClipGeometry:
    """Form of one training sample (paper section 2.3, appendix A; upstream's pretraining transform).

    `frames` at `fps` per s, or every `stride`-th stored frame; output `height` x `width` px; `crop_scale` is a share of the clip's area, `crop_aspect` is
    width over height, log-uniform; `flip` and `static_share` are probabilities. A static sample is one frame repeated:
    how the paper's mixture feeds images to a video network.
    """

    frames: int
    fps: float | None
    height: int
    width: int
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    flip: float = 0.5
    static_share: float = 0.0
    stride: int | None = None

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_aspect"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (float(low), float(high)))
            if not 0 < low <= high:
                raise InputError(f"{name} is not a range", expected="0 < low <= high", found=f"{low}, {high}", remedy="mend the recipe")
        rates = [rate for rate in (self.fps, self.stride) if rate is not None]
        sound = len(rates) == 1 and min(self.frames, self.height, self.width, *rates) > 0
        if not sound or not (0 <= self.flip <= 1 and 0 <= self.static_share <= 1):
            raise InputError(
                "the clip geometry makes no sense", expected="positive sizes, fps or stride, probabilities in [0, 1]", found=str(self),
                remedy="mend the recipe's phase",
            )  # fmt: skip

    @classmethod
    def of_phase(cls, phase: Phase) -> ClipGeometry:
        """The geometry a recipe's phase asks for."""
        return cls(
            frames=phase.frames, fps=phase.fps, height=phase.height, width=phase.width, crop_scale=phase.crop_scale,
            crop_aspect=phase.crop_aspect, flip=phase.flip, static_share=phase.static_share, stride=phase.stride,
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


class Sampler:
    """The samples of one phase: clip, instants and crop of each, as pure functions of (seed, phase, global sample).

    `exclude` takes clips out from some sample on: what comes before it stays what it was, and after it the order is that of
    the smaller set. So the order is told by the mixture and a list of (sample, clips excluded from there on).
    """

    def __init__(self, mixture: Mixture, geometry: ClipGeometry, seed: int, phase: str, repeat_cap: float | None = None) -> None:
        self.mixture, self.geometry, self.seed, self.phase, self.repeat_cap = mixture, geometry, seed, phase, repeat_cap
        self._origins: list[int] = []
        self._shares: list[Shares] = []
        self.exclude(0, None)

    def exclude(self, first: int, excluded: NDArray[np.bool_] | None) -> Shares:
        """From sample `first` on, draw none of `excluded` (n,); forgets what was said for later samples. Returns the shares."""
        while self._origins and self._origins[-1] >= first:
            self._origins.pop()
            self._shares.pop()
        mixture = self.mixture
        shares = share_out(mixture.weight, mixture.source, mixture.source_share, excluded, self.repeat_cap, mixture.names)
        self._origins.append(first)
        self._shares.append(shares)
        return shares

    @property
    def shares(self) -> Shares:
        """What is drawn now."""
        return self._shares[-1]

    def draws(self, first: int, count: int, salt: int = 0) -> Draws:
        """Samples `first` to `first + count`; `salt` above 0 gives the stand-ins of samples that failed.

        The start is uniform over all starts that fit. A clip shorter than a sample is covered whole, its frames closer together;
        a still sample's instant is uniform over the clip.
        """
        stream = np.random.Philox(key=np.array([stable_seed("draw", self.seed, self.phase), salt], np.uint64))
        stream.advance(first * (WORDS // 4))  # one Philox4x64 counter step yields four words
        words = stream.random_raw(count * WORDS).reshape(count, WORDS)
        uniforms = (words >> np.uint64(11)) * 2.0**-53
        geometry, mixture = self.geometry, self.mixture
        row = self._rows(first, count, words[:, 0] if salt else None)
        still = mixture.still[row] | (uniforms[:, 2] < geometry.static_share)
        extent = mixture.last_s[row] - mixture.first_s[row]
        interval = 1 / geometry.fps if geometry.fps else (geometry.stride or 1) / mixture.frame_rate[row]
        span = np.where(still, 0.0, np.minimum((geometry.frames - 1) * interval, extent))
        start = mixture.first_s[row] + uniforms[:, 1] * (extent - span)
        step = span / max(geometry.frames - 1, 1)
        return Draws(row, start, step, still, uniforms[:, 3] < geometry.flip, uniforms[:, 4 : 4 + CROP_WORDS])

    def draw(self, global_sample: int, salt: int = 0) -> Draw:
        """One sample: equal to the same row of any `draws` that covers it."""
        return self.draws(global_sample, 1, salt)[0]

    def _rows(self, first: int, count: int, words: NDArray[np.uint64] | None) -> NDArray[np.int64]:
        """The clip of each sample; by their own random `words` where these are stand-ins."""
        samples = np.arange(first, first + count)
        which = np.maximum(np.searchsorted(self._origins, samples, side="right") - 1, 0)
        rows = np.empty(count, np.int64)
        for number in np.unique(which):
            here, shares = which == number, self._shares[number]
            if words is None:
                rows[here] = visited(shares, self.seed, self.phase, self._origins[number], samples[here])
            else:
                rows[here] = shares.row(words[here] % shares.ends[-1])
        return rows
