"""The official trainer's numbers, reproduced by the real loop: three steps of its objective, and the rates of its schedules."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from models.encoder import EncoderConfig
from models.predictor import PredictorConfig
from models.weights import from_official
from pipelines.pretraining import task as task_module
from pipelines.pretraining import watch as watch_module
from pipelines.pretraining.masks import Masks
from pipelines.pretraining.objective import JEPA, target_tokens
from pipelines.pretraining.task import Pretraining
from pipelines.recipes import Curve, Phase, PretrainRecipe
from pipelines.reporting import SilentReporter
from pipelines.training.checkpoint import Beside, Writer
from pipelines.training.ema import make_target
from pipelines.training.engine import EngineConfig, PlainEngine
from pipelines.training.guard import Guard, Stopped, StopRequest
from pipelines.training.loop import Schedule, Work, train

GOLDEN = Path(os.environ.get("TUBELET_SHARED", "")) / "golden"
pytestmark = pytest.mark.skipif(not os.environ.get("TUBELET_SHARED"), reason="TUBELET_SHARED is not set")

Named = dict[str, torch.Tensor]


def read(name: str) -> tuple[Named, dict[str, Any]]:
    with safe_open(GOLDEN / f"{name}.io.safetensors", "pt") as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}, json.loads(handle.metadata()["config"])  # noqa: SIM118


class RecordingEngine(PlainEngine):
    """A plain engine that notes the gradients and the rates of every step."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(module, EngineConfig(), torch.device("cpu"))
        self.gradients: list[Named] = []
        self.rates: list[tuple[float, list[float]]] = []

    def step(self, learning_rate: float, weight_decay: float, clip: float | None = None) -> bool:
        assert clip is None  # the official trainer clips nothing
        self.gradients.append({name: value.grad.clone() for name, value in self.module.named_parameters() if value.grad is not None})
        moved = super().step(learning_rate, weight_decay, clip)
        groups = self._optimizer.param_groups
        assert len({group["lr"] for group in groups}) == 1
        self.rates.append((groups[0]["lr"], [group["weight_decay"] for group in groups]))
        return moved


class Recorder(SilentReporter):
    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if "loss" in values:
            self.values.append(values)


class SameBatch:
    """The same clips at every step; copies of the networks' weights as they were before each."""

    def __init__(self, video: torch.Tensor, *networks: torch.nn.Module) -> None:
        self.video, self.networks = video, networks
        self.before: list[list[Named]] = []

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        for _ in range(start, stop):
            self.before.append([{name: value.detach().clone() for name, value in network.named_parameters()} for network in self.networks])
            yield SimpleNamespace(video=self.video, shown=[])

    def changed(self) -> bool:
        return False

    def obey(self, step: int) -> None:
        raise AssertionError("nothing was taken down")

    def accuse(self, batches: Sequence[tuple[int, Sequence[int]]]) -> list[str]:
        raise AssertionError("the guard stopped a healthy training")


def close_but_for(ours: torch.Tensor, theirs: torch.Tensor, share: float) -> None:
    """Equal within 1e-6, but for a share of entries whose gradient is at rounding level, which AdamW's sign-like first steps amplify."""
    error = (ours - theirs).abs()
    assert float((error > 1e-6).float().mean()) <= share and float(error.max()) < 2e-4


def test_three_steps_of_the_loop_equal_the_official_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values, config = read("pretrain_step")
    encoder, predictor = EncoderConfig.from_dict(config["encoder"]), PredictorConfig.from_dict(config["predictor"])
    weights = {name: load_file(GOLDEN / f"pretrain_{name}.weights.safetensors") for name in ("encoder", "predictor", "target_encoder")}
    student = JEPA(from_official("encoder", weights["encoder"], encoder), from_official("predictor", weights["predictor"], predictor), 2)
    target = make_target(from_official("encoder", weights["target_encoder"], encoder))
    torch.testing.assert_close(target_tokens(target, values["clips"]), values["h"], rtol=0, atol=3e-5)

    rate, (height, width) = config["lr"], encoder.img_size
    phase = Phase(
        steps=3, global_batch=len(values["clips"]), height=height, width=width, frames=encoder.num_frames, fps=4,
        learning_rate=Curve(start=rate, peak=rate, final=rate), ema=(config["ema"], config["ema"]), weight_decay=config["wd"],
    )  # fmt: skip
    masks = [Masks(values[f"masks_enc_{number}"], values[f"masks_pred_{number}"]) for number in range(2)]
    monkeypatch.setattr(task_module, "sample_masks", lambda *_, **__: masks)
    for module in (task_module, watch_module):
        monkeypatch.setattr(module, "normalise", lambda video: video)  # the clips are recorded as the networks saw them
    engine, reporter, data = RecordingEngine(student), Recorder(), SameBatch(values["clips"], student, target)
    task = Pretraining(engine, target, PretrainRecipe(pretrain=phase, cooldown=phase), "pretrain", seed=0, identity="official")
    schedule = Schedule(phase.steps, phase.learning_rate, phase.ema, phase.weight_decay, phase.checkpoint_every, peak_flops=1e12)
    train(
        engine, task, schedule, data, start=0, checkpoints=Writer(tmp_path, engine), guard=Guard(), reporter=reporter, stop=StopRequest()
    )  # fmt: skip

    assert [told["loss"] for told in reporter.values] == pytest.approx(values["losses_3_steps"].tolist(), rel=1e-4)
    first = reporter.values[0]
    assert first["loss"] == pytest.approx(float(values["losses_3_steps"][0]), rel=1e-6)
    assert [first["loss_0"], first["loss_1"]] == pytest.approx(values["loss_per_strategy"].tolist(), rel=1e-6)

    gradients = engine.gradients[0]
    for part in ("encoder", "predictor"):
        norm = torch.stack([gradient.double().norm() for name, gradient in gradients.items() if name.startswith(part)]).norm()
        assert float(norm) == pytest.approx(float(values[f"grad_norm_{part}"]), rel=1e-5)
    recorded = [name for name in values if name.startswith("grad.")]
    assert recorded
    for name in recorded:
        difference = gradients[name.removeprefix("grad.")] - values[name]
        assert float(difference.norm() / values[name].norm()) < 5e-5, name
    assert engine.rates == [(rate, [config["wd"], 0.0])] * 3

    after_one, averages_after_one = data.before[1]
    for name in (key for key in values if key.startswith("adamw.")):
        close_but_for(after_one[name.removeprefix("adamw.")], values[name], 0.03 if name.endswith("bias") else 0.0005)
    for name in (key for key in values if key.startswith("ema.")):
        torch.testing.assert_close(averages_after_one[name.removeprefix("ema.target.")], values[name], rtol=0, atol=5e-7)
    norm_weight = dict(student.named_parameters())["encoder.norm.weight"].detach()
    torch.testing.assert_close(norm_weight, values["adamw3.encoder.norm.weight"], rtol=0, atol=2e-4)


class Quadratic:
    """The smallest task: pull a weight to zero. Notes the momentum of every average."""

    names, judged = ("loss_0",), 1

    def __init__(self, weight: torch.nn.Parameter) -> None:
        self.weight = weight
        self.momenta: list[float] = []

    def losses(self, step: int, batch: Any, part: int) -> tuple[torch.Tensor, torch.Tensor]:
        loss = self.weight.square().mean()
        return loss, loss.reshape(1)

    def about_to_move(self, step: int) -> None:
        pass

    def moved(self, momentum: float) -> None:
        self.momenta.append(momentum)

    def measure(self, done: int, numbers: dict[str, float]) -> None:
        return None

    def beside(self) -> Beside:
        return {}, {}

    def work(self, batch: Any) -> Work:
        return Work(1, 1, 1)


@pytest.mark.parametrize("phase", ["pretrain", "cooldown"])
def test_rates_of_the_loop_are_the_released_ones(phase: str, tmp_path: Path) -> None:
    values, config = read("schedules")
    told = config[phase]
    annealed, warmup, steps = bool(told.get("is_anneal")), told["warmup"] * told["ipe"], told["epochs"] * told["ipe"]
    if annealed:  # the released cooldown decays over more steps than it runs
        curve, steps = Curve(start=told["lr"], peak=told["lr"], final=told["final_lr"], shape="linear"), int(steps * told["ipe_scale"])
    else:
        curve = Curve(start=told["start_lr"], peak=told["lr"], final=told["final_lr"], warmup_steps=warmup, shape="cosine")
    schedule = Schedule(steps, curve, tuple(told["ema"]), told["weight_decay"], checkpoint_every=steps, peak_flops=1e12)
    recorded = values[f"{phase}.step"].tolist()
    stop = StopRequest()
    stop.asked = True  # so that every run ends after one step
    for row in [0, 1, *range(2, len(recorded), 20), len(recorded) - 1]:
        module = torch.nn.Linear(2, 2)
        engine, task = RecordingEngine(module), Quadratic(module.weight)
        with pytest.raises(Stopped):
            train(
                engine, task, schedule, SameBatch(torch.zeros(1)), start=recorded[row] - 1,  # type: ignore[arg-type]
                checkpoints=Writer(tmp_path, engine), guard=Guard(), reporter=Recorder(), stop=stop,
            )  # fmt: skip
        ((rate, decays),) = engine.rates
        assert rate == pytest.approx(float(values[f"{phase}.lr"][row]), rel=1e-12)
        assert decays == [float(values[f"{phase}.wd"][row]), 0.0]
        assert task.momenta == [pytest.approx(float(values[f"{phase}.ema"][row]), rel=1e-12)]
