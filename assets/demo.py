"""`tubelet demo`: from an empty store to a simulated arm that reaches its goal image, or from wherever it stands."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from assets.builtin import register_corpus
from assets.lineage import observed_version
from assets.partitions import SIMULATED_EPISODES, SIMULATED_ROBOT
from assets.planning import DeploymentConfig
from assets.pulse import Pulse
from assets.reconcile import reconcile_runs
from assets.robot_data import EpisodesConfig
from assets.runs import Run, RunFailed, Runner, ingest_runs, open_instance, recipe_run
from assets.sources import announce
from pipelines.errors import InputError, StoreError
from pipelines.identity import digest_of
from pipelines.recipes import load_recipe
from pipelines.sources import kinds, registry
from pipelines.store import Store, write_atomic

logger = logging.getLogger("tubelet.demo")
SMOKE_EPISODES = EpisodesConfig(episodes=12, steps=8)


@dataclass(frozen=True)
class DemoOptions:
    """What a person may choose. `corpus_scale` "smoke" is for tests of the chain, not for results."""

    root: Path
    videos: Path | None = None
    recipe: str = "nano"
    corpus_scale: str = "demo"


def run_demo(options: DemoOptions) -> int:
    """Do what is missing and say so; 0 when the report meets its thresholds, 1 when not. Raises `TubeletError`."""
    started = time.monotonic()
    load_recipe(options.recipe)
    store = Store.open(options.root)
    with store.writing(), only_one(store), open_instance() as instance:
        log_to(store)
        for run_id in reconcile_runs(instance):
            logger.info("ended run %s, whose process was gone", run_id)
        logger.info("store %s, recipe %s", store.root, options.recipe)
        corpus_seconds = prepare_sources(store, options)
        look_at_sources(store, instance)
        configs: dict[str, dg.Config] = {"robot_deployment": DeploymentConfig(recipe=options.recipe)}
        if options.corpus_scale == "smoke":
            configs["robot_episodes"] = SMOKE_EPISODES
        runner = Runner(store, instance, configs)
        if corpus_seconds > 1:
            runner.times["built-in corpus"] = corpus_seconds
        worked = ingest(runner, registry.list_batches(store))
        for run in (
            Run("episodes", SIMULATED_EPISODES, ["robot_episodes"]),
            recipe_run(options.recipe),
            Run("deploy", SIMULATED_ROBOT, ["robot_deployment"]),
        ):
            worked = runner.bring_up(run) or worked
        seconds = time.monotonic() - started
        if worked:
            remember_times(store, runner.times, seconds)
    return conclude(store, options.recipe, worked, seconds)


def ingest(runner: Runner, batches: list[str]) -> bool:
    """Bring every batch up; one that cannot be used is named and left out, as long as another one is there."""
    worked, refused = False, []
    for run in ingest_runs(batches):
        try:
            worked = runner.bring_up(run) or worked
        except RunFailed as error:
            refused.append(error)
            logger.warning("batch %s is left out: %s", run.partition, error)
    if refused and not runner.store.partitions("clip_embeddings"):
        raise refused[0]
    return worked


def prepare_sources(store: Store, options: DemoOptions) -> float:
    """Register the built-in pool, and the person's own videos (a folder, a manifest or tars) when something in them decodes.

    Returns the seconds that making the built-in corpus took.
    """
    if options.videos is not None:
        root = options.videos.expanduser().absolute()
        insist_on_a_video(store, root)
        known = str(root) in {source.path for source in registry.list_sources(store)}
        registry.register_source(store, source_name(store, root), root, uploader=None if known else "operator")
    started = time.monotonic()
    with Pulse("built-in corpus", "films") as pulse:
        register_corpus(store, options.corpus_scale, pulse.progress)
    seconds = time.monotonic() - started
    made = registry.new_batches(store)
    logger.info("sources: %s", "new batches " + ", ".join(made) if made else "no new files")
    return seconds


def insist_on_a_video(store: Store, root: Path, kind: str | None = None, video_root: Path | None = None) -> None:
    """Raise `InputError` unless one file of a folder, a manifest or tars decodes; stops at the first that does.

    A source with batches is not looked at again: their probes tell. What is poison is not opened here either.
    """
    from pipelines.video.media import display_name
    from pipelines.video.probe import PROBE, probe_files
    from pipelines.video.workers import Crew

    batched = {key.rpartition("-")[0] for key in registry.list_batches(store)}
    if any(source.path == str(root) and source.name in batched for source in registry.list_sources(store)):
        return
    rejects: list[dict[str, Any]] = []
    poison = frozenset(registry.poison_list(store))
    with Crew(PROBE, 1) as crew:
        for file in kinds.describe_source(root, kind, video_root).files:
            problems = {file.path: file.problem} if file.problem else {}
            probed = probe_files([file.path], batch="", source="", problems=problems, poison=poison, crew=crew)
            if probed.videos:
                return
            rejects += probed.quarantine
    raise InputError(
        f"no file in {root} can be decoded", expected="at least one video", found="; ".join(f"{display_name(row['path'])}: {row['code']}" for row in rejects[:5]),
        remedy="name a folder, a manifest or tars with video files that play; nothing was registered",
    )  # fmt: skip


def source_name(store: Store, root: Path) -> str:
    """The name this folder, manifest or tar has as a source, or a free one made from its own name."""
    known = {source.path: source.name for source in registry.list_sources(store)}
    if str(root) in known:
        return known[str(root)]
    own = root.name if root.is_dir() else root.stem
    plain = re.sub(r"[^a-z0-9_-]+", "-", own.lower()).strip("-_")[:40] or "videos"
    return plain if plain not in known.values() else f"{plain}-{digest_of(str(root), 6)}"


def look_at_sources(store: Store, instance: dg.DagsterInstance) -> None:
    """Observe `source_catalog` when it has changed, so that Dagster marks what is built from it as stale."""
    announce(instance, store)
    if observed_version(instance, "source_catalog") != registry.source_digest(store):
        Runner(store, instance).observe()


def remember_times(store: Store, times: dict[str, float], seconds: float) -> None:
    """Keep the wall times of the runs that did work, for the report; those of earlier demos stay."""
    path = store.root / "logs" / "demo.json"
    before = json.loads(path.read_text())["runs"] if path.exists() else {}
    with store.writing():
        write_atomic(path, json.dumps({"seconds": seconds, "runs": {**before, **times}}))


def conclude(store: Store, recipe: str, worked: bool, seconds: float) -> int:
    """Write the report when anything is new, print its verdict."""
    from pipelines import report
    from pipelines.curation.report.page import write_curation_page

    folder = store.root / "report"
    if worked or not report.is_current(store, recipe, folder):
        write_curation_page(store, store.root / "curation")
        report.write(store, recipe, folder)
    numbers = report.read(folder)
    failed = report.check(numbers)
    for line in report.verdict_lines(numbers):
        logger.info("  %s", line)
    logger.info("%s in %.0f s; report: %s", "done" if worked else "nothing to do: all up to date", seconds, folder / "index.html")
    if failed:
        logger.warning("below its threshold: %s", ", ".join(failed))
    return 1 if failed else 0


@contextlib.contextmanager
def only_one(store: Store) -> Iterator[None]:
    """One demo or curation at a time on a store; the lock goes with the process, however it ends."""
    with open(store.root / ".demo.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"another demo or curation is running on {store.root}", expected="one at a time", found="its lock is held",
                remedy="wait for it, or set TUBELET_STORE to another folder",
            ) from error  # fmt: skip
        yield


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told by whoever needs the space; the console has this line anyway."""


def log_to(store: Store) -> None:
    """Also write what the console shows to logs/demo.log in the store."""
    root = logging.getLogger("tubelet")
    (store.root / "logs").mkdir(exist_ok=True)
    handler = _LogFile(store.root / "logs" / "demo.log")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    root.addHandler(handler)
