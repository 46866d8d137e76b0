"""The engines: ZeRO stages and rank counts agree, state goes from one to the other, a bad rank stops the step for all."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from models.preprocessing import normalise
from pipelines.errors import InputError
from pipelines.pretraining.masks import sample_masks
from pipelines.training.checkpoint import read_engine_state
from pipelines.training.engine import EngineConfig, PlainEngine, parameter_groups
from pipelines.training.launcher import distributed_jobs, launch

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("two_ranks.py")


def load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_ranks", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


two_ranks = load_program()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What both ranks of one launch have measured; every distributed check below reads it."""
    folder = tmp_path_factory.mktemp("two_ranks")
    jobs = [
        replace(job, command=[sys.executable, str(PROGRAM), str(folder)], env={**job.env, "PYTHONPATH": str(ROOT)})
        for job in distributed_jobs("unused", [], 2)
    ]
    lines: list[str] = []
    codes = launch(jobs, cwd=ROOT, work_folder=folder / "work", on_line=lines.append)
    assert codes == [0, 0], "\n".join(lines[-40:])
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def plain(start: int = 0, stop: int = 5, clip: float | None = None) -> tuple[PlainEngine, list[float]]:
    engine = PlainEngine(two_ranks.make_net(), EngineConfig())
    return engine, two_ranks.advance(engine, start, stop, clip=clip)[0]


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def test_zero_stages_on_two_ranks_agree_with_plain_torch_on_one(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    engine, losses = plain(clip=two_ranks.CLIP)
    for stage in (0, 1, 2):
        assert ranks[1][0][f"losses {stage}"] == pytest.approx(losses, abs=1e-5)
        close(ranks[1][0][f"weights {stage}"], two_ranks.weights(engine))
        close(ranks[1][0][f"weights {stage}"], ranks[1][1][f"weights {stage}"], atol=0)


def reference() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Twenty steps of pretraining as anybody would write them down: no engine, no loop, one mask group at a time."""
    recipe, phase = two_ranks.real_recipe(), two_ranks.REAL
    student = two_ranks.build_student(recipe, phase)
    encoder, predictor, target = student.encoder, student.predictor, copy.deepcopy(student.encoder)
    named = [(name, value) for name, value in student.named_parameters() if value.requires_grad]
    decayed = [value for name, value in named if value.ndim > 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": [value for _, value in named if value.ndim == 1], "weight_decay": 0.0}], weight_decay=0.04)
    losses = []
    for step in range(phase.steps):
        clips = normalise(two_ranks.real_video(step))
        with torch.no_grad():
            truth = torch.nn.functional.layer_norm(target(clips), (32,))
        masks = sample_masks(phase.masks, (2, 3, 3), seed=0, phase="pretrain", step=step, global_batch=4, truncation="random")
        loss = torch.zeros(())
        for mask in masks:
            predicted = predictor(encoder(clips, mask.context_ids), mask.context_ids, mask.target_ids, grid=(2, 3, 3))
            wanted = torch.gather(truth, 1, mask.target_ids[..., None].expand(-1, -1, 32))
            loss = loss + (predicted - wanted).abs().mean() / len(masks)
        curve, done = phase.learning_rate, step + 1
        warm = done < curve.warmup_steps
        share = (done - curve.warmup_steps) / (phase.steps - curve.warmup_steps)
        down = curve.final + (curve.peak - curve.final) * (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = curve.start + (curve.peak - curve.start) * done / curve.warmup_steps if warm else down
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        momentum = phase.ema[0] + (phase.ema[1] - phase.ema[0]) * step / phase.steps
        with torch.no_grad():
            for average, value in zip(target.parameters(), encoder.parameters(), strict=True):
                average.mul_(momentum).add_(value, alpha=1 - momentum)
        losses.append(float(loss.detach()))
    averages = {f"target.{name}": value for name, value in target.state_dict().items()}
    return losses, {**{name: value.detach() for name, value in student.state_dict().items()}, **averages}


def test_twenty_steps_of_pretraining_equal_a_plain_loop_on_one_rank_and_on_two_at_every_zero_stage(
    ranks: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    losses, expected = reference()
    recipe = two_ranks.real_recipe()
    start = two_ranks.build_student(recipe, two_ranks.REAL)
    assert max(float((expected[name] - value).abs().max()) for name, value in start.state_dict().items()) > 1e-3  # it has trained
    student = two_ranks.build_student(recipe, two_ranks.REAL)
    target = two_ranks.make_target(student.encoder)
    found = {"one process": two_ranks.pretrain(PlainEngine(student, EngineConfig(), torch.device("cpu")), recipe, target, tmp_path)}
    found |= {f"ZeRO {stage} on two ranks": ranks[1][0][f"real {stage}"] for stage in (0, 1, 2)}  # stage 2 in micro-batches
    for name, (shown, weights) in found.items():
        assert shown == pytest.approx(losses, abs=1e-5), name
        close(weights, expected)


def test_no_limit_of_deepspeeds_own_is_at_work(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    engine = PlainEngine(two_ranks.make_net(), EngineConfig())
    moments = two_ranks.shout(engine)
    assert engine.gradient_norm() > 100
    for stage in (0, 1, 2):
        close(ranks[1][0][f"loud moments {stage}"], moments, atol=1e-2)


def test_resumed_run_equals_the_undisturbed_one_to_the_bit(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    for stage in (0, 1, 2):
        close(ranks[1][0][f"resumed {stage}"], ranks[1][0][f"weights {stage}"], atol=0)


def test_state_of_two_ranks_goes_on_on_one(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    for stage in (0, 1, 2):
        engine = PlainEngine(two_ranks.make_net(), EngineConfig())
        state = read_engine_state(ranks[0] / str(stage))
        assert state.steps == 2
        engine.restore(state)
        two_ranks.advance(engine, 2, two_ranks.STEPS, clip=two_ranks.CLIP)
        close(two_ranks.weights(engine), ranks[1][0][f"weights {stage}"])


def test_nan_on_one_rank_skips_the_step_on_both_and_leaves_no_trace(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    reference = PlainEngine(two_ranks.make_net(), EngineConfig())
    two_ranks.advance(reference, 0, 1)
    two_ranks.advance(reference, 2, 4)
    for stage in (0, 1, 2):
        for rank in ranks[1]:
            assert rank[f"poisoned moves {stage}"] == [False] and rank[f"unmoved {stage}"]
            assert rank[f"later moves {stage}"] == [True, True]
            close(rank[f"later {stage}"], two_ranks.weights(reference))


def test_bf16_computes_low_and_keeps_weights_in_float32(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    _, losses = plain()
    assert ranks[1][0]["bf16 dtypes"] == {"torch.float32"}
    assert ranks[1][0]["bf16 losses"] == pytest.approx(losses, abs=0.03)
    assert ranks[1][0]["bf16 losses"] != pytest.approx(losses, abs=1e-6)


def test_ranks_speak_with_each_other(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank in ranks[1]:
        assert rank["gathered"].flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
        assert rank["from first"] == 7


def test_infinite_loss_is_refused_although_its_gradient_is_finite() -> None:
    engine, _ = plain(stop=1)
    before = two_ranks.weights(engine)
    output = engine(torch.ones(1, 6)).sum()
    engine.backward(output + torch.tensor(float("inf")))
    assert not engine.step(1e-2, 0.1)
    close(before, two_ranks.weights(engine), atol=0)


def test_accumulated_micro_batches_equal_the_whole_batch() -> None:
    whole, _ = plain(stop=1)
    parts = PlainEngine(two_ranks.make_net(), EngineConfig(accumulation=2))
    inputs, targets = two_ranks.data(0)
    for half in (slice(0, 4), slice(4, 8)):
        parts.backward((parts(inputs[half]) - targets[half]).abs().mean())
        assert parts.step(1e-2, 0.1)
    close(two_ranks.weights(whole), two_ranks.weights(parts), atol=1e-6)


def test_only_weights_with_more_than_one_axis_decay() -> None:
    net = two_ranks.make_net()
    names = {id(value): name for name, value in net.named_parameters()}
    decayed, rest = ([names[id(value)] for value in group["params"]] for group in parameter_groups(net))
    assert decayed == ["token", "first.weight", "last.weight"]
    assert rest == ["first.bias", "norm.weight", "norm.bias", "last.bias"]


def test_zero_3_and_states_of_other_networks_are_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="shards the weights"):
        EngineConfig(zero_stage=3)
    engine, _ = plain(stop=1)
    state = engine.state()
    assert state is not None
    foreign = replace(state, weights={**state.weights, "extra": torch.zeros(1)})
    with pytest.raises(InputError, match="extra"):
        engine.restore(foreign)
