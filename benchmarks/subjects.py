"""What a contest is held on: networks of ours with all weights drawn, inputs, and the proof that two results agree."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.encoder import ENCODER_SIZES, EncoderConfig, VideoEncoder
from models.flops import encoder_flops, predictor_flops, train_step_flops
from models.predictor import MaskedPredictor, PredictorConfig
from pipelines.recipes import Recipe, load_recipe

FEATURE_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Networks and input. ``context`` and ``target`` are tokens kept by each mask group (short- and long-range).

    ``share``: rounds it is worth, as a share of the rounds asked for.
    """

    name: str
    encoder: EncoderConfig
    predictor: PredictorConfig
    batch: int
    context: tuple[int, ...]
    target: tuple[int, ...]
    share: float

    @property
    def tokens(self) -> int:
        depth, rows, columns = self.encoder.grid
        return depth * rows * columns

    def forward_flops(self) -> int:
        """Of the encoder on all tokens."""
        return encoder_flops(self.encoder, self.batch, self.encoder.grid).forward

    def masked_flops(self) -> int:
        """Of the encoder on the two mask groups."""
        return encoder_flops(self.encoder, self.batch, self.encoder.grid, self.context).forward

    def predictor_flops(self) -> int:
        return predictor_flops(self.predictor, self.batch, self.context, self.target).forward

    def step_flops(self) -> int:
        """Of a pretraining step without the optimizer, nothing computed twice."""
        student = encoder_flops(self.encoder, self.batch, self.encoder.grid, self.context)
        predictor = predictor_flops(self.predictor, self.batch, self.context, self.target)
        return train_step_flops([student, predictor], [encoder_flops(self.encoder, self.batch, self.encoder.grid)])


def setting(
    size: str, pixels: int, frames: int, batch: int, context: tuple[int, ...], target: tuple[int, ...], share: float
) -> Setting:
    """An encoder of a named size with the 12-layer predictor that upstream puts behind every encoder."""
    image: dict[str, Any] = {"img_size": (pixels, pixels), "num_frames": frames}
    encoder = EncoderConfig(**ENCODER_SIZES[size], **image)
    predictor = PredictorConfig(embed_dim=encoder.embed_dim, depth=12, num_heads=12, **image)
    name = f"{size} {pixels}px {frames}f B={batch}"
    return Setting(
        name=name, encoder=encoder, predictor=predictor, batch=batch, context=context, target=target, share=share
    )


def training_recipe(
    encoder: dict[str, Any], predictor: dict[str, Any], *, pixels: int, frames: int, batch: int, steps: int, **options: Any
) -> Recipe:
    """A first phase of `steps` steps with the paper's settings, nano's networks where none are given; `options` are fields of the
    phase or of the pretraining. No checkpoint falls due."""
    values = load_recipe("nano").resolved()
    values["encoder"] |= encoder
    values["predictor"] |= predictor
    pretraining = values["pretraining"] | {"mask_truncation": "prefix", "ranks": 1}
    phase = pretraining["pretrain"] | {
        "steps": steps, "global_batch": batch, "height": pixels, "width": pixels, "frames": frames, "static_share": 0.0, "ema": [0.99925, 0.99925],
        "learning_rate": {"start": 1e-4, "peak": 5.25e-4, "final": 5.25e-4, "warmup_steps": 12_000, "shape": "constant"},
        "checkpoint_every": steps + 1,
    }  # fmt: skip
    phase |= {name: value for name, value in options.items() if name in phase}
    pretraining |= {name: value for name, value in options.items() if name not in phase} | {"pretrain": phase}
    return Recipe.model_validate(values | {"pretraining": pretraining})


SMALL = setting("vit_small", 96, 8, 2, (40, 24), (96, 120), share=1.0)
LARGE = setting("vit_small", 256, 16, 1, (584, 176), (1464, 1872), share=0.35)
"""Mask sizes of both: what upstream's sampler drew at these grids and batches."""


@torch.no_grad()
def drawn(module: Any, random: torch.Generator) -> Any:
    """The module with no weight at a value that hides a mistake (zero biases, unit norms, zero mask tokens)."""
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        parameter.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.03 * noise)
    return module


class Subject:
    """Our encoder, target encoder and predictor, a clip, and two mask groups as in pretraining."""

    def __init__(self, setting: Setting, device: str = "cpu", seed: int = 0) -> None:
        self.setting = setting
        self.random = torch.Generator().manual_seed(seed)
        self.encoder, self.target_encoder = (
            drawn(VideoEncoder(setting.encoder), self.random).to(device) for _ in range(2)
        )
        self.predictor = drawn(MaskedPredictor(setting.predictor), self.random).to(device)
        frames, (height, width) = setting.encoder.num_frames, setting.encoder.img_size
        self.video = torch.randn(setting.batch, 3, frames, height, width, generator=self.random).to(device)
        self.context_ids: list[Tensor] = []
        self.target_ids: list[Tensor] = []
        for context, target in zip(setting.context, setting.target, strict=True):
            order = torch.rand(setting.batch, setting.tokens, generator=self.random).argsort(dim=1)
            self.context_ids.append(order[:, :context].sort(dim=1).values.to(device))
            self.target_ids.append(order[:, context : context + target].sort(dim=1).values.to(device))

    def first_sample(self) -> Subject:
        """The same networks on the first sample alone."""
        subject = copy.copy(self)
        subject.video = self.video[:1]
        subject.context_ids, subject.target_ids = ([ids[:1] for ids in g] for g in (self.context_ids, self.target_ids))
        return subject


def agree(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float, what: str) -> float:
    """Largest difference relative to the largest value; AssertionError beyond the tolerance."""
    assert len(found) == len(wanted), f"{what}: {len(found)} tensors instead of {len(wanted)}."
    error = 0.0
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape, f"{what}: shape {tuple(one.shape)} instead of {tuple(other.shape)}."
        error = max(error, float((one - other).abs().max() / other.abs().max()))
    assert error <= tolerance, f"{what}: relative difference {error:.1e}, beyond {tolerance:.0e}; times mean nothing."
    return error


def same_features(contestants: dict[str, Callable[[], Any]], tolerance: float = FEATURE_TOLERANCE) -> Callable[[], str]:
    """A check that all contestants return the features that the first returns."""

    def check() -> str:
        (_, wanted), *others = ((name, as_list(run())) for name, run in contestants.items())
        return f"features {max(agree(found, wanted, tolerance, name) for name, found in others):.0e}"

    return check


def as_list(features: Any) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features)


Losses = dict[str, tuple[nn.Module, Callable[[], Tensor]]]
"""By contestant: what holds the trained parameters, and the loss on which to call backward."""


def step(networks: nn.Module, loss: Callable[[], Tensor], half: bool = False) -> Tensor:
    """Forward and backward; `half`: matrix products in bfloat16 by autocast, as our trainer does it."""
    networks.zero_grad(set_to_none=True)
    with torch.autocast(next(networks.parameters()).device.type, torch.bfloat16, enabled=half):
        value = loss()
    value.backward()
    return value.detach()


def same_steps(losses: Losses, tolerance: float = GRADIENT_TOLERANCE) -> Callable[[], str]:
    """A check that all contestants reach the loss and the gradients that the first reaches."""

    def check() -> str:
        first = next(iter(losses))
        wanted_loss, wanted = step(*losses[first]), _gradients(losses[first][0])
        loss_error = gradient_error = 0.0
        for name, (networks, loss) in losses.items():
            if name != first:
                loss_error = max(loss_error, agree([step(networks, loss)], [wanted_loss], tolerance, f"{name} loss"))
                gradient_error = max(gradient_error, _gradient_error(_gradients(networks), wanted, tolerance, name))
        return f"loss {loss_error:.0e}, gradients {gradient_error:.0e}"

    return check


def _gradients(networks: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in networks.named_parameters() if p.grad is not None}


def _gradient_error(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float, name: str) -> float:
    """Largest |found - wanted| / |wanted| of a parameter's whole gradient; AssertionError beyond the tolerance.

    Norms below 1e-3 of the largest count as that: a key's bias hardly matters to a softmax, its gradient is rounding.
    """
    assert found.keys() == wanted.keys(), f"{name}: gradients of other parameters: {found.keys() ^ wanted.keys()}."
    norms = {key: float(value.norm()) for key, value in wanted.items()}
    floor = 1e-3 * max(norms.values())
    errors = {key: float((found[key] - wanted[key]).norm()) / max(norms[key], floor) for key in wanted}
    worst = max(errors, key=lambda key: errors[key])
    assert errors[worst] <= tolerance, (
        f"{name}: gradient of {worst} differs by {errors[worst]:.1e}, beyond {tolerance:.0e}."
    )
    return errors[worst]
