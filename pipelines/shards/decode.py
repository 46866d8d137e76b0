"""From the bytes of one stored clip to the frames that are wanted, at their exact times, decoding little else.

A stored clip is read packet by packet first: that tells the time of every frame without decoding any. Then only those
packets are decoded that a wanted frame needs: from the key frame before it to itself. Where pictures are reordered
(never in clips that the writer encoded) everything between the first and the last wanted frame is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import TubeletError
from pipelines.video.decode import to_array

IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
UNSPECIFIED, BT470BG, SMPTE170M, LIMITED = 2, 5, 6, (0, 1)  # FFmpeg's numbers of colour spaces and ranges


class DecodeFailure(TubeletError):
    """The bytes are the indexed ones and still do not decode into a clip."""


Picture = tuple[NDArray[np.uint8], ...]
"""One frame: its planes Y (H, W), U and V (H/2, W/2) (BT.601, limited range, as the writer encodes: half the memory of RGB), or
(H, W, 3) RGB alone for everything else."""


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """Decoded frames in the order of time. `pts` (T,) int64 in units of `time_base` s."""

    pictures: Sequence[Picture]
    pts: NDArray[np.int64]
    time_base: Fraction

    @property
    def times_s(self) -> NDArray[np.float64]:
        return np.multiply(self.pts, float(self.time_base), dtype=np.float64)

    @property
    def height(self) -> int:
        return self.pictures[0][0].shape[0]

    @property
    def width(self) -> int:
        return self.pictures[0][0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for picture in self.pictures for plane in picture) + self.pts.nbytes

    def crop(self, number: int, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """A box of frame `number` as RGB (height, width, 3) uint8; only the box is converted."""
        if len(self.pictures[number]) == 1:
            return self.pictures[number][0][top : top + height, left : left + width]
        first, start = top // 2, left // 2  # in chroma samples: one stands for two by two pixels
        rows, columns = (top + height + 1) // 2 - first, (left + width + 1) // 2 - start
        size = rows * columns
        box = np.empty(6 * size, np.uint8)
        luma, blue, red = self.pictures[number]
        box[: 4 * size].reshape(2 * rows, 2 * columns)[:] = luma[2 * first : 2 * (first + rows), 2 * start : 2 * (start + columns)]
        for place, plane in ((4 * size, blue), (5 * size, red)):
            box[place : place + size].reshape(rows, columns)[:] = plane[first : first + rows, start : start + columns]
        rgb = cv2.cvtColor(box.reshape(3 * rows, 2 * columns), cv2.COLOR_YUV2RGB_I420).astype(np.uint8, copy=False)
        return rgb[top - 2 * first : top - 2 * first + height, left - 2 * start : left - 2 * start + width]

    def frame(self, number: int) -> NDArray[np.uint8]:
        """Frame `number` as RGB (H, W, 3) uint8."""
        return self.crop(number, 0, 0, self.height, self.width)


@dataclass(frozen=True, eq=False)
class Packets:
    """The packets of a stream in decoding order: `pts` (N,) int64 in units of `time_base` s, which of them are `keys`, and which are
    `shown`: a cut by `-c copy` leaves packets before its first frame that are only there to be decoded from."""

    packets: list[av.Packet]
    pts: NDArray[np.int64]
    keys: NDArray[np.bool_]
    shown: NDArray[np.bool_]
    time_base: Fraction

    @property
    def frames(self) -> NDArray[np.int64]:
        """The pts of the frames that decoding gives, ascending."""
        return np.sort(self.pts[self.shown])

    @property
    def reordered(self) -> bool:
        return bool((np.diff(self.pts) <= 0).any())


def decode_clip(data: bytes, wanted_s: NDArray[np.float64] | None = None, kind: str = "mp4") -> DecodedClip:
    """The frames of a clip held in memory: all of them, or those nearest in time to `wanted_s` (any order, in s), each once.

    `kind` is the file name's ending; a picture counts as one frame at time 0. One thread. Raises `DecodeFailure` when
    there is no frame, or a wanted one does not decode.
    """
    if kind in IMAGES:
        return _picture(data)
    try:
        with av.open(io.BytesIO(data), mode="r", format="mp4" if kind == "mp4" else None, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            listed = list_packets(container, stream)
            times = listed.frames
            wanted = times if wanted_s is None else times[np.unique(nearest_frames(np.multiply(times, float(listed.time_base), dtype=np.float64), wanted_s))]
            found = _kept(_frames(listed, wanted), wanted, listed.time_base)
            # A few frames stay where FFmpeg put them; all frames of a clip are for keeping, and those carry padding.
            return found if wanted_s is not None else replace(found, pictures=[tuple(map(np.ascontiguousarray, one)) for one in found.pictures])
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DecodeFailure("a training clip does not decode", found=f"{type(error).__name__}: {error}") from error


def nearest_frames(times_s: NDArray[np.float64], wanted_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the frame nearest in time to each wanted instant (the earlier one on a tie); `times_s` ascending."""
    if len(times_s) == 1:
        return np.zeros(len(wanted_s), np.int64)
    after = np.clip(np.searchsorted(times_s, wanted_s), 1, len(times_s) - 1)
    return np.where(wanted_s - times_s[after - 1] <= times_s[after] - wanted_s, after - 1, after)


def frame_pts(data: bytes, kind: str = "mp4") -> NDArray[np.int64]:
    """The pts of all frames of a clip, ascending, without decoding; raises as `decode_clip` does."""
    if kind in IMAGES:
        return np.zeros(1, np.int64)
    try:
        with av.open(io.BytesIO(data), mode="r", format="mp4" if kind == "mp4" else None, metadata_errors="replace") as container:
            return list_packets(container, container.streams.video[0]).frames
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DecodeFailure("the packets of a training clip cannot be read", found=f"{type(error).__name__}: {error}") from error


def list_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Packets:
    """All packets of a stream; raises `DecodeFailure` where they do not tell when each frame is shown."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    shown = np.array([not packet.is_discard for packet in packets], bool)
    if not shown.any() or stream.time_base is None:
        raise DecodeFailure("a training clip holds no frame", expected="at least one, with a time", found=f"{len(packets)} packets")
    untimed = sum(packet.pts is None for packet in packets)
    if untimed:
        raise DecodeFailure("a training clip does not say when its frames are shown", expected="a time for each", found=f"none for {untimed} of {len(packets)}")
    pts = np.array([packet.pts for packet in packets], np.int64)
    return Packets(packets, pts, np.array([packet.is_keyframe for packet in packets]), shown, stream.time_base)


def _frames(listed: Packets, wanted: NDArray[np.int64]) -> Iterator[av.VideoFrame]:
    """Decoded frames, the `wanted` pts (ascending) among them, in the order of time within each run."""
    decoder = listed.packets[0].stream.codec_context
    for first, last in _runs(listed, wanted):
        for packet in listed.packets[first : last + 1]:
            yield from packet.decode()
        yield from decoder.decode(None)
        decoder.flush_buffers()  # the next run starts at a key frame, as after a seek


def _runs(listed: Packets, wanted: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(first, last) packet of each run to decode, both inclusive."""
    keys = np.flatnonzero(listed.keys)
    if listed.reordered or len(keys) == 0:
        if len(keys) == 0:
            return [(0, len(listed.pts) - 1)]
        # From a key frame shown no later than the first wanted one: pictures shown after it do not need those before.
        usable = keys[listed.pts[keys] <= wanted[0]]
        return [(int(usable[-1]) if len(usable) else 0, len(listed.pts) - 1)]
    places = np.searchsorted(listed.pts, wanted)
    group = np.maximum(np.searchsorted(keys, places, side="right") - 1, 0)
    return [(int(min(keys[number], places[group == number][0])), int(places[group == number][-1])) for number in np.unique(group)]


def _kept(frames: Iterator[av.VideoFrame], wanted: NDArray[np.int64], time_base: Fraction) -> DecodedClip:
    kept: dict[int, Picture] = {}
    rest = set(wanted.tolist())
    for frame in frames:
        if frame.pts is not None and frame.pts in rest:
            rest.discard(frame.pts)
            kept[frame.pts] = picture_of(frame)
            if not rest:
                break
    if rest:
        raise DecodeFailure("a training clip does not decode", expected=f"{len(wanted)} frames at their times", found=f"{len(kept)} of them")
    return DecodedClip([kept[pts] for pts in wanted.tolist()], wanted, time_base)


def picture_of(frame: av.VideoFrame) -> Picture:
    """A frame's planes as they lie in FFmpeg's memory (which they keep), where they are in the form that the writer encodes."""
    trained = frame.format.name == "yuv420p" and frame.rotation == 0 and not (frame.width % 2 or frame.height % 2)
    if trained and int(frame.colorspace) in (UNSPECIFIED, BT470BG, SMPTE170M) and int(frame.color_range) in LIMITED:
        return tuple(np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width] for plane in frame.planes)
    return (to_array(frame),)


def _picture(data: bytes) -> DecodedClip:
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # an empty file, or a picture larger than OpenCV allows
        found = None
    if found is None:
        raise DecodeFailure("a training picture does not decode", expected=", ".join(sorted(IMAGES)), found=f"{len(data)} other bytes")
    rgb = np.ascontiguousarray(found[:, :, ::-1]).astype(np.uint8, copy=False)
    return DecodedClip([(rgb,)], np.zeros(1, np.int64), Fraction(1))
