"""Decoding ahead: the next videos are decoded in threads while this one's windows are encoded; order is kept."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path

from pipelines.errors import Reject
from pipelines.features.settings import FeatureSettings
from pipelines.features.windows import RejectedVideo, Window, windows_of

SILENCE_S = 120.0  # a decoder that gives no frame for so long hangs on a damaged file
_TICK_S = 0.5
_FAREWELL_S = 10.0


class _Stopped(Exception):
    """Nobody waits for these windows any more."""


class _Decoder(threading.Thread):
    """One video's windows, at most `room` of them waiting; ends with None, or with the error that ended it."""

    def __init__(self, path: Path, settings: FeatureSettings, room: int) -> None:
        super().__init__(daemon=True, name=f"decode {path.name}")
        self.path, self._settings = path, settings
        self._queue: queue.Queue[Window | BaseException | None] = queue.Queue(maxsize=room)
        self._beats = 0
        self._stop_asked = threading.Event()

    def run(self) -> None:
        # One end for all: the error is raised again in the thread that waits for the windows.
        try:
            for window in windows_of(self.path, self._settings, beat=self._beat):
                self._put(window)
            self._put(None)
        except _Stopped:
            return
        except BaseException as error:
            with contextlib.suppress(_Stopped):
                self._put(error)

    def stop(self) -> None:
        self._stop_asked.set()

    def take(self) -> Window | RejectedVideo | None:
        """The next window; None after the last; RejectedVideo when the file is bad or the decoder has fallen silent."""
        beats, heard = self._beats, time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=_TICK_S)
            except queue.Empty:
                if self._beats != beats:
                    beats, heard = self._beats, time.monotonic()
                elif time.monotonic() - heard > SILENCE_S:
                    self.stop()
                    return RejectedVideo(self.path, Reject.TIMEOUT, f"no frame within {SILENCE_S:g} s")
                continue
            if isinstance(item, BaseException) and not isinstance(item, RejectedVideo):
                raise item
            return item

    def _beat(self) -> None:
        self._beats += 1
        if self._stop_asked.is_set():
            raise _Stopped

    def _put(self, item: Window | BaseException | None) -> None:
        while not self._stop_asked.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=_TICK_S)
                return
        raise _Stopped


def windows_of_all(
    paths: Sequence[Path], settings: FeatureSettings, *, workers: int, room: int
) -> Generator[tuple[int, Window | RejectedVideo | None], None, None]:
    """(index into `paths`, window) in order; (index, None) ends a video, (index, RejectedVideo) ends a bad one.

    At most `workers` videos are decoded side by side, with `room` windows of each waiting.
    """
    crew: deque[tuple[int, _Decoder]] = deque()
    to_start = iter(enumerate(paths))
    try:
        while True:
            for index, path in to_start:
                crew.append((index, _Decoder(path, settings, room)))
                crew[-1][1].start()
                if len(crew) >= workers:
                    break
            if not crew:
                return
            index, decoder = crew[0]
            item = decoder.take()
            if not isinstance(item, Window):
                crew.popleft()
            yield index, item
    finally:
        for _, decoder in crew:
            decoder.stop()
        for _, decoder in crew:
            decoder.join(_FAREWELL_S)  # a thread that comes back from native code while Python ends would abort it
