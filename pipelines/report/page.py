"""The page: one HTML file with everything inside it, for a reader who was not there."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from pipelines.lineage.render import render_html, seconds_html
from pipelines.lineage.tree import trace
from pipelines.report.style import STYLE
from pipelines.store import Artefact, Store

METRICS = {"r2_mean": "mean R²", "sign_accuracy": "sign", "direction_accuracy": "6-way direction", "accuracy": "accuracy"}
MAIN_TASKS = ("frame", "motion")
ENCODERS = ("trained", "random", "trained_minus_random", "pixels", "single_frame")
PICTURE_TYPES = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg"}


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
            _section("Verdict", _verdict(numbers["verdict"]), "What the demo must show, beside what it measured."),
            _section("Curation", _curation(numbers["curation"], shared), "From every file that arrived to the clips a model trains on."),
            _section("Pretraining", _pictures([parts["pretrained_encoder"], parts["cooled_encoder"]], ("curves.png",)) + _health(numbers), "Loss and health over both phases."),
            _section("What the encoder knows", _probes(numbers["probes"]["rows"]) + _pictures([parts["probe_results"]], ("probes.png",)), "Probes on frozen features, each beside its baselines; intervals are bootstraps over episodes."),
            _section("World model", _losses(numbers["losses"]) + _pictures([parts["world_model"]], ("curves.png",)), "Validation L1 of the predicted next frame's tokens. An action-blind model would show equal columns."),
            _section("Planning", _planning(numbers["planning"]) + _pictures([parts["planning_results"]], ("landscape.png",)), "Closed loop on fresh paired episodes. Success: under 4 cm from the goal after the last step; Wilson 95 % intervals."),
            _section("Deployment", _deployment(numbers["deployment"]) + _pictures([deployment], ("goal.png", "episode.gif")), "The agent process, given only the bundle folder and a goal image."),
            _section("Times", _times(numbers["times"]), "Seconds each stage took when it was made."),
            _section("Lineage", _lineage(store, deployment, numbers["lineage"]), "What the deployed bundle stands on, from the manifests alone."),
        ]
    )  # fmt: skip
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Tubelet: {html.escape(recipe)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>"
    )


def table(headers: list[str], rows: list[list[str]], numeric: int = 0) -> str:
    """An HTML table; cells are HTML already. The last `numeric` columns are right-aligned."""
    first = len(headers) - numeric
    head = "".join(f"<th{' class=n' if place >= first else ''}>{html.escape(name)}</th>" for place, name in enumerate(headers))
    lines = "".join(
        "<tr>" + "".join(f"<td{' class=n' if place >= first else ''}>{cell}</td>" for place, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def interval(value: float, low: float, high: float, *, floor: float = 0.0, ceiling: float = 1.0) -> str:
    """A value with its interval drawn on a line from `floor` to `ceiling`."""
    span = ceiling - floor or 1.0
    at, left, right = (120 * min(1.0, max(0.0, (number - floor) / span)) for number in (value, low, high))
    return (
        "<svg class='interval' width='128' height='14' viewBox='-4 0 128 14' role='img'>"
        f"<title>{value:.3f} [{low:.3f}, {high:.3f}]</title><line class='axis' x1='0' x2='120' y1='7' y2='7'/>"
        f"<line class='span' x1='{left:.1f}' x2='{right:.1f}' y1='7' y2='7'/><circle cx='{at:.1f}' cy='7' r='3.5'/></svg>"
    )


def bar(share: float, kind: str = "kept") -> str:
    """A bar filled to `share`; `kind` is its colour: kept, lost or part."""
    return f"<div class='bar {kind}'><div style='width:{100 * min(1.0, max(0.0, share)):.1f}%'></div></div>"


def picture(path: Path) -> str:
    """A picture inside the page; nothing when the file is not there."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<figure><img src='data:{PICTURE_TYPES[path.suffix]};base64,{data}' alt='{html.escape(path.stem)}'></figure>"


def _pictures(artefacts: list[Artefact], names: tuple[str, ...]) -> str:
    found = "".join(picture(artefact.path / name) for artefact in artefacts for name in names)
    return f"<div class='pictures'>{found}</div>" if found else ""


def _section(title: str, body: str, lead: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2><p class='lead'>{html.escape(lead)}</p>{body}</section>"


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
    cards = "".join(f"<div class='card'><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>" for value, label in facts)
    return (
        "<header><div><p class='eyebrow'>Tubelet</p><h1>From encoded video to an arm that reaches its goal image</h1>"
        f"<p class='lead'>Recipe <b>{html.escape(numbers['recipe'])}</b>, bundle <code>{html.escape(numbers['deployment']['bundle'])}</code></p>"
        f"<div class='cards'>{cards}</div></div>{picture(planning.path / 'episode.gif')}</header>"
    )


def _verdict(rows: list[dict[str, Any]]) -> str:
    def mark(row: dict[str, Any]) -> str:
        kind = ("met" if row["passed"] else "missed") if row["binding"] else "info"
        return f"<span class='mark {kind}'>{kind}</span>"

    return table(
        ["", "what", "measured", "threshold"],
        [[mark(row), *(html.escape(row[name]) for name in ("name", "measured", "threshold"))] for row in rows],
    )


def _curation(curation: dict[str, Any], shared: dict[str, Artefact]) -> str:
    most = max((row["count"] for row in curation["funnel"]), default=1) or 1
    rows = []
    for row in curation["funnel"]:
        what, _, why = row["reason"].partition(": ")
        stage = "" if why else f"<b>{html.escape(row['stage'])}</b>"
        kind = ("part" if what.startswith("for") else "lost") if why else "kept"
        rows.append([stage, bar(row["count"] / most, kind), html.escape(row["reason"]), f"{row['count']:,} {html.escape(row['unit'])}"])
    pictures = _pictures([shared["clip_clusters"], shared["curated_clips"]], ("cluster_map.png", "distribution.png"))
    return table(["stage", "", "what or why", "count"], rows, numeric=1) + pictures


def _health(numbers: dict[str, Any]) -> str:
    rows = [
        [html.escape(str(row["phase"])), html.escape(str(row["health"])), *(_number(row[name]) for name in ("steps", "loss", "rank_me"))]
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
    difference = row["encoder"] == "trained_minus_random"
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
    return render_html(trace(store, deployment)) + folded


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape(str(value)) if value is not None else ""


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
