"""The probe: every file of a batch opened in a killable worker, and either a `videos` row or a typed reject.

A file is decoded once. The pass over its packets gives the payload hash, the decodable frames with their time stamps,
and the signals that cutting and fingerprints are worked out from later. What the container declares is recorded beside
what really came out.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.checks import Check
from pipelines.errors import InputError, Reject
from pipelines.parts import Part, open_parts
from pipelines.schemas import QUARANTINE, VIDEOS, read_table, table_of, write_table
from pipelines.sources.manifest import is_missing
from pipelines.sources.registry import RETRY_BUDGET, Batch
from pipelines.video.media import media_sha256, media_stat, open_media
from pipelines.video.signals import Recorder, Signals, batch_of, read_signals, write_signals
from pipelines.video.workers import Crew, Outcome, beat, tell

logger = logging.getLogger("tubelet.video")

PROBE = "pipelines.video.probe:probe_recording"
ATTEMPTS = 2  # tries of a file that hangs or kills its worker, in one probe; see also RETRY_BUDGET
FILES_PER_PART = 32
TRUNCATED_BELOW = 0.9  # share of declared frames (or seconds) that must come out; edit lists drop a few frames
ENDLESS = 4  # times the file's bytes in packets (Matroska may pack them): it repeats itself, or is a list of other files
MIN_DECODE_RATE = 0.5
FACTS = ("url", "licence", "uploader", "language", "label")  # what a source may know of a file


@dataclass(frozen=True)
class ProbeJob:
    """One file for a worker. A file whose sha256 is in `poison` has hung or killed workers before: it is not opened."""

    path: str
    poison: frozenset[str] = frozenset()


def probe_file(path: str) -> dict[str, Any]:
    """Probe one file: the measured columns of a `videos` row, or {"code": Reject, "detail": text}; both with its "bytes" and
    "sha256" where it could be read."""
    return _probe(ProbeJob(path), record=False)[0]


def probe_recording(job: ProbeJob) -> tuple[dict[str, Any], Signals | None]:
    """As `probe_file`, with the video's signals. Runs in a worker, on one thread."""
    import cv2

    cv2.setNumThreads(1)
    return _probe(job, record=True)


def _probe(job: ProbeJob, record: bool) -> tuple[dict[str, Any], Signals | None]:
    path = job.path
    file: dict[str, Any] = {}  # told at once: a file that hangs or kills this worker is not read again for it
    try:
        file["bytes"] = media_stat(path).bytes
        tell(file)
        if file["bytes"] == 0:
            return {**_reject(Reject.EMPTY_FILE, "0 bytes"), **file}, None
        file["sha256"] = media_sha256(path)
        tell(file)
    except (OSError, ValueError) as error:  # ValueError: no file can have this name, as with a NUL byte in it
        return {**_reject(Reject.UNREADABLE, str(error)), **file}, None
    if file["sha256"] in job.poison:
        return {**_reject(Reject.POISON, "equal in bytes to a file that hung or killed its worker every time"), **file}, None
    import av  # here, so that a process that only reads tables does not load FFmpeg

    from pipelines.video.decode import open_video, time_base_of

    beat()
    recorder = None
    try:
        with open_video(path) as (container, stream):
            recorder = Recorder(time_base_of(stream)) if record else None
            row = _measure(container, stream, recorder, ENDLESS * file["bytes"])
    except InputError as error:
        row = _reject(Reject.NO_VIDEO_STREAM, error.found)
    except av.FFmpegError as error:
        code = Reject.TRUNCATED if _looks_like_container(path) else Reject.NOT_A_VIDEO
        row = _reject(code, f"FFmpeg cannot open it: {error.strerror}")
    return {**row, **file}, recorder.finish() if recorder is not None and "code" not in row else None


def _reject(code: Reject, detail: str) -> dict[str, Any]:
    return {"code": code.value, "detail": detail}


def _looks_like_container(path: str) -> bool:
    """Whether a file that FFmpeg cannot open starts like a video container: then it is damaged, not foreign."""
    with open_media(path) as handle:
        head = handle.read(12)
    return head[4:8] in (b"ftyp", b"moov", b"mdat") or head.startswith((b"\x1aE\xdf\xa3", b"RIFF", b"OggS", b"FLV\x01"))


def _measure(container: Any, stream: Any, recorder: Recorder | None, most_bytes: int) -> dict[str, Any]:
    """Decode everything once; columns of a `videos` row without the file's own (path, bytes, sha256, source).

    `recorder` is given every frame. Packets of more than `most_bytes` are a reject, so that this ends.
    """
    import av

    from pipelines.video.decode import Clock, time_base_of, upright_size
    from pipelines.video.packets import PayloadHash

    context, base, clock = stream.codec_context, time_base_of(stream), Clock(container, stream)
    codec = context.codec.canonical_name  # of the format, not of the decoder that happens to be built in
    payload = PayloadHash(codec, context.extradata)
    stamps: list[int] = []
    discarded = keyframes = 0
    errors: list[str] = []
    first: Any = None
    last: Any = None
    # Matroska says how long the longest of its streams is, and not the others: how far all of them come is compared with it.
    # An unfinished recording says nothing, and so does MPEG-TS, where a cut file is a shorter one.
    promised_s = (container.duration or 0) / av.time_base if container.format.name == "matroska,webm" else 0.0
    packets = container.demux(*(s for s in container.streams if s.index == stream.index or (promised_s and s.type in ("audio", "video"))))
    read, reached_s = 0, 0.0
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            errors.append(f"reading stopped: {error.strerror}")
            break
        if packet is None:
            break
        beat()
        stamp = packet.dts if packet.pts is None else packet.pts
        own = packet.stream.index == stream.index
        read += packet.size
        if read > most_bytes:
            return _reject(Reject.DECODE_ERROR, f"it gives more than {most_bytes} bytes of packets: it repeats itself, or is a list of other files")
        if promised_s and packet.size and stamp is not None:
            reached_s = max(reached_s, float((stamp + (packet.duration or own * clock.step)) * packet.time_base))
        if not own:
            continue
        if packet.size:
            payload.update(bytes(packet))
            discarded += packet.is_discard
            keyframes += packet.is_keyframe
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            errors.append(f"packet at {packet.pts}: {error.strerror}")
            continue
        for frame in frames:
            first, last = first or frame, frame
            stamps.append(clock.pts(frame))
            if recorder is not None:
                recorder.add(stamps[-1], frame)
            if frame.is_corrupt:
                errors.append(f"frame at {stamps[-1]} is damaged")

    declared = max(0, int(stream.frames) - discarded)  # an edit list leaves frames out on purpose
    note = f"; {len(errors)} errors, the first: {errors[0]}" if errors else ""
    if not stamps:
        return _reject(Reject.DECODE_ERROR if errors else Reject.NO_FRAMES, f"0 frames of {declared or '?'} declared{note}")
    ordered = np.sort(np.asarray(stamps, np.int64))
    steps = np.diff(ordered)
    typical = int(np.median(steps)) if len(steps) else clock.step
    # The last picture may be held for long (slides, screen recordings): what the file says of it counts.
    duration_s = float((int(ordered[-1] - ordered[0]) + (last.duration or typical)) * base)
    start_s = float(int(ordered[0]) * base)
    # Seconds where the container declares them: some (AVI) declare ticks where frames are meant.
    if stream.duration:
        covered = duration_s / float(stream.duration * base)
    elif promised_s > reached_s:
        covered = (reached_s - start_s) / (promised_s - start_s)
        note = f"; the file ends at {reached_s:.2f} of {promised_s:.2f} s{note}"
    else:
        covered = len(stamps) / max(declared, 1)
    if covered < TRUNCATED_BELOW and declared - len(stamps) != 1:  # one frame may be a large share of a tiny file
        return _reject(Reject.TRUNCATED, f"{len(stamps)} of {declared or '?'} declared frames, {duration_s:.2f} s decodable{note}")
    if errors:
        return _reject(Reject.DECODE_ERROR, f"{len(stamps)} of {declared or '?'} frames decodable{note}")
    if len(stamps) < 2:
        return _reject(Reject.TOO_SHORT, "one frame")
    height, width = upright_size(first)
    span_s = float(int(ordered[-1] - ordered[0]) * base)
    return {
        "video_id": payload.hexdigest(), "container": container.format.name, "codec": codec,
        "pixel_format": first.format.name, "width": width, "height": height, "rotation": int(first.rotation) % 360,
        "declared_frames": declared, "frames": len(stamps), "duration_s": duration_s,
        "frame_rate": (len(stamps) - 1) / span_s if span_s > 0 else float(1 / (typical * base)),
        "variable_frame_rate": _is_variable(steps, base), "time_base_num": base.numerator,
        "time_base_den": base.denominator, "start_pts": int(ordered[0]), "start_offset_s": start_s, "keyframes": keyframes,
    }  # fmt: skip


def _is_variable(steps: np.ndarray, base: Fraction) -> bool:
    """Frame steps differ by more than rounding to the container's clock (2 ticks) and by a fifth of the usual step."""
    spread = int(steps.max() - steps.min())
    return spread > 2 and spread > 0.2 * float(np.median(steps))


@dataclass(frozen=True)
class Probed:
    """`videos` rows with their `signals`, and `quarantine` rows: each file in one of them, in the order of the files."""

    videos: list[dict[str, Any]]
    signals: list[Signals]
    quarantine: list[dict[str, Any]]


def probe_files(
    paths: Sequence[str],
    *,
    batch: str,
    source: str,
    facts: Mapping[str, Mapping[str, str]] | None = None,
    problems: Mapping[str, str] | None = None,
    tries: Mapping[str, int] | None = None,
    poison: frozenset[str] = frozenset(),
    workers: int = 2,
    timeout_s: float = 30.0,
    progress: Callable[..., None] | None = None,
    crew: Crew | None = None,
) -> Probed:
    """Probe `paths`; any exception in a worker becomes a row too.

    `facts` gives url, licence, uploader, language and label by path; `problems` why a path must not be opened at all,
    `tries` how often it was tried in vain before: with RETRY_BUDGET of them, a file that hangs or kills is poison.
    `timeout_s` is how long a file may give no sign of life; `crew` is one for PROBE that runs already. Only the workers
    open files, so one whose reads block cannot stop the others.
    """
    problems = problems or {}
    opened = [path for path in paths if path not in problems]
    jobs = [ProbeJob(path, poison) for path in opened]
    with ExitStack() as stack:
        crew = crew or stack.enter_context(Crew(PROBE, workers))
        answers = dict(zip(opened, crew.map(jobs, timeout_s=timeout_s, attempts=ATTEMPTS, progress=progress), strict=True))
    found = Probed([], [], [])
    for path in paths:
        common = {"path": path, "batch": batch, "source": source}
        outcome = answers.get(path) or _not_opened(path, problems.get(path, ""))
        row, signals = _row_of(outcome, timeout_s)
        if "code" in row:
            attempts = outcome.attempts + (tries or {}).get(path, 0)
            poisonous = row["code"] == Reject.POISON or (outcome.failure in ("timeout", "died") and attempts >= RETRY_BUDGET)
            found.quarantine.append({"bytes": 0, "sha256": "", **common, **row, "attempts": attempts, "poison": poisonous})
            logger.info("quarantined %s: %s (%s)", path, row["code"], row["detail"])
            continue
        found.videos.append({**common, **row, **dict.fromkeys(FACTS, ""), **(facts or {}).get(path, {})})
        found.signals.append(signals)
    return found


def _row_of(outcome: Outcome, timeout_s: float) -> tuple[dict[str, Any], Any]:
    """The measured columns and the signals from a worker's outcome, or a reject."""
    if outcome.failure is None:
        return outcome.value
    code = {"timeout": Reject.TIMEOUT, "died": Reject.WORKER_DIED}.get(outcome.failure, Reject.DECODE_ERROR)
    detail = f"no sign of life for {timeout_s:g} s" if outcome.failure == "timeout" else outcome.detail
    return {**_reject(code, detail), **(outcome.told or {})}, None


def _not_opened(path: str, problem: str) -> Outcome:
    try:
        size = media_stat(path).bytes
    except (OSError, ValueError):
        size = 0
    return Outcome(({**_reject(Reject.SOURCE_PROBLEM, problem), "bytes": size}, None), attempts=0)


def build_videos(
    folder: Path,
    batch: Batch,
    *,
    workers: int = 2,
    timeout_s: float = 30.0,
    progress: Callable[..., None] | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Probe one batch into `folder`: videos.parquet, signals.arrow (row for row) and quarantine.parquet, by path. Returns
    the summary."""
    started = time.monotonic()
    files = sorted(batch.files, key=lambda file: file.path)
    facts = {file.path: batch.facts(file) for file in files}
    problems = {file.path: file.problem for file in files if file.problem}
    tries = {file.path: file.tries for file in files}
    with open_parts(work) as parts, Crew(PROBE, workers) as crew:

        def probe_batch(piece: Path, paths: Sequence[str]) -> dict[str, Any]:
            before = crew.cpu_s
            probed = probe_files(
                paths, batch=batch.key, source=batch.source, facts=facts, problems=problems, tries=tries,
                poison=frozenset(batch.poison), timeout_s=timeout_s, crew=crew,
                progress=(lambda done, total, text="": progress(starts[paths[0]] + done, len(files), text)) if progress else None,
            )  # fmt: skip
            write_probed(piece, probed)
            return {"videos": len(probed.videos), "worker_cpu_s": crew.cpu_s - before}

        starts = {file.path: number for number, file in enumerate(files)}
        pieces = parts.map("probe", [file.path for file in files], FILES_PER_PART, probe_batch)
        gather_probed(folder, pieces)
        cost = parts.cost(len(files), "files")
    videos = read_table(folder / "videos.parquet", VIDEOS)
    codes = Counter(read_table(folder / "quarantine.parquet", QUARANTINE).column("code").to_pylist())
    return {
        "files": len(files), "videos": len(videos), "quarantined": sum(codes.values()), "codes": dict(sorted(codes.items())),
        "frames": sum(videos.column("frames").to_pylist()), "video_seconds": float(sum(videos.column("duration_s").to_pylist())),
        "bytes": sum(videos.column("bytes").to_pylist()), "distinct_streams": len(set(videos.column("video_id").to_pylist())),
        "cost": cost, "seconds": time.monotonic() - started,
    }  # fmt: skip


def write_probed(folder: Path, probed: Probed) -> None:
    """videos.parquet, signals.arrow and quarantine.parquet of some files."""
    write_table(table_of(VIDEOS, probed.videos), folder / "videos.parquet", VIDEOS)
    write_table(table_of(QUARANTINE, probed.quarantine), folder / "quarantine.parquet", QUARANTINE)
    write_signals(folder / "signals.arrow", iter([batch_of([row["path"] for row in probed.videos], probed.signals)]))


def gather_probed(folder: Path, pieces: Sequence[Part]) -> None:
    """Write the pieces' tables and signals as one, in order; the signals one piece in memory at a time."""
    for name, schema in (("videos.parquet", VIDEOS), ("quarantine.parquet", QUARANTINE)):
        tables = [read_table(piece.folder / name, schema) for piece in pieces]
        write_table(pa.concat_tables(tables) if tables else table_of(schema, []), folder / name, schema)

    def batches() -> Iterator[pa.RecordBatch]:
        for piece in pieces:
            for paths, signals in read_signals(piece.folder / "signals.arrow"):
                yield batch_of(paths, signals)

    write_signals(folder / "signals.arrow", batches())


def check_videos(folder: Path, batch: Batch) -> dict[str, Check]:
    """Blocking checks: each file of the batch is one row, and enough of its files decode.

    Files that were tried before were judged in the batch that had them first, and rejected files that were removed since
    are nobody's loss: neither counts, and a batch of nothing else passes with its quarantine rows.
    """
    videos = read_table(folder / "videos.parquet", VIDEOS, columns=["path"]).column("path").to_pylist()
    quarantine = read_table(folder / "quarantine.parquet", QUARANTINE).to_pylist()
    again = {file.path for file in batch.files if file.tries}
    never = {file.path for file in batch.files if is_missing(file)}  # a manifest names them, and has the wrong root perhaps
    gone = {path for path in {row["path"] for row in quarantine} - again - never if _is_gone(path)}
    good = len(set(videos) - again)
    bad = [row for row in quarantine if row["path"] not in again | gone]
    codes = ", ".join(f"{count} {code}" for code, count in sorted(Counter(row["code"] for row in bad).items())) or "nothing quarantined"
    examples = "; ".join(f"{row['path']}: {row['detail']}" for row in bad[:3])
    return {
        "every_file_accounted_for": Check(
            sorted(videos + [row["path"] for row in quarantine]) == sorted(file.path for file in batch.files),
            f"one row for each of {len(batch.files)} files", f"{len(videos)} videos and {len(quarantine)} quarantined", "materialize the batch again",
        ),
        "something_decodes": Check(
            good >= MIN_DECODE_RATE * (good + len(bad)),
            f"at least {MIN_DECODE_RATE:.0%} of the files decodable, without those that were tried before or are not there any more",
            f"{good} videos of {good + len(bad)} files ({codes}); besides, {len(again)} tried before and {len(gone)} not there any more",
            "mend or remove the files that quarantine.parquet names" + (f" (first: {examples})" if examples else ""),
        ),
    }  # fmt: skip


def _is_gone(path: str) -> bool:
    """Whether there is no file (or member of a tar) of this name any more."""
    try:
        media_stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False
