"""Pieces that the page and the comparison share: a clip with its picture, shares as bars, a table of any report."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.curation.report.losses import place_of
from pipelines.curation.report.thumbnails import Thumbnail
from pipelines.report.markup import bar, data_url, number, table

LISTED = 50  # rows of a folded list
Thumbnails = Mapping[str, Thumbnail]


def tile(clip: Mapping[str, Any] | None, thumbnails: Thumbnails, caption: str = "") -> str:
    """A clip as a picture with its name below; `caption` is HTML. None is a clip that no table knows."""
    if clip is None:
        return "<figure><span class='shot gone'>not in any table</span></figure>"
    place = html.escape(place_of(clip))
    words = f"{place}<br>{caption}" if caption else place
    return f"<figure>{shot(clip, thumbnails)}<figcaption>{words}</figcaption></figure>"


def shot(clip: Mapping[str, Any], thumbnails: Thumbnails) -> str:
    """The picture alone, or a grey tile that says why there is none."""
    title = html.escape(f"{clip['path']} ({clip['clip_id']})", quote=True)
    found = thumbnails.get(clip["clip_id"], Thumbnail(missing="no picture taken"))
    if found.missing:
        return f"<span class='shot gone' title=\"{title}\">{html.escape(found.missing)}</span>"
    return f"<img class='shot' alt='' title=\"{title}\" src='{data_url(found.data, 'image/jpeg')}'>"


def trio(shares: Sequence[tuple[str, float | None, str]], most: float) -> str:
    """Shares under each other as (name, share, colour of the bar), on one scale up to `most`; unknown ones are left out."""
    lines = "".join(
        f"<span>{html.escape(name)}</span>{bar(share / most if most else 0.0, kind)}<span class='n'>{percent(share)}</span>"
        for name, share, kind in shares
        if share is not None
    )
    return f"<div class='trio'>{lines}</div>"


def percent(share: float | None) -> str:
    """A share as a person reads it."""
    if share is None:
        return ""
    size = abs(share)
    if size < 1e-12 or abs(size - 1) < 1e-9:
        return f"{share:.0%}"
    return f"{share:.0%}" if 0.0995 <= size < 0.995 else f"{share:.1%}" if size >= 0.001 else f"{share:.2%}"


def folded(title: str, body: str, unfolded: bool = False) -> str:
    """A list that opens on a click; `title` is plain text."""
    return f"<details{' open' if unfolded else ''}><summary>{html.escape(title)}</summary>{body}</details>"


def report_table(report: Mapping[str, Any], leave_out: Sequence[str] = ()) -> str:
    """Any JSON report of a stage: numbers and words as a table, lists of records folded below it, records nested."""
    plain, parts = [], []
    for name, value in report.items():
        if name in leave_out or value is None:
            continue
        label = name.replace("_", " ")
        if isinstance(value, Mapping) and value:
            uniform = all(isinstance(row, Mapping) and not any(isinstance(cell, Mapping | list) for cell in row.values()) for row in value.values())
            parts.append(folded(label, records([{"name": key, **row} for key, row in value.items()]) if uniform else report_table(value)))
        elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            parts.append(folded(f"{label} ({len(value)})", records(value)))
        elif isinstance(value, list):
            shown = ", ".join(str(item) for item in value[:LISTED]) + (f" and {len(value) - LISTED} more" if len(value) > LISTED else "")
            plain.append([html.escape(label), html.escape(shown or "none")])
        elif not isinstance(value, Mapping):
            plain.append([html.escape(label), number(value)])
    return (table(["what", "found"], plain) if plain else "") + "".join(parts)


def records(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first records of a list as a table over the columns that hold numbers and words."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, Mapping | list)))
    cells = [[number(row.get(name)) for name in names] for row in rows[:LISTED]]
    more = f"<p class='small'>and {len(rows) - LISTED} more</p>" if len(rows) > LISTED else ""
    return table([name.replace("_", " ") for name in names], cells) + more


def note(words: str) -> str:
    """One line that says what is not there, or what to keep in mind."""
    return f"<p class='note'>{html.escape(words)}</p>"
