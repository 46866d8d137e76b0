"""Our Muon against torch's, and against what it is for: orthogonal updates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines.training.muon import Muon, orthogonalised


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((48, 16), (16, 48), (16, 16), (48, 16))]


def train(optimizer: torch.optim.Optimizer, values: list[Tensor], steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for value in values:
            value.grad = torch.randn(value.shape, generator=generator)
        optimizer.step()


def test_updates_are_those_of_torch_but_for_its_bfloat16() -> None:
    ours, theirs, before = parameters(), parameters(), parameters()
    train(Muon(ours, lr=0.02, weight_decay=0.1), ours, 6)
    train(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1), theirs, 6)
    for one, two, start in zip(ours, theirs, before, strict=True):
        assert (one - two).norm() <= 0.03 * (one - start).norm()


@pytest.mark.parametrize("shape", [(3, 40, 12), (2, 12, 40), (1, 20, 20)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(2))))
    assert values.min() > 0.3 and values.max() < 1.3


def test_nothing_moves_where_there_is_no_gradient_and_vectors_are_refused() -> None:
    one, two = parameters()[:2]
    kept = two.detach().clone()
    one.grad = torch.ones_like(one)
    Muon([one, two]).step()
    assert torch.equal(two, kept)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Muon([torch.zeros(3)])
