"""The pieces that the pages are built of: HTML without scripts of others, pictures inside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.report.style import STYLE
from pipelines.store import Artefact

PICTURE_TYPES = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg"}


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page that needs nothing but itself; `style` and `script` are the page's own additions."""
    ending = f"<script>{script}</script>" if script else ""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<meta name='color-scheme' content='light dark'><title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body><main>{body}</main>{ending}</body></html>"
    )


def section(title: str, body: str, lead: str, anchor: str = "") -> str:
    """A headed part of a page; `body` is HTML already. `anchor` is what a link on the page calls it."""
    name = f" id='{html.escape(anchor)}'" if anchor else ""
    return f"<section{name}><h2>{html.escape(title)}</h2><p class='lead'>{html.escape(lead)}</p>{body}</section>"


def cards(facts: Sequence[tuple[str, str]]) -> str:
    """Headline numbers as (value, what it is)."""
    inside = "".join(f"<div class='card'><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>" for value, label in facts)
    return f"<div class='cards'>{inside}</div>"


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


def mark(kind: str, word: str | None = None) -> str:
    """A coloured word: `kind` is met, missed or info."""
    return f"<span class='mark {kind}'>{html.escape(word or kind)}</span>"


def picture(path: Path) -> str:
    """A picture inside the page; nothing when the file is not there."""
    if not path.is_file():
        return ""
    return f"<figure><img src='{data_url(path.read_bytes(), PICTURE_TYPES[path.suffix])}' alt='{html.escape(path.stem)}'></figure>"


def data_url(data: bytes, kind: str) -> str:
    """Bytes of a picture of MIME type `kind` as the address of an image."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def pictures(artefacts: Sequence[Artefact], names: Sequence[str]) -> str:
    """Those of the pictures `names` that the artefacts hold."""
    found = "".join(picture(artefact.path / name) for artefact in artefacts for name in names)
    return f"<div class='pictures'>{found}</div>" if found else ""


def number(value: Any) -> str:
    """A cell for a number, a word or nothing."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape(str(value)) if value is not None else ""
