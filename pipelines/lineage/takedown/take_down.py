"""Taking videos down: tombstones for what was asked and for its twins, bytes overwritten on request, and a report on all it touches."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipelines.errors import InputError, StoreError
from pipelines.identity import digest_of
from pipelines.lineage.render import borrowed_text
from pipelines.lineage.takedown import reach
from pipelines.lineage.takedown.match import Match, Selector, match_videos
from pipelines.lineage.takedown.redaction import redact
from pipelines.lineage.takedown.report import report_html
from pipelines.lineage.takedown.sightings import clips_of_videos
from pipelines.lineage.takedown.twins import Twin, find_twins
from pipelines.lineage.trainings import borrowed_weights
from pipelines.lineage.tree import every_artefact
from pipelines.store import Store, write_atomic
from pipelines.tombstones import Tombstones, read_tombstones, tombstone_rows, write_tombstones

FOLDER = "takedowns"
REPORT, PAGE = "report.json", "index.html"
TWIN = "twin"


@dataclass(frozen=True, eq=False)
class Meant:
    """What a selector means at this moment: the videos, all their known clips (`sightings.SPAN`), and the twins of these."""

    videos: list[Match]
    clips: pa.Table
    twins: list[Twin]

    @property
    def taken(self) -> Tombstones:
        return Tombstones((), frozenset(twin.clip_id for twin in self.twins), frozenset(match.video_id for match in self.videos))


def take_down(store: Store, selector: Selector, reason: str, *, compact: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Take down what `selector` means and return the report, which also lies in the store as `takedowns/<name>/`.

    With `compact` the bytes of everything that was ever taken down are overwritten in all shards; tars that cannot be searched for it
    are named in the report, as `damaged` of its `redaction`. A `dry_run` writes nothing.
    Asked again, only what has come since is added. Raises `InputError` when nothing is meant or no reason is given, `StoreError`
    when another takedown is being made.
    """
    if not reason.strip():
        raise InputError("a takedown needs a reason", expected="--reason TEXT, for whoever asks later", found="none", remedy="give one")
    with contextlib.nullcontext() if dry_run else _alone(store):
        videos = match_videos(store, selector)
        ids = {match.video_id for match in videos}
        meant, before = Meant(videos, clips_of_videos(store, ids), find_twins(store, ids)), read_tombstones(store.root)
        rows, earlier, now = _new_rows(meant, selector, before), _earlier(store, meant), datetime.now(UTC)
        added = now.isoformat(timespec="seconds")
        name = f"{now:%Y%m%dT%H%M%SZ}-{digest_of([asdict(selector), reason, [[row['clip_id'], row['video_id']] for row in rows]], 8)}"
        rows = [{**row, "reason": reason, "added": added, "takedown": name} for row in rows]
        if rows and not dry_run:
            with store.writing():
                write_tombstones(store.root, name, rows)
        report: dict[str, Any] = {
            "takedown": name if rows else earlier[-1]["takedown"], "made": added, "dry_run": dry_run, "compact": compact,
            "asked": {**asdict(selector), "reason": reason}, "new": _new_ids(rows), "earlier_takedowns": sorted({row["takedown"] for row in earlier}),
            **_told(store, meant),
        }  # fmt: skip
        if compact:
            everything = Tombstones((), before.clip_ids | meant.taken.clip_ids, before.video_ids | meant.taken.video_ids)
            known = clips_of_videos(store, everything.video_ids).column("clip_id").to_pylist()
            with store.writing():
                report["redaction"] = redact(store, everything, report["takedown"], known, rehearse=dry_run).to_dict()
        report["next"] = _next_steps(report)
        if rows and not dry_run:
            _write(store, report)
        elif not dry_run:
            _write_again(store, report, earlier)
        return report


@contextlib.contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Hold the store's takedowns for this process; a killed one lets go of them."""
    with store.writing():
        (store.root / FOLDER).mkdir(parents=True, exist_ok=True)
        with open(store.root / FOLDER / ".lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    f"another takedown of {store.root} is being made", expected="one at a time", found="its lock is held", remedy="wait for it, then ask again"
                ) from error
            yield


def _new_rows(meant: Meant, selector: Selector, before: Tombstones) -> list[dict[str, Any]]:
    """Rows of the tombstones table for what is not covered yet: whole videos, and twins clip by clip."""
    asked = {"rule": selector.rule, "value": selector.value}
    videos = [{"clip_id": None, "video_id": match.video_id, **asked} for match in meant.videos if match.video_id not in before.video_ids]
    twins = [
        {"clip_id": twin.clip_id, "video_id": twin.video_id, "rule": TWIN, "value": selector.value, "twin_of": twin.twin_of, "similarity": twin.similarity}
        for twin in meant.twins
        if not before.covers(twin.clip_id, twin.video_id)
    ]
    return videos + twins


def _new_ids(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {"videos": [row["video_id"] for row in rows if not row["clip_id"]], "twins": [row["clip_id"] for row in rows if row["clip_id"]]}


def _earlier(store: Store, meant: Meant) -> list[dict[str, Any]]:
    """Rows of earlier takedowns that cover some of what is meant, oldest first."""
    taken, rows = meant.taken, tombstone_rows(store.root)
    return rows.filter(pa.array(taken.among(rows.column("clip_id"), rows.column("video_id")))).to_pylist()


def _told(store: Store, meant: Meant) -> dict[str, Any]:
    """The sections of the report on what is meant and what it touches."""
    taken = meant.taken
    shards = reach.shards_touched(store, taken)
    trainings, touched = reach.trainings_touched(store, taken)
    own = meant.clips.column("clip_id").to_pylist()
    twin_spans: dict[str, list[list[float]]] = {}
    for twin in meant.twins:
        if twin.path and twin.start_s is not None and twin.end_s is not None:
            twin_spans.setdefault(twin.path, []).append([twin.start_s, twin.end_s])
    return {
        "videos": [match.to_dict() for match in meant.videos], "clips": meant.clips.to_pylist(), "twins": [asdict(twin) for twin in meant.twins],
        "selection": reach.selection_touched(store, taken), "shards": shards, "trainings": trainings,
        "unfinished": reach.unfinished_touched(store, shards), "standing": reach.standing_on(store, touched),
        "files": reach.files_on_disk(path for match in meant.videos for path in match.paths),
        "twin_files": [{**file, "spans_s": sorted(twin_spans[file["path"]])} for file in reach.files_on_disk(twin_spans)],
        "derived": reach.derived(store, taken, own), "pages": reach.pages(store), "borrowed": borrowed_weights(store, every_artefact(store)),
    }  # fmt: skip


def _next_steps(report: dict[str, Any]) -> list[str]:
    """What a person does now, in their order."""
    steps = []
    if report["dry_run"]:
        steps.append("this was a rehearsal: ask again without --dry-run")
    if report["files"]:
        steps.append("delete the source files listed here; they are yours, and nothing here touches them")
    if any(row["current"] for row in report["derived"]) or report["shards"]:
        steps.append("tubelet curate --shards: curate again, so that selection and shards are made of the rest; its page is written again too")
    if report["shards"] and not report["compact"]:
        steps.append("the same command with --compact: overwrite the clips in all shards (trainings that read go on)")
    if report.get("redaction", {}).get("damaged"):
        steps.append("restore the tars that could not be searched, or delete their artefacts, and ask again with --compact: all others are done")
    if report["trainings"]:
        steps.append("weights keep what they have learned: decide which of the checkpoints listed here to train again, and what stands on them")
    for row in report["borrowed"]:
        steps.append(f"ask whoever made the weights {borrowed_text(row)}; {', '.join(row['checkpoints'])} went on from them")
    return steps


def _write(store: Store, report: dict[str, Any]) -> None:
    folder = store.root / FOLDER / report["takedown"]
    with store.writing():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / PAGE, report_html(report))
        write_atomic(folder / REPORT, json.dumps(report, indent=1))


def _both(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Two overwritings as one: what the first could not search, the second could, or tells."""
    lists = {name: sorted({*before[name], *after[name]}) for name in ("clips", "tars", "work_folders")}
    return {**lists, "bytes": before["bytes"] + after["bytes"], "damaged": after["damaged"]}


def _write_again(store: Store, report: dict[str, Any], earlier: list[dict[str, Any]]) -> None:
    """Nothing was new: finish the report of the takedown that was asked in the same words, where a kill kept it from being
    written or its bytes have been overwritten since. The report of another question stays as it is."""
    asked = report["asked"]
    own = [row for row in earlier if (row["rule"], row["value"]) == (asked["rule"], asked["value"])]
    if not own:
        return
    name = own[-1]["takedown"]
    path = store.root / FOLDER / name / REPORT
    if path.is_file():
        told = json.loads(path.read_text())
        before = told.get("redaction")
        if not report["compact"] or (before and not before["damaged"]):
            return
        report = {**told, "compact": True, "borrowed": report["borrowed"], "redaction": _both(before, report["redaction"]) if before else report["redaction"]}
        report["next"] = _next_steps(report)
    else:
        rows = [row for row in tombstone_rows(store.root).to_pylist() if row["takedown"] == name]
        report = {
            **report, "takedown": name, "made": own[-1]["added"], "asked": {**asked, "reason": own[-1]["reason"]}, "new": _new_ids(rows),
            "earlier_takedowns": [other for other in report["earlier_takedowns"] if other < name],
        }  # fmt: skip
    _write(store, report)
