"""What the demo must show: each threshold beside the number that was measured."""

from __future__ import annotations

from typing import Any

ENCODER_GAIN = 0.05
LOSS_RATIO = 0.60
DEFAULT_LOWER_BOUND = 0.60
CEM_SUCCESS = 0.70
FLOOR_SUCCESS = 0.05
MOVED_CM = 5.0
FINAL_CM = 4.0
CLIPS = 300
CLUSTERS = 30


def judge(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a threshold: name, measured, threshold (texts), passed, and whether the demo fails by it (`binding`)."""
    rows = [
        *_encoder(numbers["probes"]),
        *_world_model(numbers["losses"]),
        *_planning(numbers["planning"]["rows"]),
        *_deployment(numbers["deployment"]),
        *_curation(numbers["curation"]),
    ]
    return [
        {"name": name, "measured": measured, "threshold": threshold, "passed": bool(passed), "binding": binding}
        for name, measured, threshold, passed, binding in rows
    ]


def check(numbers: dict[str, Any]) -> list[str]:
    """Names of the binding thresholds that were not met (empty when the demo is green)."""
    return [row["name"] for row in numbers["verdict"] if row["binding"] and not row["passed"]]


def verdict_lines(numbers: dict[str, Any]) -> list[str]:
    """The verdict for a console."""
    words = {True: "ok", False: "BELOW"}
    return [
        f"{words[row['passed']] if row['binding'] else 'info':<6} {row['name']:<46} {row['measured']:<34} ({row['threshold']})"
        for row in numbers["verdict"]
    ]


def _encoder(probes: dict[str, Any]) -> list[tuple[str, str, str, bool, bool]]:
    gain = probes["frame_gain"]
    low, high = probes["frame_gain_low"], probes["frame_gain_high"]
    measured = f"{gain:+.3f} [{low:+.3g}, {high:+.3g}] ({probes['frame_trained']:.3f} / {probes['frame_random']:.3f})"
    return [("encoder: frame R² above random init", measured, f"at least +{ENCODER_GAIN:.2f}", gain >= ENCODER_GAIN, True)]


def _world_model(losses: dict[str, Any]) -> list[tuple[str, str, str, bool, bool]]:
    rows = []
    for name in ("shuffled", "zero"):
        ratio = losses["trained"][f"true_over_{name}"]
        measured = f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        passed = ratio["value"] <= LOSS_RATIO
        rows.append((f"world model: loss with true / {name} actions", measured, f"at most {LOSS_RATIO:.2f}", passed, True))
    return rows


def _planning(table: list[dict[str, Any]]) -> list[tuple[str, str, str, bool, bool]]:
    rows = {row["arm"]: row for row in table}
    found = []
    default = rows["default"]
    found.append(
        (
            "planning: default planner, Wilson lower bound", rate(default), f"at least {DEFAULT_LOWER_BOUND:.2f} (target 0.80)",
            default["low"] >= DEFAULT_LOWER_BOUND, True,
        )
    )  # fmt: skip
    for name, row in rows.items():
        if name.startswith("cem"):
            found.append((f"planning: {name}", rate(row), f"target {CEM_SUCCESS:.2f}", row["success_final"] >= CEM_SUCCESS, False))
    for name in ("no-op", "random actions"):
        row = rows[name]
        found.append((f"planning: {name}", rate(row), f"under {FLOOR_SUCCESS:.2f}", row["success_final"] < FLOOR_SUCCESS, True))
    return found


def rate(row: dict[str, Any]) -> str:
    """A success rate with its interval."""
    return f"{row['success_final']:.2f} [{row['low']:.2f}, {row['high']:.2f}] of {row['episodes']}"


def _deployment(deployment: dict[str, Any]) -> list[tuple[str, str, str, bool, bool]]:
    moved, final, refused = deployment["moved_cm"], deployment["final_cm"], deployment["refused"]
    return [
        ("deployed arm: moved", f"{moved:.1f} cm", f"at least {MOVED_CM:.0f} cm", moved >= MOVED_CM, True),
        ("deployed arm: distance to goal at the end", f"{final:.1f} cm", f"under {FINAL_CM:.0f} cm", final < FINAL_CM, True),
        ("deployed arm: bad commands refused", str(refused), "exactly the 1 that was slipped in", refused == 1, True),
    ]


def _curation(curation: dict[str, Any]) -> list[tuple[str, str, str, bool, bool]]:
    clips, clusters, kl = curation["clips"] + curation["targets"], curation["clusters"], curation["kl"]
    return [
        ("curation: clips of pool and targets", f"{curation['clips']} + {curation['targets']}", f"at least {CLIPS}", clips >= CLIPS, True),
        ("curation: clusters", str(clusters), f"at least {CLUSTERS}", clusters >= CLUSTERS, True),
        ("curation: KL of selection from uniform", f"{kl:.3f} nat", "reported, above 0", kl > 0, True),
    ]
