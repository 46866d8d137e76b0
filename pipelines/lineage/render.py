"""Lineage for readers: a tree as text, and the tree with its tables as HTML."""

from __future__ import annotations

import html
from typing import Any

from pipelines.lineage.tree import Node

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


def render_html(node: Node) -> str:
    """The tree as nested, foldable HTML; self-contained, everything from the store escaped."""
    head = f"<b>{html.escape(node.key)}</b> <code>{html.escape(node.digest)}</code>"
    tail = "(see above)" if node.repeated else html.escape(facts_text(node.facts))
    if not node.children:
        return f"<div class='lineage'>{head} {tail}</div>"
    inner = "".join(render_html(child) for child in node.children)
    return f"<details class='lineage' open style='margin-left:1.2em'><summary>{head} {tail}</summary>{inner}</details>"


def episodes_text(rows: list[dict[str, Any]]) -> str:
    """`ledger.episode_seconds` as one line: how many robot episodes and seconds in each role."""
    parts = []
    for role in sorted({row["role"] for row in rows}):
        own = [row["seconds"] for row in rows if row["role"] == role]
        parts.append(f"{len(own)} {role} ({sum(own):.1f} s)")
    return f"robot episodes: {', '.join(parts) or 'none'}"


def seconds_text(rows: list[dict[str, Any]], limit: int = 20) -> str:
    """`ledger.source_seconds` as lines, most-shown videos first, with a closing total over all of them."""
    ordered = sorted(rows, key=lambda row: (-row["seconds"], row["path"]))
    lines = [
        f"{row['distinct_seconds']:9.1f} s distinct {row['seconds']:9.1f} s shown {row['samples']:7d} samples {row['clips']:4d} clips  "
        f"{row['licence'] or 'licence unknown'}  {row['path'] or row['video_id']}"
        for row in ordered[:limit]
    ]
    if len(rows) > limit:
        lines.append(f"... and {len(rows) - limit} more videos")
    distinct, shown, samples = (sum(row[name] for row in rows) for name in ("distinct_seconds", "seconds", "samples"))
    lines.append(f"{distinct:9.1f} s distinct {shown:9.1f} s shown {samples:7d} samples in all, from {len(rows)} source videos")
    return "\n".join(lines)


def seconds_html(rows: list[dict[str, Any]]) -> str:
    """`ledger.source_seconds` as an HTML table, most-shown videos first."""
    columns = ("path", "source", "licence", "clips", "samples", "seconds", "distinct_seconds")
    ordered = sorted(rows, key=lambda row: (-row["seconds"], row["path"]))
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_cell(row[name]))}</td>" for name in columns) + "</tr>" for row in ordered)
    return f"<table class='lineage'><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else "" if value is None else str(value)
