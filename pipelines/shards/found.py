"""An index over WebDataset tars that somebody else made, so that they can be drawn from as they are, members read in place."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipelines import schemas
from pipelines.errors import InputError, Reject
from pipelines.reporting import Progress
from pipelines.shards.decode import IMAGES, DecodeFailure, decode_clip, list_packets
from pipelines.shards.index import INDEX_FILE, ShardError, Stored
from pipelines.video.decode import Clock
from pipelines.video.media import TarTable, member_path, tar_table
from pipelines.video.packets import PayloadHash

logger = logging.getLogger("tubelet.shards")

VIDEOS = frozenset({"mp4", "mov", "m4v", "mkv", "webm", "avi"})
FOUND = "found"
REJECTS = "quarantine.parquet"
PICTURE_RATE = 1.0  # 1/s: a picture counts as shown for a second


def index_tars(folder: Path, source: str = "", licence: str = "", uploader: str = "", progress: Callable[..., None] | None = None) -> dict[str, Any]:
    """Write shard_index.parquet for the tars of `folder`: a row for each video or picture, all of weight 1; returns counts.

    A member that cannot be read is a row of quarantine.parquet beside it. Keys must differ over all tars: they become the
    clip_ids. Raises `InputError` when there is no tar, when two members share a key, or when the folder's own index is one
    that the writer made, and `ShardError` when a tar breaks off or nothing in it can be used.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise InputError(f"no tars in {folder}", expected="one or more .tar files", found="none", remedy="name the folder that holds them")
    _insist_on_foreign(folder)
    report = progress or Progress("index", len(tars), "tars")
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    for done, tar in enumerate(tars, start=1):
        table = _insist_on_whole(tar)
        if table.unnamed:
            rejects.append(_reject(tar, "", source, b"", f"{table.unnamed} members whose names are not UTF-8"))
        for offset, member in _media(tar, table):
            try:
                measured = _picture(member) if member.kind in IMAGES else _video(member)
            except (av.FFmpegError, DecodeFailure, IndexError, ValueError) as error:
                rejects.append(_reject(tar, member.name, source, member.data, str(error)))
                continue
            rows.append({
                **measured, "clip_id": member.clip_id, "shard": tar.name, "offset": offset, "length": len(member.data), "sha256": member.sha256,
                "weight": 1.0, "form": FOUND, "source": source, "licence": licence, "uploader": uploader,
                "source_start_s": measured["first_pts_s"], "source_end_s": measured["last_pts_s"] + 1 / measured["frame_rate"],
            })  # fmt: skip
        report(done, len(tars), f"{len(rows)} clips")
    _insist_on_keys(rows, folder, rejects)
    rows.sort(key=lambda row: row["clip_id"])
    schemas.write_table(schemas.table_of(schemas.QUARANTINE, rejects), folder / REJECTS, schemas.QUARANTINE)
    half = folder / f".{INDEX_FILE}"
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), half, schemas.SHARD_INDEX)
    os.replace(half, folder / INDEX_FILE)  # a training reads the old index or the new one, also when this is killed
    return {"clips": len(rows), "pictures": sum(row["frames"] == 1 for row in rows), "rejected": len(rejects), "tars": len(tars)}


def _reject(tar: Path, name: str, source: str, data: bytes, detail: str) -> dict[str, Any]:
    """The quarantine row of what cannot be used."""
    path = member_path(tar, name) if name else str(tar)
    logger.warning("%s cannot be used: %s", path, detail)
    return {
        "path": path, "batch": "", "source": source, "bytes": len(data), "code": Reject.DECODE_ERROR.value, "detail": detail, "attempts": 1,
        "poison": False, "sha256": sha256(data).hexdigest() if data else "",
    }  # fmt: skip


def _insist_on_whole(tar: Path) -> TarTable:
    """Where the members of a tar lie; raises `ShardError` when it breaks off, `InputError` when it is none or has a name twice."""
    table = tar_table(tar)
    if table.damage:
        raise ShardError(f"{tar} is not a whole tar", expected="members up to the end mark", found=table.damage, remedy="fetch it again")
    if table.repeated:
        raise InputError(
            f"two members of {tar} have one name", expected="a name of its own for each", found=", ".join(table.repeated[:5]), remedy="make the tar again"
        )
    return table


def _media(tar: Path, table: TarTable) -> Iterator[tuple[int, Stored]]:
    """(first byte, member) of each video and picture of a tar."""
    with open(tar, "rb") as handle:
        for name, (offset, length) in table.members.items():
            if name.rpartition(".")[2].lower() in VIDEOS | IMAGES:
                handle.seek(offset)
                data = handle.read(length)
                yield offset, Stored(name, data, sha256(data).hexdigest())


def _video(member: Stored) -> dict[str, Any]:
    """What the packets say, and that the first frame decodes."""
    with av.open(io.BytesIO(member.data), mode="r", metadata_errors="replace") as container:
        stream = container.streams.video[0]
        if stream.codec_context is None or stream.time_base is None:
            raise DecodeFailure("no decoder", expected="a codec that FFmpeg decodes", found=member.kind)
        payload = PayloadHash(stream.codec_context.name, stream.codec_context.extradata)
        listed = list_packets(container, stream)
        for packet in listed.packets:
            payload.update(bytes(packet))
        times = np.multiply(listed.frames, float(stream.time_base), dtype=np.float64)
        guessed = Clock(container, stream).counts
    if guessed:
        _insist_on_order(member)
    clip = decode_clip(member.data, times[:1], member.kind)
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else PICTURE_RATE
    return {
        "video_id": payload.hexdigest(), "frames": len(times), "first_pts_s": float(times[0]), "last_pts_s": float(times[-1]), "frame_rate": float(rate),
        "width": clip.width, "height": clip.height,
    }  # fmt: skip


def _insist_on_order(member: Stored) -> None:
    """Raise where frames come out of the decoder in another order than their times: AVI keeps none, and with B-frames FFmpeg's
    guesses can be scrambled."""
    with av.open(io.BytesIO(member.data), mode="r", metadata_errors="replace") as container:
        pts = [-1 if frame.pts is None else frame.pts for frame in container.decode(video=0)]
    if min(pts, default=-1) < 0 or (np.diff(pts) <= 0).any():
        raise DecodeFailure(
            "the container does not say when each frame is shown", expected="times that ascend as frames are decoded", found=f"scrambled ones in {member.kind}",
            remedy="write it anew as mp4 or mkv",
        )  # fmt: skip


def _picture(member: Stored) -> dict[str, Any]:
    clip = decode_clip(member.data, None, member.kind)
    return {
        "video_id": member.sha256[:32], "frames": 1, "first_pts_s": 0.0, "last_pts_s": 0.0, "frame_rate": PICTURE_RATE,
        "width": clip.width, "height": clip.height,
    }  # fmt: skip


def _insist_on_foreign(folder: Path) -> None:
    """Raise where an index is there that this one would replace with less."""
    if (folder / INDEX_FILE).is_file():
        forms = set(schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX, ["form"]).column("form").to_pylist())
        if forms - {FOUND}:
            raise InputError(f"{folder} has the index of our own writer", expected="tars that others made", found=", ".join(sorted(map(str, forms))), remedy="use it as it is")


def _insist_on_keys(rows: list[dict[str, Any]], folder: Path, rejects: list[dict[str, Any]]) -> None:
    if not rows:
        raise ShardError(
            f"nothing in the tars of {folder} can be used", expected=f"members that end in {', '.join(sorted(VIDEOS | IMAGES))}",
            found=f"{len(rejects)} that do not decode" if rejects else "none", remedy="see that these are WebDataset tars of videos or pictures",
        )  # fmt: skip
    places: dict[str, str] = {}
    for row in rows:
        if row["clip_id"] in places:
            raise InputError(
                f"two members of {folder} have the key {row['clip_id']}", expected="a key of its own for each clip",
                found=f"in {places[row['clip_id']]} and {row['shard']}", remedy="index folders with equal keys one by one, as sources of their own",
            )  # fmt: skip
        places[row["clip_id"]] = row["shard"]
