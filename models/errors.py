"""The one exception family of the project: every message says what was expected, what was found and what to do."""

from __future__ import annotations


class TubeletError(Exception):
    """A run cannot go on; the text is written for the person who has to act on it.

    ``str(error)`` reads "problem (expected ...; found ...). remedy"; parts that were left empty are left out.
    """

    def __init__(self, problem: str, *, expected: str = "", found: str = "", remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.expected = expected
        self.found = found
        self.remedy = remedy

    def __str__(self) -> str:
        details = "; ".join(
            f"{label} {text}" for label, text in (("expected", self.expected), ("found", self.found)) if text
        )
        sentence = f"{self.problem} ({details})" if details else self.problem
        return f"{sentence.rstrip('.')}. {self.remedy}" if self.remedy else sentence

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own pickling drops keyword arguments; errors cross process pools.
        return _rebuild, (type(self), self.problem, self.expected, self.found, self.remedy)


def _rebuild(error_class: type[TubeletError], problem: str, expected: str, found: str, remedy: str) -> TubeletError:
    error = error_class.__new__(error_class)
    TubeletError.__init__(error, problem, expected=expected, found=found, remedy=remedy)
    return error


class WeightsError(TubeletError):
    """A weight file or state dict does not fit the module it was meant for."""


class ShapeError(TubeletError):
    """A tensor given to a network has the wrong shape, dtype or range."""


class ConfigError(TubeletError):
    """A model configuration contradicts itself."""
