"""`TrainLauncher`: training outside the Dagster process, with one Pipes session on rank 0 and a process group that ends."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from assets.resources import REPOSITORY
from pipelines.errors import TrainingError

if TYPE_CHECKING:
    from pipelines.training.launcher import Job

logger = logging.getLogger("tubelet.trainer")
EVENT_LOG_EVERY_S = 20.0
OWN_CLOCK = re.compile(r"^((?:\[[\w-]+\] )?)\d\d:\d\d:\d\d  ")
"""The time of day that a child's log line begins with; the console has its own."""


class TrainingFailed(TrainingError):
    """A trainer ended without its result; `may_retry` when another attempt from the checkpoint can succeed."""

    may_retry = False


class TrainLauncher(dg.ConfigurableResource):
    """Runs training jobs on this machine; the same work folder resumes from its newest whole checkpoint.

    `grace_s` is the time trainers have to write a checkpoint after being asked to stop, before they are killed.
    """

    grace_s: float = 20.0

    def run(
        self, context: dg.AssetExecutionContext, jobs: Sequence[Job], *, work_folder: Path, done: Sequence[Path],
        heard: Callable[[], None],
    ) -> None:  # fmt: skip
        """Start `jobs` together, relay their lines, wait, and insist on every marker in `done`.

        Raises `TrainingFailed`. Whatever happens (cancel, exception, Ctrl-C), no process of the jobs is left behind.
        """
        from pipelines.training import launcher

        work_folder.mkdir(parents=True, exist_ok=True)
        if all(path.exists() for path in done):
            logger.info("    %s: finished before, nothing to train", context.asset_key.to_user_string())
            return
        speak = _Relay(context, heard)
        with dg.open_pipes_session(
            context,
            context_injector=dg.PipesTempFileContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(include_stdio_in_messages=False),
            extras={"work_folder": str(work_folder)},
        ) as session:
            first, *others = jobs
            # One session, one speaker: a second process reporting into it breaks the run.
            first = replace(first, env={**first.env, **session.get_bootstrap_env_vars()})
            codes = launcher.launch(
                [first, *others], cwd=REPOSITORY, work_folder=work_folder, on_line=speak, grace_s=self.grace_s,
                run_id=context.run_id,
            )  # fmt: skip
        self._judge(context, codes, done, work_folder)

    def _judge(
        self, context: dg.AssetExecutionContext, codes: Sequence[int], done: Sequence[Path], work_folder: Path
    ) -> None:
        from pipelines.training import launcher

        missing = [str(path) for path in done if not path.exists()]
        if not missing and not any(codes):
            return
        failure = TrainingFailed(
            f"{context.asset_key.to_user_string()}: training ended without its result",
            expected="exit code 0 of every process, and " + ", ".join(path.name for path in done),
            found=f"exit codes {list(codes)}" + (f", missing {', '.join(missing)}" if missing else ""),
            remedy=f"read the lines above; the newest checkpoint is kept in {work_folder} and the next attempt goes on from it",
        )
        failure.may_retry = not any(code in launcher.PERMANENT_EXIT_CODES for code in codes)
        raise failure


class _Relay:
    """Every line to the console's logger; one in `EVENT_LOG_EVERY_S` seconds to Dagster's event log."""

    def __init__(self, context: dg.AssetExecutionContext, heard: Callable[[], None]) -> None:
        self._context, self._heard = context, heard
        self._last = time.monotonic()

    def __call__(self, line: str) -> None:
        line = OWN_CLOCK.sub(r"\1", line.rstrip())
        logger.info("    %s", line)
        self._heard()
        now = time.monotonic()
        if now - self._last >= EVENT_LOG_EVERY_S:
            self._last = now
            self._context.log.info(line)
