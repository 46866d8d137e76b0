"""Errors of `models.weights` speak of Python arguments; at the command line they must speak of options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from models.errors import ConfigError, WeightsError

HEADS = {"encoder": "--heads", "predictor": "--predictor-heads", "action_predictor": "--predictor-heads", "probe": "--probe-heads"}
"""The option that tells the attention heads of a part, by its kind: shapes do not."""


@contextlib.contextmanager
def speaking_of_options(kind: str = "encoder") -> Iterator[None]:
    """Raise weight errors about a part of this kind again in the words of the command line."""
    try:
        yield
    except (WeightsError, ConfigError) as error:
        remedy = error.remedy.replace("Pass num_heads", f"Pass {HEADS[kind]}")
        raise type(error)(error.problem, expected=error.expected, found=error.found, remedy=remedy) from error
