"""Files that hold features of one video: npy arrays and Parquet tables, written in pieces, complete or not there at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from models.errors import TubeletError
from pipelines.features.settings import FeatureSettings
from pipelines.features.windows import Window

FileFormat = Literal["npy", "parquet"]
METADATA = b"tubelet.features"
_ROWS_TOGETHER = 1024


def is_one_file(out: Path) -> bool:
    """Whether `out` names a file of features; anything else is a folder, dots in its name or not."""
    return out.suffix in {f".{known}" for known in get_args(FileFormat)}


class FeatureWriter(Protocol):
    """Takes a video's features window by window; the file appears at its path with `finish` only."""

    def append(self, window: Window, values: NDArray[Any]) -> None: ...
    def finish(self) -> None: ...
    def discard(self) -> None: ...


class NpyWriter:
    """One array (windows, ...) in C order; its length is put into the header at the end, so memory holds one window."""

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, partial_name(path)
        self._file = open(self._partial, "wb")  # noqa: SIM115 (closed by finish and discard)
        self._count = 0
        self._header: dict[str, Any] = {}
        self._header_end = 0

    def append(self, window: Window, values: NDArray[Any]) -> None:
        if not self._count:
            self._header = {"descr": npy_format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": (0, *values.shape)}
            npy_format.write_array_header_1_0(self._file, self._header)
            self._header_end = self._file.tell()
        self._file.write(np.ascontiguousarray(values).tobytes())
        self._count += 1

    def finish(self) -> None:
        self._file.seek(0)
        self._header["shape"] = (self._count, *self._header["shape"][1:])
        npy_format.write_array_header_1_0(self._file, self._header)  # numpy leaves room for a longer first axis
        if self._file.tell() != self._header_end:
            raise TubeletError(f"The header of {self._path} has outgrown its place", remedy="Write Parquet instead: --format parquet.")
        self._file.close()
        self._partial.replace(self._path)

    def discard(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


class ParquetWriter:
    """One row a window (with pool frame one row a tubelet, in `step`), features as fixed-size lists, one column a layer."""

    def __init__(self, path: Path, video: str, settings: FeatureSettings, description: str) -> None:
        self._path, self._partial = path, partial_name(path)
        self._video, self._settings = video, settings
        self._metadata = {METADATA: description.encode()}
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def append(self, window: Window, values: NDArray[Any]) -> None:
        settings = self._settings
        names = [f"feature_{layer}" for layer in settings.layers] or ["feature"]
        layered = values if settings.layers else values[None]  # (L, D), or (L, T', D) with pool frame
        steps = layered if settings.pool == "frame" else layered[:, None]  # (L, rows, D)
        rows, width = steps.shape[1:]
        starts, ends, filled = _spans(window, settings) if settings.pool == "frame" else ([window.start_s], [window.end_s], [window.filled])
        columns: dict[str, pa.Array] = {
            "video": pa.array([self._video] * rows), "window": pa.array([window.number] * rows, pa.int32()),
            **({"step": pa.array(range(rows), pa.int32())} if settings.pool == "frame" else {}),
            "start_s": pa.array(starts, pa.float64()), "end_s": pa.array(ends, pa.float64()), "filled": pa.array(filled, pa.int32()),
            **{name: pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), width) for name, part in zip(names, steps, strict=True)},
        }  # fmt: skip
        self._waiting.append(pa.table(columns).replace_schema_metadata(self._metadata))
        if rows * len(self._waiting) >= _ROWS_TOGETHER:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            self._writer = self._writer or pq.ParquetWriter(self._partial, table.schema, compression="zstd")
            self._writer.write_table(table)
            self._waiting = []

    def finish(self) -> None:
        self._flush()
        assert self._writer is not None
        self._writer.close()
        self._partial.replace(self._path)

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._partial.unlink(missing_ok=True)


def _spans(window: Window, settings: FeatureSettings) -> tuple[list[float], list[float], list[int]]:
    """Start, end and repeated frames of every tubelet of a window."""
    tubelet, count = settings.tubelet_size, settings.frames // settings.tubelet_size
    starts = [window.start_s + float(step * tubelet * settings.step) for step in range(count)]
    ends = [min(window.end_s, window.start_s + float((step + 1) * tubelet * settings.step)) for step in range(count)]
    real = settings.frames - window.filled
    filled = [min(tubelet, max(0, (step + 1) * tubelet - real)) for step in range(count)]
    return [min(start, window.end_s) for start in starts], ends, filled


def partial_name(path: Path) -> Path:
    """Where a file is written before it is complete."""
    return path.with_name(f".{path.name}.partial")
