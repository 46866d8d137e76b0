"""The probe: every file of a batch opened in a killable worker, and either a `videos` row or a typed reject.

One pass over the packets gives the payload hash, the decodable frames and their time stamps. What the container
declares is recorded beside what really came out.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.checks import Check
from pipelines.curation.sources import Batch
from pipelines.errors import InputError, Reject
from pipelines.identity import file_sha256
from pipelines.schemas import QUARANTINE, VIDEOS, read_table, table_of, write_table
from pipelines.video.workers import map_killable

logger = logging.getLogger("tubelet.video")

PROBE = "pipelines.video.probe:probe_file"
ATTEMPTS = 2  # a file that hangs or kills its worker gets one more try, then it is poison
TRUNCATED_BELOW = 0.9  # share of declared frames (or seconds) that must come out; edit lists drop a few frames
MIN_DECODE_RATE = 0.5


def probe_file(path: str) -> dict[str, Any]:
    """Probe one file: the measured columns of a `videos` row, or {"code": Reject, "detail": text}. Runs in a worker."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return _reject(Reject.UNREADABLE, "not a regular file")
        if os.path.getsize(path) == 0:
            return _reject(Reject.EMPTY_FILE, "0 bytes")
        sha256 = file_sha256(Path(path))
    except OSError as error:
        return _reject(Reject.UNREADABLE, str(error))
    import av  # here, so that a process that only reads tables does not load FFmpeg

    from pipelines.video.decode import open_video

    try:
        with open_video(path) as (container, stream):
            row = _measure(container, stream)
    except InputError as error:
        return _reject(Reject.NO_VIDEO_STREAM, error.found)
    except av.FFmpegError as error:
        code = Reject.TRUNCATED if _looks_like_container(path) else Reject.NOT_A_VIDEO
        return _reject(code, f"FFmpeg cannot open it: {error.strerror}")
    return row if "code" in row else {**row, "sha256": sha256}


def _reject(code: Reject, detail: str) -> dict[str, Any]:
    return {"code": code.value, "detail": detail}


def _looks_like_container(path: str) -> bool:
    """Whether a file that FFmpeg cannot open starts like a video container: then it is damaged, not foreign."""
    with open(path, "rb") as handle:
        head = handle.read(12)
    return head[4:8] in (b"ftyp", b"moov", b"mdat") or head.startswith((b"\x1aE\xdf\xa3", b"RIFF", b"OggS", b"FLV\x01"))


def _measure(container: Any, stream: Any) -> dict[str, Any]:
    """Decode everything once; columns of a `videos` row without the file's own (path, bytes, sha256, source)."""
    import av

    from pipelines.video.decode import Clock, time_base_of, upright_size
    from pipelines.video.packets import PayloadHash

    context, base, clock = stream.codec_context, time_base_of(stream), Clock(container, stream)
    codec = context.codec.canonical_name  # of the format, not of the decoder that happens to be built in
    payload = PayloadHash(codec, context.extradata)
    stamps: list[int] = []
    discarded = 0
    errors: list[str] = []
    first: Any = None
    last: Any = None
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            errors.append(f"reading stopped: {error.strerror}")
            break
        if packet is None:
            break
        if packet.size:
            payload.update(bytes(packet))
            discarded += packet.is_discard
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            errors.append(f"packet at {packet.pts}: {error.strerror}")
            continue
        for frame in frames:
            first, last = first or frame, frame
            stamps.append(clock.pts(frame))
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
    # Seconds where the container declares them: some (AVI) declare ticks where frames are meant.
    covered = duration_s / float(stream.duration * base) if stream.duration else len(stamps) / max(declared, 1)
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
        "time_base_den": base.denominator, "start_pts": int(ordered[0]),
    }  # fmt: skip


def _is_variable(steps: np.ndarray, base: Fraction) -> bool:
    """Frame steps differ by more than rounding to the container's clock (2 ticks) and by a fifth of the usual step."""
    spread = int(steps.max() - steps.min())
    return spread > 2 and spread > 0.2 * float(np.median(steps))


def probe_files(
    paths: Sequence[str],
    *,
    batch: str,
    source: str,
    licence: str = "",
    uploader: str = "",
    workers: int = 2,
    timeout_s: float = 30.0,
    progress: Callable[..., None] | None = None,
    probe: str = PROBE,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Probe `paths`: (`videos` rows, `quarantine` rows), each in the order of `paths`, one row a file in all.

    `probe` names the function that workers run ("module:function"); any exception in it becomes a row too.
    """
    outcomes = map_killable(probe, list(paths), workers=workers, timeout_s=timeout_s, attempts=ATTEMPTS, progress=progress)
    videos, quarantine = [], []
    for path, outcome in zip(paths, outcomes, strict=True):
        size = os.path.getsize(path) if os.path.exists(path) else 0
        common = {"path": path, "batch": batch, "source": source, "bytes": size}
        if outcome.failure == "timeout":
            found = _reject(Reject.TIMEOUT, f"no answer within {timeout_s:g} s")
        elif outcome.failure == "died":
            found = _reject(Reject.WORKER_DIED, outcome.detail)
        elif outcome.failure == "error":
            found = _reject(Reject.DECODE_ERROR, outcome.detail)
        else:
            found = outcome.value
        if "code" in found:
            poison = outcome.failure in ("timeout", "died")
            quarantine.append({**common, **found, "attempts": outcome.attempts, "poison": poison})
            logger.info("quarantined %s: %s (%s)", path, found["code"], found["detail"])
        else:
            videos.append({**common, **found, "licence": licence, "uploader": uploader})
    return videos, quarantine


def build_videos(
    folder: Path,
    batch: Batch,
    *,
    workers: int = 2,
    timeout_s: float = 30.0,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Probe one batch into `folder`: videos.parquet and quarantine.parquet. Returns the summary."""
    started = time.monotonic()
    videos, quarantine = probe_files(
        [file.path for file in batch.files], batch=batch.key, source=batch.source, licence=batch.licence,
        uploader=batch.uploader, workers=workers, timeout_s=timeout_s, progress=progress,
    )  # fmt: skip
    write_table(table_of(VIDEOS, videos), folder / "videos.parquet", VIDEOS)
    write_table(table_of(QUARANTINE, quarantine), folder / "quarantine.parquet", QUARANTINE)
    return {
        "files": len(batch.files), "videos": len(videos), "quarantined": len(quarantine),
        "codes": dict(sorted(Counter(row["code"] for row in quarantine).items())),
        "frames": sum(row["frames"] for row in videos), "video_seconds": sum(row["duration_s"] for row in videos),
        "distinct_streams": len({row["video_id"] for row in videos}), "seconds": time.monotonic() - started,
    }  # fmt: skip


def check_videos(folder: Path, batch: Batch) -> dict[str, Check]:
    """Blocking checks: each file of the batch is one row, and enough of the files decode (at least one)."""
    videos = read_table(folder / "videos.parquet", VIDEOS)
    quarantine = read_table(folder / "quarantine.parquet", QUARANTINE)
    rows = sorted(videos.column("path").to_pylist() + quarantine.column("path").to_pylist())
    codes = Counter(quarantine.column("code").to_pylist())
    listed = ", ".join(f"{count} {code}" for code, count in sorted(codes.items())) or "nothing quarantined"
    examples = "; ".join(f"{row['path']}: {row['detail']}" for row in quarantine.slice(0, 3).to_pylist())
    return {
        "every_file_accounted_for": Check(
            rows == sorted(file.path for file in batch.files), f"one row for each of {len(batch.files)} files",
            f"{len(videos)} videos and {len(quarantine)} quarantined", "materialize the batch again",
        ),
        "something_decodes": Check(
            len(videos) > 0 and len(videos) >= MIN_DECODE_RATE * len(rows),
            f"at least one video, and at least {MIN_DECODE_RATE:.0%} of the files decodable",
            f"{len(videos)} videos of {len(rows)} files ({listed})",
            "mend or remove the files that quarantine.parquet names" + (f" (first: {examples})" if examples else ""),
        ),
    }  # fmt: skip
