"""A scrub's result for readers: text for a terminal, one Markdown table for the Dagster UI."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from pipelines.lineage.scrub.finding import Finding
from pipelines.lineage.scrub.store import Scrubbed

OF_THE_STORE = "the store"


def scrub_text(result: Scrubbed) -> str:
    """The findings by artefact, the notes, and a last line with what was looked at and what came of it."""
    lines: list[str] = []
    for artefact, findings in _by_artefact(result.findings).items():
        lines += ["", artefact]
        for one in findings:
            lines += [f"  {one.kind.value}  {one.file}", f"    expected  {one.expected}", f"    found     {one.found}", f"    remedy    {one.remedy}"]
    if result.notes:
        lines += ["", "to be known:", *(f"  {note.artefact or note.file}: {note.text}" for note in result.notes)]
    return _printable("\n".join([*lines, "", closing_line(result)]).lstrip("\n"))


def closing_line(result: Scrubbed) -> str:
    """What was looked at, and how many findings there are."""
    what = f"{', '.join(result.assets)} of {result.root}" if result.assets else str(result.root)
    read = "sizes and tables only" if result.quick else f"{result.bytes_read / 2**20:.1f} MiB read"
    where = len({one.artefact for one in result.findings})
    verdict = f"{len(result.findings)} disagreements in {where} artefacts" if result.findings else "everything agrees"
    return f"{what}: {result.artefacts} artefacts, {result.files} files, {read}, {result.seconds:.1f} s: {verdict}"


def scrub_json(result: Scrubbed) -> str:
    """Everything, for machines; `agrees` says whether there is nothing to do."""
    return json.dumps(result.to_dict(), indent=1)


def scrub_markdown(findings: Sequence[Finding]) -> str:
    """One table, a row for each finding."""
    head = ["| artefact | what | where | expected | found | remedy |", "|---|---|---|---|---|---|"]
    rows = [(one.artefact or OF_THE_STORE, one.kind.value, one.file, one.expected, one.found, one.remedy) for one in findings]
    return _printable("\n".join([*head, *("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows)]))


def _by_artefact(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    groups: dict[str, list[Finding]] = defaultdict(list)
    for one in findings:
        groups[one.artefact or OF_THE_STORE].append(one)
    return groups


def _printable(text: str) -> str:
    """Names from a damaged file may hold what no terminal can show."""
    return text.encode("utf-8", "backslashreplace").decode()
