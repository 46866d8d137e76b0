"""The GPU's contests: ViT-L and ViT-g at 256 px and 16 frames in bfloat16, eager and compiled per block."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.contests import copied, step_losses
from benchmarks.plain_reference import PlainEncoder
from benchmarks.subjects import Setting, Subject, as_list, same_features, same_steps, setting, step
from benchmarks.timing import Contest, wall_clock
from models.encoder import VideoEncoder
from models.layers import compile_blocks
from models.predictor import MaskedPredictor
from pipelines.pretraining.masks import Masks
from pipelines.pretraining.objective import JEPA, strategy_losses, target_tokens

EXACT = 5e-3
"""Largest relative difference in float32: CUDA kernels may use TF32, so this tells a wrong formula, not rounding."""
HALF = 0.1
"""Largest relative difference in bfloat16, as a norm: others build rotary tables in bfloat16 and are coarser than ours."""

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
    """Forward of the encoder and a pretraining step, L and g (quick: L)."""
    for size, batch in [("vit_large", 8)] if quick else [("vit_large", 8), ("vit_giant", 4)]:
        chosen = setting(size, 256, 16, batch, (584, 176), (1464, 1872), share=1.0)
        yield half_forward_contest(chosen, official, "cuda")
        torch.cuda.empty_cache()
        yield half_step_contest(chosen, official, "cuda")
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
