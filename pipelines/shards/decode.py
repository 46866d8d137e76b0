"""From the bytes of one training clip to its frames, kept as yuv420p: half the memory of RGB, converted only when drawn."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import cv2
import numpy as np

from models.errors import TubeletError


class DecodeFailure(TubeletError):
    """The bytes are the indexed ones and still do not decode into a clip."""


@dataclass(frozen=True)
class DecodedClip:
    """`planes` (T, H*3/2, W) uint8: I420 planes stacked by rows (BT.601, limited range, as the writer encodes); `times_s` (T,) float64."""

    planes: np.ndarray
    times_s: np.ndarray

    @property
    def height(self) -> int:
        return self.planes.shape[1] * 2 // 3

    @property
    def width(self) -> int:
        return self.planes.shape[2]

    @property
    def nbytes(self) -> int:
        return self.planes.nbytes + self.times_s.nbytes

    def frame(self, number: int) -> np.ndarray:
        """Frame `number` as RGB (H, W, 3) uint8."""
        return cv2.cvtColor(self.planes[number], cv2.COLOR_YUV2RGB_I420)


def decode_clip(data: bytes) -> DecodedClip:
    """Every frame of an mp4 held in memory, on one thread; raises `DecodeFailure` when there is none or it breaks off."""
    planes, times = [], []
    try:
        with av.open(io.BytesIO(data), mode="r", format="mp4") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for frame in container.decode(stream):
                planes.append(frame.to_ndarray(format="yuv420p"))
                if frame.pts is None or frame.time_base is None:
                    raise DecodeFailure("a training clip's frame has no time", expected="a pts on every frame", found="none")
                times.append(float(frame.pts * frame.time_base))
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DecodeFailure("a training clip does not decode", found=f"{type(error).__name__}: {error}") from error
    if not planes:
        raise DecodeFailure("a training clip holds no frame", expected="at least one", found="0")
    return DecodedClip(np.stack(planes), np.asarray(times, np.float64))


def packet_times(data: bytes) -> tuple[list[float], list[bool], bool]:
    """Without decoding: presentation times in s (ascending), keyframe flags in packet order, and whether B-frames reorder the packets."""
    with av.open(io.BytesIO(data), mode="r", format="mp4") as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        times = [float(packet.pts * packet.time_base) for packet in packets if packet.pts is not None and packet.time_base]
        return sorted(times), [packet.is_keyframe for packet in packets], times != sorted(times)
