"""The loop of `tubelet features`: windows of many videos through one encoder in full batches, each video to its own file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.encoder import VideoEncoder
from pipelines.features.ahead import windows_of_all
from pipelines.features.encoding import encode
from pipelines.features.files import FeatureWriter, FileFormat
from pipelines.features.output import FileOutput, FolderOutput, SourceVideo
from pipelines.features.settings import FeatureSettings
from pipelines.features.windows import RejectedVideo, Window, declared_seconds
from pipelines.reporting import Progress

_OPENED_AT_MOST = 200  # opening a file for its length costs milliseconds, but thousands lie on slow disks


@dataclass
class Outcome:
    """What became of a request. `shape` is that of one window's features; `others` are files that are no
    videos; `stills` have one sampled frame, `gone` are in the index and no longer in the folder."""

    out: Path
    file_format: FileFormat
    settings: FeatureSettings
    others: tuple[str, ...]
    rejected: list[tuple[SourceVideo, RejectedVideo]]
    written: int = 0
    windows: int = 0
    filled: int = 0
    stills: int = 0
    seconds: float = 0.0
    skipped: int = 0
    gone: int = 0
    shape: tuple[int, ...] = ()
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """130 when a person stopped it, 2 when no video has features, else 0."""
        return 130 if self.stopped else 0 if self.written + self.skipped else 2


class Work:
    """One run: batches take windows across videos, so that thousands of short clips fill a GPU too."""

    def __init__(self, encoder: VideoEncoder, settings: FeatureSettings, output: FolderOutput | FileOutput, outcome: Outcome) -> None:
        self._encoder, self._settings, self._output, self._outcome = encoder, settings, output, outcome
        self._writers: dict[int, FeatureWriter] = {}
        self._records: dict[int, list[Window]] = {}

    def through(self, videos: Sequence[SourceVideo], batch: int, workers: int) -> None:
        """Encode all `videos`; on any way out, files that are not complete are removed."""
        pending: list[tuple[int, Window | None]] = []  # None: the video ends here
        opened = len(videos) <= _OPENED_AT_MOST
        limit = self._settings.limit_seconds or math.inf
        lengths = [min(declared_seconds(video.path) or 0.0, limit) for video in videos] if opened else [1.0] * len(videos)
        before = [0.0, *accumulate(lengths)]
        decoded = windows_of_all([video.path for video in videos], self._settings, workers=workers, room=max(1, batch // workers))
        try:
            with Progress("features", round(before[-1]), unit="s of video" if opened else "videos") as progress:
                for index, item in decoded:
                    if isinstance(item, RejectedVideo):
                        pending = [entry for entry in pending if entry[0] != index]
                        self._give_up(index)
                        self._output.reject(videos[index], item)
                    else:
                        pending.append((index, item))
                    reached = min(item.end_s if opened else 0.0, lengths[index]) if isinstance(item, Window) else lengths[index]
                    progress(round(before[index] + reached), text=videos[index].name)
                    if sum(window is not None for _, window in pending) >= batch:
                        self._encode(pending, videos)
                        pending = []
                self._encode(pending, videos)
        finally:
            decoded.close()  # its threads stop
            for index in list(self._writers):
                self._give_up(index)

    def _encode(self, pending: list[tuple[int, Window | None]], videos: Sequence[SourceVideo]) -> None:
        windows = [window for _, window in pending if window is not None]
        values = iter(encode(self._encoder, windows, self._settings) if windows else ())
        for index, window in pending:
            if window is None:
                self._finish(index, videos[index])
            else:
                self._take(index, videos[index], window, next(values))

    def _take(self, index: int, video: SourceVideo, window: Window, values: NDArray[Any]) -> None:
        if index not in self._writers:
            self._writers[index], self._records[index] = self._output.start(video), []
        self._writers[index].append(window, values)
        self._records[index].append(window.without_pixels())
        self._outcome.shape = tuple(np.shape(values))

    def _finish(self, index: int, video: SourceVideo) -> None:
        records = self._records.pop(index)
        self._output.finish(video, self._writers[index], records)
        del self._writers[index]
        self._outcome.written += 1
        self._outcome.windows += len(records)
        self._outcome.stills += len(records) == 1 and records[0].filled == self._settings.frames - 1
        self._outcome.filled += sum(record.filled > 0 for record in records)
        self._outcome.seconds += max(record.end_s for record in records)

    def _give_up(self, index: int) -> None:
        if index in self._writers:
            self._writers.pop(index).discard()
            self._records.pop(index, None)  # an interrupt may have come between the two

