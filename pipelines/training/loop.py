"""The training loop: one readable order of forward, backward, step, average, count, checkpoint.

Everything that changes with the step is a function of the step, so the cursor of a resumed run is one integer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pipelines.recipes import Curve
from pipelines.reporting import LINE_EVERY_S, Reporter
from pipelines.training.checkpoint import Beside, Writer
from pipelines.training.engine import Engine
from pipelines.training.guard import Guard, GuardStop, Stopped, StopRequest
from pipelines.training.schedule import ema_momentum, learning_rate

RECENT_STEPS = 50
"""Steps that the shown loss is averaged over."""


class Work(NamedTuple):
    """What one rank's step took: clips, tokens through any network, and the FLOPs of the model's matrix products."""

    clips: int
    tokens: int
    flops: int


class Task(Protocol):
    """What is trained, seen from the loop. Steps are counted from 0 here. `names` are those of the losses that are shown; health is
    judged by the mean of the first `judged` of them."""

    names: tuple[str, ...]
    judged: int

    def losses(self, step: int, batch: Any, part: int) -> tuple[Tensor, Tensor]:
        """What is minimised, a scalar with gradients, and the losses to show (k,), of micro-batch `part` of this rank's batch."""

    def about_to_move(self, step: int) -> None:
        """The weights will move now."""

    def moved(self, momentum: float) -> None:
        """The weights have moved: average the target."""

    def measure(self, done: int, numbers: dict[str, float]) -> tuple[dict[str, float], str] | None:
        """Health after `done` steps, as numbers and as a line, or None when it is not due. All ranks take part."""

    def beside(self) -> Beside:
        """What a checkpoint needs beside the engine's state, copied (rank 0)."""

    def work(self, batch: Any) -> Work:
        """What this rank's batch took."""


class Data(Protocol):
    """Where batches come from. What may not be used can change while a training runs."""

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """Batches of steps `start` to `stop`."""

    def changed(self) -> bool:
        """Whether this rank knows of a change that is not obeyed yet."""

    def obey(self, step: int) -> None:
        """Obey it from `step` on. All ranks take part."""

    def accuse(self, batches: Sequence[tuple[int, Sequence[int]]]) -> list[str]:
        """Write down the samples of these (step, ranks) as what the training stopped on, and return names of them."""


@dataclass(frozen=True)
class Schedule:
    """`clip`: the largest gradient norm, None for any. `peak_flops`: what a rank's device does in a second at best."""

    steps: int
    learning_rate: Curve
    ema: tuple[float, float]
    weight_decay: float
    checkpoint_every: int
    peak_flops: float
    clip: float | None = None
    accumulation: int = 1


@dataclass
class Window:
    """Sums since the last progress line."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    spikes: int = 0
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
    checkpoints: Writer,
    guard: Guard,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Run steps `start` to `schedule.steps`, with a checkpoint every `checkpoint_every` and none at the end.

    Raises `Stopped` after the checkpoint when any rank was asked to stop, `GuardStop` when the guard ends it.
    """

    def beside() -> Beside:
        tensors, content = task.beside()
        return tensors, {**content, "guard": guard.to_dict()}

    window, wait_share, last_line, spread = Window(), 0.0, 0.0, ""
    recent: deque[float] = deque(maxlen=RECENT_STEPS)
    blamed: dict[int, list[int]] = {}
    supply = data.batches(start, schedule.steps)
    for step in range(start, schedule.steps):
        done = step + 1
        asked_at = time.monotonic()
        batch = next(supply)
        waited = time.monotonic() - asked_at
        rate = learning_rate(schedule.learning_rate, done, schedule.steps)
        momentum = ema_momentum(schedule.ema, done, schedule.steps)

        parts, moved = [], True
        for part in range(schedule.accumulation):
            loss, shown = task.losses(step, batch, part)
            engine.backward(loss)
            parts.append(torch.cat([loss.detach().reshape(1), shown.detach()]))
            if part == schedule.accumulation - 1:
                task.about_to_move(step)
            moved = engine.step(rate, schedule.weight_decay, guard.clip(schedule.clip))
        if moved:
            task.moved(momentum)
        own = torch.stack(parts).mean(dim=0)

        # One small collective a step carries the losses, whether rank 0 wants to speak, whether anyone must stop, and whether
        # something was taken down.
        speak = engine.rank == 0 and time.monotonic() - last_line >= LINE_EVERY_S
        flags = own.new_tensor([float(speak), float(stop.asked), float(data.changed())])
        mean_of_loss, *each, speak_now, stop_now, changed_now = engine.mean(torch.cat([own, flags])).tolist()
        if not moved:
            finite = engine.gather(own[:1].isfinite().to(torch.float32)).tolist()
            blamed[done] = [rank for rank, good in enumerate(finite) if not good]
        norm = engine.gradient_norm()
        try:
            spike = guard.note(done, moved, mean_of_loss, norm)
        except GuardStop as error:
            names = data.accuse([(number - 1, blamed.get(number) or range(engine.world)) for number in error.steps])
            error.found = f"{error.found}, on clips {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
            checkpoints.finish()
            engine.barrier()  # all ranks are here, and one that ended before the checkpoint is whole would take the others with it
            raise
        checkpoints.check()

        work = task.work(batch)
        now = time.monotonic()
        seconds = now - asked_at
        window.steps, window.spikes, window.waited = window.steps + 1, window.spikes + spike, window.waited + waited
        window.clips, window.tokens = window.clips + work.clips * engine.world, window.tokens + work.tokens * engine.world
        if moved:
            recent.append(sum(each[: task.judged]) / task.judged)
        mean_loss = sum(recent) / max(1, len(recent))
        speed = work.flops / seconds
        reporter.metrics(done, {
            "loss": mean_of_loss, **dict(zip(task.names, each, strict=True)), "learning_rate": rate,
            "weight_decay": schedule.weight_decay, "momentum": momentum, "gradient_norm": norm, "moved": float(moved), "spike": float(spike),
            "seconds": seconds, "data_wait": waited / seconds, "clips_per_s": work.clips * engine.world / seconds,
            "tokens_per_s": work.tokens * engine.world / seconds, "flops_per_s": speed * engine.world, "mfu": speed / schedule.peak_flops,
        })  # fmt: skip
        if not moved:
            reporter.log(f"step {done}/{schedule.steps}  loss {mean_of_loss:.4f}  gradient norm {norm:.3g}: not finite, so the weights stay as they are")

        if speak_now:
            elapsed = max(now - window.started, 1e-9)
            wait_share = window.waited / elapsed
            reporter.log(
                f"step {done}/{schedule.steps}  loss {mean_loss:.4f}  lr {rate:.2e}  ema {momentum:.5f}  "
                f"{window.clips / elapsed:.0f} clips/s  {window.tokens / elapsed:.0f} tokens/s  data wait {100 * wait_share:.0f} %{spread}  "
                f"{f'{window.spikes} spikes  ' if window.spikes else ''}"
                f"{(schedule.steps - done) * elapsed / window.steps:.0f} s left"
            )
            window, last_line = Window(), now
        measured = task.measure(done, {"mean_loss": mean_loss, "data_wait": wait_share})
        if measured is not None:
            values, line = measured
            spread = f"  target std {values['target_std']:.2f}"
            reporter.metrics(done, values)
            reporter.log(f"step {done}/{schedule.steps}  {line}")
        if changed_now and done < schedule.steps:  # after the last step nothing is drawn any more, so nothing can be missing
            data.obey(done)
        if stop_now:
            checkpoints.save(done, beside)
            checkpoints.finish()
            engine.barrier()  # a rank that ended before the checkpoint is whole would take the others with it
            raise Stopped(f"asked to stop: checkpoint of step {done} written")
        if done % schedule.checkpoint_every == 0 and done < schedule.steps:
            checkpoints.save(done, beside)
    checkpoints.finish()
