"""The sections of the curation page that come after the clips: leaks, clusters, distribution, drift, cost, origin."""

from __future__ import annotations

import html
import json
import time
from pathlib import Path
from typing import Any

from pipelines.curation.report.chain import created
from pipelines.curation.report.clusters import Leaf
from pipelines.curation.report.costs import totals
from pipelines.curation.report.facts import Facts, PageConfig
from pipelines.curation.report.funnel import counted
from pipelines.curation.report.pieces import Thumbnails, folded, note, percent, report_table, shot, trio
from pipelines.curation.report.pool import GROUPS, UNKNOWN, shares
from pipelines.report.markup import bar, mark, number, picture, pictures, table

NAMES = 15  # names of a group that are listed
ORDERS = (("r", "most asked for"), ("a", "drawn most"), ("n", "most clips"), ("id", "number"))


def leaks_section(facts: Facts) -> str:
    """The report on evaluation leaks, and whether any is left in the selection."""
    if facts.chain.distinct is None:
        return note("The batches have not been merged yet: materialize distinct_clips.")
    left = facts.distribution.get("evaluation_leaks")
    verdict = ""
    if left is not None:
        clean = "no clip of the selection is of an evaluation video, or looks like one"
        verdict = f"<p>{mark('met' if not left else 'missed', 'clean' if not left else 'leaks')} {html.escape(clean if not left else f'{len(left)} clips of the selection are: ' + ', '.join(left[:5]))}</p>"
    removed = next((loss.count for loss in facts.losses if loss.reason == "evaluation_leak"), 0)
    words = f"<p>{removed:,} clips of the pool were removed because they show what a target set is evaluated on.</p>"
    report = facts.reports.get("leaks")
    return verdict + words + (report_table(report) if report else note("This artefact carries no leaks.json: it was made by an older version."))


def clusters_section(facts: Facts, taken: Thumbnails, config: PageConfig) -> str:
    """The map, and every leaf with its contents to search and sort."""
    browser, chain = facts.browser, facts.chain
    if browser is None or chain.clusters is None:
        return note("There are no clusters yet: materialize clip_clusters.")
    most = max((max(leaf.uniform, leaf.requested or 0.0, leaf.achieved or 0.0) for leaf in browser.leaves), default=0.0)
    groups: dict[int, list[Leaf]] = {}
    for leaf in browser.leaves:
        groups.setdefault(leaf.coarse, []).append(leaf)
    sections = []
    for coarse, leaves in groups.items():
        title = "Leaves without clips" if coarse < 0 else f"Group {coarse}"
        size = f"{len(leaves)} {'leaf' if len(leaves) == 1 else 'leaves'}, {counted(sum(leaf.clips for leaf in leaves), 'clips')}"
        inside = "".join(_leaf(facts, leaf, taken, most, config.representatives) for leaf in leaves)
        sections.append(f"<div class='group'><h3>{title} <small>{size}</small></h3><div class='leaves'>{inside}</div></div>")
    orders = "".join(f"<option value='{key}'>{words}</option>" for key, words in ORDERS)
    find = (
        "<div class='find'><input id='words' type='search' placeholder='Find: cluster number, target, source, licence, label, file' aria-label='Find clusters'>"
        f"<select id='order' aria-label='Order of clusters'>{orders}</select><span id='shown' class='small'></span></div>"
    )
    listed = len(browser.leaves) + len(browser.rest)
    words = f"{browser.total:,} leaves" + (f", {browser.empty:,} of them without a clip" if browser.empty else "")
    if browser.rest:
        words += f". The {len(browser.leaves)} most asked for are shown with pictures, {len(browser.rest):,} more as rows below"
        words += f"; {browser.total - listed:,} are left out here" if browser.total > listed else ""
    rest = folded(f"{len(browser.rest):,} more leaves", _leaf_rows(browser.rest)) if browser.rest else ""
    return f"{pictures([chain.clusters], ('cluster_map.png',))}<p class='small'>{html.escape(words)}.</p>{find}<div>{''.join(sections)}</div>{rest}"


def _leaf(facts: Facts, leaf: Leaf, taken: Thumbnails, most: float, representatives: int) -> str:
    clips = [facts.clips[name] for name in leaf.representatives[:representatives] if name in facts.clips]
    bars = trio([("clips", leaf.uniform, "plain"), ("asked", leaf.requested, "asked"), ("drawn", leaf.achieved, "kept")], most)
    asked = ", ".join(f"{name} ({count})" for name, count in sorted(leaf.asked.items(), key=lambda item: (-item[1], item[0])))
    told = [f"asked for by {asked}"] if asked else ["nobody asks for it"]
    told += [", ".join(f"{name} ({count})" if len(names) > 1 else name for name, count in names) for group, names in leaf.top.items() if names and any(name != UNKNOWN for name, _ in names)]
    words = " ".join([str(leaf.cluster), asked, *(name for names in leaf.top.values() for name, _ in names), *(Path(clip["path"]).name for clip in clips)])
    data = f"data-id='{leaf.cluster}' data-n='{leaf.clips}' data-r='{leaf.requested or 0:.9f}' data-a='{leaf.achieved or 0:.9f}'"
    return (
        f"<article class='leaf' {data} data-words=\"{html.escape(words.lower(), quote=True)}\"><h4>{leaf.cluster} <small>{counted(leaf.clips, 'clips')}</small></h4>"
        f"<div class='thumbs'>{''.join(shot(clip, taken) for clip in clips)}</div>{bars}<p class='small'>{html.escape(' · '.join(told))}</p></article>"
    )


def _leaf_rows(leaves: list[Leaf]) -> str:
    rows = [
        [str(leaf.cluster), str(leaf.coarse), html.escape(", ".join(f"{name} {count}" for name, count in leaf.asked.items())), f"{leaf.clips:,}",
         percent(leaf.uniform), percent(leaf.requested), percent(leaf.achieved)]
        for leaf in leaves
    ]  # fmt: skip
    return table(["leaf", "group", "asked for by", "clips", "share", "asked", "drawn"], rows, numeric=4)


def distribution_section(facts: Facts) -> str:
    """The draws by target, licence, uploader, language, source and label."""
    chain, pool, found = facts.chain, facts.pool, facts.distribution
    if chain.selection is None or pool is None or pool.weight is None:
        return note("There is no selection yet: materialize curated_clips.")
    summary = [(words, found.get(key)) for key, words in FIGURES if found.get(key) is not None]
    body = table(["figure", "value"], [[html.escape(words), number(value)] for words, value in summary], numeric=1)
    body += pictures([chain.selection], ("distribution.png",))
    targets: dict[str, dict[str, Any]] = found.get("targets", {})
    if targets:
        most = max(float(value) for row in targets.values() for name, value in row.items() if name in ("requested", "achieved", "uniform"))
        rows = [
            [html.escape(name), trio([("alike", row.get("uniform"), "plain"), ("asked", row.get("requested"), "asked"), ("drawn", row.get("achieved"), "kept")], most)]
            for name, row in sorted(targets.items())
        ]
        body += f"<h3>By target</h3>{table(['target', 'share of the draws'], rows)}"
    limits: dict[str, Any] = found.get("config", {})
    plain = []
    for group in GROUPS:
        rows_of_group = shares(pool, group)
        if len(rows_of_group) == 1:
            name = rows_of_group[0]["name"]
            plain.append(f"{group} {name}")
            continue
        body += f"<h3>By {group}</h3>{_group_table(rows_of_group, limits.get(f'{group}_shares') or {}, limits.get(f'{group}_share'))}"
    body += f"<p class='small'>The same for all clips: {html.escape('; '.join(plain))}.</p>" if plain else ""
    return body + report_table({title: found[name] for name, title in FOLDED.items() if found.get(name)})


FIGURES = (
    ("draws", "draws of an epoch"), ("candidates", "clips that may be drawn"), ("effective_clips", "clips that would vary as much if all were drawn alike"),
    ("kl_clips", "KL of the draws from taking all clips alike (nats)"), ("kl_clusters", "the same over clusters (nats)"),
    ("coverage", "share of the clusters asked for that are drawn from"), ("supported_clusters", "clusters that targets ask for"),
    ("unserved_mass", "share asked of clusters without a clip"), ("spilled_mass", "share that the caps kept from clusters asked for"),
    ("largest_repeat", "most draws of one clip"),
)  # fmt: skip


FOLDED = {
    "balance": "who pays for the draws, and where asked mass went (shares)", "quotas": "quotas and what fills them (draws)",
    "effects": "what each option does: share of the draws that lie elsewhere without it", "repeats": "whole draws of an epoch and how many clips have them",
}  # fmt: skip
"""Parts of the selection's own report that are shown as they are, folded, with their titles."""


def _group_table(rows: list[dict[str, Any]], limits: dict[str, float], limit: float | None) -> str:
    most = max(max(row["uniform"], row["achieved"] or 0.0) for row in rows)
    limited = bool(limits) or limit is not None
    cells = [
        [html.escape(row["name"]), f"{row['clips']:,}", trio([("clips", row["uniform"], "plain"), ("drawn", row["achieved"], "kept")], most),
         *([percent(limits.get("" if row["name"] == UNKNOWN else row["name"], limit))] if limited else [])]
        for row in rows[:NAMES]
    ]  # fmt: skip
    rest = rows[NAMES:]
    more = f"<p class='small'>and {len(rest):,} more with {sum(row['clips'] for row in rest):,} clips and {percent(sum(row['achieved'] or 0.0 for row in rest))} of the draws</p>" if rest else ""
    return table(["name", "clips", "share", *(["at most"] if limited else [])], cells) + more


def drift_section(facts: Facts) -> str:
    """What the increment measured and decided."""
    drift, decision, clusters = facts.reports.get("drift"), facts.reports.get("decision"), facts.chain.clusters
    if clusters is None:
        return note("There are no clusters yet: materialize clip_clusters.")
    body = ""
    if decision:
        action = str(decision["action"])
        body += f"<p>{mark('info', action)} {html.escape(DECISIONS.get(action, ''))}</p>"
        done = decision.get("carried_out", action)
        body += note(f"Only advised: what was carried out is {done}.") if done != action else ""
        reasons = decision.get("reasons", [])
        body += f"<ul>{''.join(f'<li>{html.escape(str(reason))}</li>' for reason in reasons)}</ul>" if reasons else ""
    body += picture(clusters.path / "drift.png")
    statistics = drift.get("statistics", {}) if drift else {}
    if statistics:
        rows = [
            [html.escape(name), number(row.get("value")), number(row.get("effect")), number(row.get("p")), mark("missed", "drift") if row.get("flagged") else mark("met", "none"), html.escape(str(row.get("effect_is", "")))]
            for name, row in statistics.items()
        ]
        body += table(["statistic", "value", "effect", "p", "", "what the effect is"], rows)
    if drift:
        body += folded("everything that was measured", report_table(drift, leave_out=("statistics",)))
    if decision:
        body += folded("codebooks and thresholds of the decision", report_table(decision, leave_out=("action", "reasons", "carried_out")))
    if not body:
        return note("This codebook was fitted to all its clips at once, or by an older version: there is no earlier one to compare with.")
    return body


DECISIONS = {
    "none": "Nothing had to change.", "reweight": "The codebook stays; the weights of the selection follow the new counts.",
    "append": "The old leaves stay as they are; new ones were appended for what is new.", "refit": "The codebook was fitted again.",
    "re-embed": "All clips must be embedded again.", "fit": "There was no codebook to keep: this is the first.",
}  # fmt: skip


def cost_section(facts: Facts) -> str:
    """Stages with their times and rates; batches folded."""
    rows = totals(facts.costs)
    most = max((row["wall_s"] or 0.0 for row in rows), default=0.0) or 1.0

    def cells(row: dict[str, Any], name: str) -> list[str]:
        done = f"{row['items']:,} {html.escape(row['unit'])}" if row["items"] is not None else ""
        return [html.escape(name), done, number(_tenths(row["wall_s"])), number(_tenths(row["cpu_s"])), number(row["items_per_s"]), number(row["items_per_cpu_s"])]

    headers = ["stage", "", "items", "wall s", "CPU s", "items / s", "items / CPU s"]
    shown = []
    for row in rows:
        name, *rest = cells(row, row["stage"] if row["batches"] == 1 else f"{row['stage']} ({row['batches']} batches)")
        shown.append([name, bar((row["wall_s"] or 0.0) / most), *rest])
    wall, cpu = sum(row["wall_s"] or 0.0 for row in rows), [row["cpu_s"] for row in rows]
    known = [value for value in cpu if value is not None]
    unknown = f" ({len(cpu) - len(known)} stages were made by a version that did not measure it)" if len(known) < len(cpu) else ""
    words = f"{wall:,.1f} s in all" + (f", {sum(known):,.1f} CPU seconds{unknown}" if known else "; CPU time was not measured by the version that made these")
    single = [cells(row, f"{row['stage']}[{row['batch']}]" if row["batch"] else row["stage"]) for row in facts.costs.to_pylist()]
    batches = folded("By batch", table([headers[0], *headers[2:]], single, numeric=5)) if len(single) > len(rows) else ""
    return table(headers, shown, numeric=5) + f"<p class='small'>{html.escape(words)}. Also in costs.parquet beside this page.</p>" + batches


def _tenths(value: float | None) -> str | None:
    return None if value is None else f"{value:,.1f}"


def origin_section(facts: Facts) -> str:
    """Digests, configurations, codebook and encoder."""
    rows = [
        [html.escape(item.key), f"<code>{html.escape(item.digest)}</code>", f"<code>{html.escape(item.identity)}</code>", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(created(item)))]
        for item in facts.chain.artefacts()
    ]
    named = []
    for name, label in (("encoder", "Encoder"), ("codebook", "Codebook")):
        report = facts.reports.get(name)
        if report:
            named.append(f"<h3>{label}</h3>{report_table(report)}")
    configs = {item.key: item.config for item in facts.chain.artefacts()}
    shown = "".join(folded(key, f"<pre>{html.escape(json.dumps(config, indent=1, ensure_ascii=False))}</pre>") for key, config in configs.items())
    how = "Materialize these assets with these configurations (in the Dagster UI: Materialize, then Open launchpad), or run make demo. `tubelet lineage curated_clips` prints what each was made from."
    return f"<p>{html.escape(how)}</p>{table(['artefact', 'digest of its bytes', 'made from', 'made at'], rows)}{''.join(named)}<h3>Configurations</h3>{shown}"
