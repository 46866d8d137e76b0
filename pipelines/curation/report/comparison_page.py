"""A comparison of two curations for people: as text for a console, and as a page with the clips that gained and lost."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path

from pipelines.curation.report.comparison import Change, ClipChange, Comparison, described
from pipelines.curation.report.funnel import counted
from pipelines.curation.report.pieces import Thumbnails, note, percent, tile, trio
from pipelines.curation.report.style import STYLE
from pipelines.curation.report.thumbnails import ThumbnailConfig, thumbnails
from pipelines.report.markup import cards, document, section, table
from pipelines.store import Store, make_folder, write_atomic

LINES = 6  # groups that the text lists
ROWS = 15  # groups that the page lists


def comparison_text(found: Comparison) -> str:
    """The comparison in a screenful."""
    lines = [
        f"before   {described(found.before)}", f"after    {described(found.after)}",
        f"clips    {found.both:,} in both: {found.jaccard:.1%} of all that either draws; {found.overlap:.1%} of the draws agree (total variation {1 - found.overlap:.3f})",
        f"videos   {found.video_jaccard:.1%} of all that either draws from; {found.video_overlap:.1%} of the draws agree",
    ]  # fmt: skip
    for stage, option, old, new in found.differences[:12]:
        lines.append(f"differs  {stage} {option}: {_short(old)} -> {_short(new)}")
    if len(found.differences) > 12:
        lines.append(f"differs  and in {len(found.differences) - 12} more options")
    for way, reasons in found.reasons.items():
        for why, (count, share) in reasons.items():
            lines.append(f"{way:<9}{counted(count, 'clips')} with {percent(share)} of the draws: {why}")
    for name, changes in found.groups.items():
        moved = [row for row in changes if abs(row.change) >= 5e-4][:LINES]
        if moved:
            lines.append(f"{name:<9}" + ", ".join(f"{row.name} {percent(row.before)} -> {percent(row.after)}" for row in moved))
    return "\n".join([*lines, *(f"note     {words}" for words in found.notes)])


def write_comparison(
    store: Store, found: Comparison, folder: Path, config: ThumbnailConfig | None = None, progress: Callable[..., None] | None = None
) -> Path:
    """Write index.html and comparison.json into `folder` and return the page's path. Thumbnails are kept below `folder`."""
    with store.writing():
        make_folder(folder)
        taken = thumbnails([row.clip for row in (*found.gained, *found.lost)], folder / "thumbnails", config, progress)
        write_atomic(folder / "comparison.json", json.dumps(found.as_json(), indent=1))
        write_atomic(folder / "index.html", comparison_html(found, taken))
    return folder / "index.html"


def comparison_html(found: Comparison, taken: Thumbnails) -> str:
    """The page as HTML."""
    gained, lost = ({way: sum(count for count, _ in reasons.values()) for way, reasons in found.reasons.items()}[way] for way in ("gained", "lost"))
    facts = [
        (f"{found.overlap:.1%}", "of the draws agree"), (f"{found.jaccard:.1%}", "of the clips are in both"), (f"{gained:,}", "clips only in the newer"),
        (f"{lost:,}", "clips only in the older"), (f"{found.video_overlap:.1%}", "of the draws agree in their videos"),
    ]  # fmt: skip
    head = (
        f"<header><div><p class='eyebrow'>Tubelet · curation</p><h1>Two curations side by side</h1><p class='lead'>Before: <code>{html.escape(described(found.before))}</code><br>"
        f"After: <code>{html.escape(described(found.after))}</code></p>{cards(facts)}{''.join(note(words) for words in found.notes)}</div></header>"
    )
    differences = table(["stage", "option", "before", "after"], [[html.escape(_short(cell, 200)) for cell in row] for row in found.differences])
    groups = "".join(f"<h3>By {html.escape(name)}</h3>{_changes(changes)}" for name, changes in found.groups.items())
    parts = [
        section("Who gained", _reasons(found, "gained", "Nothing is drawn now that was not drawn before.") + _sheet(found.gained, taken), "Clips that are drawn more often than before, most first; shares are of all draws."),
        section("Who lost", _reasons(found, "lost", "Everything that was drawn before still is.") + _sheet(found.lost, taken), "Clips that are drawn less often than before, or not at all."),
        section("What moved", groups, f"Shares of the draws before and after; clusters are those of {found.codebook}."),
        section("What differs in how they were made", differences if found.differences else note("Nothing: the same inputs and options."), "Options and inputs, stage by stage."),
    ]  # fmt: skip
    return document("Tubelet: two curations", head + "".join(parts), STYLE)


def _reasons(found: Comparison, way: str, none: str) -> str:
    rows = [[html.escape(why), f"{count:,}", percent(share)] for why, (count, share) in found.reasons[way].items()]
    side = "older" if way == "gained" else "newer"
    return table([f"why the {side} does not draw them", "clips", "share of the draws"], rows, numeric=2) if rows else note(none)


def _sheet(rows: list[ClipChange], taken: Thumbnails) -> str:
    tiles = [
        tile(row.clip, taken, f"<b>{percent(row.before)} → {percent(row.after)}</b> {html.escape(row.why)}") for row in rows
    ]
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _changes(changes: list[Change]) -> str:
    most = max((max(row.before, row.after) for row in changes), default=0.0)
    rows = [
        [html.escape(row.name), trio([("before", row.before, "plain"), ("after", row.after, "kept")], most), f"{100 * row.change:+.1f}",
         f"{row.clips_before:,}", f"{row.clips_after:,}"]
        for row in changes[:ROWS]
    ]  # fmt: skip
    rest = changes[ROWS:]
    more = f"<p class='small'>and {len(rest):,} more, none of which moved by more than {percent(abs(rest[0].change))}</p>" if rest else ""
    return table(["name", "share of the draws", "points", "clips before", "clips after"], rows, numeric=3) + more


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
