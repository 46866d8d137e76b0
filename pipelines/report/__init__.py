"""The demo's page: everything on it is read from the store's files, never from a database."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipelines.errors import MissingArtefact
from pipelines.report.collect import collect, digests
from pipelines.report.page import render
from pipelines.report.verdict import check, judge, verdict_lines
from pipelines.store import Store, make_folder, write_atomic

CURATION_PAGE = "curation/index.html"
"""In the store, where `tubelet curate` and `tubelet curation page` write it."""

__all__ = ["check", "collect", "is_current", "judge", "read", "verdict_lines", "write"]


def write(store: Store, recipe: str, folder: Path) -> dict[str, Any]:
    """Write index.html and report.json into `folder`; returns the numbers. Raises `MissingArtefact` before the chain is whole."""
    numbers = collect(store, recipe)
    numbers["verdict"] = judge(numbers)
    curated = store.root / CURATION_PAGE
    numbers["curation"]["page"] = os.path.relpath(curated, folder) if curated.is_file() else None
    page = render(store, numbers)
    with store.writing():
        make_folder(folder)
        write_atomic(folder / "index.html", page)
        write_atomic(folder / "report.json", json.dumps(numbers, indent=1))
    return numbers


def read(folder: Path) -> dict[str, Any]:
    """The numbers of a written report."""
    path = folder / "report.json"
    if not path.exists():
        raise MissingArtefact(f"no report at {folder}", expected="report.json", found="none", remedy="run `make demo` first")
    return json.loads(path.read_text())


def is_current(store: Store, recipe: str, folder: Path) -> bool:
    """Whether the written report is about exactly the artefacts that are current now."""
    path = folder / "report.json"
    return path.exists() and (folder / "index.html").exists() and json.loads(path.read_text()).get("digests") == digests(store, recipe)
