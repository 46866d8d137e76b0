"""Whether an encoder learns or dies: effective rank and spread of its features, and a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Health = dict[str, float]
State = Literal["healthy", "collapsing", "collapsed", "starved"]

COLLAPSED_RANK = 3.0
COLLAPSED_STD = 0.05
COLLAPSING_SHARE = 0.15
"""Of the first RankMe of the phase, features centred. Nano runs whose probes and planning were good kept 0.29 and more."""
STARVED_SHARE = 0.5


def rank_me(features: Tensor) -> float:
    """Effective rank of features (n, d): exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885).

    At most min(n, d); compare only values from equal n and d.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def feature_std(features: Tensor) -> float:
    """Standard deviation over samples, averaged over channels, of features (n, d)."""
    return float(features.std(dim=0).mean())


@dataclass(frozen=True)
class Verdict:
    state: State
    line: str


def health(history: Sequence[Health]) -> Verdict:
    """Judge a phase by its measurements in order, each with rank_me, target_std, mean_loss, floor and data_wait (a share).

    A falling loss proves nothing: a collapsed target is easy to predict. Rank and spread are asked first, and against
    the first measurement, because dull videos give low numbers to any encoder.
    """
    if not history:
        return Verdict("healthy", "healthy so far: nothing measured yet")
    first, last = history[0], history[-1]
    numbers = (
        f"RankMe {last['rank_me']:.1f} (first {first['rank_me']:.1f}), target std {last['target_std']:.2f}, "
        f"loss {last['mean_loss']:.3f} against {last['floor']:.3f} for a constant guess, data wait {100 * last['data_wait']:.0f} %"
    )
    state: State = "healthy"
    fallen = {name: last[name] <= 0.5 * first[name] for name in ("rank_me", "target_std")}
    if (fallen["rank_me"] and last["rank_me"] <= COLLAPSED_RANK) or (fallen["target_std"] and last["target_std"] <= COLLAPSED_STD):
        state = "collapsed"
    elif last["rank_me"] <= COLLAPSING_SHARE * first["rank_me"]:
        state = "collapsing"
    elif last["data_wait"] >= STARVED_SHARE:
        state = "starved"
    return Verdict(state, f"{state}: {numbers}")
