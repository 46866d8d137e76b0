"""The program of the shared two-rank launch of test_training_engine: `python two_ranks.py FOLDER`. Writes FOLDER/rank<r>.pt."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.training import checkpoint
from pipelines.training.engine import DeepSpeedEngine, Engine, EngineConfig

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


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in engine.module.state_dict().items()}


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
        poisoned = DeepSpeedEngine(make_net(), EngineConfig(zero_stage=stage))
        advance(poisoned, 0, 1)
        before = weights(poisoned)
        results[f"poisoned moves {stage}"] = advance(poisoned, 1, 2, poison=(1, 1))[1]
        results[f"unmoved {stage}"] = all(bool((before[name] == value).all()) for name, value in weights(poisoned).items())
        results[f"later moves {stage}"] = advance(poisoned, 2, 4)[1]
        results[f"later {stage}"] = weights(poisoned)
    low = DeepSpeedEngine(make_net(), EngineConfig(zero_stage=1, precision="bf16"))
    results["bf16 losses"] = advance(low, 0, STEPS)[0]
    results["bf16 dtypes"] = {str(value.dtype) for value in low.module.parameters()}
    results["gathered"] = low.gather(torch.full((2, 1), float(low.rank)))
    results["from first"] = low.from_first(7 + low.rank)
    torch.save(results, folder / f"rank{low.rank}.pt")
    low.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
