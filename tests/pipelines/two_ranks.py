"""The program of the shared two-rank launch of test_training_engine: `python two_ranks.py FOLDER`. Writes FOLDER/rank<r>.pt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.pretraining.run import build_student, schedule_of
from pipelines.pretraining.task import Pretraining
from pipelines.recipes import Curve, Phase, Recipe, load_recipe
from pipelines.reporting import SilentReporter
from pipelines.training import checkpoint
from pipelines.training.ema import make_target
from pipelines.training.engine import DeepSpeedEngine, Engine, EngineConfig
from pipelines.training.guard import Guard, StopRequest
from pipelines.training.loop import train

STEPS = 5
SAMPLES = 8
CLIP = 0.05  # small enough to be at work in every step


class Net(nn.Module):
    """Decayed and free parameters, a frozen one, and one of three axes, as the real student has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.unused = nn.Parameter(torch.ones(1, 1, 4), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.nn.functional.gelu(self.norm(self.first(inputs)))) + self.token[0]


def make_net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net()


def data(step: int) -> tuple[Tensor, Tensor]:
    """The global batch of a step: inputs (SAMPLES, 6) and targets (SAMPLES, 4)."""
    source = torch.Generator().manual_seed(100 + step)
    return torch.randn(SAMPLES, 6, generator=source), torch.randn(SAMPLES, 4, generator=source)


def advance(
    engine: Engine, start: int, stop: int, poison: tuple[int, int] | None = None, clip: float | None = None
) -> tuple[list[float], list[bool]]:
    """Train on this rank's share of each batch; `poison` (step, rank) plants a NaN. Returns global losses and moves."""
    share = SAMPLES // engine.world
    losses, moves = [], []
    for step in range(start, stop):
        inputs, targets = (part[engine.rank * share : (engine.rank + 1) * share] for part in data(step))
        if poison == (step, engine.rank):
            inputs = inputs.clone()
            inputs[0, 0] = float("nan")
        loss = (engine(inputs).float() - targets).abs().mean()
        engine.backward(loss)
        moves.append(engine.step(1e-2 * (step + 1), 0.1, clip))
        losses.append(float(engine.mean(loss.detach())))
    return losses, moves


def shout(engine: Engine) -> dict[str, Tensor]:
    """The moments on rank 0 after one step whose gradient norm is far above any default limit."""
    share = SAMPLES // engine.world
    inputs, targets = (part[engine.rank * share : (engine.rank + 1) * share] for part in data(0))
    engine.backward(1000 * (engine(inputs) - targets).abs().mean())
    engine.step(1e-2, 0.1)
    state = engine.state()
    return state.moments if state is not None else {}


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in engine.module.state_dict().items()}


REAL_STEPS = 20
REAL = Phase(
    steps=REAL_STEPS, global_batch=4, height=48, width=48, frames=4, fps=4, ema=(0.99, 0.995), checkpoint_every=100,
    learning_rate=Curve(start=1e-5, peak=1e-4, final=1e-5, warmup_steps=5, shape="cosine"),
)  # fmt: skip


def real_recipe(accumulation: int = 1) -> Recipe:
    """The smoke recipe with a phase that is long enough to tell implementations apart."""
    smoke = load_recipe("smoke")
    phase = REAL.model_copy(update={"accumulation": accumulation})
    return smoke.model_copy(update={"pretraining": smoke.pretraining.model_copy(update={"pretrain": phase})})


def real_video(step: int) -> Tensor:
    """The global batch of a step: (B, C, T, H, W) uint8."""
    size = (REAL.global_batch, 3, REAL.frames, REAL.height, REAL.width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(step))


class RealData:
    """This rank's share of `real_video`."""

    def __init__(self, engine: Engine) -> None:
        share = REAL.global_batch // engine.world
        self.own = slice(engine.rank * share, (engine.rank + 1) * share)

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        for step in range(start, stop):
            yield SimpleNamespace(video=real_video(step)[self.own], shown=[])

    def changed(self) -> bool:
        return False


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.losses += [values["loss"]] if "loss" in values else []


def pretrain(engine: Engine, recipe: Recipe, target: nn.Module, folder: Path) -> tuple[list[float], dict[str, Tensor]]:
    """The real loop and task on `engine`: losses of all steps, and weights of student and target afterwards."""
    task, notes, settings = Pretraining(engine, target, recipe.pretraining, "pretrain", 0, "tested"), Notes(), recipe.pretraining.pretrain
    train(
        engine, task, schedule_of(settings, 1.0), RealData(engine), start=0, checkpoints=checkpoint.Writer(folder, engine),  # type: ignore[arg-type]
        guard=Guard(), reporter=notes, stop=StopRequest(),
    )  # fmt: skip
    averages = {f"target.{name}": value.clone() for name, value in task.target.state_dict().items()}
    return notes.losses, {**weights(engine), **averages}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    results: dict[str, object] = {}
    for stage in (0, 1, 2):
        engine = DeepSpeedEngine(make_net(), EngineConfig(zero_stage=stage))
        results[f"losses {stage}"], _ = advance(engine, 0, 2, clip=CLIP)
        state = engine.state()
        if state is not None:
            (folder / str(stage)).mkdir()
            save_file(state.weights, folder / str(stage) / checkpoint.STUDENT)
            save_file(checkpoint.moments_file(state), folder / str(stage) / checkpoint.OPTIMIZER)
        engine.barrier()
        results[f"losses {stage}"] += advance(engine, 2, STEPS, clip=CLIP)[0]  # type: ignore[operator]
        results[f"weights {stage}"] = weights(engine)
        resumed = DeepSpeedEngine(make_net(), EngineConfig(zero_stage=stage))
        resumed.restore(checkpoint.read_engine_state(folder / str(stage)))
        advance(resumed, 2, STEPS, clip=CLIP)
        results[f"resumed {stage}"] = weights(resumed)
        loud = DeepSpeedEngine(make_net(), EngineConfig(zero_stage=stage))
        results[f"loud moments {stage}"] = shout(loud)
        poisoned = DeepSpeedEngine(make_net(), EngineConfig(zero_stage=stage))
        advance(poisoned, 0, 1)
        before = weights(poisoned)
        results[f"poisoned moves {stage}"] = advance(poisoned, 1, 2, poison=(1, 1))[1]
        results[f"unmoved {stage}"] = all(bool((before[name] == value).all()) for name, value in weights(poisoned).items())
        results[f"later moves {stage}"] = advance(poisoned, 2, 4)[1]
        results[f"later {stage}"] = weights(poisoned)
        recipe = real_recipe(accumulation=2 if stage == 2 else 1)
        student = build_student(recipe, REAL)
        target = make_target(student.encoder)
        real = DeepSpeedEngine(student, EngineConfig(zero_stage=stage, accumulation=recipe.pretraining.pretrain.accumulation))
        results[f"real {stage}"] = pretrain(real, recipe, target, folder)
    low = DeepSpeedEngine(make_net(), EngineConfig(zero_stage=1, precision="bf16"))
    results["bf16 losses"] = advance(low, 0, STEPS)[0]
    results["bf16 dtypes"] = {str(value.dtype) for value in low.module.parameters()}
    results["gathered"] = low.gather(torch.full((2, 1), float(low.rank)))
    results["from first"] = low.from_first(7 + low.rank)
    torch.save(results, folder / f"rank{low.rank}.pt")
    low.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
