"""Strict building: a module gets exactly the tensors it needs, or an error that lists every difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]

_LISTED = 8


def build_module(
    module_class: type[nn.Module],
    config: Any,
    tensors: Mapping[str, Tensor],
    source: str,
    contradictions: Iterable[str] = (),
) -> Any:
    """A module that owns these tensors (no copies); nothing is initialised first. Raises WeightsError.

    ``source`` names the weights in the error; ``contradictions`` are differences between config and weights that the
    caller found already, one phrase each, told before the keys.
    """
    module = empty_module(module_class, config)
    check_tensors(module_shapes(module), tensors, source, module_class.__name__, contradictions)
    module.load_state_dict(tensors, strict=True, assign=True)
    return module


def empty_module(module_class: type[nn.Module], config: Any) -> nn.Module:
    """The module on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return module_class(config)


def module_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a module by name."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def key_problems(wanted: Shapes, tensors: Mapping[str, Tensor]) -> list[tuple[str, list[str]]]:
    """(label, keys) of everything that keeps tensors from being exactly the wanted ones; empty when they are."""
    wrong_shape = [
        f"{key} {tuple(tensors[key].shape)} instead of {shape}"
        for key, shape in sorted(wanted.items())
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    problems = [
        ("missing", sorted(wanted.keys() - tensors.keys())),
        ("unexpected", sorted(tensors.keys() - wanted.keys())),
        ("wrong shape", wrong_shape),
        ("not finite", not_finite(tensors)),
    ]
    return [(label, keys) for label, keys in problems if keys]


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; a tensor on the meta device holds nothing."""
    return sorted(key for key, value in tensors.items() if not value.is_meta and not bool(value.isfinite().all()))


def check_tensors(
    wanted: Shapes, tensors: Mapping[str, Tensor], source: str, model: str, contradictions: Iterable[str] = ()
) -> None:
    """Raise WeightsError unless tensors are exactly the wanted ones, all finite, and nothing contradicts."""
    phrases = [*contradictions, *(f"{label}: {listed(keys)}" for label, keys in key_problems(wanted, tensors))]
    if not phrases:
        return
    damaged = all(phrase.startswith("not finite") for phrase in phrases)
    raise WeightsError(
        f"{source} does not fit {model}" if not damaged else f"{source} holds numbers that are not finite",
        expected=f"the {len(wanted)} finite tensors of this configuration",
        found="; ".join(phrases),
        remedy="Download or export these weights again; nothing was loaded."
        if damaged
        else "Correct the configuration to the one the weights were made with; nothing was loaded.",
    )


def listed(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
