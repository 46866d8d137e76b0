"""The GPU's contests: ViT-L and ViT-g at 256 px and 16 frames in bfloat16, eager and compiled per block, whole steps too."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.contests import copied, step_losses
from benchmarks.official_step import OfficialStep
from benchmarks.plain_reference import PlainEncoder
from benchmarks.subjects import (
    Setting,
    Subject,
    as_list,
    same_features,
    same_steps,
    setting,
    step,
    training_recipe,
)
from benchmarks.timing import Contest, wall_clock
from models.encoder import ENCODER_SIZES, VideoEncoder
from models.layers import Checkpointing, compile_blocks
from models.predictor import MaskedPredictor
from models.preprocessing import normalise
from pipelines.pretraining.masks import Masks, sample_masks
from pipelines.pretraining.objective import JEPA, strategy_losses, target_tokens
from pipelines.pretraining.run import build_student, set_up
from pipelines.pretraining.task import Pretraining
from pipelines.recipes import Recipe
from pipelines.shards.loader import Batch
from pipelines.training.ema import make_target
from pipelines.training.engine import EngineConfig, PlainEngine

EXACT = 5e-3
"""Largest relative difference in float32: CUDA kernels may use TF32, so this tells a wrong formula, not rounding."""
HALF = 0.1
"""Largest relative difference in bfloat16, as a norm: others build rotary tables in bfloat16 and are coarser than ours."""

WHOLE_STEPS: list[tuple[Checkpointing, bool]] = [("none", False), ("none", True), ("selective", True), ("full", False), ("full", True)]
"""Activation checkpointing and compilation of whole steps, on both sides; ("full", False) is what upstream's configurations ask for."""
# Dense bfloat16 of the data sheets, FLOP/s; the first name that is part of the device's name counts.
_PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12,
    "L40S": 362e12, "RTX 4090": 165e12,
}  # fmt: skip


def nominal_peak(device_name: str) -> float | None:
    """bfloat16 FLOP/s of the data sheet; None for a device not on the list."""
    return next((peak for name, peak in _PEAKS.items() if name in device_name), None)


def measured_peak(device: str = "cuda", size: int = 8192) -> float:
    """bfloat16 FLOP/s of one large square matrix product: what this card gives today, under its power limit."""
    one, other = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = []
    for _ in range(12):
        start = wall_clock()
        torch.mm(one, other)
        seconds.append(wall_clock() - start)
    return 2 * size**3 / statistics.median(seconds[2:])


def gpu_contests(quick: bool, official: Path | None) -> Iterator[Contest]:
    """Forward of the encoder, forward and backward of a step, and whole steps, L and g (quick: L)."""
    for size, batch in [("vit_large", 8)] if quick else [("vit_large", 8), ("vit_giant", 4)]:
        chosen = setting(size, 256, 16, batch, (584, 176), (1464, 1872), share=1.0)
        yield half_forward_contest(chosen, official, "cuda")
        torch.cuda.empty_cache()
        yield half_step_contest(chosen, official, "cuda")
        torch.cuda.empty_cache()
    for size, batch in [("vit_large", 24)] if quick else [("vit_large", 24), ("vit_giant", 8)]:
        for checkpointing, compiled in WHOLE_STEPS:
            recipe = training_recipe(
                ENCODER_SIZES[size], {"predictor_embed_dim": 384, "depth": 12, "num_heads": 12}, pixels=256, frames=16, batch=batch, steps=240_000,
                precision="bf16", compile=compiled, activation_checkpointing=checkpointing,
            )  # fmt: skip
            yield from whole_step_contest(f"{size} 256px 16f B={batch}", recipe, official, "cuda")
            torch.cuda.empty_cache()


def half_forward_contest(setting: Setting, official: Path | None, device: str, compiled: bool = True) -> Contest:
    """Encoder on all tokens, weights and video in bfloat16."""
    subject = Subject(setting, device)
    hugging_face = peers.HuggingFace(subject.encoder, subject.predictor)
    networks: dict[str, nn.Module] = {"ours": subject.encoder, "transformers": hugging_face.model.encoder}
    networks["plain reference"] = copied(PlainEncoder(setting.encoder), subject.encoder)
    if official is not None:
        networks["official"] = peers.official_encoder(official, subject.encoder)

    def encode(name: str, video: Tensor) -> Tensor:
        if name.startswith("transformers"):
            return networks[name](pixel_values_videos=video.transpose(1, 2)).last_hidden_state
        return networks[name](video)

    first = subject.video[:1]
    # Parity of the formulas is proved in float32 before anything is rounded to bfloat16.
    exact = same_features({name: torch.no_grad()(lambda name=name: encode(name, first)) for name in networks}, EXACT)()
    for network in networks.values():
        network.to(torch.bfloat16).eval()
    if compiled:
        networks["ours, compiled"] = twin(subject.encoder).eval()
        compile_blocks(networks["ours, compiled"])
        networks["transformers, compiled"] = copy.deepcopy(networks["transformers"])
        for layer in networks["transformers, compiled"].layer:  # type: ignore[union-attr]
            layer.compile()
    video = subject.video.to(torch.bfloat16)
    contestants: dict[str, Callable[[], Any]] = {
        name: torch.no_grad()(lambda name=name: encode(name, video)) for name in networks
    }
    name = f"bf16 encoder {setting.name}"
    return Contest(
        name=name, contestants=contestants, check=_roughly_same(exact, contestants), flops=setting.forward_flops()
    )


def half_step_contest(setting: Setting, official: Path | None, device: str, compiled: bool = True) -> Contest:
    """One pretraining step without the optimizer under bfloat16 autocast, every activation kept."""
    subject = Subject(setting, device)
    exact = same_steps(step_losses(subject.first_sample(), official), EXACT)()
    losses = step_losses(subject, official)
    if compiled:
        losses["ours, compiled"] = _compiled_step(subject)
    contestants: dict[str, Callable[[], Any]] = {name: partial(step, *pair, half=True) for name, pair in losses.items()}
    name = f"bf16 step {setting.name}"
    return Contest(
        name=name, contestants=contestants, check=_roughly_same(exact, contestants), flops=setting.step_flops()
    )


def _compiled_step(subject: Subject) -> tuple[nn.Module, Callable[[], Tensor]]:
    student = JEPA(twin(subject.encoder), twin(subject.predictor), 2)
    teacher = twin(subject.target_encoder)
    compile_blocks(student)
    compile_blocks(teacher)
    masks = [Masks(*ids) for ids in zip(subject.context_ids, subject.target_ids, strict=True)]

    def loss() -> Tensor:
        return strategy_losses(student(subject.video, masks), target_tokens(teacher, subject.video), masks).mean()

    return student, loss


def whole_step_contest(name: str, recipe: Recipe, official: Path | None, device: str) -> Iterator[Contest]:
    """A step of the recipe's first phase by the trainer's own engine and task, on a batch that lies ready where the loader leaves it
    (ours uint8, upstream's float32): the way to the device, masks, networks, loss, backward, AdamW, average.

    FLOPs are the model's: what checkpointing computes again is not counted. Upstream knows full checkpointing only, and takes
    part with that where ours is selective. Yields the one contest, and lets go of the memory when it is over.
    """
    phase, options = recipe.pretraining.pretrain, recipe.pretraining
    at, half = phase.steps - 1, options.precision == "bf16"
    student = build_student(recipe, phase).to(device)
    shape = student.encoder.config
    masks = sample_masks(
        phase.masks, shape.grid, seed=recipe.seed, phase="pretrain", step=at, global_batch=phase.global_batch, truncation=options.mask_truncation
    )
    sizes = [tuple(ids.shape[1] for ids in kind) for kind in zip(*((mask.context_ids, mask.target_ids) for mask in masks), strict=True)]
    chosen = Setting(
        name=name, encoder=shape, predictor=student.predictor.config, batch=phase.global_batch, context=sizes[0], target=sizes[1], share=1.0
    )
    exact = same_steps(step_losses(Subject(chosen, device).first_sample(), official), EXACT)()
    pixels = torch.randint(
        0, 256, (phase.global_batch, 3, phase.frames, phase.height, phase.width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )

    steps: dict[str, Callable[[], Tensor]] = {}
    if official is not None:
        theirs = OfficialStep(
            official, student, phase, half=half, compiled=options.compile, checkpointing=phase.activation_checkpointing != "none"
        )
        video = normalise(pixels)

        def official_step() -> Tensor:
            ids = [[ids.to(device) for ids in kind] for kind in zip(*((mask.context_ids, mask.target_ids) for mask in masks), strict=True)]
            return torch.tensor(theirs([video.to(device)], [ids[0]], [ids[1]]))

        steps["official"] = official_step
    target = make_target(student.encoder)
    set_up(student, target, phase, options.compile)
    engine = PlainEngine(student, EngineConfig(precision=options.precision), torch.device(device))
    task = Pretraining(engine, target, options, "pretrain", recipe.seed, "benchmark")
    batch = Batch(at, pixels, [], *(np.empty(0) for _ in range(4)), [], [])

    def ours() -> Tensor:
        loss, _ = task.losses(at, batch, 0)
        engine.backward(loss)
        if engine.step(phase.learning_rate.start, phase.weight_decay):
            task.moved(phase.ema[0])
        return loss.detach().cpu()

    steps = {"ours": ours, **steps}
    # The contestants find their steps in the dictionary, so that emptying it lets go of the networks.
    contestants: dict[str, Callable[[], Any]] = {contestant: partial(_step_of, steps, contestant) for contestant in steps}
    yield Contest(
        name=f"{options.precision} whole step {name}, checkpointing {phase.activation_checkpointing}{', compiled' if options.compile else ''}",
        contestants=contestants, check=_same_first_losses(exact, contestants), flops=chosen.step_flops(),
    )  # fmt: skip
    steps.clear()


def _same_first_losses(exact: str, contestants: dict[str, Callable[[], Any]]) -> Callable[[], str]:
    """A check of the losses of everyone's first step; every call moves the weights, so each is called once."""

    def check() -> str:
        losses = {name: float(run()) for name, run in contestants.items()}
        wanted = losses["ours"]
        worst = max(losses, key=lambda name: abs(losses[name] / wanted - 1))
        error = abs(losses[worst] / wanted - 1)
        assert error <= HALF, f"{worst}: the first loss differs by {error:.1e}, beyond {HALF}; times mean nothing."
        return f"float32: {exact}; first losses {error:.0e}"

    return check


def _step_of(steps: dict[str, Callable[[], Tensor]], name: str) -> Tensor:
    return steps[name]()


def twin(module: VideoEncoder | MaskedPredictor) -> Any:
    """A second module on the same parameters."""
    with torch.device("meta"):
        other: Any = type(module)(module.config)  # type: ignore[arg-type]
    other.load_state_dict(module.state_dict(keep_vars=True), strict=True, assign=True)
    return other


def _roughly_same(exact: str, contestants: dict[str, Callable[[], Any]]) -> Callable[[], str]:
    """A check of the bfloat16 results as norms, beside what was measured in float32."""

    def check() -> str:
        wanted, worst = as_list(contestants["ours"]())[0].float(), 0.0
        for name, run in contestants.items():
            error = float((as_list(run())[0].float() - wanted).norm() / wanted.norm())
            assert error <= HALF, f"{name}: differs by {error:.1e} in bfloat16, beyond {HALF}; times mean nothing."
            worst = max(worst, error)
        return f"float32: {exact}; bf16 {worst:.0e}"

    return check
