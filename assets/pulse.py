"""Work that is never silent for long: progress lines for a person, and few events for Dagster's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Lock, Thread

from pipelines.reporting import Progress

logger = logging.getLogger("tubelet.stage")
SILENCE_S = 4.0
EVENT_EVERY_S = 30.0


class Pulse:
    """A context in which `progress(done, total, text)` speaks, and a watcher speaks when nothing else does.

    `heard()` tells the watcher that something else has spoken. `event` gets one line every `EVENT_EVERY_S` seconds.
    """

    def __init__(self, label: str, unit: str = "items", event: Callable[[str], None] | None = None) -> None:
        self._label, self._event = label, event
        self._lock, self._stopped = Lock(), Event()
        self._started = self._spoken = self._told = time.monotonic()
        self._bar = Progress(label, 0, unit, emit=self._emit)
        self._counting = False
        self._watcher = Thread(target=self._watch, name=f"pulse-{label}", daemon=True)

    def progress(self, done: int, total: int | None = None, text: str = "") -> None:
        with self._lock:
            self._counting = True
            self._bar(done, total, text)

    def heard(self) -> None:
        self._spoken = time.monotonic()

    def _emit(self, line: str) -> None:
        self._spoken = time.monotonic()
        logger.info("    %s", line)
        if self._event is not None and self._spoken - self._told >= EVENT_EVERY_S:
            self._told = self._spoken
            self._event(line)

    def _watch(self) -> None:
        while not self._stopped.wait(1.0):
            with self._lock:
                now = time.monotonic()
                if now - self._spoken >= SILENCE_S:
                    self._emit(self._bar.line(now) if self._counting else f"{self._label}: at work for {now - self._started:.0f} s")

    def __enter__(self) -> Pulse:
        self._watcher.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._watcher.join()
        self._bar.close()
