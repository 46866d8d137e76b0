"""Whether an encoder learns or dies: measures of its features on a few fixed clips, and a verdict in words.

Chosen and tried on collapses that were planted: docs/findings.md, "Is this collapse?".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Health = dict[str, float]
State = Literal["healthy", "collapsing", "collapsed", "starved"]

COLLAPSED_STD = 0.05
COLLAPSED_RANK = 3.0
"""Both count only when they are at most half of what they were at first: dull videos give low numbers to any encoder."""
COLLAPSING_STD_SHARE = 0.25
COLLAPSING_RANK_SHARE = 0.15
"""Of the phase's first measurement. Healthy nano runs kept 0.75 of the spread and 0.22 of the rank, and more."""
STARVED_SHARE = 0.5
LIDAR_DELTA = 1e-4  # the paper's, which suits features of unit variance
NEIGHBOURS = 5
CLASS_SIZE = 4


def rank_me(features: Tensor) -> float:
    """Effective rank of features (n, d): exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885).

    At most min(n, d); compare only values from equal n and d. It does not depend on scale: features that differ by rounding
    and noise alone have a high one.
    """
    return _effective_rank(torch.linalg.svdvals(features.double()))


def lidar(views: Tensor) -> float:
    """Effective rank of what tells clips apart, from features (n, q, d) of q views of each of n clips (LiDAR, arXiv 2312.04000).

    That of the covariance between clips, whitened by the covariance within: a direction counts as far as it differs more
    between clips than between views of one. At most min(n - 1, d); compare only values from equal n and q.
    """
    views = views.double()
    clips, seen, width = views.shape
    means = views.mean(dim=1)
    inner = (views - means.unsqueeze(1)).flatten(0, 1)
    within = inner.T @ inner / (clips * seen) + LIDAR_DELTA * torch.eye(width, dtype=views.dtype, device=views.device)
    # With W = L L^T and B = M M^T, the eigenvalues of W^-1/2 B W^-1/2 are the squared singular values of L^-1 M.
    between = (means - means.mean(dim=0)).T / clips**0.5
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(within), between, upper=False)
    return _effective_rank(torch.linalg.svdvals(whitened).square())


def _effective_rank(values: Tensor) -> float:
    shares = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def mean_cosine(features: Tensor) -> float:
    """Mean cosine over all pairs of different rows of features (n, d): 1 when all point one way.

    Of the features as they are: once centred, the rows of every encoder have a mean of about -1 / (n - 1).
    """
    units, count = F.normalize(features.double(), dim=1), len(features)
    return float((units.sum(dim=0).square().sum() - count) / max(1, count * (count - 1)))


def halves_recall(halves: Tensor, same: Tensor) -> float:
    """Share of half clips whose nearest among the halves of all clips is their own other half; by chance 1 / (2n - 1).

    `halves` (n, 2, d); `same` (n, n) bool marks samples of one clip, which are not asked to be told apart. By cosine, centred:
    what all halves have in common tells none apart. It does not depend on scale, so a collapse may leave it high.
    """
    number = torch.arange(2 * len(halves), device=halves.device) // 2
    other = number.unsqueeze(0) != number.unsqueeze(1)
    likeness = _likeness(halves.flatten(0, 1), other & same[number][:, number])
    return float((number[likeness.argmax(dim=1)] == number).double().mean())


def label_accuracy(features: Tensor, labels: Tensor, same: Tensor) -> float | None:
    """How well the nearest clips tell a clip's label, leaving itself out: accuracy of each label, averaged over labels, so
    that chance is 1 / labels. None when fewer than two labels have `CLASS_SIZE` clips or more; others are left out.

    `features` (n, d), `labels` (n,) int64, `same` (n, n) bool as above. The `NEIGHBOURS` nearest by centred cosine vote, each as
    much as it is near.
    """
    names, index, sizes = labels.unique(return_inverse=True, return_counts=True)
    kept = sizes[index] >= CLASS_SIZE
    if int((sizes >= CLASS_SIZE).sum()) < 2:
        return None
    known, votes_of = index[kept], F.one_hot(index[kept], len(names)).double()
    near, who = _likeness(features[kept], same[kept][:, kept]).topk(min(NEIGHBOURS, int(kept.sum()) - 1), dim=1)
    votes = (near.exp().unsqueeze(2) * votes_of[who]).sum(dim=1)
    right = (votes.argmax(dim=1) == known).double()
    return float(torch.stack([right[known == number].mean() for number in known.unique()]).mean())


def _likeness(features: Tensor, excluded: Tensor) -> Tensor:
    """Cosines (n, n) of centred features, with -inf for oneself and for pairs that are `excluded`."""
    units = F.normalize(features.double() - features.double().mean(dim=0), dim=1)
    return (units @ units.T).masked_fill(excluded, -torch.inf).fill_diagonal_(-torch.inf)


def relative_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """||first - second|| / ||second||, over all tensors together."""
    difference = [one - other.to(one.dtype) for one, other in zip(first, second, strict=True)]
    return float(torch.nn.utils.get_total_norm(difference) / torch.nn.utils.get_total_norm(second))


@dataclass(frozen=True)
class Verdict:
    state: State
    line: str


def health(history: Sequence[Health]) -> Verdict:
    """Judge a phase by its measurements in order, each with rank_me, target_std, mean_loss, floor and data_wait (a share).

    A falling loss proves nothing: a collapsed target is easy to predict. The spread over clips decides first; rank alone does
    not, because that of a collapsed target's noise is high.
    """
    if not history:
        return Verdict("healthy", "healthy so far: nothing measured yet")
    first, last = history[0], history[-1]
    spread, rank = (last[name] / max(first[name], 1e-12) for name in ("target_std", "rank_me"))
    state: State = "healthy"
    if (spread <= 0.5 and last["target_std"] <= COLLAPSED_STD) or (rank <= 0.5 and last["rank_me"] <= COLLAPSED_RANK):
        state = "collapsed"
    elif spread <= COLLAPSING_STD_SHARE or rank <= COLLAPSING_RANK_SHARE:
        state = "collapsing"
    elif last["data_wait"] >= STARVED_SHARE:
        state = "starved"
    likeness = f"cosine between clips {last['cosine']:.2f}, " if "cosine" in last else ""
    return Verdict(state, (
        f"{state}: target std {last['target_std']:.2f} (first {first['target_std']:.2f}), {likeness}"
        f"RankMe {last['rank_me']:.1f} (first {first['rank_me']:.1f}), loss {last['mean_loss']:.3f} against {last['floor']:.3f} "
        f"for a constant guess, data wait {100 * last['data_wait']:.0f} %"
    ))  # fmt: skip
