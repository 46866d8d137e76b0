"""Action-conditioned predictor: causality, frame grids, going on from finished steps, precision and refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import layer_norm_features
from models.errors import ConfigError, ShapeError
from models.incremental import PastSteps

ACTION: dict[str, Any] = {
    "embed_dim": 16,
    "predictor_embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "img_size": (32, 32),
    "init_std": 0.2,
}
FRAME = 4  # patches of one frame


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(**changes: Any) -> ActionConditionedPredictor:
    """A predictor in which no bias and no norm is trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ActionConditionedPredictor(ActionPredictorConfig(**{**ACTION, **changes}))
        for parameter in model.parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=0.3, std=0.3)
    return model


@pytest.fixture(scope="module")
def predictor() -> ActionConditionedPredictor:
    return build()


def sibling(model: ActionConditionedPredictor, **changes: Any) -> ActionConditionedPredictor:
    other = ActionConditionedPredictor(ActionPredictorConfig(**{**ACTION, **changes}))
    other.load_state_dict(model.state_dict())
    return other


def inputs(batch: int, steps: int, extrinsics: bool = False, patches: int = FRAME, seed: int = 0) -> list[Tensor]:
    """frame_tokens, actions, states and, where asked, extrinsics."""
    found = [random(batch, steps * patches, 16, seed=seed)]
    found += [random(batch, steps, 7, seed=seed + offset) for offset in (1, 2)]
    return [*found, random(batch, steps, 6, seed=seed + 3)] if extrinsics else found


def at(step: int, given: Sequence[Tensor], patches: int = FRAME) -> list[Tensor]:
    """The inputs of one step, as `step` takes them."""
    return [given[0][:, step * patches : (step + 1) * patches], *(tensor[:, step] for tensor in given[1:])]


def walk(
    model: ActionConditionedPredictor, steps: Sequence[Sequence[Tensor]], past: PastSteps | None = None
) -> tuple[Tensor, PastSteps]:
    """Predictions (B, T * N, D) of steps taken one by one, and the past they leave."""
    predicted = []
    for step in steps:
        frame_tokens, action, state, *extrinsics = step
        frame, past = model.step(frame_tokens, action, state, extrinsics[0] if extrinsics else None, past)
        predicted.append(frame)
    assert past is not None
    return torch.cat([frame.expand(past.batch, -1, -1) for frame in predicted], dim=1), past


def plain_rotation(vector: Tensor, position: tuple[float, float, float], layout: str) -> Tensor:
    """One head of one token, dim by dim, from the formula of the paper's code."""
    axis_dim = 2 * ((len(vector) // 3) // 2)
    turned = vector.clone()
    for axis, place in enumerate(position):
        for dim in range(axis_dim):
            frequency = dim % (axis_dim // 2) if layout == "tiled" else dim // 2
            angle = place * 10000 ** (-frequency / (axis_dim / 2))
            index = axis * axis_dim + dim
            partner = -vector[index + 1] if dim % 2 == 0 else vector[index - 1]
            turned[index] = vector[index] * math.cos(angle) + partner * math.sin(angle)
    return turned


def plain_forward(model: ActionConditionedPredictor, given: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """The network written out for one sample, with a boolean mask and one rotation per token and head."""
    config, encoders = model.config, (model.action_encoder, model.state_encoder, model.extrinsics_encoder)
    steps, (rows, columns), heads = given[1].shape[1], grid, config.num_heads
    reference, patches = config.img_size[0] // config.patch_size, model.predictor_embed(given[0][0])
    tokens, places = [], []
    for step in range(steps):
        for encoder, condition in zip(encoders, given[1:], strict=False):
            tokens.append(encoder(condition[0, step]))
            places.append((float(step), 0.0, 0.0))
        for row in range(rows):
            for column in range(columns):
                tokens.append(patches[step * rows * columns + row * columns + column])
                places.append((float(step), row * reference / rows, column * reference / columns))
    x, time = torch.stack(tokens), torch.tensor([place[0] for place in places])
    for block in model.predictor_blocks:
        query, key, value = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).unbind(1)  # type: ignore[union-attr,operator]
        for tensor in (query, key):
            for token, place in enumerate(places):
                for head in range(heads):
                    tensor[token, head] = plain_rotation(tensor[token, head].clone(), place, config.rope_layout)
        scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(time[None, :, None] < time[None, None, :], -math.inf)
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value).flatten(1)
        x = x + block.attn.proj(attended)  # type: ignore[union-attr,operator]
        x = x + block.mlp(block.norm2(x))  # type: ignore[operator]
    frames = x.unflatten(0, (steps, -1))[:, len(given) - 1 :].flatten(0, 1)
    return model.predictor_proj(model.predictor_norm(frames))[None]


@pytest.mark.parametrize("layout", ["tiled", "interleaved"])
@pytest.mark.parametrize(
    ("img_size", "grid"), [((32, 32), None), ((32, 64), None), ((48, 32), None), ((32, 32), (3, 3)), ((48, 32), (2, 5))]
)
@torch.no_grad()
def test_frames_of_any_grid_equal_the_network_written_out_token_by_token(
    layout: str, img_size: tuple[int, int], grid: tuple[int, int] | None
) -> None:
    model = build(img_size=img_size, rope_layout=layout, use_extrinsics=True)
    rows, columns = grid or (img_size[0] // 16, img_size[1] // 16)
    given = inputs(1, 3, extrinsics=True, patches=rows * columns)
    expected = plain_forward(model, given, (rows, columns))
    torch.testing.assert_close(model(*given, grid=grid), expected, atol=1e-5, rtol=0)
    past, steps = None, []
    for step in range(3):
        frame, past = model.step(*at(step, given, rows * columns), past, grid=grid if step == 0 else None)
        steps.append(frame)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_frame_shape_decides_positions(predictor: ActionConditionedPredictor) -> None:
    given = inputs(1, 1)
    assert not torch.allclose(predictor(*given), predictor(*given, grid=(1, 4)), atol=1e-3)
    assert not torch.allclose(predictor(*given, grid=(4, 1)), predictor(*given, grid=(1, 4)), atol=1e-3)


def test_later_steps_never_change_earlier_predictions(predictor: ActionConditionedPredictor) -> None:
    frames, actions, states = inputs(2, 3)
    whole = predictor(frames, actions, states)
    for steps in (1, 2):
        part = predictor(frames[:, : FRAME * steps], actions[:, :steps], states[:, :steps])
        torch.testing.assert_close(part, whole[:, : FRAME * steps], atol=1e-5, rtol=0)
    changed = predictor(frames, torch.cat((actions[:, :1] + 1, actions[:, 1:]), dim=1), states)
    assert all((changed - whole)[:, FRAME * step : FRAME * step + FRAME].abs().max() > 1e-4 for step in range(3))


def test_one_shared_frame_serves_all_candidate_actions(predictor: ActionConditionedPredictor) -> None:
    frame, actions, state = random(1, FRAME, 16), random(5, 1, 7), random(1, 1, 7, seed=2)
    shared = predictor(frame, actions, state)
    copied = predictor(frame.expand(5, -1, -1), actions, state.expand(5, -1, -1))
    torch.testing.assert_close(shared, copied, atol=1e-6, rtol=0)
    residual = sibling(predictor, residual=True)
    torch.testing.assert_close(residual(frame, actions, state), shared + frame, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"use_extrinsics": True}, {"residual": True}, {"state_scale": 3.0}], ids=str)
@torch.no_grad()
def test_plans_that_share_a_history_equal_the_uncached_network(options: dict[str, Any]) -> None:
    model = build(**options)
    extrinsics = "use_extrinsics" in options
    history, plans = inputs(1, 2, extrinsics), inputs(5, 3, extrinsics, seed=10)
    whole = model(*(torch.cat([past.expand(5, -1, -1), plan], 1) for past, plan in zip(history, plans, strict=True)))
    seen, past = walk(model, [at(step, history) for step in (0, 1)])
    torch.testing.assert_close(seen, model(*history), atol=1e-5, rtol=0)
    planned, after = walk(model, [at(step, plans) for step in (0, 1, 2)], past)
    torch.testing.assert_close(planned, whole[:, 2 * FRAME :], atol=1e-5, rtol=0)
    # Several steps at once behind the same past, of which nothing is kept.
    torch.testing.assert_close(model(*plans, past=past), whole[:, 2 * FRAME :], atol=1e-5, rtol=0)
    assert (past.steps, past.batch, after.steps, after.batch) == (2, 1, 5, 5)


@settings(max_examples=40, deadline=None)
@given(st.data())
@torch.no_grad()
def test_any_mix_of_shared_and_own_inputs_equals_the_uncached_network(
    predictor: ActionConditionedPredictor, data: st.DataObject
) -> None:
    batch, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    pick = st.sampled_from([1, batch])
    taken = [
        [
            random(data.draw(pick), *shape, seed=3 * step + index)
            for index, shape in enumerate(((FRAME, 16), (7,), (7,)))
        ]
        for step in range(steps)
    ]
    found, past = walk(predictor, taken)
    everyone = [[tensor.expand(past.batch, *tensor.shape[1:]) for tensor in step] for step in taken]
    frames = torch.cat([step[0] for step in everyone], dim=1)
    actions, states = (torch.stack([step[index] for step in everyone], dim=1) for index in (1, 2))
    torch.testing.assert_close(found, predictor(frames, actions, states), atol=1e-5, rtol=0)
    # A step is shared exactly until the first input that is not.
    own = False
    for step, finished in zip(taken, past.finished, strict=True):
        own = own or any(len(tensor) > 1 for tensor in step)
        assert len(finished.keys[0]) == (batch if own else 1)


@torch.no_grad()
def test_branches_go_on_from_one_past_without_copying_or_changing_it(predictor: ActionConditionedPredictor) -> None:
    history = inputs(1, 2)
    _, past = walk(predictor, [at(step, history) for step in (0, 1)])
    before = [tensor.clone() for step in past.finished for tensor in (*step.keys, *step.values)]
    branches = [inputs(3, 1, seed=seed) for seed in (5, 9)]
    (first, after), (second, _) = (walk(predictor, [at(0, branch)], past) for branch in branches)
    again, _ = walk(predictor, [at(0, branches[0])], past)
    assert torch.equal(first, again) and not torch.allclose(first, second)
    assert after.finished[0] is past.finished[0] and after.finished[1] is past.finished[1]
    kept = [tensor for step in past.finished for tensor in (*step.keys, *step.values)]
    assert all(torch.equal(now, then) for now, then in zip(kept, before, strict=True))
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept), "larger tensors are kept alive"


@torch.no_grad()
def test_memory_of_a_plan_grows_by_what_its_steps_keep(predictor: ActionConditionedPredictor) -> None:
    _, past = walk(predictor, [at(0, inputs(3, 1))])
    kept = sum(tensor.nbytes for step in past.finished for tensor in (*step.keys, *step.values)) // 3
    joined = kept // ACTION["depth"]
    assert kept == 2 * ACTION["depth"] * (FRAME + 2) * ACTION["predictor_embed_dim"] * 4
    assert predictor.plan_bytes(3) - predictor.plan_bytes(2) == kept + joined
    assert predictor.plan_bytes(1) < predictor.plan_bytes(2) - kept


def test_gradients_through_kept_steps_equal_those_of_the_whole_network(predictor: ActionConditionedPredictor) -> None:
    """The frame imagined at each step is the next step's input, as planners and the rollout loss use it."""
    model = sibling(predictor, residual=True)
    state = random(1, 7, seed=7)

    def leaves() -> tuple[Tensor, Tensor]:
        model.zero_grad()
        return random(1, FRAME, 16).requires_grad_(), random(3, 4, 7, seed=1).requires_grad_()

    def gradients(frame: Tensor, actions: Tensor, last: Tensor) -> list[Tensor]:
        (last * random(FRAME, 16, seed=9)).sum().backward()
        assert frame.grad is not None and actions.grad is not None
        return [frame.grad, actions.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    frame, actions = leaves()
    imagined, past = frame, None
    for step in range(4):
        predicted, past = model.step(imagined, actions[:, step], state, past=past)
        imagined = layer_norm_features(predicted)
    kept = gradients(frame, actions, imagined)

    frame, actions = leaves()
    frames = frame.expand(3, -1, -1)
    for step in range(1, 5):
        predicted = model(frames, actions[:, :step], state[:, None].expand(1, step, -1))[:, -FRAME:]
        frames = torch.cat([frames, layer_norm_features(predicted)], dim=1)
    whole = gradients(frame, actions, frames[:, -FRAME:])
    assert len(kept) == len(whole) > 20
    for found, expected in zip(kept, whole, strict=True):
        assert float((found - expected).norm()) <= 5e-5 * float(expected.norm()) + 1e-7


@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
@torch.no_grad()
def test_half_precision_follows_single_precision_in_both_modes(
    predictor: ActionConditionedPredictor, mode: str
) -> None:
    given = inputs(3, 4)
    exact = predictor(*given)
    model, dtype = predictor, torch.float32
    if mode == "bfloat16":
        model, dtype = sibling(predictor).to(torch.bfloat16), torch.bfloat16
    given = [tensor.to(dtype) for tensor in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        whole, (steps, _) = model(*given), walk(model, [at(step, given) for step in range(4)])
        _, past = walk(model, [at(step, given) for step in range(3)])
        ahead = model(given[0][:, 3 * FRAME :], given[1][:, 3:], given[2][:, 3:], past=past)
    for found in (whole, steps, ahead):
        assert found.dtype == torch.bfloat16
        expected = exact[:, -found.shape[1] :]
        assert float((found.float() - expected).norm() / expected.norm()) < 0.02
    assert past.finished[0].keys[0].dtype == torch.bfloat16
    if mode == "bfloat16":
        with pytest.raises(ShapeError, match="precision"):
            predictor.step(*at(0, inputs(3, 1)), past=past)


def test_both_modes_build_and_run_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = ActionConditionedPredictor(ActionPredictorConfig(embed_dim=1408, depth=24, num_heads=16))
        frame, action, state = torch.empty(1, 256, 1408), torch.empty(800, 7), torch.empty(1, 7)
        predicted, past = model.step(frame, action, state)
        predicted, past = model.step(predicted, action, state, past=past)
        last = model(predicted, action[:, None], state[:, None], past=past)
    assert predicted.shape == last.shape == (800, 256, 1408) and past.steps == 2


def test_scales_and_centre_act_on_raw_units_and_are_off_by_default(predictor: ActionConditionedPredictor) -> None:
    frames, actions, states = inputs(2, 2)
    centre = tuple(float(value) for value in range(7))
    scaled = sibling(predictor, action_scale=20.0, state_center=centre, state_scale=5.0)
    by_hand = predictor(frames, actions * 20.0, (states - torch.tensor(centre)) * 5.0)
    torch.testing.assert_close(scaled(frames, actions, states), by_hand, atol=1e-5, rtol=0)
    assert not torch.allclose(scaled(frames, actions, states), predictor(frames, actions, states))
    assert ActionPredictorConfig.from_dict(scaled.config.to_dict()) == scaled.config


def test_init_std_sets_the_spread_of_new_weights() -> None:
    for std in (0.02, 0.08):
        model = ActionConditionedPredictor(ActionPredictorConfig(**{**ACTION, "init_std": std}))
        assert abs(float(model.predictor_blocks[0].attn.qkv.weight.detach().std()) / std - 1) < 0.1  # type: ignore[union-attr,arg-type]


def test_steps_sizes_and_extrinsics_that_do_not_fit_are_refused(predictor: ActionConditionedPredictor) -> None:
    frames, actions, states = inputs(2, 2)
    camera = sibling(predictor, use_extrinsics=True)
    refusals: list[tuple[str, ActionConditionedPredictor, list[Tensor]]] = [
        ("frame_tokens", predictor, [frames[:, :7], actions, states]),
        ("frame_tokens", predictor, [frames[..., :8], actions, states]),
        ("frame_tokens", predictor, [frames[0], actions, states]),
        ("states", predictor, [frames, actions, states[:, :1]]),
        ("states", predictor, [frames, actions, states[..., :6]]),
        ("states", predictor, [frames, actions, random(3, 2, 7)[:2, :, None]]),
        ("actions", predictor, [frames, actions[..., :6], states]),
        ("actions", predictor, [frames, actions[:, 0], states]),
        ("actions", predictor, [frames, actions[:, :0], states]),
        ("actions", predictor, [random(3, 8, 16), actions, states]),
        ("extrinsics", predictor, [frames, actions, states, random(2, 2, 6)]),
        ("extrinsics", camera, [frames, actions, states]),
        ("extrinsics", camera, [frames, actions, states, random(2, 2, 7)]),
        ("actions.*float32", predictor, [frames, actions.long(), states]),
        ("states.*float64", predictor, [frames, actions, states.double()]),
        ("frame_tokens.*meta", predictor, [frames.to("meta"), actions, states]),
    ]
    for named, model, tensors in refusals:
        with pytest.raises(ShapeError, match=named):
            model(*tensors)
    with pytest.raises(ShapeError, match="actions"), torch.autocast("cpu", torch.bfloat16):
        predictor(frames, actions.long(), states)
    for grid in ((0, 4), (4,), (2, 2, 1)):
        with pytest.raises(ShapeError, match="grid"):
            predictor(frames, actions, states, grid=grid)
    with pytest.raises(ShapeError, match="3 x 2 patches"):
        predictor(frames, actions, states, grid=(3, 2))
    with pytest.raises(ConfigError, match="state_center"):
        ActionPredictorConfig(**ACTION, state_center=(0.0, 1.0))


@torch.no_grad()
def test_a_past_that_does_not_fit_is_refused(predictor: ActionConditionedPredictor) -> None:
    step = at(0, inputs(3, 1))
    _, past = predictor.step(*step)
    with pytest.raises(ShapeError, match="action is not that of one step"):
        predictor.step(step[0], step[1][:, None], step[2], past=past)
    with pytest.raises(ShapeError, match="state is not that of one step"):
        predictor.step(step[0], step[1], step[2][0], past=past)
    with pytest.raises(ShapeError, match="past does not fit"):
        predictor.step(*at(0, inputs(5, 1)), past=past)
    with pytest.raises(ShapeError, match="grid"):
        predictor.step(*step, past=past, grid=(1, 4))
    strangers = (build(depth=1), build(num_heads=4), build(predictor_embed_dim=64))
    for stranger in strangers:
        with pytest.raises(ShapeError, match="past does not fit"):
            stranger.step(*step, past=past)
    with pytest.raises(ShapeError, match="past does not fit"):
        sibling(predictor, use_extrinsics=True).step(*step, random(3, 6), past)
