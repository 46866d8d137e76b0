"""From a stratified sample of files to all of them, with intervals: what a forecast may claim after a dozen files.

Files are sorted by size into strata of equal numbers. A file that was not opened is imagined as a donor from its own
stratum, scaled by size: y_i = y_j (b_i / b_j)^a, with one exponent a between 0 (size tells nothing) and 1 (twice the
bytes, twice the seconds) fitted to the sample. Intervals come from drawing how many unopened files each donor stands for
(a Bayesian bootstrap whose Dirichlet weights have the variance of a mean of n values). A sample without a reject does not
prove that there is none: imagined rejects stand beside the donors with half an observation in all (Jeffreys' prior), and
likewise a good file where a stratum had none.

Of 90 % intervals from 12 files, 87 to 99 % held the truth on the built-in corpus, 82 to 99 % where sizes and bit rates are
log-normal (sigma 1.2 and 0.6), over 400 samples each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Vector = NDArray[np.float64]
STRATA = 3
LEAST = 4  # files of a stratum: the variance of fewer is anybody's guess
PRIOR = 0.5  # observations that the imagined files weigh, in all strata together


@dataclass(frozen=True)
class Estimate:
    """A number with the interval that holds it at the forecast's level."""

    value: float
    low: float
    high: float

    def times(self, factor: float, plus: float = 0.0) -> Estimate:
        """The estimate of factor * x + plus, factor at least 0."""
        return Estimate(self.value * factor + plus, self.low * factor + plus, self.high * factor + plus)


@dataclass(frozen=True, eq=False)
class Stratum:
    """Files of one size class by their places in the caller's list: those `sampled`, and the `rest`."""

    sampled: NDArray[np.int64]
    rest: NDArray[np.int64]


def stratify(sizes: Sequence[int], sample: int, seed: int) -> list[Stratum]:
    """Strata of files whose sizes (bytes) are in a settled order, with `sample` of them drawn, alike from each stratum.

    All files are sampled when there are no more than `sample`.
    """
    count = len(sizes)
    order = np.argsort(np.asarray(sizes), kind="stable")
    strata = max(1, min(STRATA, sample // LEAST)) if count > sample else 1
    random = np.random.default_rng(seed)
    shares = [len(chunk) for chunk in np.array_split(np.arange(min(sample, count)), strata)]
    # Borders at equal sums of roots: few large files hold most of the seconds, so they are a class of their own. A class
    # holds at least what is drawn from it.
    weight = np.cumsum(np.sqrt(np.asarray(sizes, np.float64)[order]))
    borders = np.searchsorted(weight, weight[-1] * np.arange(1, strata) / strata) if count else np.empty(0, np.int64)
    needed = np.cumsum(shares)
    parts = np.split(order, np.clip(borders, needed[:-1], count - needed[-1] + needed[:-1]))
    found = []
    for part, share in zip(parts, shares, strict=True):
        chosen = np.zeros(len(part), bool)
        chosen[random.choice(len(part), share, replace=False)] = True
        found.append(Stratum(np.sort(part[chosen]), part[~chosen]))
    return found


def size_exponent(sizes: Vector, seconds: Vector) -> float:
    """The exponent a in seconds ~ sizes^a over good files, within 0..1; 1 where the sample cannot tell."""
    good = (seconds > 0) & (sizes > 0)
    x, y = np.log(sizes[good]), np.log(seconds[good])
    if len(x) < 3 or np.ptp(x) < 0.1:
        return 1.0
    x = x - x.mean()
    return float(np.clip((x * (y - y.mean())).sum() / (x * x).sum(), 0.0, 1.0))


def extrapolate(
    strata: Sequence[Stratum], sizes: Sequence[int], good: NDArray[np.bool_], values: Mapping[str, Vector], *, counts: Sequence[str],
    exponent: float, draws: int, level: float, seed: int,
) -> dict[str, Estimate]:  # fmt: skip
    """Totals over all files of every quantity in `values`, known at the sampled places and 0 for rejects.

    `good` tells where a sampled file gave a video. Quantities named in `counts` do not grow with a file's size.
    """
    random = np.random.default_rng(seed)
    tail = (1 - level) / 2
    size = np.asarray(sizes, np.float64)
    scaled = np.power(np.maximum(size, 1.0), exponent)
    value = {name: float(sum(known[item.sampled].sum() for item in strata)) for name, known in values.items()}
    drawn = {name: np.full(draws, total) for name, total in value.items()}
    unopened = sum(len(item.rest) for item in strata)
    opened = sum(len(item.sampled) for item in strata)
    # As Student's intervals are wider than normal ones; one more degree of freedom goes for the exponent.
    wider = float(stdtrit(max(1, opened - len(strata) - 1), 1 - tail) / ndtri(1 - tail)) ** 2
    everywhere = np.concatenate([item.sampled[good[item.sampled]] for item in strata])
    for item in strata:
        rest = len(item.rest)
        if rest == 0:
            continue
        donors, weights, prior = _donors(item, good, everywhere, PRIOR * rest / unopened)
        # Dirichlet weights with this much in all give a mean of n donors the variance s^2 / n that a sample's mean has.
        scale = max(len(item.sampled) - 2, 0.5) / len(item.sampled) / wider
        shares = random.dirichlet(np.maximum(weights * scale, 1e-3), draws)
        shares = random.multinomial(rest, shares) / rest
        plain = np.where(prior, 0.0, weights) / len(item.sampled)
        for name, known in values.items():
            spread = np.full(len(size), 1.0) if name in counts else scaled
            each = np.where(donors >= 0, known[donors] / spread[donors], 0.0)
            room = float(spread[item.rest].sum())
            value[name] += room * float(plain @ each)
            drawn[name] += room * (shares @ each)
    found = {}
    for name, total in value.items():
        low, high = (float(edge) for edge in np.quantile(drawn[name], (tail, 1 - tail)))
        found[name] = Estimate(total, min(low, total), max(high, total))
    return found


def _donors(
    item: Stratum, good: NDArray[np.bool_], everywhere: NDArray[np.int64], prior: float
) -> tuple[NDArray[np.int64], Vector, NDArray[np.bool_]]:  # fmt: skip
    """(places of donors, their weights, which are imagined): the sampled files, a reject (-1), and a good file if none was."""
    donors, weights = [*item.sampled.tolist(), -1], [1.0] * len(item.sampled) + [prior]
    if not good[item.sampled].any() and len(everywhere):
        donors += everywhere.tolist()
        weights += [prior / len(everywhere)] * len(everywhere)
    return np.array(donors, np.int64), np.array(weights), np.arange(len(donors)) >= len(item.sampled)
