"""Did it get better? The starting weights beside what was made of them, measure by measure, and a verdict from the intervals alone.

Better or worse means that the 95 % interval of the paired difference lies on one side of zero; there is no other threshold. The
interval is over the evaluation videos or episodes: it says that these weights differ, not that another seed or another training set would give
the same. Of twenty measures on which nothing has changed, one is expected to say better or worse.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines.evaluation.pictures import find_row

CHANGE = "trained_minus_start"
POINTS = "points"
NO_LABELS = "no labels were given: this shows how well clips are told apart, not how well a task is done"
Word = Literal["better", "worse", "mixed", "no different"]


@dataclass(frozen=True)
class Measure:
    """One kind of row that a verdict reads, over independent `owners`. `judged`: it decides; `labelled`: it rests on labels. Lower
    is better where `falls`."""

    metric: str
    features: str
    label: str
    unit: str
    labelled: bool = True
    judged: bool = True
    falls: bool = False
    owners: str = "videos"


MEASURES = (
    Measure("accuracy", "pooled_by_time", "{task}", POINTS),
    Measure("r2_mean", "pooled", "robot frames: where hand and cube are", "R²", owners="episodes"),
    Measure("sign_accuracy", "pooled_by_time", "robot windows: which way the hand moves", POINTS, owners="episodes"),
    Measure("halves_found", "halves", "held-out clips: a clip's other half found", POINTS, labelled=False),
    Measure("prediction_error", "masked", "held-out clips: error of predicted hidden parts, of the constant guess", "", labelled=False, judged=False, falls=True),
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One measure before and after, with the paired difference's interval over `n` videos or episodes."""

    measure: Measure
    name: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    n: int

    @property
    def word(self) -> Word:
        up, down = self.low > 0, self.high < 0
        if not (up or down):
            return "no different"
        return "better" if up != self.measure.falls else "worse"

    @property
    def line(self) -> str:
        """For a person: "better: +3.1 points [1.2, 5.0] on push (71.0 before, 74.1 after, 80 videos)"."""
        unit = f" {self.measure.unit}" if self.measure.unit else ""
        low, high, before, after = (self._number(value) for value in (self.low, self.high, self.before, self.after))
        difference = ("+" if self.difference >= 0 else "-") + self._number(abs(self.difference))
        return f"{self.word}: {difference}{unit} [{low}, {high}] on {self.name} ({before} before, {after} after, {self.n} {self.measure.owners})"

    def _number(self, value: float) -> str:
        return f"{100 * value:.1f}" if self.measure.unit == POINTS else f"{value:.3f}"


@dataclass(frozen=True)
class Verdict:
    """`lines` are the measures that decided, `others` what else was measured; `caveat` is "" where nothing keeps one from believing it."""

    word: Word
    lines: tuple[str, ...]
    others: tuple[str, ...]
    caveat: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def changes(rows: list[dict[str, Any]]) -> list[Change]:
    """Every measured change, those with labels first; empty for an encoder that did not go on from a checkpoint."""
    found = []
    for measure in MEASURES:
        for row in rows:
            if (row["metric"], row["features"], row["encoder"]) == (measure.metric, measure.features, CHANGE):
                before, after = (find_row(rows, row["task"], measure.features, name, measure.metric) for name in ("start", "trained"))
                if before and after:
                    name = measure.label.format(task=row["task"])
                    found.append(Change(measure, name, before["value"], after["value"], row["value"], row["low"], row["high"], row["n"]))
    return found


def verdict(rows: list[dict[str, Any]], shown_before: int = 0, videos: int = 0) -> Verdict | None:
    """What the measures with labels say, or without any the search for other halves; None when nothing was measured twice.

    The starting weights were trained on `shown_before` of the evaluation's `videos`.
    """
    found = changes(rows)
    labelled = [change for change in found if change.measure.labelled and change.measure.judged]
    judged = labelled or [change for change in found if change.measure.judged]
    if not judged:
        return None
    words = {change.word for change in judged}
    word: Word = "mixed" if {"better", "worse"} <= words else "better" if "better" in words else "worse" if "worse" in words else "no different"
    others = tuple(change.line for change in found if change not in judged)
    known = f"the starting weights were trained on {shown_before} of the {videos} evaluation videos, which the new ones were not: before looks better than it is"
    caveats = [text for text, applies in ((NO_LABELS, not labelled), (known, shown_before)) if applies]
    return Verdict(word, tuple(change.line for change in judged), others, "; ".join(caveats))
