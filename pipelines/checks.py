"""The outcome of one check on an artefact, as stages compute it and Dagster shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """`expected` and `found` are sentences for a reader; `remedy` says what to do when it failed."""

    passed: bool
    expected: str
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def failed(checks: dict[str, Check]) -> dict[str, Check]:
    """The checks that did not pass."""
    return {name: check for name, check in checks.items() if not check.passed}
