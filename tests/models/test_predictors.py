"""Masked and action-conditioned predictor: packing, causality, flags and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.errors import ConfigError, ShapeError
from models.predictor import MaskedPredictor, PredictorConfig

PREDICTOR = PredictorConfig(
    embed_dim=16, predictor_embed_dim=32, depth=2, num_heads=2, img_size=(32, 32), num_frames=8, init_std=0.2
)
ACTION: dict[str, Any] = {
    "embed_dim": 16,
    "predictor_embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "img_size": (32, 32),
    "init_std": 0.2,
}


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


@pytest.fixture(scope="module")
def action_predictor() -> ActionConditionedPredictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ActionConditionedPredictor(ActionPredictorConfig(**ACTION))


def sibling(model: ActionConditionedPredictor, **changes: Any) -> ActionConditionedPredictor:
    other = ActionConditionedPredictor(ActionPredictorConfig(**{**ACTION, **changes}))
    other.load_state_dict(model.state_dict())
    return other


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


def test_bad_mask_groups_are_refused(predictor: MaskedPredictor) -> None:
    context, at, targets = random(1, 2, 16), torch.tensor([[0, 5]]), torch.tensor([[15]])
    with pytest.raises(ShapeError, match="groups"):
        predictor([context], [at], [targets, targets])
    with pytest.raises(ShapeError, match="ids"):
        predictor(context, at[:, :1], targets)
    with pytest.raises(ShapeError, match="target_ids"):
        predictor(context, at, targets + 1)


def test_released_predictors_have_the_known_tensor_and_parameter_counts() -> None:
    with torch.device("meta"):
        masked = MaskedPredictor(PredictorConfig(embed_dim=1024, depth=12, num_heads=12, num_mask_tokens=10))
        action = ActionConditionedPredictor(ActionPredictorConfig(embed_dim=1408, depth=24, num_heads=16))
    assert len(masked.state_dict()) == 160
    assert round(sum(value.numel() for value in action.parameters()) / 1e6, 1) == 305.2


def test_later_steps_never_change_earlier_predictions(action_predictor: ActionConditionedPredictor) -> None:
    frames, actions, states = random(2, 12, 16), random(2, 3, 7, seed=1), random(2, 3, 7, seed=2)
    whole = action_predictor(frames, actions, states)
    for steps in (1, 2):
        part = action_predictor(frames[:, : 4 * steps], actions[:, :steps], states[:, :steps])
        torch.testing.assert_close(part, whole[:, : 4 * steps], atol=1e-5, rtol=0)
    changed = action_predictor(frames, torch.cat((actions[:, :1] + 1, actions[:, 1:]), dim=1), states)
    assert all((changed - whole)[:, 4 * step : 4 * step + 4].abs().max() > 1e-4 for step in range(3))


def test_one_shared_frame_serves_all_candidate_actions(action_predictor: ActionConditionedPredictor) -> None:
    frame, actions, state = random(1, 4, 16), random(5, 1, 7), random(1, 1, 7, seed=2)
    shared = action_predictor(frame, actions, state)
    copied = action_predictor(frame.expand(5, -1, -1), actions, state.expand(5, -1, -1))
    torch.testing.assert_close(shared, copied, atol=1e-6, rtol=0)
    residual = sibling(action_predictor, residual=True)
    torch.testing.assert_close(residual(frame, actions, state), shared + frame, atol=1e-5, rtol=0)


def test_scales_and_centre_act_on_raw_units_and_are_off_by_default(
    action_predictor: ActionConditionedPredictor,
) -> None:
    frames, actions, states = random(2, 8, 16), random(2, 2, 7, seed=1), random(2, 2, 7, seed=2)
    centre = tuple(float(value) for value in range(7))
    scaled = sibling(action_predictor, action_scale=20.0, state_center=centre, state_scale=5.0)
    by_hand = action_predictor(frames, actions * 20.0, (states - torch.tensor(centre)) * 5.0)
    torch.testing.assert_close(scaled(frames, actions, states), by_hand, atol=1e-5, rtol=0)
    assert not torch.allclose(scaled(frames, actions, states), action_predictor(frames, actions, states))
    assert ActionPredictorConfig.from_dict(scaled.config.to_dict()) == scaled.config


def test_init_std_sets_the_spread_of_new_weights() -> None:
    for std in (0.02, 0.08):
        model = ActionConditionedPredictor(ActionPredictorConfig(**{**ACTION, "init_std": std}))
        assert abs(float(model.predictor_blocks[0].attn.qkv.weight.detach().std()) / std - 1) < 0.1  # type: ignore[union-attr,arg-type]


def test_steps_sizes_and_extrinsics_that_do_not_fit_are_refused(action_predictor: ActionConditionedPredictor) -> None:
    frames, actions, states = random(2, 8, 16), random(2, 2, 7), random(2, 2, 7)
    with pytest.raises(ShapeError, match="frame_tokens"):
        action_predictor(frames[:, :7], actions, states)
    with pytest.raises(ShapeError, match="states"):
        action_predictor(frames, actions, states[:, :1])
    with pytest.raises(ShapeError, match="actions"):
        action_predictor(frames, actions[..., :6], states)
    with pytest.raises(ShapeError, match="extrinsics"):
        action_predictor(frames, actions, states, random(2, 2, 6))
    with pytest.raises(ShapeError, match="extrinsics"):
        sibling(action_predictor, use_extrinsics=True)(frames, actions, states)
    with pytest.raises(ConfigError, match="state_center"):
        ActionPredictorConfig(**ACTION, state_center=(0.0, 1.0))
