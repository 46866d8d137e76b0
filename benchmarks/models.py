"""Speed of models/ beside other implementations of the same networks, on the same weights, in one run.

    python benchmarks/models.py                       encoder, pretraining step and rollout (CPU), a GPU's part if there is one
    python benchmarks/models.py --quick --only step   a first look in about a minute
    python benchmarks/models.py --official PATH       a checkout of facebookresearch/vjepa2 takes part as well

Every contest proves first that its contestants compute the same thing. Then they take turns, call by call, and medians
and ratios are told. Random weights: speed does not depend on them, and all of them are drawn, biases and mask tokens too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# This folder holds a models.py: as sys.path[0] it would hide the package of that name.
sys.path[0] = str(Path(__file__).resolve().parent.parent) if __name__ == "__main__" else sys.path[0]

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.plain_reference import PlainEncoder, PlainPredictor, gather_tokens, pretraining_loss
from benchmarks.timing import CLOCKS, HEADER, Contest, Result, hold, machine, plot, rows, table, write_json
from models.encoder import ENCODER_SIZES, EncoderConfig, VideoEncoder
from models.predictor import MaskedPredictor, PredictorConfig
from pipelines.pretraining.masks import Masks
from pipelines.pretraining.objective import JEPA, strategy_losses, target_tokens

FEATURE_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Networks and input of a contest; mask sizes are those that upstream's sampler gave at this grid."""

    name: str
    encoder: EncoderConfig
    predictor: PredictorConfig
    batch: int
    context: tuple[int, ...]
    target: tuple[int, ...]
    share: float


def setting(size: str, pixels: int, frames: int, batch: int, context: tuple[int, ...], target: tuple[int, ...]) -> Setting:
    """Encoder of a named size with the 12-layer predictor that upstream puts behind every encoder."""
    encoder = EncoderConfig(**ENCODER_SIZES[size], img_size=(pixels, pixels), num_frames=frames)
    predictor = PredictorConfig(
        embed_dim=encoder.embed_dim, depth=12, num_heads=12, img_size=(pixels, pixels), num_frames=frames
    )
    name = f"{size} {pixels}px {frames}f B={batch}"
    share = 1.0 if pixels < 256 else 0.35
    return Setting(
        name=name, encoder=encoder, predictor=predictor, batch=batch, context=context, target=target, share=share
    )


def settings(quick: bool) -> list[Setting]:
    small = setting("vit_small", 96, 8, 2, (40, 24), (96, 120))
    return [small] if quick else [small, setting("vit_small", 256, 16, 1, (584, 176), (1464, 1872))]


class Subject:
    """Our networks with all their weights drawn, a clip, and two mask groups as in pretraining."""

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self.setting = setting
        self.random = torch.Generator().manual_seed(seed)
        self.encoder, self.target_encoder = (self.drawn(VideoEncoder(setting.encoder)) for _ in range(2))
        self.predictor = self.drawn(MaskedPredictor(setting.predictor))
        frames, (height, width) = setting.encoder.num_frames, setting.encoder.img_size
        self.video = torch.randn(setting.batch, 3, frames, height, width, generator=self.random)
        tokens = setting.encoder.grid[0] * setting.encoder.grid[1] * setting.encoder.grid[2]
        self.context_ids, self.target_ids = [], []
        for context, target in zip(setting.context, setting.target, strict=True):
            order = torch.rand(setting.batch, tokens, generator=self.random).argsort(dim=1)
            self.context_ids.append(order[:, :context].sort(dim=1).values)
            self.target_ids.append(order[:, context : context + target].sort(dim=1).values)

    @torch.no_grad()
    def drawn(self, module: Any) -> Any:
        """The module with no weight at a value that hides a mistake (zero biases, unit norms, zero mask tokens)."""
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=self.random)
            parameter.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.03 * noise)
        return module


def agree(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float, what: str) -> float:
    """Largest difference relative to the largest value; AssertionError beyond the tolerance."""
    assert len(found) == len(wanted), f"{what}: {len(found)} tensors instead of {len(wanted)}."
    error = 0.0
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape, f"{what}: shape {tuple(one.shape)} instead of {tuple(other.shape)}."
        error = max(error, float((one - other).abs().max() / other.abs().max()))
    assert error <= tolerance, f"{what}: relative difference {error:.1e} is beyond {tolerance:.0e}; times mean nothing."
    return error


def same_features(contestants: dict[str, Callable[[], Any]]) -> Callable[[], str]:
    """A check that all contestants return the features that the first returns."""

    def check() -> str:
        wanted, *others = ((name, _as_list(run())) for name, run in contestants.items())
        errors = [agree(found, wanted[1], FEATURE_TOLERANCE, name) for name, found in others]
        return f"features {max(errors):.0e}"

    return check


def _as_list(features: Any) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features)


def without_gradient(run: Callable[[], Any]) -> Callable[[], Any]:
    return torch.no_grad()(run)


def encoder_contests(setting: Setting, official: Path | None) -> Iterator[Contest]:
    """Encoder on all tokens, encoder on two mask groups, predictor on both groups; no gradients."""
    subject = Subject(setting)
    video, context_ids, target_ids = subject.video, subject.context_ids, subject.target_ids
    encoder, predictor = subject.encoder.eval(), subject.predictor.eval()
    hugging_face = peers.HuggingFace(encoder, predictor)
    features = torch.randn(setting.batch, _tokens(setting), setting.encoder.embed_dim, generator=subject.random)
    contexts = [gather_tokens(features, ids) for ids in context_ids]

    full: dict[str, Callable[[], Any]] = {
        "ours": lambda: encoder(video),
        "transformers": lambda: hugging_face.encode(video),
    }
    masked: dict[str, Callable[[], Any]] = {
        "ours": lambda: encoder(video, context_ids),
        "transformers": lambda: hugging_face.encode_masked(video, context_ids),
    }
    predicted: dict[str, Callable[[], Any]] = {
        "ours": lambda: predictor(contexts, context_ids, target_ids, 1),
        "transformers": lambda: hugging_face.predict(features, context_ids, target_ids),
    }
    if official is not None:
        theirs = peers.Official(
            peers.official_encoder(official, encoder).eval(), peers.official_predictor(official, predictor).eval()
        )
        full["official"] = lambda: theirs.encoder(video)
        masked["official"] = lambda: theirs.encode_masked(video, context_ids)
        predicted["official"] = lambda: theirs.predict(contexts, context_ids, target_ids, 1)
    for what, contestants in (("encoder", full), ("masked encoder", masked), ("predictor", predicted)):
        contestants = {name: without_gradient(run) for name, run in contestants.items()}
        name = f"{what} {setting.name}"
        yield Contest(name=name, contestants=contestants, check=same_features(contestants), share=setting.share)


def step_contests(setting: Setting, official: Path | None) -> Iterator[Contest]:
    """One pretraining step without the optimizer: teacher, two mask groups, L1 loss, backward."""
    subject = Subject(setting)
    video, context_ids, target_ids = subject.video, subject.context_ids, subject.target_ids
    masks = [Masks(context, target) for context, target in zip(context_ids, target_ids, strict=True)]
    student, teacher = JEPA(subject.encoder, subject.predictor, [0, 0]), subject.target_encoder

    def ours() -> Tensor:
        return strategy_losses(student(video, masks), target_tokens(teacher, video), masks).mean()

    plain_student = nn.ModuleDict(
        {"encoder": PlainEncoder(setting.encoder), "predictor": PlainPredictor(setting.predictor)}
    )
    plain_student.load_state_dict(student.state_dict())
    plain_teacher = PlainEncoder(setting.encoder)
    plain_teacher.load_state_dict(teacher.state_dict())

    def plain() -> Tensor:
        networks: Any = plain_student
        return pretraining_loss(
            networks.encoder, networks.predictor, plain_teacher, video, context_ids, target_ids
        )  # fmt: skip

    losses: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "ours": (student, ours),
        "plain reference": (plain_student, plain),
    }
    if official is not None:
        theirs = peers.Official(
            peers.official_encoder(official, subject.encoder), peers.official_predictor(official, subject.predictor)
        )
        their_teacher = peers.official_encoder(official, teacher)
        their_student = nn.ModuleDict({"encoder": theirs.encoder, "predictor": theirs.predictor})
        losses["official"] = (their_student, lambda: theirs.loss(their_teacher, video, context_ids, target_ids))

    def step(networks: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
        networks.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return value.detach()

    def check() -> str:
        wanted_loss, wanted = step(*losses["ours"]), _gradients(student)
        loss_error = gradient_error = 0.0
        for name, (networks, loss) in losses.items():
            loss_error = max(loss_error, agree([step(networks, loss)], [wanted_loss], GRADIENT_TOLERANCE, f"{name} loss"))
            gradient_error = max(gradient_error, _gradient_error(_gradients(networks), wanted, name))
        return f"loss {loss_error:.0e}, gradients {gradient_error:.0e}"

    contestants = {name: (lambda pair=pair: step(*pair)) for name, pair in losses.items()}
    yield Contest(name=f"step {setting.name}", contestants=contestants, check=check, share=setting.share)


def _gradients(networks: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in networks.named_parameters() if p.grad is not None}


def _gradient_error(found: dict[str, Tensor], wanted: dict[str, Tensor], name: str) -> float:
    """|found - wanted| / |wanted| over all parameters as one vector; each must have a gradient on both sides."""
    assert found.keys() == wanted.keys(), f"{name}: gradients differ in {sorted(found.keys() ^ wanted.keys())}."
    difference = sum(float((found[key] - wanted[key]).square().sum()) for key in wanted)
    error = (difference / sum(float(value.square().sum()) for value in wanted.values())) ** 0.5
    assert error <= GRADIENT_TOLERANCE, f"{name}: gradients differ by {error:.1e}, beyond {GRADIENT_TOLERANCE:.0e}."
    return error


def _tokens(setting: Setting) -> int:
    depth, rows, columns = setting.encoder.grid
    return depth * rows * columns


PARTS: dict[str, Callable[[Setting, Path | None], Iterator[Contest]]] = {
    "encoder": encoder_contests,
    "step": step_contests,
}


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description="Speed of models/ beside other implementations, parity asserted first.")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="a part to run (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="small inputs only, 5 rounds")
    parser.add_argument("--repeats", type=int, help="rounds of a light contest (21; heavy ones take about a third)")
    parser.add_argument("--threads", type=int, help="CPU threads (all cores)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: process seconds, for busy machines")
    parser.add_argument("--official", type=Path, help="a checkout of facebookresearch/vjepa2 to run beside")
    parser.add_argument("--json", type=Path, help="write every single time here")
    parser.add_argument("--plot", type=Path, help="write a bar chart (PNG) here")
    parser.add_argument("--profile", action="store_true", help="print where our pretraining step spends its time, and stop")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    repeats = options.repeats or (5 if options.quick else 21)
    facts = machine() | {"clock": options.clock}
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if options.profile:
        profile(settings(options.quick)[-1])
        return []
    results = []
    for part in options.only or PARTS:
        for chosen in settings(options.quick):
            for contest in PARTS[part](chosen, options.official):
                results.append(hold(contest, repeats=repeats, clock=CLOCKS[options.clock]))
                print(table(rows(results[-1]), HEADER) + "\n", flush=True)
    if options.json:
        write_json(options.json, facts, results)
    if options.plot:
        plot(options.plot, facts, results)
    return results


def profile(setting: Setting) -> None:
    """torch.profiler over three of our pretraining steps, operators by their own CPU time."""
    step = next(step_contests(setting, None)).contestants["ours"]
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=False) as record:
        for _ in range(3):
            step()
    print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    main()
