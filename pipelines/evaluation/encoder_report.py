"""The `encoder_report` stage: one self-contained HTML page on an encoder, written from artefact folders alone."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

from pipelines.checks import Check
from pipelines.errors import MissingArtefact
from pipelines.evaluation.pictures import find_row

PAGE = "encoder_report.html"
SECTIONS = ("verdict", "before-after", "pretrained", "cooled", "probes")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c2430}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:.25rem .7rem;border-bottom:1px solid #dde3ea;text-align:right}"
    "td:first-child,th:first-child,td.t,th.t{text-align:left}img{max-width:100%}h2{margin-top:2.2rem}"
    ".healthy{color:#176b3a}.weak,.collapsing,.starved{color:#9a5b00}.collapsed{color:#a11616}small{color:#5b6675}"
)
_ENCODERS = {
    "trained": "trained", "start": "starting weights", "random": "random initialisation", "pixels": "raw pixels", "single_frame": "single frame",
    "trained_minus_start": "trained minus start", "trained_minus_random": "trained minus random",
}  # fmt: skip
_METRICS = {
    "r2_mean": "mean R²", "sign_accuracy": "sign accuracy", "direction_accuracy": "6-way direction", "accuracy": "accuracy",
    "halves_found": "other half found", "prediction_error": "error of hidden parts",
}  # fmt: skip


def build_encoder_report(folder: Path, pretrained_folder: Path, cooled_folder: Path, probes_folder: Path) -> dict[str, Any]:
    """Write `encoder_report.html` into `folder`; the three others are artefact folders. Returns the summary."""
    phases = {
        "pretrained": ("Pretraining", _phase(pretrained_folder)), "cooled": ("Cooldown", _phase(cooled_folder)),
    }  # fmt: skip
    probes = json.loads(_file(probes_folder, "probes.json").read_text())
    rows, health, start, judged = probes["rows"], probes["health"], probes.get("start"), probes.get("verdict")
    parts = [
        f"<section id='verdict'><h1>Encoder report</h1><p class='{health['state']}'><b>{html.escape(health['line'])}</b></p></section>",
        _changed(judged, start) if start else _before_after(rows, health),
    ]
    for name, (title, phase) in phases.items():
        parts.append(
            f"<section id='{name}'><h2>{title}</h2><p class='{phase['state']}'>{html.escape(phase['line'])}</p>"
            f"<p>{html.escape(phase['numbers'])}</p>{_image(phase['picture'], title)}</section>"
        )
    parts.append(
        "<section id='probes'><h2>Probes against baselines</h2>"
        f"{_image(_file(probes_folder, 'probes.png'), 'probes')}{_table(rows)}"
        f"{'' if probes['held_out_episodes'] else '<p>No robot episodes were there, so frames and motions of a robot are left out.</p>'}"
        "<p><small>Intervals are 95 %: a jackknife over held-out episodes or videos; for shares of videos Wilson's, and Agresti and "
        "Min's for their differences. Motion windows are also played backwards, so chance is 0.5 on signs. 'single frame' "
        "shows how much of a motion label one frame gives away.</small></p></section>"
    )
    body = "\n".join(parts)
    text = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Encoder report</title><style>{_STYLE}</style><body>{body}</body></html>\n"
    (folder / PAGE).write_text(text)
    gain = find_row(rows, "frame", "pooled", "trained_minus_random", "r2_mean")
    told = {"verdict": judged["word"]} if judged else {}
    return {**told, "health": health["line"], "frame_r2_gain": gain["value"] if gain else None, "bytes": len(text.encode())}


def check_encoder_report(folder: Path) -> dict[str, Check]:
    """`complete`: every section is there and nothing is loaded from elsewhere."""
    text = (folder / PAGE).read_text() if (folder / PAGE).exists() else ""
    missing = [name for name in SECTIONS if f"id='{name}'" not in text]
    outside = "src='http" in text or "href='http" in text
    return {
        "complete": Check(
            not missing and not outside, f"sections {', '.join(SECTIONS)}, and no outside resource",
            f"missing {', '.join(missing)}" if missing else "outside resources" if outside else "all there",
            "materialize encoder_report again",
        )
    }  # fmt: skip


def _phase(folder: Path) -> dict[str, Any]:
    state = json.loads(_file(folder, "state.json").read_text())
    summary = state.get("summary", {})
    shown = [
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name in ("steps", "clips", "loss", "floor", "first_rank_me", "rank_me", "target_std", "seconds")
        if isinstance(value := summary.get(name), int | float)
    ]
    verdict = state.get("verdict", {})
    return {
        "state": verdict.get("state", ""), "line": verdict.get("line", ""), "numbers": ", ".join(shown),
        "picture": _file(folder, "curves.png"),
    }  # fmt: skip


def _changed(verdict: dict[str, Any] | None, start: dict[str, Any]) -> str:
    """Whether an encoder is better than the checkpoint that it went on from, and what that was."""
    word = verdict["word"] if verdict else "not judged"
    lines = [*verdict["lines"], *verdict["others"]] if verdict else ["there was nothing to probe both with"]
    caveat = f"<p>{html.escape(verdict['caveat'])}</p>" if verdict and verdict["caveat"] else ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    parts = ", ".join(f"{ours} from {theirs}" for ours, theirs in start["parts"].items())
    facts = (("checkpoint", start["path"]), ("digest", start["digest"]), ("parts", parts), ("licence", start["licence"]), ("training data", start["training_data"]))
    cells = "".join(f"<tr><td>{name}</td><td class='t'>{html.escape(str(value))}</td></tr>" for name, value in facts)
    return (
        f"<section id='before-after'><h2>Before and after: {word}</h2><ul>{items}</ul>{caveat}<table>{cells}</table>"
        "<p><small>The same probes on the starting weights and on the target encoder after the cooldown, on the same items. Better or worse: "
        "the 95 % interval of the difference lies on one side of zero. It tells these weights apart on these items; another seed or "
        "another training set was not tried.</small></p></section>"
    )


def _before_after(rows: list[dict[str, Any]], health: dict[str, Any]) -> str:
    """What training changed: the same network before (initial weights) and after, measure by measure."""
    lines = []
    for task, kind, metric, label in (
        ("frame", "pooled", "r2_mean", "where: mean R², pooled frame features"),
        ("frame", "flat", "r2_mean", "where: mean R², all tokens"),
        ("motion", "pooled_by_time", "sign_accuracy", "which way: sign accuracy, pooled by time"),
        ("motion", "attentive", "sign_accuracy", "which way: sign accuracy, attentive"),
    ):
        found = [find_row(rows, task, kind, name, metric) for name in ("random", "trained", "trained_minus_random")]
        if all(found):
            before, after, change = (row for row in found if row)
            lines.append((label, f"{before['value']:.3f}", f"{after['value']:.3f}", f"{change['value']:+.3f} {_interval(change)}"))
    rank, base = health["rank_me"], health["rank_me_random"]
    lines.append(("RankMe of pooled frame features", f"{base:.1f}", f"{rank:.1f}", f"{rank - base:+.1f}"))
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    head = "<tr><th>measure</th><th>before training</th><th>after</th><th>change (95 %)</th></tr>"
    return f"<section id='before-after'><h2>Before and after</h2><table>{head}{cells}</table></section>"


def _table(rows: list[dict[str, Any]]) -> str:
    shown = [row for row in rows if row["metric"] in _METRICS]
    cells = "".join(
        f"<tr><td>{html.escape(row['task'])}</td><td class='t'>{html.escape(row['features'].replace('_', ' '))}</td>"
        f"<td class='t'>{_METRICS[row['metric']]}</td><td class='t'>{_ENCODERS.get(row['encoder'], row['encoder'])}</td>"
        f"<td>{row['value']:.3f}</td><td>{_interval(row)}</td><td>{row['n']}</td></tr>"
        for row in sorted(shown, key=lambda row: (row["task"], row["metric"], row["features"], list(_ENCODERS).index(row["encoder"])))
    )
    head = "<tr><th>task</th><th class='t'>features</th><th class='t'>measure</th><th class='t'>encoder</th><th>value</th><th>95 %</th><th>n</th></tr>"
    return f"<table>{head}{cells}</table>"


def _interval(row: dict[str, Any]) -> str:
    return f"[{row['low']:.3f}, {row['high']:.3f}]"


def _image(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='{html.escape(title)}' src='data:image/png;base64,{data}'>"


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        raise MissingArtefact(
            f"the encoder report needs {name}", expected=str(path), found="no such file",
            remedy="materialize the asset that writes it again",
        )  # fmt: skip
    return path
