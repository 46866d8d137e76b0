"""The report's verdict: each threshold of the demo decides by the number it names, and a page holds no foreign code."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pipelines.report import check, judge, verdict_lines
from pipelines.report.page import bar, interval, table


def numbers() -> dict[str, Any]:
    """Numbers of a demo that is green, each just inside its threshold."""

    def arm(name: str, success: float, low: float) -> dict[str, Any]:
        return {"arm": name, "planner": name, "success_final": success, "low": low, "high": 0.95, "episodes": 50}

    ratio = {"value": 0.59, "low": 0.5, "high": 0.65}
    return {
        "probes": {
            "frame_gain": 0.051, "frame_gain_low": 0.01, "frame_gain_high": 0.1, "frame_trained": 0.5, "frame_random": 0.449,
        },
        "losses": {"trained": {"true_over_shuffled": dict(ratio), "true_over_zero": dict(ratio)}},
        "planning": {
            "rows": [
                arm("default", 0.74, 0.605), arm("cem + stopping rule", 0.6, 0.4), arm("no-op", 0.04, 0.0),
                arm("random actions", 0.04, 0.0), arm("oracle", 1.0, 0.9),
            ],
        },
        "deployment": {"moved_cm": 5.1, "final_cm": 3.9, "refused": 1},
        "curation": {"clips": 200, "targets": 100, "clusters": 30, "kl": 0.01},
    }  # fmt: skip


def judged(changed: dict[str, Any]) -> list[str]:
    return check({**changed, "verdict": judge(changed)})


def test_numbers_just_inside_every_threshold_are_green() -> None:
    assert judged(numbers()) == []


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("probes", "frame_gain"), 0.049, "encoder"),
        (("losses", "trained", "true_over_shuffled", "value"), 0.61, "shuffled"),
        (("losses", "trained", "true_over_zero", "value"), 0.61, "zero"),
        (("planning", "rows", 0, "low"), 0.599, "Wilson"),
        (("planning", "rows", 2, "success_final"), 0.05, "no-op"),
        (("planning", "rows", 3, "success_final"), 0.06, "random actions"),
        (("deployment", "moved_cm"), 4.9, "moved"),
        (("deployment", "final_cm"), 4.0, "distance"),
        (("deployment", "final_cm"), float("nan"), "distance"),
        (("deployment", "refused"), 0, "refused"),
        (("deployment", "refused"), 2, "refused"),
        (("curation", "targets"), 99, "clips"),
        (("curation", "clusters"), 29, "clusters"),
        (("curation", "kl"), 0.0, "KL"),
    ],
)
def test_each_number_below_its_threshold_fails_the_demo_by_name(path: tuple, value: float, named: str) -> None:
    changed = copy.deepcopy(numbers())
    inner: Any = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    (failed,) = judged(changed)
    assert named in failed


def test_comparison_rows_are_shown_but_never_fail_the_demo() -> None:
    rows = judge(numbers())
    (cem,) = [row for row in rows if "cem" in row["name"]]
    assert not cem["passed"] and not cem["binding"]
    assert any(line.startswith("info") for line in verdict_lines({"verdict": rows}))


def test_drawings_stay_inside_their_line_whatever_the_numbers() -> None:
    drawn = interval(-3.0, -1e300, 7.0)
    assert "x1='0.0'" in drawn and "x2='120.0'" in drawn and "cx='0.0'" in drawn
    assert "width:100.0%" in bar(7.0) and "width:0.0%" in bar(-1.0)


def test_headers_are_escaped() -> None:
    assert "<script>" not in table(["<script>alert(1)</script>"], [["1"]], numeric=1)
