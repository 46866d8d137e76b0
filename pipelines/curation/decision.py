"""What to do about new clips: keep the codebook, weigh anew, append leaves, fit again, or embed again; with the reasons.

Costs rise in that order, and so does what has to have happened: labels that people and later stages rely on are given
up only when the codebook no longer describes the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.drift import DriftConfig, Measured, jensen_shannon, smoothed
from pipelines.curation.leaf_statistics import BINS, LeafStatistics, bin_centres, distance_bin

Action = Literal["none", "reweight", "append", "refit", "re-embed", "fit"]
"""`fit`: there was no codebook to keep."""


@dataclass(frozen=True)
class Wear:
    """How far the whole pool has moved since its codebook was fitted: `growth` (clips now / then), `distance` (rise of the
    mean distance, novel clips left out, in standard deviations of the fit's), `mixture` (Jensen-Shannon distance of the
    leaves' shares, 0..1)."""

    growth: float
    distance: float
    mixture: float


@dataclass(frozen=True)
class Novelty:
    """`buffer` novel clips, of which `by_design` lie beyond quantiles that leave some out; `explained` is the share that
    `leaves` new leaves would describe. None: that was not tried, as the buffer is small or has hardly grown since it was
    tried in vain."""

    buffer: int
    by_design: float
    explained: float | None = None
    leaves: int = 0

    @property
    def excess(self) -> float:
        return max(0.0, self.buffer - self.by_design)


@dataclass(frozen=True, eq=False)
class Findings:
    """What the decision is made from. `measured` is empty when nothing can be compared; `settings` says in words which
    options of the clustering differ from those of the codebook, `fit_sizes` and `sizes` how many clusters of every level
    they ask for of as many clips as at the fit, and of as many as now."""

    clips: int
    new: int
    removed: int
    wear: Wear
    novelty: Novelty
    measured: Mapping[str, Measured] = field(default_factory=dict)
    targets: Measured | None = None
    settings: tuple[str, ...] = ()
    fit_sizes: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decision:
    """An action and why, in sentences with what was expected and what was found."""

    action: Action
    reasons: list[str]


def wear_of(fit_counts: NDArray[np.int64], fit_digest: NDArray[np.int64], now: LeafStatistics, novel: NDArray[np.float32]) -> Wear:
    """Wear since the fit, from its counts (K_fit,) and its digest of distances (256,); `now` may have more leaves.

    `novel` (M,) are the distances in the novelty buffer, which has bounds of its own.
    """
    centres = bin_centres()
    then = fit_digest / max(1, fit_digest.sum())
    known = now.digests.sum(axis=0, dtype=np.int64) - np.bincount(distance_bin(novel), minlength=BINS)
    shares = known / max(1, int(known.sum()))
    spread = np.sqrt(max(1e-18, float((then * centres**2).sum() - (then * centres).sum() ** 2)))
    before = np.pad(fit_counts, (0, len(now.counts) - len(fit_counts)))
    mixture = float(np.sqrt(jensen_shannon(smoothed(before), smoothed(now.counts)) / np.log(2)))
    return Wear(float(now.counts.sum() / max(1, fit_counts.sum())), float(((shares - then) * centres).sum() / spread), mixture)


def append_limit(clips: int, config: DriftConfig) -> float:
    """Novel clips in excess of those by design, beyond which new leaves are tried."""
    return max(config.append_above * clips, float(config.append_least))


def decide(found: Findings, config: DriftConfig) -> Decision:
    """The least action that answers what was found. The reasons name every bound that was passed, else why none was."""
    drifted = [_sentence(name, measured) for name, measured in _judged(found).items() if measured.flagged]
    refit = _refit_reasons(found, config, bool(drifted))
    if refit:
        return Decision("refit", refit + drifted)
    limit, novelty = append_limit(found.clips, config), found.novelty
    buffer = (
        f"{novelty.buffer} clips are novel, {novelty.excess:.1f} more than the quantiles leave out by design; "
        f"expected at most {limit:.1f} of {found.clips}"
    )
    if novelty.excess > limit and novelty.explained is not None:
        share = f"{novelty.leaves} new leaves describe {novelty.explained:.0%} of them as well as old leaves describe theirs"
        if novelty.explained >= config.append_explained:
            return Decision("append", [f"{buffer}; {share}, expected at least {config.append_explained:.0%}", *drifted])
        drifted.append(f"{buffer}; but {share}, too few for leaves of their own (expected {config.append_explained:.0%}), so they stay in the buffer")
    elif novelty.excess > limit:
        drifted.append(f"{buffer}; they were too unlike each other for leaves of their own, and hardly more have come since")
    if any(measured.flagged for measured in _judged(found).values()):
        return Decision("reweight", drifted)
    return Decision("none", [*_quiet(found, config), *(drifted or [buffer])])


def _judged(found: Findings) -> dict[str, Measured]:
    return {**found.measured, **({"targets": found.targets} if found.targets is not None else {})}


def _refit_reasons(found: Findings, config: DriftConfig, drifted: bool) -> list[str]:
    wear, novelty = found.wear, found.novelty
    reasons = [f"the clustering's options changed: {change}" for change in found.settings]
    # Where the options ask for the same clusters as before, another fit would give up labels for hardly anything.
    if found.sizes != found.fit_sizes and not 1 / config.refit_growth < wear.growth < config.refit_growth:
        reasons.append(
            f"the pool has {wear.growth:.2f} times the clips that the codebook was fitted on; expected between "
            f"{1 / config.refit_growth:.2f} and {config.refit_growth:.2f} times, as {_counted(found.sizes)} clusters are asked for now, "
            f"not {_counted(found.fit_sizes)}"
        )
    if novelty.excess > max(config.refit_novel * found.clips, config.append_least):
        reasons.append(
            f"{novelty.buffer} of {found.clips} clips are novel, {novelty.excess:.1f} more than by design; expected at most "
            f"{config.refit_novel:.0%}, beyond which old leaves lie in the wrong places too"
        )
    # Wear is judged only where the new clips differ beyond chance: in a pool of few clips it is large by noise alone.
    if drifted and wear.distance > config.refit_distance:
        reasons.append(
            f"clips of the pool lie {wear.distance:.2f} standard deviations farther from their leaves than at the fit; "
            f"expected at most {config.refit_distance:.2f}"
        )
    if drifted and wear.mixture > config.refit_mixture:
        reasons.append(
            f"the leaves' shares are {wear.mixture:.2f} (Jensen-Shannon distance) from those at the fit; expected at most {config.refit_mixture:.2f}"
        )
    return reasons


def _counted(sizes: tuple[int, ...]) -> str:
    return " / ".join(f"{size:,}" for size in sizes)


def _sentence(name: str, measured: Measured) -> str:
    return (
        f"{WORDS[name]} is {measured.value:.4g} where random splits give {float(measured.null.mean()):.4g} on average "
        f"(p {measured.p:.3f}, effect {measured.effect:.3f})"
    )


WORDS = {
    "psi": "the population stability index of the clusters", "js": "the Jensen-Shannon divergence of the clusters",
    "novelty": "the rate of novel clips", "distance": "the Wasserstein distance of the distances to the leaves",
    "mmd": "the squared maximum mean discrepancy of the vectors", "targets": "the change of what the targets ask for (total variation)",
}  # fmt: skip


def _quiet(found: Findings, config: DriftConfig) -> list[str]:
    """Why nothing is done."""
    reasons = []
    if found.measured:
        most = min(found.measured.items(), key=lambda item: (item[1].p, -item[1].effect))
        reasons.append(
            f"{found.new} new clips are distributed as the others: no statistic has both p below {config.p_below:g} and an effect "
            f"above {config.effect_above:g}; the nearest is that {_sentence(*most)}"
        )
    else:
        reasons.append(f"{found.new} new clips{f' and {found.removed} fewer old ones' if found.removed else ''}: too few to compare")
    if found.targets is not None:
        reasons.append(_sentence("targets", found.targets))
    return reasons
