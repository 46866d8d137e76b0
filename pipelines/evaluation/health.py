"""Health of an encoder's features: effective rank and spread beside the same network at its initial weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.training.metrics import rank_me

COLLAPSED_SHARE = 0.1
WEAK_SHARE = 0.25
"""Of the RankMe at random initialisation. At nano scale encoders that probed well kept 0.29 to 0.75 of it; one that
probed worse than random initialisation kept 0.21."""
DEAD_STD = 0.05


@dataclass(frozen=True)
class EncoderHealth:
    """`rank_me` of centred mean-pooled frame features; `std` their mean spread per channel; `dead` channels hardly move."""

    state: Literal["healthy", "weak", "collapsed"]
    line: str
    rank_me: float
    rank_me_random: float
    std: float
    std_random: float
    dead: int
    width: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def encoder_health(trained: NDArray[np.float64], random: NDArray[np.float64]) -> EncoderHealth:
    """Judge pooled frame features (n, D) of an encoder against those of its random twin, on the same frames.

    Spread alone does not show a loss of rank (it stayed the same in a run that lost four fifths of it), so rank decides.
    """
    rank, rank_random = (rank_me(torch.from_numpy(item - item.mean(0))) for item in (trained, random))
    spread = trained.std(0)
    std, std_random = float(spread.mean()), float(random.std(0).mean())
    dead = int((spread < DEAD_STD * max(float(np.median(spread)), 1e-12)).sum())
    share = rank / rank_random
    state: Literal["healthy", "weak", "collapsed"] = "healthy"
    if share < COLLAPSED_SHARE or not np.isfinite(share) or std < DEAD_STD * std_random:
        state = "collapsed"
    elif share < WEAK_SHARE:
        state = "weak"
    line = (
        f"{state}: RankMe {rank:.1f} of {trained.shape[1]} ({rank_random:.1f} at random initialisation), "
        f"spread per channel {std:.3f} ({std_random:.3f}), {dead} dead channels"
    )
    return EncoderHealth(state, line, rank, rank_random, std, std_random, dead, trained.shape[1])
