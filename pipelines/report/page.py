"""The page: one HTML file with everything inside it, for a reader who was not there."""

from __future__ import annotations

import html
from typing import Any

from pipelines.lineage.render import render_html, seconds_html
from pipelines.lineage.tree import trace
from pipelines.report.markup import bar, cards, document, interval, mark, number, picture, pictures, section, table
from pipelines.store import Artefact, Store

METRICS = {"r2_mean": "mean R²", "sign_accuracy": "sign", "direction_accuracy": "6-way direction", "accuracy": "accuracy"}
MAIN_TASKS = ("frame", "motion")
ENCODERS = ("trained", "start", "trained_minus_start", "random", "trained_minus_random", "pixels", "single_frame")


def render(store: Store, numbers: dict[str, Any]) -> str:
    """The whole page from the numbers and the pictures of the artefacts they came from."""
    recipe = numbers["recipe"]
    parts = {
        asset: store.current(asset, recipe)
        for asset in ("pretrained_encoder", "cooled_encoder", "world_model", "probe_results", "planning_results", "robot_bundle")
    }
    shared = {asset: store.current(asset) for asset in ("clip_clusters", "curated_clips")}
    deployment = store.current("robot_deployment", "sim")
    body = "".join(
        [
            _head(numbers, parts["planning_results"]),
            section("Verdict", _verdict(numbers["verdict"]), "What the demo must show, beside what it measured."),
            section("Curation", _curation(numbers["curation"], shared), "From every file that arrived to the clips a model trains on."),
            section("Pretraining", pictures([parts["pretrained_encoder"], parts["cooled_encoder"]], ("curves.png",)) + _health(numbers), "Loss and health over both phases."),
            section("What the encoder knows", _probes(numbers["probes"]["rows"]) + pictures([parts["probe_results"]], ("probes.png",)), "Probes on frozen features, each beside its baselines; intervals are over episodes or videos."),
            section("World model", _losses(numbers["losses"]) + pictures([parts["world_model"]], ("curves.png",)), "Validation L1 of the predicted next frame's tokens. An action-blind model would show equal columns."),
            section("Planning", _planning(numbers["planning"]) + pictures([parts["planning_results"]], ("landscape.png",)), "Closed loop on fresh paired episodes. Success: under 4 cm from the goal after the last step; Wilson 95 % intervals."),
            section("Deployment", _deployment(numbers["deployment"]) + pictures([deployment], ("goal.png", "episode.gif")), "The agent process, given only the bundle folder and a goal image."),
            section("Times", _times(numbers["times"]), "Seconds each stage took when it was made."),
            section("Lineage", _lineage(store, deployment, numbers["lineage"]), "What the deployed bundle stands on, from the manifests alone."),
        ]
    )  # fmt: skip
    return document(f"Tubelet: {recipe}", body)


def _head(numbers: dict[str, Any], planning: Artefact) -> str:
    met = sum(row["passed"] for row in numbers["verdict"] if row["binding"])
    all_ = sum(row["binding"] for row in numbers["verdict"])
    default = next(row for row in numbers["planning"]["rows"] if row["arm"] == "default")
    facts = [
        (f"{met} / {all_}", "thresholds met"),
        (f"{default['success_final']:.0%}", f"of {default['episodes']} episodes reach the goal image"),
        (f"{numbers['probes']['frame_gain']:+.2f}", "frame-probe R² over a random encoder"),
        (f"{numbers['times']['seconds']:.0f} s", "from files to a moving arm"),
    ]
    return (
        "<header><div><p class='eyebrow'>Tubelet</p><h1>From encoded video to an arm that reaches its goal image</h1>"
        f"<p class='lead'>Recipe <b>{html.escape(numbers['recipe'])}</b>, bundle <code>{html.escape(numbers['deployment']['bundle'])}</code></p>"
        f"{cards(facts)}</div>{picture(planning.path / 'episode.gif')}</header>"
    )


def _verdict(rows: list[dict[str, Any]]) -> str:
    def kind(row: dict[str, Any]) -> str:
        return ("met" if row["passed"] else "missed") if row["binding"] else "info"

    return table(
        ["", "what", "measured", "threshold"],
        [[mark(kind(row)), *(html.escape(row[name]) for name in ("name", "measured", "threshold"))] for row in rows],
    )


def _curation(curation: dict[str, Any], shared: dict[str, Artefact]) -> str:
    most = max((row["count"] for row in curation["funnel"]), default=1) or 1
    rows = []
    for row in curation["funnel"]:
        what, _, why = row["reason"].partition(": ")
        stage = "" if why else f"<b>{html.escape(row['stage'])}</b>"
        kind = ("part" if what.startswith("for") else "lost") if why else "kept"
        rows.append([stage, bar(row["count"] / most, kind), html.escape(row["reason"]), f"{row['count']:,} {html.escape(row['unit'])}"])
    drawn = pictures([shared["clip_clusters"], shared["curated_clips"]], ("cluster_map.png", "distribution.png"))
    more = f"<p><a href='{html.escape(curation['page'])}'>What was dropped and why, clip by clip</a></p>" if curation.get("page") else ""
    return table(["stage", "", "what or why", "count"], rows, numeric=1) + drawn + more


def _health(numbers: dict[str, Any]) -> str:
    rows = [
        [html.escape(str(row["phase"])), html.escape(str(row["health"])), *(number(row[name]) for name in ("steps", "loss", "rank_me"))]
        for row in numbers["training"]
    ]
    return table(["phase", "health", "steps", "loss", "RankMe"], rows, numeric=3)


def _probes(rows: list[dict[str, Any]]) -> str:
    shown = [row for row in rows if row["metric"] in METRICS]
    shown.sort(key=lambda row: (row["task"], row["features"], row["metric"], ENCODERS.index(row["encoder"])))
    main = [_probe_row(row) for row in shown if row["task"] in MAIN_TASKS]
    others = [_probe_row(row) for row in shown if row["task"] not in MAIN_TASKS]
    headers = ["task", "features", "measure", "encoder", "", "value", "95 %", "n"]
    folded = f"<details><summary>Labelled target sets</summary>{table(headers, others, numeric=3)}</details>" if others else ""
    return table(headers, main, numeric=3) + folded


def _probe_row(row: dict[str, Any]) -> list[str]:
    difference = row["encoder"].startswith("trained_minus_")
    drawn = interval(row["value"], row["low"], row["high"], **({"floor": -0.5, "ceiling": 0.5} if difference else {}))
    words = (row["task"], row["features"].replace("_", " "), METRICS[row["metric"]], row["encoder"].replace("_", " "))
    value = f"{row['value']:+.3f}" if difference else f"{row['value']:.3f}"
    cells = [*(html.escape(str(word)) for word in words), drawn, value, f"[{row['low']:.3g}, {row['high']:.3g}]", str(row["n"])]
    return [f"<b>{cell}</b>" if difference and place in (3, 5) else cell for place, cell in enumerate(cells)]


def _losses(losses: dict[str, Any]) -> str:
    names = ("true", "shuffled", "zero", "copy", "true_over_shuffled", "true_over_zero")
    rows = [
        [label, *(f"{losses[kind][name]['value']:.4f}" for name in names)]
        for kind, label in (("trained", "trained encoder"), ("random", "random encoder (control)"))
        if kind in losses
    ]
    headers = ["world model", "true actions", "shuffled", "zero", "copy of the last frame", "true / shuffled", "true / zero"]
    return table(headers, rows, numeric=len(names))


def _planning(planning: dict[str, Any]) -> str:
    rows = [
        [
            html.escape(row["arm"]), html.escape(row["planner"]), interval(row["success_final"], row["low"], row["high"]),
            f"{row['success_final']:.2f}", f"[{row['low']:.2f}, {row['high']:.2f}]", f"{row['success_any']:.2f}", str(row["episodes"]),
            f"{row['median_cm']:.1f}", f"{row['calls']:.0f}", f"{row['seconds_per_action']:.3f}",
        ]
        for row in planning["rows"]
    ]  # fmt: skip
    headers = ["row", "planner", "", "success", "interval", "at some step", "episodes", "median cm", "calls / action", "s / action"]
    return table(headers, rows, numeric=7)


def _deployment(deployment: dict[str, Any]) -> str:
    rows = [[html.escape(name), html.escape(_text(value))] for name, value in deployment.items()]
    return table(["what", "found"], rows)


def _times(times: dict[str, Any]) -> str:
    most = max((row["seconds"] for row in times["stages"]), default=1.0) or 1.0
    rows = [[html.escape(row["stage"]), bar(row["seconds"] / most), f"{row['seconds']:.1f}"] for row in times["stages"]]
    return table(["stage", "", "seconds"], rows, numeric=1)


def _lineage(store: Store, deployment: Artefact, rows: list[dict[str, Any]]) -> str:
    folded = f"<details><summary>{len(rows)} source videos</summary><div class='scroll'>{seconds_html(rows)}</div></details>"
    return render_html(trace(store, deployment).to_dict()) + folded


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
