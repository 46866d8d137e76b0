"""What the loop is given: the loss that is minimised and those that are shown, whatever the objective and the micro-batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.errors import InputError
from pipelines.pretraining.objective import context_weight
from pipelines.pretraining.run import build_student
from pipelines.pretraining.task import Pretraining
from pipelines.recipes import Phase, Recipe, load_recipe
from pipelines.training.ema import make_target
from pipelines.training.engine import EngineConfig, PlainEngine

RAMP = {"weight": 0.5, "begins": 1, "full": 3}


def recipe_of(levels: bool = False, context_output: bool = False, truncation: str = "random", **phase: Any) -> Recipe:
    """The smoke recipe, changed; `levels` as V-JEPA 2.1 has them."""
    values = load_recipe("smoke").resolved()
    values["encoder"] |= {"levels": [0, 1]} if levels else {}
    values["predictor"] |= {"context_output": context_output}
    values["pretraining"] |= {"mask_truncation": truncation, "pretrain": values["pretraining"]["pretrain"] | {"height": 64, "width": 64} | phase}
    return Recipe.model_validate(values)


def task_of(recipe: Recipe) -> Pretraining:
    phase = recipe.pretraining.pretrain
    student = build_student(recipe, phase)
    engine = PlainEngine(student, EngineConfig(accumulation=phase.accumulation), torch.device("cpu"))
    return Pretraining(engine, make_target(student.encoder), recipe.pretraining, "pretrain", recipe.seed, "test")


def batch_of(phase: Phase) -> Any:
    random = torch.Generator().manual_seed(0)
    shape = (phase.global_batch, 3, phase.frames, phase.height, phase.width)
    return SimpleNamespace(video=torch.randint(0, 256, shape, dtype=torch.uint8, generator=random), clip_ids=["clip"] * phase.global_batch, shown=[])


@pytest.mark.parametrize("truncation", ["random", "none"])
def test_loss_on_the_context_is_added_by_the_weight_of_the_step_and_shown_without_it(truncation: str) -> None:
    recipe = recipe_of(levels=True, context_output=True, truncation=truncation, context_loss=RAMP)
    phase, task = recipe.pretraining.pretrain, task_of(recipe)
    assert phase.context_loss is not None
    for step, weight in ((0, 0.0), (2, 0.25), (5, 0.5)):
        loss, shown = task.losses(step, batch_of(phase), 0)
        prediction, context = shown.detach().chunk(2)
        assert len(prediction) == len(phase.masks) and bool((context > 0).all())
        assert context_weight(phase.context_loss, step) == weight
        assert float(loss.detach()) == pytest.approx(float(prediction.mean() + weight * context.mean()), rel=1e-6)


def test_without_a_loss_on_the_context_the_mean_of_the_strategies_is_minimised() -> None:
    recipe = recipe_of()
    loss, shown = task_of(recipe).losses(0, batch_of(recipe.pretraining.pretrain), 0)
    assert len(shown) == 2 and torch.equal(loss, shown.mean())


def test_a_phase_whose_loss_and_predictor_do_not_match_is_refused() -> None:
    for recipe in (recipe_of(context_loss=RAMP), recipe_of(context_output=True)):
        with pytest.raises(InputError, match="context"):
            build_student(recipe, recipe.pretraining.pretrain)


@pytest.mark.parametrize("truncation", ["random", "none"])
def test_micro_batches_change_neither_gradient_nor_loss_nor_work(truncation: str) -> None:
    found = []
    for accumulation in (1, 2, 4):
        recipe = recipe_of(levels=True, context_output=True, truncation=truncation, context_loss={"weight": 0.5}, accumulation=accumulation)
        task = task_of(recipe)
        losses = []
        for part in range(accumulation):
            loss, shown = task.losses(0, batch_of(recipe.pretraining.pretrain), part)
            task.engine.backward(loss)
            losses.append(shown.detach())
        gradient = torch.cat([value.grad.flatten() for value in task.engine.module.parameters() if value.grad is not None])
        found.append((torch.stack(losses).mean(dim=0), gradient, task.work(None)))
    for losses, gradient, work in found[1:]:
        torch.testing.assert_close(losses, found[0][0], rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-6)
        assert work == found[0][2]


def test_in_bf16_the_target_computes_as_low_as_the_student_and_its_weights_stay_float32() -> None:
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> Any:
        def hook(_: Any, __: Any, output: torch.Tensor) -> None:
            seen[name] = output.dtype

        return hook

    recipe = load_recipe("smoke")
    student = build_student(recipe, recipe.pretraining.pretrain)
    engine = PlainEngine(student, EngineConfig(precision="bf16"), torch.device("cpu"))
    task = Pretraining(engine, make_target(student.encoder), recipe.pretraining, "pretrain", 0, "tested")
    for name, network in (("student", student.encoder), ("target", task.target)):
        network.blocks[0].mlp.fc1.register_forward_hook(note(name))
    loss, _ = task.losses(0, batch_of(recipe.pretraining.pretrain), 0)
    assert seen == {"student": torch.bfloat16, "target": torch.bfloat16} and loss.dtype == torch.float32
    assert {value.dtype for value in task.target.parameters()} == {torch.float32}
