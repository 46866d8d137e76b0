"""The scrub of a store with what Dagster remembers of it, for the command and for the weekly job."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import dagster as dg

from assets.lineage import DATABASE, has_database, recorded_findings
from pipelines.lineage.scrub.finding import Finding, Kind, Note, words_of
from pipelines.lineage.scrub.store import Scrubbed, belongs, scrub


def scrub_store(root: Path, assets: Sequence[str] = (), quick: bool = False, instance: dg.DagsterInstance | None = None) -> Scrubbed:
    """As `pipelines.lineage.scrub.store.scrub`, and Dagster's newest versions against the store's current ones.

    The `instance` is the one of the store's own database, when none is given; where there is no database, none is made.
    """
    files = scrub(root, assets, quick)
    told = [one for one in _recorded(files.root, instance) if belongs(one, assets)]
    findings = tuple(one for one in told if isinstance(one, Finding))
    notes = tuple(one for one in told if isinstance(one, Note))
    return replace(files, findings=files.findings + findings, notes=files.notes + notes)


def _recorded(root: Path, instance: dg.DagsterInstance | None) -> Iterator[Finding | Note]:
    if instance is None and not has_database(root):
        yield Note("", DATABASE, "Dagster has no database here: files alone were looked at")
        return
    try:
        with contextlib.nullcontext(instance) if instance else dg.DagsterInstance.get() as opened:
            yield from recorded_findings(opened, root)
    except Exception as error:  # a damaged database raises its driver's errors
        yield Finding(
            Kind.UNREADABLE, "", DATABASE, "Dagster's database", words_of(error),
            f"move the folder {DATABASE} away: the files of the store tell everything without it",
        )  # fmt: skip
