"""Lineage for readers: trees and answers as text, and the pieces of HTML that the demo's report takes too."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.lineage.spans import spans_text
from pipelines.lineage.tree import Node
from pipelines.store import key_of

FACTS = 5


def render_text(node: Node) -> str:
    """The tree with one line an artefact: key, digest, and its first facts."""
    lines = [_line(node)]
    for position, child in enumerate(node.children):
        last = position == len(node.children) - 1
        first, *rest = render_text(child).splitlines()
        lines.append(("└─ " if last else "├─ ") + first)
        lines += [("   " if last else "│  ") + line for line in rest]
    return "\n".join(lines)


def _line(node: Node) -> str:
    ending = "  (above)" if node.repeated else ("  " + facts_text(node.facts) if node.facts else "")
    return f"{node.key}  {node.digest}{ending}"


def facts_text(facts: dict[str, Any]) -> str:
    """The first few facts of a summary in a line."""
    shown = [(name, value) for name, value in facts.items() if len(str(value)) <= 40][:FACTS]
    return ", ".join(f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in shown)


def render_html(node: Mapping[str, Any]) -> str:
    """A tree (`Node.to_dict`) as nested, foldable HTML; self-contained, everything from the store escaped."""
    key = key_of(node["asset"], node["partition"])
    facts = "(above)" if node["repeated"] else facts_text(node["facts"])
    line = f"<b>{html.escape(key)}</b> <code>{html.escape(node['digest'])}</code> <span class='facts'>{html.escape(facts)}</span>"
    if not node["children"]:
        return f"<div class='lineage'>{line}</div>"
    return f"<details class='lineage' open><summary>{line}</summary>{''.join(render_html(child) for child in node['children'])}</details>"


def episodes_text(rows: list[dict[str, Any]]) -> str:
    """`ledger.episode_seconds` as one line: how many robot episodes and seconds in each role."""
    parts = []
    for role in sorted({row["role"] for row in rows}):
        own = [row["seconds"] for row in rows if row["role"] == role]
        parts.append(f"{len(own)} {role} ({sum(own):.1f} s)")
    return f"robot episodes: {', '.join(parts) or 'none'}"


def seconds_html(rows: list[dict[str, Any]]) -> str:
    """`ledger.source_seconds` as an HTML table, most-shown videos first."""
    columns = ("path", "source", "licence", "clips", "samples", "seconds", "distinct_seconds")
    ordered = sorted(rows, key=lambda row: (-row["seconds"], row["path"]))
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_cell(row[name]))}</td>" for name in columns) + "</tr>" for row in ordered)
    return f"<table class='lineage'><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else "" if value is None else str(value)


def answer_text(answer: dict[str, Any], limit: int = 10) -> str:
    """Any answer as text: of an artefact, a clip, a video, or a group of videos. Long tables are cut at `limit` rows, which is said."""
    if answer["subject"]["kind"] == "artefact":
        return _artefact_text(answer, limit)
    return _source_text(answer, limit)


def _artefact_text(answer: dict[str, Any], limit: int) -> str:
    total = answer["total"]
    lines = [
        f"shown in training: {total['samples']:,} samples, {total['seconds']:,.1f} s ({total['distinct_seconds']:,.1f} s distinct), from {total['videos']:,} source videos, "
        f"{total['clips']:,} of {total['clips_in_shards']:,} clips in the shards",
        f"stand-ins for samples that did not decode: {total['stand_ins']:,} ({total['stand_in_share']:.2%})",
    ]  # fmt: skip
    if answer["untold"]:
        lines = [f"what was shown cannot be told: {row['why']}" for row in answer["untold"]]
    elif not answer["phases"]:
        lines = ["no training on video clips stands behind it" + (f"; its shards hold {total['clips_in_shards']:,} clips" if total["clips_in_shards"] else "")]
    lines += [f"begun at the weights {borrowed_text(row)}" for row in answer["borrowed"]]
    lines += _table("phase", answer["phases"], ("checkpoint", "digest", "steps", "global_batch", "samples", "seconds", "clips", "stand_ins"), limit, "phase")
    for name in ("sources", "licences", "uploaders"):
        lines += _table(name.removesuffix("s"), answer[name], SUMS, limit)
    videos = [{**row, "shown": spans_text(row["spans_s"])} for row in answer["videos"][:limit] if row["samples"]]
    lines += _table("video", videos, ("samples", "seconds", "distinct_seconds", "shown"), limit, "path", more=_seen(answer["videos"]) - len(videos))
    lines += _table("batch", answer["batches"], ("into", "clips", "inputs"), limit, "batch")
    lines.append(episodes_text(answer["episodes"]))
    lines += _table("takedown", answer["takedowns"], ("asked", "reason", "added", "clips", "samples", "seconds"), limit, "takedown")
    lines += [] if answer["takedowns"] else [f"takedowns that touch it: {'cannot be told' if answer['untold'] else 'none'}"]
    return "\n".join([*lines, *dagster_lines(answer.get("dagster"))])


def _source_text(answer: dict[str, Any], limit: int) -> str:
    subject, total = answer["subject"], answer["total"]
    lines = [f"{subject['kind']} {subject['name']}"]
    if subject.get("path"):
        span = "" if subject["start_s"] is None else f"  {spans_text([(subject['start_s'], subject['end_s'])])}"
        lines.append(f"{subject['path']}{span}  {subject['licence'] or 'licence unknown'}, uploader {subject['uploader'] or 'unknown'}, source {subject['source'] or 'unknown'}")
    lines += [f"note: {note}" for note in answer["notes"]]
    for stage in answer.get("stages", []):
        lines.append(f"  {stage['artefact']} {stage['digest']}{'' if stage['current'] else ' (older)'}: {stage['says']}")
    if subject["kind"] == "video":
        lines += _table("clip", answer["clips"], ("start_s", "end_s", "verdict", "weight", "samples", "seconds", "taken_down"), limit, "clip_id")
    seen = [{**row, "phases": ", ".join(f"{name} {count:,}" for name, count in row["phases"].items()) or "in its shards, never drawn"} for row in answer["checkpoints"]]
    lines += _table("checkpoint", seen, ("digest", "current", "phases", "videos", "clips", *SUMS[2:]), 10**9, "checkpoint")
    lines.append(f"in all trainings together: {total['samples']:,} samples, {total['seconds']:,.1f} s" if seen else unseen_text(answer))
    if answer.get("spans_s"):
        lines.append(f"seconds of the source shown: {spans_text(answer['spans_s'])}")
    standing = answer["stands_on_them"]
    lines += ["what stands on these checkpoints:", *(f"  {row['artefact']} {row['digest']}{'' if row['current'] else ' (older)'}" for row in standing)] if standing else []
    if subject["kind"] not in ("clip", "video"):
        videos = [{**row, "shown": spans_text(row["spans_s"])} for row in answer["videos"][:limit] if row["samples"]]
        lines += _table("video", videos, ("samples", "seconds", "distinct_seconds", "shown"), limit, "path", more=_seen(answer["videos"]) - len(videos))
        lines += _table("takedown", answer["takedowns"], ("asked", "reason", "added", "clips", "samples", "seconds"), limit, "takedown")
    lines += [f"cannot be told: {row['checkpoint']}: {row['why']}" for row in unknown_rows(answer)]
    return "\n".join(lines)


def borrowed_text(row: Mapping[str, Any]) -> str:
    """Weights from elsewhere (`trainings.borrowed_weights`): their name, and what is known of them."""
    return f"{row['weights']} {row['digest'][:16]}, licence {row['licence']}; their training data: {row['training_data']}"


def unknown_rows(answer: Mapping[str, Any]) -> list[dict[str, str]]:
    """{checkpoint, why} of all that may have seen what was asked about without a file that says so."""
    borrowed = [{"checkpoint": name, "why": f"went on from the weights {borrowed_text(row)}"} for row in answer["borrowed"] for name in row["checkpoints"]]
    return [*answer["untold"], *borrowed]


def unseen_text(answer: Mapping[str, Any]) -> str:
    """That no checkpoint has seen it, as far as that can be said: what cannot be told may have."""
    unknown = len({row["checkpoint"] for row in unknown_rows(answer)})
    if unknown:
        return f"no checkpoint that can be told has it in its shards; {unknown} cannot be told, or not wholly, and may have seen it"
    return "no checkpoint's shards hold it: none has seen it"


SUMS = ("videos", "clips", "samples", "seconds", "distinct_seconds", "share_of_samples")


def dagster_lines(told: dict[str, Any] | None) -> list[str]:
    """What Dagster's database says beside the files: that it agrees, or which artefacts differ; nothing when it was not asked."""
    if told is None:
        return []
    if not told["of"]:
        why = f"cannot be read ({told['why']})" if told.get("why") else "is not there"
        return [f"Dagster's database {why}: told from files alone"]
    lines = [f"Dagster agrees on {told['agree']} of {told['of']}"]
    return lines + [f"  {row['artefact']}: the files say {row['digest']}, Dagster's newest is {row['newest'] or 'none'}" for row in told["differ"]]


def _seen(videos: Sequence[dict[str, Any]]) -> int:
    return sum(row["samples"] > 0 for row in videos)


def _table(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str], limit: int, name: str = "name", more: int = 0) -> list[str]:
    """A header and aligned lines; nothing where there are no rows. `more` rows are left out already."""
    if not rows:
        return []
    cells = [[title, *(column.replace("_", " ") for column in columns)]] + [[str(row[name] or row.get("video_id", "")), *(cell(column, row[column]) for column in columns)] for row in rows[:limit]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [False, *(all(isinstance(row[column], int | float) and not isinstance(row[column], bool) for row in rows) for column in columns)]
    lines = ["", *("  ".join(text.rjust(width) if right else text.ljust(width) for text, width, right in zip(line, widths, numeric, strict=True)).rstrip() for line in cells)]
    left = max(0, len(rows) - limit) + more
    return [*lines, f"... and {left:,} more, all in lineage.json"] if left else lines


def cell(column: str, value: Any) -> str:
    """A value as a reader sees it: shares in %, seconds to a tenth, digests by asset."""
    if column == "share_of_samples":
        return f"{value:.1%}"
    if column == "stand_in_share":
        return f"{value:.2%}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    if column == "weight":
        return "" if value is None else f"{value:.6f}"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)
