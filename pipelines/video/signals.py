"""What one pass over a video leaves behind, so that it is decoded once: when each frame shows, how much it changed, and
small grey pictures of it. Cutting, scores and fingerprints are worked out from these later, without decoding again.

Frames are measured on the decoder's own planes (Y, U, V), shrunk below 224 pixels of width: converting every frame to RGB
would cost as much as decoding it. About 6 kB a second of video before compression.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.errors import StoreError

VERSION = "signals-1"
WORK_WIDTH = 224  # pixels; changes are measured below this width
NOTABLE = 5.0  # grey levels of Y + U + V from which histograms are compared: no cut is smaller
BINS = 32
GRID = 24  # cells a side of the stored pictures
GRIDS_PER_S = 12.5  # stored pictures; slower videos store every frame
_PLANAR = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})
_FULL_RANGE = 2  # of FFmpeg's color_range
# Broadcast range (16..235) to grey levels 0..255.
_TO_GREY = ((np.arange(256) - 16.0) * 255.0 / 219.0).round().clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Signals:
    """One video, T frames in presentation order: `pts` (T,) int64; `change` (T, 4) float32, from the frame before (0 for
    the first): mean absolute change of Y, U and V in grey levels, and, where it is notable, how far their histograms moved
    (0..3); `brightness` (T,) float32 mean grey level (0..255);
    `grid_frames` (G,) int32, the frames whose upright pictures `grids` (G, 24, 24) uint8 are stored."""

    pts: NDArray[np.int64]
    change: NDArray[np.float32]
    brightness: NDArray[np.float32]
    grid_frames: NDArray[np.int32]
    grids: NDArray[np.uint8]


class Recorder:
    """Collects a video's signals frame by frame, in the order the decoder gives them."""

    def __init__(self, time_base: Fraction) -> None:
        self._step = round(1 / (Fraction(GRIDS_PER_S) * time_base))
        self._slack = self._step // 4  # so that 12.5 of 25 frames are every second one, whatever the clock rounds to
        self._pts: list[int] = []
        self._change: list[list[float]] = []
        self._brightness: list[float] = []
        self._grid_frames: list[int] = []
        self._grids: list[NDArray[np.uint8]] = []
        self._last_grid: int | None = None
        self._former: tuple[NDArray[np.uint8], ...] | None = None
        self._size: tuple[int, int] | None = None  # of the first frame; others are brought to it

    def add(self, pts: int, frame: av.VideoFrame) -> None:
        """Measure one frame shown at `pts`."""
        import cv2

        self._size = self._size or (frame.width, frame.height)
        planes, full_range = small_planes(frame, self._size)
        scale = 1.0 if full_range else 255.0 / 219.0  # broadcast range is 16..235
        if self._former is None:
            self._change.append([0.0] * 4)
        else:
            y, u, v = (cv2.norm(new, old, cv2.NORM_L1) / new.size for new, old in zip(planes, self._former, strict=True))
            moved = histogram_distance(planes, self._former) if y + u + v >= NOTABLE else 0.0
            self._change.append([scale * y, u, v, moved])
        self._former = planes
        if self._last_grid is None or pts - self._last_grid >= self._step - self._slack or pts < self._last_grid:
            self._last_grid = pts
            self._grid_frames.append(len(self._pts))
            grid: Any = cv2.resize(planes[0], (GRID, GRID), interpolation=cv2.INTER_AREA)
            self._grids.append(np.rot90(grid if full_range else cv2.LUT(grid, _TO_GREY), k=(frame.rotation // 90) % 4))
        grey = cv2.mean(planes[0])[0]
        self._brightness.append(grey if full_range else max(0.0, (grey - 16.0) * scale))
        self._pts.append(pts)

    def finish(self) -> Signals:
        """The signals in presentation order (some decoders hand frames out of it)."""
        pts = np.asarray(self._pts, np.int64)
        order = np.argsort(pts, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        grids = np.stack(self._grids) if self._grids else np.empty((0, GRID, GRID), np.uint8)
        numbers = place[self._grid_frames] if self._grids else np.empty(0, np.int64)
        by_time = np.argsort(numbers, kind="stable")
        change = np.asarray(self._change, np.float32).reshape(-1, 4)
        return Signals(
            pts[order], change[order], np.asarray(self._brightness, np.float32)[order], numbers[by_time].astype(np.int32), grids[by_time]
        )


def small_planes(frame: av.VideoFrame, size: tuple[int, int]) -> tuple[tuple[NDArray[np.uint8], ...], bool]:
    """(Y, U, V) of a frame as decoded, not turned upright, fewer than 224 pixels wide (U and V half as large), and whether
    Y has the full range 0..255. `size` is the (width, height) that frames of this video have, other ones are fitted to it."""
    import cv2

    width, height = size
    halvings = 0
    while width >> halvings >= WORK_WIDTH:
        halvings += 1
    if frame.format.name not in _PLANAR or (frame.width, frame.height) != size:
        sides = max(2, (width >> halvings) // 2 * 2), max(2, (height >> halvings) // 2 * 2)
        frame, halvings = frame.reformat(width=sides[0], height=sides[1], format="yuv420p", interpolation="AREA"), 0
    found: list[Any] = []
    for plane in frame.planes:
        rows: Any = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        left = halvings
        while left:
            # A quarter from the middle four of sixteen pixels reads half of the rows: memory is what this costs. Then
            # exact halves. Odd last rows and columns are left out.
            step, way = (2, cv2.INTER_LINEAR) if left > 1 else (1, cv2.INTER_AREA)
            small = max(1, rows.shape[1] >> step), max(1, rows.shape[0] >> step)
            rows = cv2.resize(rows[: small[1] << step, : small[0] << step], small, interpolation=way)
            left -= step
        found.append(rows if halvings else rows.copy())
    return tuple(found), frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")


def histogram_distance(new: Sequence[NDArray[np.uint8]], old: Sequence[NDArray[np.uint8]]) -> float:
    """How far the planes' histograms (32 bins, every fourth pixel) are apart: the share of pixels in other bins, added up
    over the planes (0..3)."""
    import cv2

    total = 0.0
    for pair in zip(new, old, strict=True):
        some = [np.ascontiguousarray(plane[::2, ::2]) for plane in pair]
        one, two = (cv2.calcHist([plane], [0], None, [BINS], [0, 256]) for plane in some)
        total += cv2.norm(one, two, cv2.NORM_L1) / some[0].size / 2
    return total


SCHEMA = pa.schema(
    [
        ("path", pa.string()), ("pts", pa.list_(pa.int64())), ("change", pa.list_(pa.float32())), ("brightness", pa.list_(pa.float32())),
        ("grid_frames", pa.list_(pa.int32())), ("grids", pa.large_binary()),
    ],
    metadata={"tubelet.signals": VERSION},
)  # fmt: skip


def batch_of(paths: Sequence[str], signals: Sequence[Signals]) -> pa.RecordBatch:
    """Signals of some videos as one record batch, a row a video."""
    return pa.record_batch(
        [
            pa.array(list(paths), pa.string()),
            pa.array([item.pts for item in signals], pa.list_(pa.int64())),
            pa.array([item.change.reshape(-1) for item in signals], pa.list_(pa.float32())),
            pa.array([item.brightness for item in signals], pa.list_(pa.float32())),
            pa.array([item.grid_frames for item in signals], pa.list_(pa.int32())),
            pa.array([item.grids.tobytes() for item in signals], pa.large_binary()),
        ],
        schema=SCHEMA,
    )  # fmt: skip


def write_signals(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    """Write record batches to one Arrow IPC file, one batch in memory at a time."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_signals(path: Path) -> Iterator[tuple[list[str], list[Signals]]]:
    """(paths, signals) of each record batch of a file, in order."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        found = (reader.schema.metadata or {}).get(b"tubelet.signals", b"").decode()
        if found != VERSION:
            raise StoreError(
                f"{path} holds other signals", expected=VERSION, found=found or "no version", remedy="materialize videos of this batch again"
            )
        for number in range(reader.num_record_batches):
            columns = reader.get_batch(number)
            yield columns.column("path").to_pylist(), [_signals(columns, row) for row in range(columns.num_rows)]


def _signals(columns: pa.RecordBatch, row: int) -> Signals:
    def values(name: str, kind: Any) -> NDArray[Any]:
        return np.array(columns.column(name)[row].values.to_numpy(zero_copy_only=False), kind)

    grids = np.frombuffer(columns.column("grids")[row].as_py(), np.uint8).reshape(-1, GRID, GRID)
    return Signals(values("pts", np.int64), values("change", np.float32).reshape(-1, 4), values("brightness", np.float32), values("grid_frames", np.int32), grids)
