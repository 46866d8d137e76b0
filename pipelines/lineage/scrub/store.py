"""Scrub: every artefact of a store against its manifest, every table against the others, and what does not agree by name.

Nothing is changed and nothing is mended. Damage never stops a scrub: what cannot be read is a finding, what would have been
compared with it is a note, and the rest goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import InputError, MissingArtefact
from pipelines.lineage.scrub import batches, checkpoints, files, graph, pool, shards
from pipelines.lineage.scrub.finding import Finding, Kind, Note, Told, words_of
from pipelines.lineage.scrub.rows import Comparison, check_tables
from pipelines.lineage.scrub.shelf import Item, Shelf, Unjudged, Unreadable
from pipelines.reporting import Progress
from pipelines.store import MARKER, key_of, local_folder

COMPARISONS: tuple[Comparison, ...] = (
    *batches.COMPARISONS, *pool.COMPARISONS, *shards.COMPARISONS, *checkpoints.COMPARISONS,
)  # fmt: skip
OF_THE_STORE: tuple[tuple[str, Callable[[Shelf], Told]], ...] = (
    ("the store's marker", lambda shelf: files.check_marker(shelf.root)), ("validated markers", graph.check_markers),
    ("tombstones", shards.check_tombstones), ("robots", checkpoints.check_robots),
)  # fmt: skip


@dataclass(frozen=True)
class Scrubbed:
    """What a scrub of `root` found. `bytes_read` are those of the members whose digests were worked out (0 in a quick one);
    `assets` is what it was asked to look at (none: everything)."""

    root: Path
    findings: tuple[Finding, ...]
    notes: tuple[Note, ...]
    artefacts: int
    files: int
    bytes_read: int
    quick: bool
    assets: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "root": str(self.root), "agrees": not self.findings}


class _Scrub:
    """One run: findings and notes as they come, and a guard that turns whatever damage does to a check into a finding."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.findings: list[Finding] = []
        self.notes: list[Note] = []
        self.files = self.bytes = 0

    def tell(self, told: Finding | Note) -> None:
        if isinstance(told, Finding):
            self.findings.append(told)
        else:
            self.notes.append(told)

    def hear(self, size: int) -> None:
        self.files += 1
        self.bytes += 0 if self.quick else size

    def judge(self, name: str, told: Told, item: Item | None = None) -> None:
        """Collect what a check tells, however it ends."""
        artefact, place = (item.name, item.place) if item else ("", "")
        try:
            for one in told:
                self.tell(one)
        except Unjudged as reason:
            self.tell(Note(artefact, place, f"{name} not compared: {reason}"))
        except Unreadable as unreadable:
            self.tell(unreadable.finding)
        except Exception as error:  # nothing that lies in a store may end its scrub
            self.tell(Finding(
                Kind.UNREADABLE, artefact, place, f"content in which {name} can be compared", words_of(error),
                f"materialize {item.key} again" if item else "mend or remove what the error names",
            ))  # fmt: skip


def scrub(root: str | Path, assets: Sequence[str] = (), quick: bool = False, progress: Callable[..., None] | None = None) -> Scrubbed:
    """Look at the whole store, or at the artefacts of `assets` (names, or `asset[partition]`) and what they were made from.

    `quick` reads tables and sizes, and no member for its digest. Raises `MissingArtefact` when there is no store and
    `InputError` when it has nothing of an asset.
    """
    started, folder = time.monotonic(), local_folder(root)
    if not (folder / MARKER).exists() and not (folder / "artefacts").is_dir():
        raise MissingArtefact(f"no store at {folder}", expected="a folder with STORE.json", found="none", remedy="run `make demo` first, or set TUBELET_STORE")
    known = graph.artefact_folders(folder)
    if unknown := sorted(set(assets) - known):
        raise InputError(f"the store {folder} has nothing of {', '.join(unknown)}", expected=", ".join(sorted(known)), found=", ".join(unknown), remedy="name assets as the Dagster UI does")
    run = _Scrub(quick)
    shelf = files.collect(folder, run.tell)
    chosen = [item for _, item in sorted(shelf.items.items()) if not assets or item.asset in assets or item.key in assets]
    report = progress or Progress("scrub", 2 * len(chosen), "artefacts")
    for done, item in enumerate(chosen, start=1):
        report(done - 1, 2 * len(chosen), f"{item.key}: files")
        run.judge("its place", files.check_place(shelf, item), item)
        run.judge("its members", files.check_members(shelf, item, quick, run.hear), item)
        run.judge("its tables", check_tables(shelf, item), item)
    # Only now: a comparison may read what any other artefact holds, and must know what is damaged.
    rings = graph.find_rings(shelf)
    for done, item in enumerate(chosen, start=len(chosen) + 1):
        report(done - 1, 2 * len(chosen), f"{item.key}: what it agrees with")
        run.judge("its inputs", graph.check_inputs(shelf, rings, item), item)
        for comparison in COMPARISONS:
            if (not comparison.assets or item.asset in comparison.assets) and not (quick and comparison.reads_bytes):
                run.judge(comparison.name, comparison.run(shelf, item), item)
        report(done, 2 * len(chosen))
    run.judge("rings", graph.check_rings(shelf, rings))
    run.judge("current pointers", graph.check_pointers(shelf))
    if not assets:
        for name, check in OF_THE_STORE:
            run.judge(name, check(shelf))
    if isinstance(report, Progress):
        report.close()
    findings = sorted({one for one in run.findings if belongs(one, assets)}, key=lambda one: (one.artefact, one.file, one.kind, one.found))
    notes = sorted({one for one in run.notes if belongs(one, assets)}, key=lambda one: (one.artefact, one.file, one.text))
    return Scrubbed(folder, tuple(findings), tuple(notes), len(chosen), run.files, run.bytes, quick, tuple(assets), time.monotonic() - started)


def belongs(told: Finding | Note, assets: Sequence[str]) -> bool:
    """Whether it is about one of `assets`; everything is, when there are none."""
    parts = told.file.split("/")
    key = told.artefact.partition(" ")[0]
    names = {key, key.partition("[")[0]}
    if parts[0] in ("artefacts", "current"):
        names |= set(parts[1:2]) | ({key_of(parts[1], parts[2].removesuffix(".json"))} if len(parts) > 2 else set())
    return not assets or bool(names & set(assets))
