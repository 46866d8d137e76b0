"""Masked predictor: packing, flags and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.errors import ShapeError
from models.predictor import MaskedPredictor, PredictorConfig

PREDICTOR = PredictorConfig(
    embed_dim=16, predictor_embed_dim=32, depth=2, num_heads=2, img_size=(32, 32), num_frames=8, init_std=0.2
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def predictor() -> MaskedPredictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MaskedPredictor(PREDICTOR)
        for token in model.mask_tokens:
            torch.nn.init.normal_(token)
    return model


def test_packed_mask_groups_equal_separate_calls_in_any_group_order(predictor: MaskedPredictor) -> None:
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    contexts_at, targets_at = [order[:, :6], order[:, 3:5]], [order[:, 6:], order[:, 8:]]
    contexts = [random(2, 6, 16, seed=3), random(2, 2, 16, seed=4)]
    packed = predictor(contexts, contexts_at, targets_at, mask_token=[0, 1])
    swapped = predictor(contexts[::-1], contexts_at[::-1], targets_at[::-1], mask_token=[1, 0])[::-1]
    for index in range(2):
        alone = predictor(contexts[index], contexts_at[index], targets_at[index], mask_token=index)
        torch.testing.assert_close(packed[index], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(packed[index], swapped[index], atol=1e-5, rtol=0)


def test_order_of_context_tokens_does_not_matter_and_targets_come_in_the_asked_order(
    predictor: MaskedPredictor,
) -> None:
    context, at, targets = random(1, 4, 16), torch.tensor([[0, 5, 9, 2]]), torch.tensor([[15, 3, 7]])
    expected = predictor(context, at, targets)
    torch.testing.assert_close(predictor(context.flip(1), at.flip(1), targets), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(predictor(context, at, targets.flip(1)).flip(1), expected, atol=1e-5, rtol=0)


def test_grid_of_the_input_decides_positions(predictor: MaskedPredictor) -> None:
    context, at, targets = random(1, 2, 16), torch.tensor([[0, 5]]), torch.tensor([[15]])
    assert not torch.allclose(predictor(context, at, targets), predictor(context, at, targets, grid=(1, 4, 4)))


def test_shared_mask_token_leaves_the_other_without_gradient() -> None:
    model = MaskedPredictor(PREDICTOR)
    assert all(not token.any() for token in model.mask_tokens)
    groups = [torch.tensor([[0]])] * 2, [torch.tensor([[1]])] * 2
    outputs = model([random(1, 1, 16)] * 2, *groups)
    sum(output.sum() for output in outputs).backward()
    assert model.mask_tokens[0].grad is not None and model.mask_tokens[1].grad is None


def test_mask_token_policy_per_strategy_gives_every_group_its_own_unless_a_list_says_otherwise(
    predictor: MaskedPredictor,
) -> None:
    own = MaskedPredictor(PredictorConfig.from_dict({**PREDICTOR.to_dict(), "mask_token_policy": "per_strategy"}))
    own.load_state_dict(predictor.state_dict())
    groups = [random(1, 1, 16)] * 2, [torch.tensor([[0]])] * 2, [torch.tensor([[1]])] * 2
    shared, other = predictor(*groups, mask_token=0), predictor(*groups, mask_token=1)
    torch.testing.assert_close(shared[0], shared[1])
    assert not torch.allclose(shared[0], other[0])
    for first, expected in ((0, (shared, other)), (1, (other, shared)), ([0, 0], (shared, shared))):
        for index, tokens in enumerate(own(*groups, mask_token=first)):
            torch.testing.assert_close(tokens, expected[index][index])


def test_bad_mask_groups_are_refused(predictor: MaskedPredictor) -> None:
    context, at, targets = random(1, 2, 16), torch.tensor([[0, 5]]), torch.tensor([[15]])
    with pytest.raises(ShapeError, match="groups"):
        predictor([context], [at], [targets, targets])
    with pytest.raises(ShapeError, match="ids"):
        predictor(context, at[:, :1], targets)
    with pytest.raises(ShapeError, match="target_ids"):
        predictor(context, at, targets + 1)
    with pytest.raises(ShapeError, match="int32"):
        predictor(context, at.int(), targets)
    with pytest.raises(ShapeError, match="another dtype"):
        predictor(context.to(torch.bfloat16), at, targets)
    with pytest.raises(ShapeError, match="int64"):
        predictor(context.long(), at, targets)
    with pytest.raises(ShapeError, match="context_ids"):  # groups of different batches
        predictor([context, random(2, 1, 16)], [at, at[:, :1].expand(2, -1)], [targets, targets.expand(2, -1)])
