"""Where features go: a folder (or one file) that knows its settings, what is done, and what was refused.

A folder holds::

    features.json    weights (with digest), preprocessing, sampling, versions: what made every number here; whose videos
    features/        one file a video, under its relative path: a/b.mp4 -> features/a/b.mp4.npy (or .parquet)
    index.parquet    one row a window: video, file, window (row of the array), start_s, end_s, filled
    videos.jsonl     one line a finished video: size and time of its file, and its windows; the newest line counts
    rejected.csv     videos that gave no features in the last run: reason and remedy

Every file appears whole or not at all, so a stopped run leaves only good ones and the next goes on from there.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.features.files import FeatureWriter, FileFormat, NpyWriter, ParquetWriter, is_one_file, partial_name
from pipelines.features.settings import FeatureSettings, differing
from pipelines.features.windows import RejectedVideo, Window
from pipelines.store import write_atomic

FORMAT = 2  # 1 had no encoder configuration in its digest
INDEX = pa.schema([
    ("video", pa.string()), ("file", pa.string()), ("window", pa.int32()), ("start_s", pa.float64()), ("end_s", pa.float64()),
    ("filled", pa.int32()),
])  # fmt: skip


@dataclass(frozen=True)
class SourceVideo:
    """A video to read: `name` is its path inside the folder that was asked for (its file name when it was asked for alone)."""

    path: Path
    name: str
    bytes: int
    mtime_ns: int

    @property
    def stamp(self) -> dict[str, Any]:
        return {"video": self.name, "bytes": self.bytes, "mtime_ns": self.mtime_ns}


def windows_record(windows: list[Window]) -> list[list[float]]:
    return [[window.start_s, window.end_s, window.filled] for window in windows]


class Output(ABC):
    """Where one run's features go; `description` is what features.json says, `settings_digest` in it decides what may mix."""

    def __init__(self, description: dict[str, Any], settings: FeatureSettings, file_format: FileFormat) -> None:
        self.description, self._settings, self.file_format = description, settings, file_format
        self.rejected: list[tuple[SourceVideo, RejectedVideo]] = []

    def start(self, video: SourceVideo) -> FeatureWriter:
        """A writer for the video's file."""
        path = self.file_of(video)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.file_format == "npy":
            return NpyWriter(path)
        return ParquetWriter(path, video.name, self._settings, json.dumps(self.description))

    def reject(self, video: SourceVideo, reason: RejectedVideo) -> None:
        self.rejected.append((video, reason))

    @abstractmethod
    def file_of(self, video: SourceVideo) -> Path:
        """Where the video's features go."""

    def _insist_on_same(self, found: Any, where: Path) -> None:
        """Refuse to mix features of two settings."""
        if isinstance(found, dict) and found.get("format") == 1:
            raise InputError(
                f"{where} is of an older version, which did not tell encoders of other heads or rotations apart", expected=f"format {FORMAT}",
                found="format 1", remedy="Choose another --out, or delete it to make the features anew.",
            )  # fmt: skip
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InputError(f"{where} is not a description of features", expected=f"JSON of format {FORMAT}", found=str(found)[:80], remedy="Choose another --out.")
        if found.get("settings_digest") != self.description["settings_digest"] or found.get("file_format") != self.file_format:
            changes = differing({"file_format": self.file_format, **self._comparable(self.description)}, {"file_format": found.get("file_format"), **self._comparable(found)})
            raise InputError(
                f"{where} holds features made with other settings", expected="the same weights and settings", found="; ".join(changes),
                remedy="Choose another --out, or delete it to make them anew.",
            )  # fmt: skip

    @staticmethod
    def _comparable(description: dict[str, Any]) -> dict[str, Any]:
        settings, checkpoint = dict(description.get("settings", {})), description.get("checkpoint", {})
        return {"weights": str(checkpoint.get("digest"))[:12], **checkpoint.get("config", {}), **settings.pop("preprocess", {}), **settings}


class FolderOutput(Output):
    """A folder as the module describes; one process at a time writes in it."""

    def __init__(self, root: Path, description: dict[str, Any], settings: FeatureSettings, file_format: FileFormat) -> None:
        super().__init__(description, settings, file_format)
        self.root = root
        stated = root / "features.json"
        if stated.exists():
            told = _read_json(stated)
            self._insist_on_same(told, root)
            if told.get("source") != description["source"]:
                raise InputError(
                    f"{root} holds features of the videos of another folder", expected=str(told.get("source")), found=str(description["source"]),
                    remedy=f"Choose another --out; if that folder was moved, write its new place as source into {stated}.",
                )  # fmt: skip
        elif root.exists() and (not root.is_dir() or any(not item.name.startswith(".") for item in root.iterdir())):
            raise InputError(f"{root} holds something else", expected="a new or empty folder, or one with features.json", found="other files", remedy="Choose another --out.")
        root.mkdir(parents=True, exist_ok=True)
        self._lock = open(root / ".lock", "w")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise InputError(f"Another run is writing into {root}", expected="one at a time", found="a lock", remedy="Wait for it, or choose another --out.") from error
        write_atomic(stated, json.dumps(self.description, indent=1) + "\n")
        self._journal = root / "videos.jsonl"
        self._done = self._read_journal()

    def file_of(self, video: SourceVideo) -> Path:
        return self.root / "features" / f"{video.name}.{self.file_format}"

    def is_done(self, video: SourceVideo) -> bool:
        """The same file (by name, size and time) has its features here already."""
        line = self._done.get(video.name, {})
        return all(line.get(key) == value for key, value in video.stamp.items()) and self.file_of(video).is_file()

    def finish(self, video: SourceVideo, writer: FeatureWriter, windows: list[Window]) -> None:
        writer.finish()
        line = {**video.stamp, "file": str(self.file_of(video).relative_to(self.root)), "windows": windows_record(windows)}
        self._note(line)
        self._done[video.name] = line

    def reject(self, video: SourceVideo, reason: RejectedVideo) -> None:
        """A video that had features and can no longer be read loses them: they were of another file."""
        super().reject(video, reason)
        if self._done.pop(video.name, None):
            self._note({"video": video.name, "rejected": reason.code.value})
            self.file_of(video).unlink(missing_ok=True)

    def done_but_not_among(self, videos: Iterable[SourceVideo]) -> int:
        """How many videos have features here and are not of these."""
        return len(self._done.keys() - {video.name for video in videos})

    def close(self) -> None:
        """Bring index and list of rejects up to date with the files; also after a run that was stopped."""
        lines = [self._done[name] for name in sorted(self._done)]
        rows = [
            {"video": line["video"], "file": line["file"], "window": number, "start_s": start, "end_s": end, "filled": int(filled)}
            for line in lines for number, (start, end, filled) in enumerate(line["windows"])
        ]  # fmt: skip
        index = self.root / "index.parquet"
        if rows:
            pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), partial_name(index), compression="zstd")
            partial_name(index).replace(index)
        else:
            index.unlink(missing_ok=True)
        refused = self.root / "rejected.csv"
        if self.rejected:
            write_atomic(refused, rejects_csv(self.rejected))
        else:
            refused.unlink(missing_ok=True)
        self._lock.close()

    def _note(self, line: dict[str, Any]) -> None:
        with open(self._journal, "a") as handle:
            handle.write(json.dumps(line) + "\n")

    def _read_journal(self) -> dict[str, dict[str, Any]]:
        """Finished videos by name, the newest line of each; a last line that a crash tore is cut off."""
        if not self._journal.exists():
            return {}
        text = self._journal.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_atomic(self._journal, whole)
        try:
            newest = {line["video"]: line for line in map(json.loads, whole.splitlines())}
            return {name: line for name, line in newest.items() if "rejected" not in line}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._journal} is damaged", expected="one JSON object a line", found=repr(error), remedy="Delete the folder and run again.") from error


class FileOutput(Output):
    """One file for one video, and a .json beside it that says what features.json and the index say."""

    def __init__(self, path: Path, description: dict[str, Any], settings: FeatureSettings, file_format: FileFormat) -> None:
        super().__init__(description, settings, file_format)
        self.path, self.beside = path, path.with_name(f"{path.name}.json")
        self._found: dict[str, Any] = {}
        if self.beside.exists():
            self._found = _read_json(self.beside)
            self._insist_on_same(self._found, self.beside)
        elif path.exists():
            raise InputError(f"{path} exists, and no {self.beside.name} says what it is", expected="a new file", found="a file", remedy="Choose another --out.")

    def file_of(self, video: SourceVideo) -> Path:
        return self.path

    def is_done(self, video: SourceVideo) -> bool:
        same = all(self._found.get("video", {}).get(key) == value for key, value in video.stamp.items())
        if self._found and not same:
            raise InputError(
                f"{self.path} holds features of another video", expected=video.name, found=str(self._found.get("video", {}).get("video")),
                remedy="Choose another --out, or delete it to make it anew.",
            )  # fmt: skip
        return same and self.path.is_file()

    def finish(self, video: SourceVideo, writer: FeatureWriter, windows: list[Window]) -> None:
        writer.finish()
        write_atomic(self.beside, json.dumps({**self.description, "video": video.stamp, "windows": windows_record(windows)}, indent=1) + "\n")

    def close(self) -> None:
        return None


def open_output(out: Path, description: dict[str, Any], settings: FeatureSettings, file_format: FileFormat) -> FolderOutput | FileOutput:
    """A file when `out` ends in .npy or .parquet, else a folder."""
    kind = FileOutput if is_one_file(out) else FolderOutput
    return kind(out, description, settings, file_format)


def rejects_csv(rejected: list[tuple[SourceVideo, RejectedVideo]]) -> str:
    """video, reason code, detail and remedy of each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "code", "detail", "remedy"])
    writer.writerows([video.name, reason.code.value, reason.detail, reason.remedy] for video, reason in rejected)
    return text.getvalue()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None
