"""The curation page: one HTML file that says what went in, what came out, what was dropped and why, with pictures."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.curation.report.chain import chain_of
from pipelines.curation.report.costs import totals, write_costs
from pipelines.curation.report.facts import Facts, PageConfig, collect
from pipelines.curation.report.funnel import counted
from pipelines.curation.report.losses import Loss, Sum, place_of
from pipelines.curation.report.pieces import Thumbnails, note, tile
from pipelines.curation.report.sections import (
    clusters_section,
    cost_section,
    distribution_section,
    drift_section,
    leaks_section,
    origin_section,
)
from pipelines.curation.report.style import SCRIPT, STYLE
from pipelines.curation.report.thumbnails import thumbnails
from pipelines.errors import MissingArtefact
from pipelines.report.markup import bar, cards, document, mark, number, section, table
from pipelines.store import Store, make_folder, write_atomic

PAGE = "index.html"
PICTURES = "thumbnails"
NOBODY = "for target: uniform"
REASONS = {
    "exact": "the same stream twice", "fingerprint": "the same pictures, encoded again", "near_duplicate": "almost the same pictures",
    "evaluation_leak": "shows what a target set is evaluated on", "taken_down": "was taken down, or shows what was", "filtered_static": "stands still", "filtered_black": "is black",
    "too_short": "a scene shorter than a clip", "empty_file": "0 bytes", "not_a_video": "FFmpeg knows no such format",
    "no_video_stream": "no moving picture in it", "truncated": "ends before its time", "decode_error": "frames that cannot be decoded",
    "no_frames": "not one frame comes out", "timeout": "no answer within the time limit", "worker_died": "the decoder crashed", "unreadable": "cannot be opened",
}  # fmt: skip
"""What the codes mean, for a reader who meets them for the first time."""


def write_curation_page(
    store: Store, folder: Path, config: PageConfig | None = None, progress: Callable[..., None] | None = None
) -> Path:
    """Write index.html, curation.json, costs.parquet and costs.json into `folder`, and return the page's path.

    Thumbnails are kept below `folder`, so that a second write decodes only what is new. Raises `MissingArtefact` while
    no batch has been probed.
    """
    config = config or PageConfig()
    chain = chain_of(store)
    if not chain.videos:
        raise MissingArtefact(
            "there is no curation to show yet", expected="at least one batch of videos that passed its checks", found="none",
            remedy="run make demo, or materialize videos of a batch (job ingest)",
        )  # fmt: skip
    facts = collect(chain, config)
    with store.writing():
        make_folder(folder)
        taken = thumbnails(facts.pictured(), folder / PICTURES, config.thumbnails, progress)
        write_costs(facts.costs, folder)
        write_atomic(folder / "curation.json", json.dumps(facts.as_json(), indent=1))
        write_atomic(folder / PAGE, render(facts, taken, config))
    return folder / PAGE


def render(facts: Facts, taken: Thumbnails, config: PageConfig) -> str:
    """The page as HTML."""
    parts = [
        ("dropped", "What was dropped, and why", _funnel(facts) + _sums(facts.sums), "From every file that arrived to the clips a model trains on. Open a line to see what it took."),
        ("kept", "What is kept", _kept(facts, taken), "A number says how often a clip is drawn for one time when all are drawn alike; each clip here is from another cluster where there are enough."),
        ("removed", "Removed, beside what stayed", _removed(facts, taken), "Those least like their twin come first: if these are wrong, a threshold is."),
        ("leaks", "Evaluation videos", leaks_section(facts), "What the target sets are evaluated on must not be trained on."),
        ("clusters", "Clusters", clusters_section(facts, taken, config), "What the pool holds, grouped by what it looks like, and how much of it the targets ask for."),
        ("distribution", "Asked for and achieved", distribution_section(facts), "Shares of the draws: all clips alike, as the targets ask, and as the selection gives."),
        ("drift", "Drift and decision", drift_section(facts), "Whether new clips are like those before them, and what was done about it."),
        ("cost", "Cost", cost_section(facts), "What every stage took when it was made; CPU time is of all its processes together."),
        ("origin", "How to make it again", origin_section(facts), "Equal configurations on equal files give equal digests."),
    ]  # fmt: skip
    links = "".join(f"<a href='#{anchor}'>{html.escape(title)}</a>" for anchor, title, _, _ in parts)
    body = "".join(section(title, inside, lead, anchor) for anchor, title, inside, lead in parts)
    return document("Tubelet: curation", f"{_head(facts)}<nav>{links}</nav>{body}", STYLE, SCRIPT)


def _head(facts: Facts) -> str:
    chain = facts.chain
    counts = {(row.stage, row.reason): row.count for row in facts.funnel}
    files, videos, cut = (counts.get(key, 0) for key in (("files", "found"), ("videos", "decodable"), ("clips", "cut")))
    seconds = sum(float(item.summary.get("video_seconds", 0.0)) for item in chain.videos.values())
    shown = [(f"{files:,}", "files found"), (f"{videos:,}", f"videos that decode, {_hours(seconds)}"), (f"{cut:,}", "clips cut from them")]
    if facts.pool is not None:
        shown.append((f"{len(facts.pool):,}", f"distinct clips, {_hours(float(facts.pool.seconds.sum()))}"))
    if facts.pool is not None and facts.pool.weight is not None:
        shown.append((f"{int((facts.pool.weight > 0).sum()):,}", "clips with a weight"))
        leaks = facts.distribution.get("evaluation_leaks", [])
        shown.append((str(len(leaks)), "evaluation clips among them"))
    cpu = [row["cpu_s"] for row in totals(facts.costs)]
    if cut and cpu and all(value is not None for value in cpu):
        shown.append((f"{sum(cpu) / cut:.2g} s", "of CPU for each clip cut"))
    notes = []
    if chain.waiting:
        notes.append(f"Batches that are not in this curation: {', '.join(chain.waiting)}. If they gave clips, materialize clip_embeddings, distinct_clips and what follows to take them in.")
    if chain.newer:
        notes.append(f"Made again since this curation, which does not use it: {', '.join(chain.newer)}. Materialize what follows to bring it up to date.")
    head = chain.selection or chain.clusters or chain.distinct
    made = f"{html.escape(head.key)} <code>{html.escape(head.digest)}</code>" if head else "no batch has been merged yet"
    return (
        f"<header><div><p class='eyebrow'>Tubelet · curation</p><h1>What became of {files:,} files</h1><p class='lead'>{made}</p>"
        f"{cards(shown)}{''.join(note(words) for words in notes)}</div></header>"
    )


def _hours(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _funnel(facts: Facts) -> str:
    most = max((row.count for row in facts.funnel), default=1) or 1
    losses = {(loss.stage, loss.reason.replace("_", " ")): loss for loss in facts.losses}
    lines = []
    for row in facts.funnel:
        _, _, why = row.reason.partition(": ")
        loss = losses.get((row.stage, why)) if row.kind == "lost" else None
        stage = f"<b>{html.escape(row.stage)}</b>" if row.kind == "kept" else "<span></span>"
        meaning = REASONS.get(loss.reason, "") if loss else ""
        reason = "asked for by no target" if row.reason == NOBODY else row.reason
        words = html.escape(reason) + (f" <span class='small'>({html.escape(meaning)})</span>" if meaning else "")
        cells = f"{stage}{bar(row.count / most, row.kind)}<span>{words}</span><span class='n'>{html.escape(counted(row.count, row.unit))}</span>"
        if loss is None:
            lines.append(f"<div>{cells}</div>")
        else:
            lines.append(f"<details><summary>{cells}</summary><div>{_examples(loss)}</div></details>")
    return f"<div class='funnel'>{''.join(lines)}</div>"


def _examples(loss: Loss) -> str:
    """The listed rows of one reason; columns in which no row has anything are left out."""
    rows = []
    for row in loss.examples:
        tries = f"{row['attempts']}{' (poison)' if row.get('poison') else ''}" if row.get("attempts") else ""
        rows.append({
            "path": html.escape(row["path"] or f"clip {row.get('clip_id', '?')}"),
            "seconds": "" if row.get("start_s") is None else f"{row['start_s']:.2f}-{row['end_s']:.2f}", "detail": html.escape(row.get("detail") or ""),
            "twin": html.escape(place_of(row["twin"]) if row.get("twin") else row.get("twin_id") or ""), "tries": tries,
            "similarity": number(_rounded(row.get("similarity"))) if row.get("twin_id") else "", "distance": number(_rounded(row.get("distance"))),
        })  # fmt: skip
    names = [name for name in ("path", "seconds", "detail", "twin", "tries", "similarity", "distance") if name == "path" or any(row[name] for row in rows)]
    numeric = sum(name in ("tries", "similarity", "distance") for name in names)
    more = f"<p class='small'>The first {len(rows)} of {loss.count:,}; the artefact's table holds them all.</p>" if loss.count > len(rows) else ""
    return table(names, [[row[name] for name in names] for row in rows], numeric) + more


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _sums(sums: list[Sum]) -> str:
    lines = []
    for item in sums:
        right = " + ".join(html.escape(_one_or_many(words, count)) for words, count in item.right)
        lines.append(f"<li>{mark('met' if item.agrees else 'missed', 'agrees' if item.agrees else 'differs')}{html.escape(_one_or_many(*item.left))} = {right}</li>")
    return f"<ul class='sums'>{''.join(lines)}</ul>"


def _one_or_many(words: str, count: int) -> str:
    """"2 files in quarantine", "1 file in quarantine"."""
    return f"{count:,} {re.sub(r'(file|video|clip)s', lambda found: found[1], words) if count == 1 else words}"


def _kept(facts: Facts, taken: Thumbnails) -> str:
    if facts.pool is None:
        return note("The batches have not been merged yet: materialize distinct_clips.")

    def sheet(ids: list[str]) -> str:
        tiles = []
        for clip_id in ids:
            drawn = facts.repeats(clip_id)
            caption = f"<b>× {drawn[0]:.2f}</b> {html.escape('nobody asks for it' if drawn[1] == 'uniform' else f'for {drawn[1]}')}" if drawn else ""
            tiles.append(tile(facts.clips.get(clip_id), taken, caption))
        return f"<div class='tiles'>{''.join(tiles)}</div>"

    if facts.pool.weight is None:
        return sheet(facts.most) + note("There is no selection yet: materialize curated_clips for weights.")
    least = f"<h3>Drawn least</h3>{sheet(facts.least)}" if facts.least else ""
    return f"<h3>Drawn most</h3>{sheet(facts.most)}{least}"


def _removed(facts: Facts, taken: Thumbnails) -> str:
    shown = []
    for loss in facts.losses:
        examples = [row for row in loss.examples if row.get("clip") is not None][: facts.pairs] if loss.stage == "distinct" else []
        if not examples:
            continue
        pairs = []
        for row in examples:
            facts_of_pair = [f"similarity {row['similarity']:.3f}"] if row["twin"] is not None and row["similarity"] is not None else []
            facts_of_pair += [f"distance {row['distance']:.3f}"] if row.get("distance") is not None else []
            facts_of_pair += [row["detail"]] if row.get("detail") else []
            other = tile(row["twin"], taken, "<b>evaluated on</b>" if loss.reason == "evaluation_leak" else "<b>kept</b>") if row["twin_id"] else ""
            pairs.append(f"<div class='pair'>{tile(row['clip'], taken, '<b>removed</b>')}{other}<p class='small'>{html.escape(', '.join(facts_of_pair))}</p></div>")
        meaning = REASONS.get(loss.reason, "")
        title = f"{html.escape(loss.reason.replace('_', ' '))} <small>{counted(loss.count, 'clips')}{html.escape(f', {meaning}' if meaning else '')}</small>"
        shown.append(f"<h3>{title}</h3><div class='pairs'>{''.join(pairs)}</div>")
    if not shown:
        return note("No clip was removed." if facts.pool is not None else "The batches have not been merged yet: materialize distinct_clips.")
    return "".join(shown)
