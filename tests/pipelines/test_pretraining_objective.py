"""The objective: what is compared with what, what is averaged over what, and what takes gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.encoder import EncoderConfig, VideoEncoder, layer_norm_features
from models.predictor import MaskedPredictor, PredictorConfig
from pipelines.errors import InputError
from pipelines.pretraining.masks import Masks, Truncation, sample_masks
from pipelines.pretraining.objective import (
    JEPA,
    constant_floor,
    context_losses,
    context_weight,
    squared_distances,
    strategy_losses,
    target_tokens,
)
from pipelines.recipes import ContextLoss, MaskStrategy
from pipelines.training.ema import make_target

GRID, SHAPE = (2, 3, 3), {"img_size": (48, 48), "num_frames": 4}
STRATEGIES = [MaskStrategy(num_blocks=3, spatial_scale=(0.2, 0.2)), MaskStrategy(num_blocks=2, spatial_scale=(0.5, 0.5))]


def small(levels: tuple[int, ...] = (), context_loss: bool = False, images: bool = False) -> JEPA:
    """All weights drawn, so that nothing hides at zero. `images`: with the parts that V-JEPA 2.1 has for them."""
    shape: dict[str, Any] = SHAPE | {"modality_embeddings": images}
    encoder = VideoEncoder(EncoderConfig(embed_dim=24, depth=2, num_heads=2, levels=levels, image_tokenizer=images, **shape))
    predictor = PredictorConfig(
        embed_dim=24, predictor_embed_dim=12, depth=1, num_heads=2, levels=max(1, len(levels)), context_output=context_loss, **shape,
    )  # fmt: skip
    student = JEPA(encoder, MaskedPredictor(predictor), 2, context_loss)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in student.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=random))
    return student


def clips(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 4, 48, 48, generator=torch.Generator().manual_seed(1))


def masks_of(batch: int, truncation: Truncation, first: int = 0, count: int | None = None) -> list[Masks]:
    return sample_masks(STRATEGIES, GRID, seed=0, phase="p", step=0, global_batch=batch, first=first, count=count, truncation=truncation)


def gradients(student: JEPA, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    student.zero_grad(set_to_none=True)
    loss.backward()
    return {name: value.grad for name, value in student.named_parameters() if value.grad is not None}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def both_losses(student: JEPA, video: torch.Tensor, targets: torch.Tensor, masks: list[Masks]) -> torch.Tensor:
    predictions = student(video, masks)
    context = context_losses(predictions, targets, masks, GRID, by_distance=True)
    return strategy_losses(predictions, targets, masks).mean() + 0.5 * context.mean()


def test_packed_mask_groups_equal_one_pass_for_each() -> None:
    student, video = small((0, 1), context_loss=True), clips(3)
    targets, masks = target_tokens(student.encoder, video), masks_of(3, "random")
    assert len({mask.context_ids.shape for mask in masks}) == 2
    packed = both_losses(student, video, targets, masks)
    alone = torch.stack([both_losses(student, video, targets, [mask]) for mask in masks]).mean()
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=0)
    assert_same(gradients(student, packed), gradients(student, alone))


def test_uncut_samples_equal_one_pass_for_each() -> None:
    student, video = small((0, 1), context_loss=True), clips(4)
    targets, masks = target_tokens(student.encoder, video), masks_of(4, "none")
    packed = both_losses(student, video, targets, masks)
    kinds = []
    for mask in masks:
        assert len(set(mask.target_lengths or ())) > 1
        sums, counts = torch.zeros(2), torch.zeros(2)
        for number, pair in enumerate(mask.groups()):
            own, single = slice(number, number + 1), Masks(*pair)
            predictions = student(video[own], [single])
            losses = strategy_losses(predictions, targets[own], [single]), context_losses(predictions, targets[own], [single], GRID, True)
            here = torch.tensor([pair[1].numel(), pair[0].numel()])
            sums, counts = sums + torch.cat(losses) * here, counts + here
        kinds.append(sums / counts)
    one_by_one = (torch.stack(kinds) * torch.tensor([1.0, 0.5])).sum(dim=1).mean()
    torch.testing.assert_close(packed, one_by_one, rtol=1e-5, atol=0)
    assert_same(gradients(student, packed), gradients(student, one_by_one))


def test_uncut_loss_does_not_depend_on_how_the_batch_is_shared_out() -> None:
    student, video = small((0, 1), context_loss=True), clips(4)
    targets = target_tokens(student.encoder, video)
    whole = both_losses(student, video, targets, masks_of(4, "none"))
    halves = []
    for first in (0, 2):
        own, masks = slice(first, first + 2), masks_of(4, "none", first, 2)
        assert any(mask.target_share != 1.0 for mask in masks) and any(mask.context_share != 1.0 for mask in masks)
        halves.append(both_losses(student, video[own], targets[own], masks))
    shared = torch.stack(halves).mean()
    torch.testing.assert_close(shared, whole, rtol=1e-5, atol=0)
    assert_same(gradients(student, shared), gradients(student, whole))


def test_every_level_of_the_target_is_layer_normed_by_itself() -> None:
    student, video = small((0, 1), context_loss=True), clips(2)
    targets = target_tokens(student.encoder, video)
    wanted = [layer_norm_features(level) for level in student.encoder(video, layers=[0, 1])]
    torch.testing.assert_close(targets, torch.cat(wanted, dim=-1), rtol=0, atol=1e-6)
    assert not torch.allclose(targets, layer_norm_features(student.encoder(video, all_levels=True)), atol=1e-3)


def test_all_that_is_trained_of_2_1_takes_a_gradient_and_the_parts_for_images_are_left_alone() -> None:
    student, video, masks = small((0, 1), context_loss=True, images=True), clips(2), masks_of(2, "random")
    found = gradients(student, both_losses(student, video, target_tokens(student.encoder, video), masks))
    trained = {name for name, value in student.named_parameters() if value.requires_grad}
    assert found.keys() == trained and all(bool(value.any()) for value in found.values())
    assert {name for name, _ in student.named_parameters()} - trained == {
        "encoder.img_mod_embed", "encoder.patch_embed_img.proj.weight", "encoder.patch_embed_img.proj.bias",
        "predictor.img_mod_embed", "predictor.mask_tokens.1",
    }  # fmt: skip


def test_student_of_2_1_sees_only_the_context_and_predicts_all_levels_of_it_and_of_the_targets() -> None:
    student, video, masks = small((0, 1), context_loss=True), clips(2), masks_of(2, "random")
    before = student(video, masks)
    tubelets = torch.zeros(2, 18, dtype=torch.bool)
    for row, ids in zip(tubelets, masks[0].context_ids, strict=True):
        row[ids] = True
    seen = tubelets.unflatten(1, GRID).repeat_interleave(2, 1).repeat_interleave(16, 2).repeat_interleave(16, 3)
    after = student(torch.where(seen.unsqueeze(1), video, torch.full_like(video, 9.0)), masks)
    for one, other, ids in ((before.targets, after.targets, masks[0].target_ids), (before.context, after.context, masks[0].context_ids)):
        assert one[0].shape == (*ids.shape, 48)
        torch.testing.assert_close(other[0], one[0], rtol=0, atol=0)
    assert not torch.allclose(before.targets[1], after.targets[1])


def test_context_counts_less_the_farther_it_is_from_all_targets() -> None:
    student, video = small((), context_loss=True), clips(2)
    targets, masks = target_tokens(student.encoder, video), masks_of(2, "random")
    predictions = student(video, masks)
    places = torch.cartesian_prod(*(torch.arange(size) for size in GRID)).float()
    wanted, plain = [], []
    for predicted, mask in zip(predictions.context, masks, strict=True):
        errors, factors = [], []
        for sample, (context, target) in enumerate(zip(mask.context_ids, mask.target_ids, strict=True)):
            errors.append((predicted[sample] - targets[sample, context]).abs().mean(dim=1))
            factors.append(torch.cdist(places[context], places[target]).amin(dim=1) ** -0.5)
        assert len(set(torch.cat(factors).tolist())) > 1
        wanted.append((torch.cat(errors) * torch.cat(factors)).mean())
        plain.append(torch.cat(errors).mean())
    torch.testing.assert_close(context_losses(predictions, targets, masks, GRID, by_distance=True), torch.stack(wanted))
    torch.testing.assert_close(context_losses(predictions, targets, masks, GRID, by_distance=False), torch.stack(plain))


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)), st.integers(0, 10**6), st.booleans())
def test_distances_are_those_to_the_nearest_target(grid: tuple[int, int, int], seed: int, uncut: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1] * grid[2]
    lengths = tuple(int(torch.randint(1, tokens + 1, (), generator=random)) for _ in range(3)) if uncut else (1 + seed % tokens,) * 3
    chosen = [torch.randperm(tokens, generator=random)[:length].sort().values for length in lengths]
    mask = Masks(torch.empty(0), torch.cat(chosen).unsqueeze(0), lengths, lengths) if uncut else Masks(torch.empty(3, 0), torch.stack(chosen))
    places = torch.cartesian_prod(*(torch.arange(size) for size in grid)).double().reshape(-1, 3)
    wanted = torch.stack([((places[:, None] - places[ids]) ** 2).sum(dim=2).amin(dim=1) for ids in chosen])
    assert torch.equal(squared_distances(mask, grid).double(), wanted)


def test_weight_of_the_context_loss_is_a_function_of_the_step() -> None:
    rule = ContextLoss(weight=0.5, begins=15_000, full=30_000)
    assert [context_weight(rule, step) for step in (0, 14_999, 15_000, 22_500, 30_000, 10**6)] == [0.0, 0.0, 0.0, 0.25, 0.5, 0.5]
    assert context_weight(ContextLoss(weight=0.7), 0) == 0.7


@pytest.mark.parametrize("context_output", [True, False])
def test_context_loss_and_context_output_go_together(context_output: bool) -> None:
    predictor = dataclasses.replace(small().predictor.config, context_output=context_output)
    with pytest.raises(InputError, match="context") as caught:
        JEPA(small().encoder, MaskedPredictor(predictor), 2, context_loss=not context_output)
    assert "context_output" in str(caught.value.remedy)


def test_target_takes_no_gradient_and_unused_mask_tokens_are_frozen() -> None:
    student, video = small(), clips(2)
    target = make_target(student.encoder)
    masks = [Masks(torch.tensor([[0, 1, 2]] * 2), torch.tensor([[5, 6]] * 2)), Masks(torch.tensor([[4]] * 2), torch.tensor([[1, 7, 3]] * 2))]
    strategy_losses(student(video, masks), target_tokens(target, video), masks).mean().backward()
    assert all(value.grad is None for value in target.parameters())
    without = [name for name, value in student.named_parameters() if value.grad is None]
    assert without == ["predictor.mask_tokens.1"] and not student.predictor.mask_tokens[1].requires_grad
    own = MaskedPredictor(dataclasses.replace(student.predictor.config, mask_token_policy="per_strategy"))
    per_strategy = JEPA(student.encoder, own, 2)
    assert all(token.requires_grad for token in per_strategy.predictor.mask_tokens)


def test_floor_is_the_loss_of_guessing_the_mean() -> None:
    targets = torch.randn(2, 5, 3)
    mean = targets.flatten(0, 1).mean(dim=0)
    assert float(constant_floor(targets)) == pytest.approx(float((targets - mean).abs().mean()))
