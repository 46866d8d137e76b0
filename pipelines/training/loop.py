"""The training loop: one readable order of forward, backward, step, average, count, checkpoint.

Everything that changes with the step is a function of the step, so the cursor of a resumed run is one integer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pipelines.recipes import Curve
from pipelines.reporting import LINE_EVERY_S, Reporter
from pipelines.training import checkpoint
from pipelines.training.engine import Engine
from pipelines.training.guard import Guard, Stopped, StopRequest
from pipelines.training.schedule import ema_momentum, learning_rate

RECENT_STEPS = 50
"""Steps that the shown loss is averaged over."""


class Task(Protocol):
    """What is trained, seen from the loop. Steps are counted from 0 here."""

    def losses(self, step: int, batch: Any) -> Tensor:
        """The loss of each mask strategy (k,) for this rank's batch, with gradients."""

    def moved(self, momentum: float) -> None:
        """The weights have moved: average the target."""

    def measure(self, done: int, numbers: dict[str, float]) -> tuple[dict[str, float], str] | None:
        """Health after `done` steps, as numbers and as a line, or None when it is not due. All ranks take part."""

    def fill(self, folder: Path) -> dict[str, Any]:
        """Write what a checkpoint needs beside the engine's state (rank 0) and return JSON-able state."""

    def samples(self, batch: Any) -> list[str]:
        """Names of a batch's samples, for error messages."""

    def work(self, batch: Any) -> tuple[int, int]:
        """(clips, tokens) of this rank's batch, for throughput."""


class Data(Protocol):
    """Where batches come from. What may not be used can change while a training runs."""

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """Batches of steps `start` to `stop`."""

    def changed(self) -> bool:
        """Whether this rank knows of a change that is not obeyed yet."""

    def obey(self, step: int) -> None:
        """Obey it from `step` on. All ranks take part."""


@dataclass(frozen=True)
class Schedule:
    steps: int
    learning_rate: Curve
    ema: tuple[float, float]
    weight_decay: float
    checkpoint_every: int


@dataclass
class Window:
    """Sums since the last progress line."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    waited: float = 0.0
    clips: int = 0
    tokens: int = 0


def train(
    engine: Engine,
    task: Task,
    schedule: Schedule,
    data: Data,
    *,
    start: int,
    checkpoints: Path,
    guard: Guard,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Run steps `start` to `schedule.steps`, with a checkpoint every `checkpoint_every` and none at the end.

    Raises `Stopped` after the checkpoint when any rank was asked to stop, `GuardStop` when the guard ends it.
    """

    def keep(step: int) -> None:
        checkpoint.save(checkpoints, step, engine, lambda folder: {**task.fill(folder), "guard": guard.to_dict()})

    window, wait_share, last_line, spread = Window(), 0.0, 0.0, ""
    recent: deque[float] = deque(maxlen=RECENT_STEPS)
    supply = data.batches(start, schedule.steps)
    for step in range(start, schedule.steps):
        asked_at = time.monotonic()
        batch = next(supply)
        window.waited += time.monotonic() - asked_at
        rate = learning_rate(schedule.learning_rate, step + 1, schedule.steps)
        momentum = ema_momentum(schedule.ema, step + 1, schedule.steps)

        losses = task.losses(step, batch)
        engine.backward(losses.mean())
        moved = engine.step(rate, schedule.weight_decay)
        if moved:
            task.moved(momentum)

        # One small collective a step carries the losses, whether rank 0 wants to speak, whether anyone must stop, and whether
        # something was taken down.
        speak = engine.rank == 0 and time.monotonic() - last_line >= LINE_EVERY_S
        shared = engine.mean(torch.cat([losses.detach(), losses.new_tensor([float(speak), float(stop.asked), float(data.changed())])])).tolist()
        *each, speak_now, stop_now, changed_now = shared
        loss, done = sum(each) / len(each), step + 1
        clips, tokens = task.work(batch)
        if moved:
            recent.append(loss)
        mean_loss = sum(recent) / max(1, len(recent))
        window.steps += 1
        window.clips, window.tokens = window.clips + clips * engine.world, window.tokens + tokens * engine.world
        reporter.metrics(done, {
            "loss": loss, **{f"loss_{number}": value for number, value in enumerate(each)}, "learning_rate": rate,
            "momentum": momentum, "gradient_norm": engine.gradient_norm(), "moved": float(moved),
        })  # fmt: skip
        guard.note(done, moved, task.samples(batch))

        if speak_now:
            seconds = max(time.monotonic() - window.started, 1e-9)
            wait_share = window.waited / seconds
            reporter.log(
                f"step {done}/{schedule.steps}  loss {mean_loss:.4f}  lr {rate:.2e}  ema {momentum:.5f}  "
                f"{window.clips / seconds:.0f} clips/s  {window.tokens / seconds:.0f} tokens/s  data wait {100 * wait_share:.0f} %{spread}  "
                f"{(schedule.steps - done) * seconds / window.steps:.0f} s left"
            )
            window, last_line = Window(), time.monotonic()
        measured = task.measure(done, {"mean_loss": mean_loss, "data_wait": wait_share})
        if measured is not None:
            values, line = measured
            spread = f"  target std {values['target_std']:.2f}"
            reporter.metrics(done, values)
            reporter.log(f"step {done}/{schedule.steps}  {line}")
        if changed_now and done < schedule.steps:  # after the last step nothing is drawn any more, so nothing can be missing
            data.obey(done)
        if stop_now:
            keep(done)
            raise Stopped(f"asked to stop: checkpoint of step {done} written")
        if done % schedule.checkpoint_every == 0 and done < schedule.steps:
            keep(done)
