"""Batches of training clips. The batch of step s is a pure function of (shards, seed, phase, s): the cursor is one integer."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from models.preprocessing import training_box
from pipelines.errors import InputError
from pipelines.shards.decode import DecodedClip, DecodeFailure, decode_clip
from pipelines.shards.geometry import ClipGeometry, Draw, draw, draws, nearest_frames
from pipelines.shards.index import ShardError, ShardIndex

logger = logging.getLogger("tubelet.shards")

PREFETCH = 2
STAND_INS = 16  # tries at replacing one failed sample before the data are called bad
GRACE = 16  # failures allowed before their share is looked at

__all__ = ["Batch", "ClipGeometry", "ClipLoader", "Replacement", "draw"]


@dataclass(frozen=True)
class Batch:
    """`video` (b, C, T, H, W) uint8 RGB; `global_indices` (b,) int64; `times_s` (b, T) of the frames taken, on each clip's own clock;
    `boxes` (b, 4) as (top, left, height, width) px of the stored clip; `flips` (b,) bool."""

    video: torch.Tensor
    clip_ids: list[str]
    global_indices: np.ndarray
    times_s: np.ndarray
    boxes: np.ndarray
    flips: np.ndarray


@dataclass(frozen=True)
class Replacement:
    """Sample `global_sample` failed on its draw with salt `salt - 1` (or below) and was served from the draw with `salt`."""

    global_sample: int
    salt: int
    clip_id: str
    reason: str


class ClipCache:
    """Decoded clips, least recently used out first, at most `max_bytes` (one clip larger than that is not kept)."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self._clips: OrderedDict[int, DecodedClip] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, row: int) -> DecodedClip | None:
        with self._lock:
            if row in self._clips:
                self._clips.move_to_end(row)
            return self._clips.get(row)

    def put(self, row: int, clip: DecodedClip) -> None:
        with self._lock:
            if row in self._clips or clip.nbytes > self.max_bytes:
                return
            self._clips[row] = clip
            self.nbytes += clip.nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._clips.popitem(last=False)[1].nbytes


class ClipLoader:
    """This rank's share of every global batch: samples `step * global_batch + rank * b` .. + b, with b = global_batch / world.

    A clip that does not decode is replaced by the draw of the same sample with the next salt: the same stand-in for
    whoever asks, kept in `replacements` and logged. A share of failures above `max_failure_share`, or bytes that are
    not the indexed ones, raise `ShardError`: those are defects of the shards, not of one clip.
    """

    def __init__(
        self,
        shards_folder: Path,
        geometry: ClipGeometry,
        *,
        seed: int,
        phase: str,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        cache_bytes: int = 512 * 2**20,
        max_failure_share: float = 0.01,
    ) -> None:
        if global_batch < 1 or world < 1 or global_batch % world or not 0 <= rank < world:
            raise InputError(
                "the global batch cannot be shared out", expected="a global batch that is a multiple of the number of ranks",
                found=f"global batch {global_batch}, rank {rank} of {world}", remedy="change global_batch or ranks in the recipe",
            )  # fmt: skip
        self.index = ShardIndex(Path(shards_folder))
        self.geometry, self.seed, self.phase = geometry, seed, phase
        self.global_batch, self.rank, self.world, self.share = global_batch, rank, world, global_batch // world
        self.max_failure_share = max_failure_share
        self.cache = ClipCache(cache_bytes)
        self.replacements: dict[int, Replacement] = {}
        self.served = 0
        self._clip_ids = self.index.column("clip_id")
        self._undecodable: dict[int, str] = {}

    def batch(self, step: int) -> Batch:
        """This rank's samples of global step `step` (counted from 0 within the phase)."""
        first = step * self.global_batch + self.rank * self.share
        drawn = draws(self.index, self.geometry, self.seed, self.phase, first, self.share)
        shape = self.geometry
        video = np.empty((self.share, shape.frames, shape.height, shape.width, 3), np.uint8)
        times, boxes = np.empty((self.share, shape.frames)), np.empty((self.share, 4), np.int64)
        clip_ids, flips = [], np.empty(self.share, bool)
        for item in range(self.share):
            sample, clip = self._resolve(first + item, drawn[item])
            clip_ids.append(self._clip_ids[sample.row])
            flips[item] = sample.flip
            boxes[item] = training_box(clip.height, clip.width, sample.words.tolist(), shape.crop_scale, shape.crop_aspect)
            chosen = nearest_frames(clip.times_s, sample.times_s(shape.frames))
            times[item] = clip.times_s[chosen]
            _render(clip, chosen, boxes[item], sample.flip, video[item])
        self.served += self.share
        channels_first = torch.from_numpy(video).permute(0, 4, 1, 2, 3).contiguous()  # (b, C, T, H, W)
        return Batch(channels_first, clip_ids, np.arange(first, first + self.share), times, boxes, flips)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps `start` to `stop`, made `PREFETCH` ahead by one thread; what goes wrong there is raised here."""
        with ThreadPoolExecutor(1, thread_name_prefix="clip-loader") as pool:
            ahead: deque[Future[Batch]] = deque(pool.submit(self.batch, step) for step in range(start, min(start + PREFETCH, stop)))
            try:
                for step in range(start, stop):
                    ready = ahead.popleft().result()
                    if step + PREFETCH < stop:
                        ahead.append(pool.submit(self.batch, step + PREFETCH))
                    yield ready
            finally:
                for future in ahead:
                    future.cancel()

    def _resolve(self, global_sample: int, sample: Draw) -> tuple[Draw, DecodedClip]:
        """The sample's clip decoded, or its first stand-in that decodes."""
        reason = ""
        for salt in range(STAND_INS + 1):
            if salt:
                sample = draw(self.index, self.geometry, self.seed, self.phase, global_sample, salt)
            clip, problem = self._decoded(sample.row)
            if clip is not None:
                if salt:
                    self._record(Replacement(global_sample, salt, self._clip_ids[sample.row], reason))
                return sample, clip
            reason = f"clip {self._clip_ids[sample.row]}: {problem}"
        raise ShardError(
            f"sample {global_sample} and {STAND_INS} stand-ins do not decode", expected="decodable clips", found=reason,
            remedy="the shards are damaged: delete their artefact folder and materialize training_shards again",
        )  # fmt: skip

    def _decoded(self, row: int) -> tuple[DecodedClip | None, str]:
        clip = self.cache.get(row)
        if clip is None and row not in self._undecodable:
            try:
                clip = decode_clip(self.index.read(self.index.entry(row)))
                self.cache.put(row, clip)
            except DecodeFailure as error:
                self._undecodable[row] = str(error)
        return clip, self._undecodable.get(row, "")

    def _record(self, replacement: Replacement) -> None:
        if replacement.global_sample not in self.replacements:
            logger.warning("sample %d: %s; taken instead: %s", replacement.global_sample, replacement.reason, replacement.clip_id)
        self.replacements[replacement.global_sample] = replacement
        failures = len(self.replacements)
        if failures > max(GRACE, self.max_failure_share * (self.served + self.share)):
            raise ShardError(
                "too many training samples do not decode", expected=f"at most {self.max_failure_share:.1%}",
                found=f"{failures} of {self.served + self.share}; last: {replacement.reason}",
                remedy="the shards are damaged: delete their artefact folder and materialize training_shards again",
            )  # fmt: skip


def _render(clip: DecodedClip, chosen: np.ndarray, box: np.ndarray, flip: bool, out: np.ndarray) -> None:
    """Fill `out` (T, H, W, 3) with the chosen frames, cropped to `box` and resized.

    Bilinear with half-pixel centres and no antialiasing, as upstream (`interpolate(..., align_corners=False)`).
    """
    top, left, height, width = (int(value) for value in box)
    for position, number in enumerate(chosen):
        if position and number == chosen[position - 1]:
            out[position] = out[position - 1]
            continue
        cropped = clip.frame(int(number))[top : top + height, left : left + width]
        resized = cv2.resize(cropped, (out.shape[2], out.shape[1]), interpolation=cv2.INTER_LINEAR)
        out[position] = resized[:, ::-1] if flip else resized
