"""The lineage page: one answer as one HTML file with everything inside it, and lineage.json beside it with every number."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.identity import digest_of
from pipelines.lineage.render import borrowed_text, cell, dagster_lines, render_html, unknown_rows, unseen_text
from pipelines.lineage.spans import spans_text
from pipelines.report.markup import cards, document, section, table
from pipelines.store import Store, make_folder, write_atomic

PAGE, NUMBERS = "index.html", "lineage.json"
LISTED = 300  # rows of a table on the page; lineage.json has all
OPEN = 20  # of these, the videos that are not folded away
WIDTH = 240  # px of a timeline
Row = Mapping[str, Any]

STYLE = """
h3 { font-size: 15px; margin: 18px 0 4px; } h3:first-of-type { margin-top: 6px; } .small { font-size: 12.5px; color: var(--soft); }
.note { border-left: 3px solid var(--blue); padding: 2px 0 2px 12px; margin: 10px 0; font-size: 14px; } .note.bad { border-color: var(--red); }
nav { display: flex; flex-wrap: wrap; gap: 6px 14px; margin: 0 0 20px; font-size: 13.5px; } nav a { color: var(--blue); }
td { overflow-wrap: break-word; } td:first-child { min-width: 170px; } h1 { overflow-wrap: anywhere; }
svg { vertical-align: middle; } svg .axis { fill: var(--line); } svg .on { fill: var(--blue); } svg .cut { fill: var(--soft); }
.lineage summary { font-size: 13.5px; } .lineage .facts { color: var(--soft); } .old { color: var(--soft); }
"""


def write_answer(store: Store, answer: dict[str, Any], folder: Path | None = None) -> tuple[Path, Path]:
    """Write the page and the numbers into `folder`, or lineage/NAME in the store; returns both paths."""
    folder = folder or store.root / "lineage" / folder_name(answer["subject"])
    with store.writing():
        make_folder(folder)
        write_atomic(folder / NUMBERS, json.dumps(answer, indent=1))
        write_atomic(folder / PAGE, render(answer))
    return folder / PAGE, folder / NUMBERS


def folder_name(subject: Row) -> str:
    """A folder's name for what was asked about: readable, and different for different names."""
    name = subject["name"] if subject["kind"] == "artefact" else f"{subject['kind']}-{subject['name']}"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]
    ending = f"-{subject['digest']}" if subject["kind"] == "artefact" else ("" if plain == name else f"-{digest_of(name)[:8]}")
    return plain + ending


def render(answer: dict[str, Any]) -> str:
    """The page as HTML; everything from the store is escaped."""
    subject = answer["subject"]
    parts = _artefact_parts(answer) if subject["kind"] == "artefact" else _source_parts(answer)
    parts = [part for part in parts if part[2]]
    links = "".join(f"<a href='#{anchor}'>{html.escape(title)}</a>" for anchor, title, _, _ in parts)
    body = "".join(section(title, inside, lead, anchor) for anchor, title, inside, lead in parts)
    return document(f"Tubelet: lineage of {subject['name']}", f"{_head(answer)}<nav>{links}</nav>{body}", STYLE)


Part = tuple[str, str, str, str]
"""anchor, title, HTML, lead of a section; without HTML it is left out."""


def _artefact_parts(answer: dict[str, Any]) -> list[Part]:
    videos = [row for row in answer["videos"] if row["samples"]]
    unseen = len(answer["videos"]) - len(videos)
    groups = "".join(f"<h3>By {name}</h3>{_sums(answer[f'{name}s'])}" for name in ("source", "licence", "uploader") if answer[f"{name}s"])
    phases = _table(answer["phases"], ("phase", "checkpoint", "digest", "steps", "global_batch", "samples", "seconds", "clips", "stand_ins", "stand_in_share"))
    episodes: dict[tuple[str, ...], list[float]] = {}
    for row in answer["episodes"]:
        episodes.setdefault((row["role"], row["source"], row["licence"] or "unknown"), []).append(row["seconds"])
    robots = [{"role": role, "source": source, "licence": licence, "episodes": len(own), "seconds": sum(own)} for (role, source, licence), own in sorted(episodes.items())]
    batches = [{**row, **{f"digest of {asset}": digest for asset, digest in row["inputs"].items()}} for row in answer["batches"]]
    digests = list(dict.fromkeys(name for row in batches for name in row if name.startswith("digest of ")))
    takedowns = _table(answer["takedowns"], ("takedown", "asked", "reason", "added", "clips", "samples", "seconds")) or ("<p>None.</p>" if answer["phases"] else "")
    return [
        ("shown", "What was shown in training", (f"<h3>By phase</h3>{phases}" if phases else "") + groups, "Drawn again from the seeds in the checkpoints, with the shards they drew from; repeats count, distinct seconds are those of the source files."),
        ("tree", "Made from", render_html(answer["tree"]), "From the manifests alone; an artefact that several share is unfolded at its first place."),
        ("videos", "Source videos", _videos(videos, f"{unseen:,} more videos lie in the shards and were never drawn." if unseen else ""), "Most seconds first. Blue is what was shown, on the length of the source file."),
        ("robots", "Robot episodes", _table(robots, ("role", "source", "licence", "episodes", "seconds")), "What the world model was trained and judged on."),
        ("takedowns", "Takedowns that touch it", takedowns, "Clips of its shards that may not be used any more, and how often they were shown before."),
        ("batches", "Batches that were merged", _table([{name: row.get(name) for name in ("batch", "into", "clips", *digests)} for row in batches], ("batch", "into", "clips", *digests)), "One by one, with their digests."),
    ]  # fmt: skip


def _source_parts(answer: dict[str, Any]) -> list[Part]:
    subject = answer["subject"]
    stages = [
        {"stage": row["stage"], "artefact": f"{row['artefact']} {row['digest']}{'' if row['current'] else ' (older)'}", "says": row["says"]} for row in answer.get("stages", [])
    ]  # fmt: skip
    seen = [{**row, "phases": ", ".join(f"{name} {count:,}" for name, count in row["phases"].items()) or "in its shards, never drawn"} for row in answer["checkpoints"]]
    counts = ("samples", "seconds", "distinct_seconds", "share_of_samples")
    names = ("checkpoint", "digest", "current", "phases", *(() if subject["kind"] == "clip" else ("videos", "clips")), *counts)
    checkpoints = _table(seen, names) or f"<p>{html.escape(unseen_text(answer).capitalize())}.</p>"
    standing = _table(answer["stands_on_them"], ("artefact", "digest", "current"))
    if answer.get("spans_s"):
        length = subject["duration_s"] or subject["end_s"] or 1.0
        checkpoints += f"<h3>Seconds shown, of all trainings together</h3>{timeline(answer['spans_s'], length, 720)} <br><span class='small'>{html.escape(spans_text(answer['spans_s'], 12))} of {length:.1f} s</span>"
    clips = [{**row, "shards": ", ".join(row["shards"])} for row in answer.get("clips", [])]
    clip_names = ("clip_id", "start_s", "end_s", "verdict", "cluster", "weight", "shards", "samples", "seconds", "taken_down")
    return [
        ("stages", "Stage by stage", _table(stages, ("stage", "artefact", "says")), "What each artefact says, with its digest."),
        ("clips", "Its clips", _table(clips, clip_names) if subject["kind"] == "video" else "", "Samples and seconds of all trainings of this store, each counted once."),
        ("seen", "Seen by", checkpoints, "All checkpoints of this store, current or not; samples count the whole way to a checkpoint, earlier phases included."),
        ("standing", "What stands on them", standing, "Made from a checkpoint that has seen it."),
        ("videos", "Videos", _videos([row for row in answer.get("videos", []) if row["samples"]], ""), "Most seconds first, of all trainings of this store."),
        ("takedowns", "Takedowns that touch it", _table(answer.get("takedowns", []), ("takedown", "asked", "reason", "added", "clips", "samples", "seconds")), ""),
        ("untold", "What cannot be told", _table(unknown_rows(answer), ("checkpoint", "why")), "Checkpoints whose samples cannot be drawn again, or which went on from weights of elsewhere."),
    ]  # fmt: skip


def _head(answer: dict[str, Any]) -> str:
    subject, total = answer["subject"], answer["total"]
    facts = [
        (f"{total['samples']:,}", "samples shown"), (_hours(total["seconds"]), "shown, repeats counted"), (_hours(total["distinct_seconds"]), "distinct, of the source files"),
        (f"{total['videos']:,}", "source videos"), (f"{total['clips']:,}", "clips"),
    ]  # fmt: skip
    lines = [f"<code>{html.escape(subject['digest'])}</code>" if subject["kind"] == "artefact" else ""]
    if subject["kind"] == "artefact":
        facts += [(f"{total['stand_ins']:,}", f"stand-ins ({total['stand_in_share']:.2%})"), (f"{answer['artefacts']:,}", "artefacts it was made from, with it")]
        lines.append("" if subject["current"] else "older, not what the store points at now")
    elif subject["kind"] in ("clip", "video"):
        span = "" if subject["start_s"] is None else spans_text([(subject["start_s"], subject["end_s"])])
        others = [path for path in subject["paths"] if path != subject["path"]]
        lines += [html.escape(text) for text in (subject["path"], f"equal files: {', '.join(others)}" if others else "", span, f"{subject['licence'] or 'licence unknown'}, uploader {subject['uploader'] or 'unknown'}, source {subject['source'] or 'unknown'}")]
    title = subject["name"] if subject["kind"] == "artefact" else f"{subject['kind']} {subject['name']}"
    if subject["kind"] == "video" and subject["path"]:
        lines.insert(0, f"<code>{html.escape(subject['name'])}</code>")
        title = subject["path"].rpartition("/")[2]
    begun = [f"Begun at the weights {borrowed_text(row)}." for row in answer["borrowed"]] if subject["kind"] == "artefact" else []
    notes = [*answer.get("notes", []), *begun, *dagster_lines(answer.get("dagster"))]
    bad = [f"{row['checkpoint']}: {row['why']}" for row in answer["untold"]] if subject["kind"] == "artefact" else []
    return (
        f"<header><div><p class='eyebrow'>Tubelet · lineage</p><h1>{html.escape(title)}</h1><p class='lead'>{'<br>'.join(line for line in lines if line)}</p>{cards(facts)}"
        f"{''.join(_note(text) for text in notes)}{''.join(_note(f'What was shown cannot be told: {text}', ' bad') for text in bad)}</div></header>"
    )


def _note(text: str, kind: str = "") -> str:
    return f"<p class='note{kind}'>{html.escape(text)}</p>"


def _hours(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _sums(rows: Sequence[Row]) -> str:
    """A group's sums, each with its bar."""
    most = max((row["seconds"] for row in rows), default=0.0) or 1.0
    bars = [{**row, "": row["seconds"] / most} for row in rows]
    return _table(bars, ("name", "", "videos", "clips", "samples", "seconds", "distinct_seconds", "share_of_samples"), {"": lambda share: svg_bar(float(share))})


def _videos(rows: Sequence[Row], more: str) -> str:
    shown = [
        {**row, "file": row["path"] or row["video_id"], "licence": row["licence"] or "unknown",
         "seconds shown": (row["spans_s"], max([row["duration_s"] or 0.0, *(end for _, end in row["spans_s"])]))}
        for row in rows[:LISTED]
    ]  # fmt: skip

    def drawn(told: tuple[Any, float]) -> str:
        spans, length = told
        return f"{timeline(spans, length, WIDTH)}<br><span class='small'>{html.escape(spans_text(spans, 3))} of {length:.1f} s</span>"

    def place(path: str) -> str:
        return html.escape(path).replace("/", "/<wbr>")

    def listed(part: Sequence[Row]) -> str:
        return _table(part, ("file", "licence", "seconds shown", "clips", "samples", "seconds", "distinct_seconds"), {"seconds shown": drawn, "file": place})

    rest = shown[OPEN:]
    folded = f"<details><summary>{len(rest):,} more</summary>{listed(rest)}</details>" if rest else ""
    words = [text for text in (more, f"The {LISTED:,} shown most of {len(rows):,}; {NUMBERS} has all." if len(rows) > LISTED else "") if text]
    return listed(shown[:OPEN]) + folded + "".join(_note(text) for text in words)


def _table(rows: Sequence[Row], columns: Sequence[str], drawn: Mapping[str, Callable[[Any], str]] | None = None) -> str:
    """Rows as an HTML table, "" without any; columns in `drawn` become HTML of their own, numbers at the end stand to the right."""
    if not rows:
        return ""
    drawn = drawn or {}

    def plain(name: str) -> bool:
        return name not in drawn and all(isinstance(row[name], int | float | None) and not isinstance(row[name], bool) for row in rows)

    numeric = 0
    while numeric < len(columns) and plain(columns[-1 - numeric]):
        numeric += 1
    cells = [[drawn[name](row[name]) if name in drawn else _cell(name, row[name]) for name in columns] for row in rows[:LISTED]]
    more = f"<p class='small'>The first {LISTED:,} of {len(rows):,}; {NUMBERS} has all.</p>" if len(rows) > LISTED else ""
    return table([name.replace("_", " ") for name in columns], cells, numeric) + more


def _cell(name: str, value: Any) -> str:
    text = html.escape(cell(name, value))
    return f"<code>{text}</code>" if name.startswith("digest") and text else text


def svg_bar(share: float) -> str:
    """A small bar filled to `share`."""
    filled = 160 * min(1.0, max(0.0, share))
    return f"<svg width='160' height='10' role='img'><rect class='axis' width='160' height='10' rx='5'/><rect class='on' width='{filled:.1f}' height='10' rx='5'/></svg>"


def timeline(spans: Sequence[Sequence[float]], length_s: float, width: int) -> str:
    """Which seconds of a file of `length_s` were shown, as bars on a line of `width` px; what lies outside is cut off."""
    scale = width / max(length_s, 1e-9)
    bars = ""
    for start, end in spans:
        left, right = (min(float(width), max(0.0, moment * scale)) for moment in (start, end))
        bars += f"<rect class='on' x='{left:.1f}' width='{max(1.0, right - left):.1f}' height='12'><title>{start:.2f}-{end:.2f} s</title></rect>"
    return f"<svg class='timeline' width='{width}' height='12' viewBox='0 0 {width} 12' role='img'><rect class='axis' width='{width}' height='12'/>{bars}</svg>"
