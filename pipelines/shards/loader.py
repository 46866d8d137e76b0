"""Batches of training clips. The batch of step s is a pure function of (shards, seed, phase, s): the cursor is one integer."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.preprocessing import training_box
from pipelines.errors import InputError
from pipelines.shards.decode import DecodedClip, DecodeFailure, decode_clip, nearest_frames
from pipelines.shards.geometry import ClipGeometry, Draw, Sampler
from pipelines.shards.index import REMEDY, ShardError, Stored
from pipelines.shards.mixture import Mixture
from pipelines.shards.sampling import Shares
from pipelines.shards.storage import BoundedCache
from pipelines.tombstones import Tombstones

logger = logging.getLogger("tubelet.shards")

STAND_INS = 16  # tries at replacing one failed sample before the data are called bad
TAKEN_DOWN = 1000  # tries that meet a clip which was taken down: before the takedown these may have been nearly all
GRACE = 16  # failures allowed before their share is looked at
READERS = 16  # reads that a remote store is asked for at once

__all__ = ["Batch", "ClipGeometry", "ClipLoader", "Reading", "Replacement", "Shown"]


@dataclass(frozen=True)
class Reading:
    """How batches are made, of no influence on what is in them. `workers` threads decode (FFmpeg and OpenCV let go of Python's
    lock), `prefetch` steps ahead. Where all clips fit decoded into `cache_bytes` they are kept so, as the small sets of a
    laptop do; clips of a remote store that do not are kept as they were read."""

    workers: int = 1
    prefetch: int = 2
    cache_bytes: int = 512 * 2**20
    max_failure_share: float = 0.01

    def __post_init__(self) -> None:
        if self.workers < 1 or self.prefetch < 0 or self.cache_bytes < 0:
            raise InputError(
                "batches cannot be made like this", expected="1 or more workers, 0 or more steps ahead and bytes to keep", found=str(self),
                remedy="mend workers, prefetch and cache_megabytes of the encoder's asset",
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Shown:
    """What one sample really showed, told by the bytes that were decoded: the tar member's clip, the digest of its data, and
    the frames' pts (T,) in units of `time_base` s. `salt` above 0: a stand-in."""

    shards: str
    clip_id: str
    sha256: str
    pts: NDArray[np.int64]
    time_base: Fraction
    salt: int


@dataclass(frozen=True)
class Batch:
    """`video` (b, C, T, H, W) uint8 RGB; `global_indices` (b,) int64; `times_s` (b, T) of the frames taken, on each clip's own clock;
    `boxes` (b, 4) as (top, left, height, width) px of the stored clip; `flips` (b,) bool; `shown` one a sample; `replaced` tells why
    stand-ins were needed, one for each."""

    step: int
    video: torch.Tensor
    clip_ids: list[str]
    global_indices: np.ndarray
    times_s: np.ndarray
    boxes: np.ndarray
    flips: np.ndarray
    shown: list[Shown]
    replaced: list[Replacement]


@dataclass(frozen=True)
class Replacement:
    """Sample `global_sample` failed on its draw with salt `salt - 1` (or below) and was served from the draw with `salt`. `damage`: a
    clip did not decode; else all that was met before had been taken down."""

    global_sample: int
    salt: int
    clip_id: str
    reason: str
    damage: bool


class _TakenDown(DecodeFailure):
    """A clip that may not be shown any more, though it can be."""


@dataclass(frozen=True, eq=False)
class _Readable:
    """A decoded clip with the name and digest of its bytes."""

    clip: DecodedClip
    clip_id: str
    sha256: str


@dataclass(eq=False)
class _Step:
    """A batch in the making: arrays that the workers fill, and their promises."""

    number: int
    first: int
    video: NDArray[np.uint8]
    times: NDArray[np.float64]
    boxes: NDArray[np.int64]
    flips: NDArray[np.bool_]
    promises: list[Future[tuple[Shown, Replacement | None]]]


class ClipLoader:
    """This rank's share of every global batch: samples `step * global_batch + rank * b` .. + b, with b = global_batch / world.

    A clip that does not decode is replaced by the draw of the same sample with the next salt: the same stand-in for
    whoever asks, told with its batch and logged. A share of failures above `max_failure_share`, or bytes that are
    not the indexed ones, raise `ShardError`: those are defects of the shards, not of one clip. `taken_down` is asked, when
    bytes are not the indexed ones, whether the clip was taken down meanwhile: then it has a stand-in too, and that is no failure.
    """

    def __init__(
        self,
        mixture: Mixture,
        geometry: ClipGeometry,
        *,
        seed: int,
        phase: str,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        repeat_cap: float | None = None,
        reading: Reading | None = None,
        taken_down: Callable[[], Tombstones] = Tombstones,
    ) -> None:
        if global_batch < 1 or world < 1 or global_batch % world or not 0 <= rank < world:
            raise InputError(
                "the global batch cannot be shared out", expected="a global batch that is a multiple of the number of ranks",
                found=f"global batch {global_batch}, rank {rank} of {world}", remedy="change global_batch or ranks in the recipe",
            )  # fmt: skip
        self.mixture, self.geometry = mixture, geometry
        self.sampler = Sampler(mixture, geometry, seed, phase, repeat_cap)
        self.global_batch, self.rank, self.world, self.share = global_batch, rank, world, global_batch // world
        self.reading, self.taken_down = reading or Reading(), taken_down
        decoded = mixture.decoded_bytes()
        self.keeps_decoded = decoded is not None and decoded <= self.reading.cache_bytes
        self.cache: BoundedCache[int, _Readable] = BoundedCache(self.reading.cache_bytes if self.keeps_decoded else 0)
        self.stored: BoundedCache[int, Stored] = BoundedCache(0 if self.keeps_decoded else self.reading.cache_bytes)
        self.served = self.failures = 0
        self._broken: set[int] = set()
        self._excluded = np.zeros(len(mixture), bool)
        self._aside: dict[int, int] = {}
        self._turn = 0

    def exclude(self, tombstones: Tombstones, step: int) -> Shares:
        """From `step` on, draw no clip that was taken down; batches made ahead are made again. Returns what is drawn then."""
        self._excluded = self.mixture.covered(tombstones)
        self._turn += 1
        return self.sampler.exclude(step * self.global_batch, self._excluded)

    def set_aside(self, clip_ids: Iterable[str], step: int) -> None:
        """From `step` on, serve these clips by stand-ins: they are drawn as before, so that nothing else changes."""
        rows = np.flatnonzero(self.mixture.covered(Tombstones(clip_ids=frozenset(clip_ids)))).tolist()
        self._aside |= {row: min(step * self.global_batch, self._aside.get(row, step * self.global_batch)) for row in rows}

    def clips_of(self, samples: Iterable[int], salts: Mapping[int, int] | None = None) -> list[str]:
        """The clips that these global samples draw; `salts` are of the stand-ins among them."""
        return [self.mixture.clip_id(self.sampler.draw(sample, (salts or {}).get(sample, 0)).row) for sample in samples]

    def batch(self, step: int) -> Batch:
        """This rank's samples of global step `step` (counted from 0 within the phase)."""
        return next(self.batches(step, step + 1))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps `start` to `stop`, made ahead by the workers; what goes wrong there is raised here."""
        ahead: deque[_Step] = deque()
        turn = self._turn
        with (
            ThreadPoolExecutor(self.reading.workers, thread_name_prefix="clip-loader") as workers,
            ThreadPoolExecutor(READERS, thread_name_prefix="clip-reader") as readers,
        ):
            try:
                for step in range(start, stop):
                    if turn != self._turn:
                        _give_up(ahead)
                        turn = self._turn
                    for later in range(step + len(ahead), min(step + self.reading.prefetch + 1, stop)):
                        ahead.append(self._begin(later, workers, readers))
                    yield self._finish(ahead.popleft())  # the next ones are under way while this one is trained on
            finally:
                _give_up(ahead)
                readers.shutdown(wait=False, cancel_futures=True)  # of a store that stalls, each read can take minutes to fail

    def _begin(self, step: int, workers: ThreadPoolExecutor, readers: ThreadPoolExecutor) -> _Step:
        first, shape = step * self.global_batch + self.rank * self.share, self.geometry
        drawn = self.sampler.draws(first, self.share)
        made = _Step(
            step, first, np.empty((self.share, 3, shape.frames, shape.height, shape.width), np.uint8), np.empty((self.share, shape.frames)),
            np.empty((self.share, 4), np.int64), np.empty(self.share, bool), [],
        )  # fmt: skip
        for item in range(self.share):
            coming = self._ask(drawn[item], readers)
            made.promises.append(workers.submit(self._serve, made, item, drawn[item], coming))
        return made

    def _finish(self, made: _Step) -> Batch:
        served = [promise.result() for promise in made.promises]
        shown, replaced = [item for item, _ in served], [replacement for _, replacement in served if replacement is not None]
        self.served += self.share
        # Counted here and not by the workers: what these made ahead is given up when something is taken down.
        for replacement in replaced:
            self._count(replacement)
        samples = np.arange(made.first, made.first + self.share)
        return Batch(
            made.number, torch.from_numpy(made.video), [item.clip_id for item in shown], samples, made.times, made.boxes, made.flips, shown, replaced
        )  # fmt: skip

    def _ask(self, draw: Draw, readers: ThreadPoolExecutor) -> Future[Stored] | None:
        """The promise of a remote clip's bytes, asked for before a worker needs them; None where it costs nothing to wait."""
        found, own = self.mixture.place(draw.row)
        if not found.index.storage.remote or self._excluded[draw.row] or self.cache.get(draw.row) or self.stored.get(draw.row):
            return None
        return readers.submit(found.index.stored, found.index.entry(own))

    def _serve(self, made: _Step, item: int, draw: Draw, coming: Future[Stored] | None) -> tuple[Shown, Replacement | None]:
        """Fill place `item` of a batch with the sample, or with its first stand-in that decodes."""
        sample, shape, reason = made.first + item, self.geometry, ""
        failed = gone = 0
        while failed <= STAND_INS and gone <= TAKEN_DOWN:
            salt = failed + gone
            draw = self.sampler.draw(sample, salt) if salt else draw
            wanted = draw.times_s(shape.frames)
            try:
                if sample >= self._aside.get(draw.row, sample + 1):
                    raise _TakenDown("it was set aside, because a training had stopped on it")
                found = self._readable(draw.row, wanted, None if salt else coming)
            except DecodeFailure as error:
                reason = f"clip {self.mixture.clip_id(draw.row)}: {error}"
                failed, gone = (failed, gone + 1) if isinstance(error, _TakenDown) else (failed + 1, gone)
                continue
            clip = found.clip
            made.flips[item] = draw.flip
            made.boxes[item] = training_box(clip.height, clip.width, draw.words.tolist(), shape.crop_scale, shape.crop_aspect)
            chosen = nearest_frames(clip.times_s, wanted)
            made.times[item] = clip.times_s[chosen]
            render(clip, chosen, made.boxes[item], draw.flip, made.video[item])
            shards = self.mixture.place(draw.row)[0].source.name
            shown = Shown(shards, found.clip_id, found.sha256, clip.pts[chosen], clip.time_base, salt)
            return shown, Replacement(sample, salt, found.clip_id, reason, failed > 0) if salt else None
        raise ShardError(
            f"sample {sample} and {failed + gone - 1} stand-ins cannot be shown", expected="decodable clips", found=reason, remedy=REMEDY
        )  # fmt: skip

    def _readable(self, row: int, wanted_s: NDArray[np.float64], coming: Future[Stored] | None) -> _Readable:
        """The frames nearest to `wanted_s` of clip `row`, or all where decoded clips are kept; raises `DecodeFailure`."""
        if self._excluded[row]:
            raise _TakenDown("it was taken down")
        known = self.cache.get(row)
        if known is not None:
            return known
        stored = self._bytes(row, coming)
        if self.keeps_decoded and row not in self._broken:
            try:
                clip = decode_clip(stored.data, None, stored.kind)
                whole = _Readable(clip, stored.clip_id, stored.sha256)
                self.cache.put(row, whole, clip.nbytes)
                return whole
            except DecodeFailure:
                # A sample fails when its own frames do not decode, whatever is kept: its stand-in must not depend on memory.
                self._broken.add(row)
        return _Readable(decode_clip(stored.data, wanted_s, stored.kind), stored.clip_id, stored.sha256)

    def _bytes(self, row: int, coming: Future[Stored] | None) -> Stored:
        known = self.stored.get(row)
        if known is not None:
            return known
        found, own = self.mixture.place(row)
        entry = found.index.entry(own)
        try:
            stored = coming.result() if coming else found.index.stored(entry)
        except ShardError as error:
            video_id = found.index.texts("video_id")[own].as_py()
            if self.taken_down().covers(entry.clip_id, video_id):
                raise _TakenDown("it was taken down") from error
            raise
        if found.index.storage.remote:
            self.stored.put(row, stored, len(stored.data))
        return stored

    def _count(self, replacement: Replacement) -> None:
        logger.warning("sample %d: %s; taken instead: %s", replacement.global_sample, replacement.reason, replacement.clip_id)
        self.failures += replacement.damage
        if self.failures > max(GRACE, self.reading.max_failure_share * self.served):
            raise ShardError(
                "too many training samples do not decode", expected=f"at most {self.reading.max_failure_share:.1%}",
                found=f"{self.failures} of {self.served}; last: {replacement.reason}", remedy=REMEDY,
            )  # fmt: skip


def _give_up(ahead: deque[_Step]) -> None:
    """Cancel what was promised; what is under way ends in arrays that nobody looks at."""
    for made in ahead:
        for promise in made.promises:
            promise.cancel()
    ahead.clear()


def render(clip: DecodedClip, chosen: NDArray[np.int64], box: NDArray[np.int64], flip: bool, out: NDArray[np.uint8]) -> None:
    """Fill `out` (C, T, H, W) with the chosen frames, cropped to `box` and resized.

    Bilinear with half-pixel centres and no antialiasing, as upstream (`interpolate(..., align_corners=False)`).
    """
    top, left, height, width = (int(value) for value in box)
    for position, number in enumerate(chosen):
        if position and number == chosen[position - 1]:
            out[:, position] = out[:, position - 1]
            continue
        resized = cv2.resize(clip.crop(int(number), top, left, height, width), (out.shape[3], out.shape[2]), interpolation=cv2.INTER_LINEAR)
        cv2.split(cv2.flip(resized, 1) if flip else resized, list(out[:, position]))
