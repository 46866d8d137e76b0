"""Errors of `models.weights` speak of Python arguments; at the command line they must speak of options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from models.errors import ConfigError, WeightsError

HEADS = {"encoder": "--heads", "predictor": "--predictor-heads", "action_predictor": "--predictor-heads", "probe": "--probe-heads"}
"""The option that tells the attention heads of a part, by its kind: shapes do not."""
_WORDS = (("part=", "--part"), ("Pass num_heads", "Pass --heads"), ("img_size=(384, 384)", "--image-size 384"))


def as_options(text: str, kind: str = "encoder") -> str:
    """The text about a part of this kind with options in place of arguments."""
    for argument, option in _WORDS:
        text = text.replace(argument, option)
    return text.replace("Pass --heads", f"Pass {HEADS.get(kind, '--heads')}")


@contextlib.contextmanager
def speaking_of_options(kind: str = "encoder") -> Iterator[None]:
    """Raise weight errors again in the words of the command line."""
    try:
        yield
    except (WeightsError, ConfigError) as error:
        raise type(error)(
            error.problem, expected=as_options(error.expected), found=error.found, remedy=as_options(error.remedy, kind)
        ) from error
