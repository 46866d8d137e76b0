"""A takedown for readers: the text for the console, and the page that lies in the store."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from pipelines.lineage.spans import spans_text
from pipelines.report.markup import cards, document, mark, section, table

LISTED = 10  # rows of one kind on the console
ON_PAGE = 500  # rows of one kind on the page; report.json holds them all


def report_text(report: dict[str, Any]) -> str:
    """The report in lines."""
    asked, redaction, selection = report["asked"], report.get("redaction"), report["selection"]
    lines = [f"takedown {report['takedown']}: {asked['rule']} {asked['value']}: {asked['reason']}", f"  {headline(report)}"]
    lines += _listed("videos", [f"{row['video_id']}  {', '.join(row['paths']) or 'no path is known any more'}  ({'; '.join(row['why'])})" for row in report["videos"]])
    lines.append(f"clips: {len(report['clips'])} of these videos, {_many(len(report['twins']), 'twin')} in other videos")
    lines += _listed("twins", [twin_text(row) for row in report["twins"]])
    if selection is not None:
        lines.append(f"unserved mass: {selection['unserved_mass']:.4%} of the current selection ({selection['clips']} of {selection['of']} clips); weights are renormalised over the rest")
    lines += _listed("shards", [
        f"{row['artefact']} {row['digest']}{_current(row)}: {row['clips']} clips, {row['bytes']:,} bytes in {len(row['tars'])} tars, {row['unserved_mass']:.4%} of its weight"
        for row in report["shards"]
    ])  # fmt: skip
    if redaction is not None:
        word = "would be overwritten" if report["dry_run"] else "overwritten"
        lines.append(f"bytes: {redaction['bytes']:,} of {len(redaction['clips'])} clips in {len(redaction['tars'])} tars {word}")
        lines += _listed("unfinished shards, removed" if not report["dry_run"] else "unfinished shards, to be removed", redaction["work_folders"])
        lines += _listed("tars that could not be searched", redaction["damaged"])
    lines += _listed("trainings that saw them", [training_text(row) for row in report["trainings"]])
    lines += _listed("unfinished trainings on these shards", [f"{row['training']} in {row['folder']}, newest checkpoint: {row['newest_checkpoint'] or 'none'}" for row in report["unfinished"]])
    lines += _listed("made from those", [f"{row['artefact']} {row['digest']}{_current(row)}" for row in report["standing"]])
    lines += _listed("source files, yours to delete", [f"{row['path']} ({row['bytes']:,} bytes)" for row in report["files"]])
    lines += _listed("files with twins (their other seconds stay)", [f"{row['path']}: {spans_text(row['spans_s'])}" for row in report["twin_files"]])
    lines += _listed("artefacts that still hold something of them", [f"{row['artefact']} {row['digest']}{_current(row)}, of {_many(row['rows'], 'row')}: {row['holds']}" for row in report["derived"]])
    lines += _listed("pages that may show them until written again", report["pages"])
    return "\n".join([*lines, "next:", *(f"  {number}. {step}" for number, step in enumerate(report["next"], start=1))])


def headline(report: dict[str, Any]) -> str:
    """What this call did, in a sentence."""
    new, earlier = report["new"], report["earlier_takedowns"]
    what = f"{_many(len(new['videos']), 'video')} and {_many(len(new['twins']), 'twin')}"
    if not new["videos"] and not new["twins"]:
        return f"nothing new: all of it is taken down already, by {', '.join(earlier)}"
    also = f"; the rest is taken down already, by {', '.join(earlier)}" if earlier else ""
    return (f"rehearsal, nothing is written: {what} would be taken down" if report["dry_run"] else f"{what} taken down") + also


def twin_text(row: dict[str, Any]) -> str:
    """A twin in a line: which clip, of what, and why."""
    place = f"{row['path']} {spans_text([[row['start_s'], row['end_s']]])}" if row["path"] and row["start_s"] is not None else f"video {row['video_id'] or 'unknown'}"
    alike = "" if row["similarity"] is None else f", similarity {row['similarity']:.3f}"
    return f"{row['clip_id']}  {place}: {row['link'].replace('_', ' ')} of {row['twin_of']}{alike}"


def training_text(row: dict[str, Any]) -> str:
    """A checkpoint in a line: what it was shown, and in which phases."""
    name = f"{row['artefact']} {row['digest']}{_current(row)}"
    if "problem" in row:
        return f"{name}: cannot be told, so count it in: {row['problem']}"
    when = f"in {row['first_phase']}" if row["first_phase"] == row["last_phase"] else f"from {row['first_phase']} to {row['last_phase']}"
    return f"{name}: {row['samples']:,} samples, {row['seconds']:,.1f} s of {_many(row['clips'], 'clip')}, {when}"


def _listed(title: str, rows: Sequence[str]) -> list[str]:
    if not rows:
        return []
    more = [f"  ... and {len(rows) - LISTED} more, in report.json"] if len(rows) > LISTED else []
    return [f"{title}:", *(f"  {row}" for row in rows[:LISTED]), *more]


def _current(row: dict[str, Any]) -> str:
    return "" if row["current"] else " (earlier)"


def _many(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def report_html(report: dict[str, Any]) -> str:
    """The report as one page that needs nothing but itself; everything from the store is escaped."""
    asked, selection = report["asked"], report["selection"]
    samples = max((row.get("samples", 0) for row in report["trainings"]), default=0)
    shown = [
        (f"{len(report['videos']):,}", "videos"), (f"{len(report['clips']):,}", "clips of theirs"), (f"{len(report['twins']):,}", "twins in other videos"),
        (f"{selection['unserved_mass']:.2%}" if selection else "none", "of the selection's mass falls away"),
        (f"{len(report['trainings']):,}", "checkpoints that saw them"), (f"{samples:,}", "samples in the most exposed one"),
    ]  # fmt: skip
    head = (
        f"<header><div><p class='eyebrow'>Tubelet · takedown <code>{_e(report['takedown'])}</code></p><h1>{_e(asked['rule'].capitalize())} {_e(asked['value'])}</h1>"
        f"<p class='lead'>{_e(asked['reason'])} · {_e(report['made'])} · {_e(headline(report))}</p>{cards(shown)}</div></header>"
    )
    steps = "<ol>" + "".join(f"<li>{_e(step)}</li>" for step in report["next"]) + "</ol>"
    parts = [section("What to do now", steps, "In this order.")] if report["next"] else []
    parts += [section("Videos", _videos(report), "What was meant, and why. Every clip of them is out, also of copies under another name and of clips cut later.")]
    parts += [section("Twins", _twins(report), "Clips of other videos that show the same footage. They go too, or the next curation would take them in their place; the other clips of those videos stay.")]
    parts += [section("Shards", _shards(report), "Weights are renormalised over the clips that stay; a training that runs skips the taken ones from its next step.")]
    parts += [section("Trainings", _trainings(report), "Recomputed by drawing every phase again. Weights keep what they have learned.")]
    parts += [section("What is left", _left(report), "Nothing here is deleted for you: source files are yours, and sealed artefacts stay so that lineage can be told.")]
    return document(f"Tubelet: takedown {report['takedown']}", head + "".join(parts))


def _videos(report: dict[str, Any]) -> str:
    rows = [[f"<code>{_e(row['video_id'])}</code>", *(_lines(row[name]) for name in ("paths", "sources", "licences", "uploaders", "why"))] for row in report["videos"]]
    return _table(["video", "paths", "source", "licence", "uploader", "why"], rows)


def _twins(report: dict[str, Any]) -> str:
    rows = [
        [f"<code>{_e(row['clip_id'])}</code>", _e(row["path"] or row["video_id"]), _e(spans_text([[row["start_s"], row["end_s"]]]) if row["start_s"] is not None else ""),
         _e(row["link"].replace("_", " ")), f"<code>{_e(row['twin_of'])}</code>", "" if row["similarity"] is None else f"{row['similarity']:.3f}"]
        for row in report["twins"]
    ]  # fmt: skip
    return _table(["clip", "of", "seconds", "why", "of clip", "similarity"], rows, numeric=1)


def _shards(report: dict[str, Any]) -> str:
    rows = [[_e(row["artefact"]), f"<code>{_e(row['digest'])}</code>", _state(row), f"{row['clips']:,}", f"{len(row['tars']):,}", f"{row['bytes']:,}", f"{row['unserved_mass']:.2%}"] for row in report["shards"]]
    body = _table(["shards", "digest", "", "clips", "tars", "bytes", "of the weight"], rows, numeric=4)
    redaction = report.get("redaction")
    if redaction is None:
        return body + (f"<p>{mark('missed', 'there')} The bytes are still in the tars: ask again with --compact to overwrite them.</p>" if rows else "")
    words = f"{redaction['bytes']:,} bytes of {_many(len(redaction['clips']), 'clip')} were overwritten in {_many(len(redaction['tars']), 'tar')} by this call; none is left in the others."
    lost = [f"could not be searched: {name}" for name in redaction["damaged"]] + [f"removed, unfinished: {name}" for name in redaction["work_folders"]]
    return body + f"<p>{mark('missed', 'damaged') if redaction['damaged'] else mark('met', 'gone')} {_e(words)}</p>" + (f"<p>{_lines(lost)}</p>" if lost else "")


def _trainings(report: dict[str, Any]) -> str:
    rows = []
    for row in report["trainings"]:
        name = [_e(row["artefact"]), f"<code>{_e(row['digest'])}</code>", _state(row)]
        if "problem" in row:
            rows.append([*name, _e(f"cannot be told: {row['problem']}"), "", "", ""])
            continue
        phases = [f"{phase['phase']}: {phase['samples']:,} of {phase['of_samples']:,} samples in {phase['steps']:,} steps" for phase in row["phases"]]
        rows.append([*name, _lines(phases), f"{row['clips']:,}", f"{row['samples']:,}", f"{row['seconds']:,.1f}"])
    body = _table(["checkpoint", "digest", "", "phases", "clips", "samples", "seconds"], rows, numeric=3)
    going = [f"{row['training']}, newest checkpoint: {row['newest_checkpoint'] or 'none'}, in {row['folder']}" for row in report["unfinished"]]
    body += f"<h3>Not ended</h3><p>{_lines(going)}</p>" if going else ""
    standing = [[_e(row["artefact"]), f"<code>{_e(row['digest'])}</code>", _state(row)] for row in report["standing"]]
    return body + (f"<h3>Made from those</h3>{_table(['artefact', 'digest', ''], standing)}" if standing else "")


def _left(report: dict[str, Any]) -> str:
    files = [[_e(row["path"]), f"{row['bytes']:,}"] for row in report["files"]]
    twins = [[_e(row["path"]), _e(spans_text(row["spans_s"], None))] for row in report["twin_files"]]
    kept = [[_e(row["artefact"]), f"<code>{_e(row['digest'])}</code>", _state(row), _e(row["holds"]), f"{row['rows']:,}"] for row in report["derived"]]
    body = f"<h3>Source files, yours to delete</h3>{_table(['path', 'bytes'], files, numeric=1)}"
    body += f"<h3>Files with twins: their other seconds stay</h3>{_table(['path', 'twins'], twins)}" if twins else ""
    body += f"<h3>Artefacts that still hold something of them</h3>{_table(['artefact', 'digest', '', 'holds', 'rows'], kept, numeric=1)}"
    return body + (f"<p>Pages that may show pictures until they are written again: {_lines(report['pages'])}</p>" if report["pages"] else "")


def _table(headers: list[str], rows: list[list[str]], numeric: int = 0) -> str:
    if not rows:
        return "<p>None.</p>"
    more = f"<p>The first {ON_PAGE} of {len(rows):,}; report.json beside this page holds them all.</p>" if len(rows) > ON_PAGE else ""
    return table(headers, rows[:ON_PAGE], numeric) + more


def _state(row: dict[str, Any]) -> str:
    return mark("info", "current") if row["current"] else "earlier"


def _lines(values: Sequence[str]) -> str:
    return "<br>".join(map(_e, values))


def _e(text: str | None) -> str:
    return html.escape(text or "")
