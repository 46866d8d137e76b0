"""The identity of a video stream: a hash of its packets that container and muxer do not change.

H.264 and HEVC travel length-prefixed in mp4, mkv and flv, but with start codes in ts; muxers add or move access unit
delimiters and parameter sets. Both are normalised away, so that `ffmpeg -c copy` copies of one stream hash equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

ID_LENGTH = 32  # hex characters: 128 bits

# NAL unit types that muxers add, drop or move: access unit delimiter, then parameter sets. In HEVC also the prefix SEI:
# hvcC may hold the encoder's, and going to start codes copies it from there into the stream.
_H264_DROPPED = frozenset({9, 7, 8, 13, 15})
_HEVC_DROPPED = frozenset({35, 32, 33, 34, 39})


class PayloadHash:
    """Running hash over the packets of one video stream, in decoding order."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        """`codec` is the stream's codec name; `extradata` its codec configuration (avcC, hvcC or start-code headers)."""
        self._hash = hashlib.blake2b(digest_size=ID_LENGTH // 2)
        self._hash.update(codec.encode() + b"\0")
        self._codec = codec
        self._prefix = nal_length_size(codec, extradata or b"")

    def update(self, payload: bytes) -> None:
        """Add one packet's bytes."""
        if self._codec not in ("h264", "hevc"):
            self._add(payload)
            return
        units = prefixed_units(payload, self._prefix) if self._prefix else start_code_units(payload)
        for unit in units:
            unit = unit.rstrip(b"\0")  # zero bytes after a unit are stuffing of the start-code form
            if unit and not _is_dropped(self._codec, unit):
                self._add(unit)

    def _add(self, payload: bytes) -> None:
        self._hash.update(len(payload).to_bytes(8, "big"))
        self._hash.update(payload)

    def hexdigest(self) -> str:
        """The video_id (32 hex characters)."""
        return self._hash.hexdigest()


def _is_dropped(codec: str, unit: bytes) -> bool:
    if codec == "h264":
        return unit[0] & 0x1F in _H264_DROPPED
    return (unit[0] >> 1) & 0x3F in _HEVC_DROPPED


def nal_length_size(codec: str, extradata: bytes) -> int:
    """Bytes of the length prefix of each unit (1, 2 or 4), or 0 when units are separated by start codes."""
    if extradata.startswith((b"\0\0\1", b"\0\0\0\1")):
        return 0
    if codec == "h264" and len(extradata) >= 7 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) >= 23:
        return (extradata[21] & 3) + 1
    return 0


def prefixed_units(payload: bytes, size: int) -> Iterator[bytes]:
    """Units of a length-prefixed packet; a damaged tail comes as one last unit."""
    position = 0
    while position + size <= len(payload):
        length = int.from_bytes(payload[position : position + size], "big")
        yield payload[position + size : position + size + length]
        position += size + length
    if position < len(payload):
        yield payload[position:]


def start_code_units(payload: bytes) -> Iterator[bytes]:
    """Units of a packet in start-code form (Annex B)."""
    position = payload.find(b"\0\0\1")
    if position < 0:
        yield payload
        return
    while position >= 0:
        following = payload.find(b"\0\0\1", position + 3)
        yield payload[position + 3 : following if following >= 0 else len(payload)]
        position = following
