"""How long work talks: progress lines where a person waits, and metrics over Dagster Pipes when there is a session.

`dagster_pipes` (standard library only) is the one Dagster package that may be imported below the top floor.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

logger = logging.getLogger("tubelet")
LINE_EVERY_S = 3.0


def configure_logging(level: int = logging.INFO) -> None:
    """One handler on standard error for the `tubelet` loggers; called by entry points, never by libraries."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


class Progress:
    """Progress of `total` items: a bar on a terminal, else one log line at most every `LINE_EVERY_S` seconds.

    Callable as `progress(done, total, text)` for stages that only know counts; `text` is shown behind them.
    """

    def __init__(self, label: str, total: int, unit: str = "items", emit: Callable[[str], None] | None = None) -> None:
        self.label, self.total, self.unit, self.done, self.text = label, total, unit, 0, ""
        self._emit = emit or logger.info
        self._bar = tqdm(total=total, desc=label, unit=f" {unit}", leave=False) if emit is None and sys.stderr.isatty() else None
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int | None = None, text: str = "") -> None:
        self.total = total or self.total
        step, self.done, self.text = done - self.done, done, text or self.text
        now = time.monotonic()
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.set_postfix_str(self.text, refresh=False)
            self._bar.update(step)
        elif now - self._last >= LINE_EVERY_S:
            self._last = now
            self._emit(self.line(now))

    def line(self, now: float) -> str:
        rate = self.done / max(now - self._started, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        eta = f", {left:.0f} s left" if left < 86400 else ""
        note = f"  {self.text}" if self.text else ""
        return f"{self.label}: {self.done}/{self.total} {self.unit} ({rate:.3g}/s{eta}){note}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Reporter(Protocol):
    """What a trainer may say to whoever started it."""

    def log(self, text: str) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def finish(self, summary: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class FileReporter:
    """Reports to the log, to `metrics.jsonl` in the run folder (one JSON object a line, with `step` and `time`) and to TensorBoard's
    files in `tensorboard` beside it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self._board: Any = None

    def log(self, text: str) -> None:
        logger.info(text)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        with open(self.path, "a") as handle:
            handle.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a killed attempt wrote from this step on is reported again, and must not be shown twice.
            self._board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=step)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def finish(self, summary: dict[str, Any]) -> None:
        self.log("finished: " + json.dumps(summary, sort_keys=True, default=str)[:400])

    def close(self) -> None:
        """Write what TensorBoard's writer still holds (up to two minutes of it)."""
        if self._board is not None:
            self._board.close()


class SilentReporter:
    """For ranks other than 0: only rank 0 speaks (two ranks in one Pipes session break the run)."""

    def log(self, text: str) -> None:
        return None

    def metrics(self, step: int, values: dict[str, float]) -> None:
        return None

    def finish(self, summary: dict[str, Any]) -> None:
        return None

    def close(self) -> None:
        return None


class PipesReporter(FileReporter):
    """As `FileReporter`, and live into the Dagster event log; `finish` sends the summary as a custom message."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from dagster_pipes import open_dagster_pipes

        self._pipes = open_dagster_pipes()

    def log(self, text: str) -> None:
        logger.info(text)
        self._pipes.log.info(text)

    def finish(self, summary: dict[str, Any]) -> None:
        self._pipes.report_custom_message({"summary": summary})

    def close(self) -> None:
        super().close()
        self._pipes.close()


def open_reporter(folder: Path, rank: int = 0) -> Reporter:
    """Reporter for this process: silent off rank 0, Pipes when a session is offered, files otherwise."""
    if rank != 0:
        return SilentReporter()
    if "DAGSTER_PIPES_CONTEXT" in os.environ:
        return PipesReporter(folder)
    return FileReporter(folder)
