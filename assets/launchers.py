"""`TrainLauncher`: training outside the Dagster process, with one Pipes session on rank 0 and a process group that ends."""

from __future__ import annotations

import logging
import re
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import dagster as dg

from assets.resources import REPOSITORY
from pipelines.errors import InputError, TrainingError

if TYPE_CHECKING:
    from pipelines.training.launcher import Job

logger = logging.getLogger("tubelet.trainer")
OWN_CLOCK = re.compile(r"^((?:\[[\w-]+\] )?)\d\d:\d\d:\d\d  ")
"""The time of day that a child's log line begins with; the console has its own."""


class TrainLauncher(dg.ConfigurableResource):
    """Runs training jobs on this machine; the same work folder resumes from its newest whole checkpoint.

    `grace_s` is the time trainers have to write a checkpoint after being asked to stop, before they are killed. A
    training that ended by a cause that may pass is started again, `attempts` times in all. Not a Dagster RetryPolicy:
    that one also starts a step again that a person has just canceled. `starter` starts the ranks: one by one
    (processes), or torchrun or deepspeed with `starter_options`, which may name more machines. While a training lasts, an
    observation with its picture goes into the event log every `observe_every_s`.
    """

    grace_s: float = 20.0
    attempts: int = 2
    pause_s: float = 5.0
    starter: str = "processes"
    starter_options: str = ""
    observe_every_s: float = 300.0

    def jobs(self, module: str, args: Sequence[str], ranks: int, threads: int) -> list[Job]:
        """The jobs that run `python -m module args` as one group of ranks."""
        from pipelines.training import launcher

        if self.starter not in get_args(launcher.Starter):
            raise InputError("the trainer has no such starter", expected=", ".join(get_args(launcher.Starter)), found=self.starter)
        return launcher.training_jobs(module, args, ranks, threads, self.starter, shlex.split(self.starter_options))  # type: ignore[arg-type]

    def run(
        self, context: dg.AssetExecutionContext, jobs: Sequence[Job], *, work_folder: Path, done: Sequence[Path],
        heard: Callable[[], None], observe: Callable[[], dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        """Start `jobs` together, relay their lines, wait, and insist on every marker in `done`. `observe` gives the metadata of an
        observation.

        Raises `TrainingError`. Whatever happens (cancel, exception, Ctrl-C), no process of the jobs is left behind.
        """
        from pipelines.training import launcher

        work_folder.mkdir(parents=True, exist_ok=True)
        name = context.asset_key.to_user_string()
        if all(path.exists() for path in done):
            logger.info("    %s: finished before, nothing to train", name)
            return
        for attempt in range(1, self.attempts + 1):
            codes, last_words = self._attempt(context, jobs, work_folder, heard, observe)
            missing = [str(path) for path in done if not path.exists()]
            if not missing and not any(codes):
                return
            hopeless = any(code in launcher.PERMANENT_EXIT_CODES for code in codes)
            if hopeless or attempt == self.attempts:
                raise TrainingError(
                    f"{name}: training ended without its result",
                    expected="exit code 0 of every process, and " + ", ".join(path.name for path in done),
                    found=f"exit codes {codes}; last words: {last_words or 'none'}",
                    remedy=f"read {work_folder}/*.log; the next attempt goes on from the newest checkpoint",
                )  # fmt: skip
            context.log.warning(f"exit codes {codes}: starting again in {self.pause_s:g} s from the newest checkpoint")
            logger.warning("    %s: exit codes %s, starting again from the newest checkpoint", name, codes)
            time.sleep(self.pause_s)

    def _attempt(
        self, context: dg.AssetExecutionContext, jobs: Sequence[Job], work_folder: Path, heard: Callable[[], None],
        observe: Callable[[], dict[str, Any]] | None,
    ) -> tuple[list[int], str]:  # fmt: skip
        """Exit codes of one start of all jobs, the first with a Pipes session; and the last line of the one that tells why it failed."""
        from pipelines.training import launcher

        first, *others = jobs
        marks = ["", *(f"[{job.name}] " for job in others)]
        last_words, observed_at = [""] * len(jobs), time.monotonic()

        def relay(line: str) -> None:
            nonlocal observed_at
            words = OWN_CLOCK.sub(r"\1", line.rstrip())
            if words:
                speaker = next((number for number, mark in enumerate(marks) if number and words.startswith(mark)), 0)
                last_words[speaker] = words
            logger.info("    %s", words)
            heard()
            if observe is not None and time.monotonic() - observed_at >= self.observe_every_s:
                observed_at = time.monotonic()
                try:
                    key, partition = context.asset_key, context.partition_key if context.has_partition_key else None
                    context.log_event(dg.AssetObservation(key, partition=partition, metadata=observe()))
                except Exception as error:  # a picture that cannot be drawn, or a database that is busy, must not end a training
                    logger.warning("    no observation this time: %s: %s", type(error).__name__, error)

        with pipes_session(context, work_folder) as session:
            # One session, one speaker: a second process reporting into it breaks the run.
            first = replace(first, env={**first.env, **session.get_bootstrap_env_vars()})
            codes = launcher.launch(
                [first, *others], cwd=REPOSITORY, work_folder=work_folder, on_line=relay, grace_s=self.grace_s,
                run_id=context.run_id,
            )  # fmt: skip
        return codes, last_words[next((number for number, code in enumerate(codes) if code in launcher.PERMANENT_EXIT_CODES), 0)]


@contextmanager
def pipes_session(context: dg.AssetExecutionContext, work_folder: Path) -> Iterator[dg.PipesSession]:
    """A Pipes session over temporary files: what the trainer's rank 0 reports arrives live in the event log."""
    with warnings.catch_warnings():
        # Dagster's own use of a preview attribute; nothing a person could act on.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        with dg.open_pipes_session(
            context,
            context_injector=dg.PipesTempFileContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(include_stdio_in_messages=False),
            extras={"work_folder": str(work_folder)},
        ) as session:
            yield session
