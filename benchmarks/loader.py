"""The loader beside webdataset and beside random access into the original files: clips per CPU-second.

    python benchmarks/loader.py FOLDER_WITH_VIDEOS [--clips 24] [--rounds 5] [--json FILE]

From the videos (each as it is, one after another, again and again) two long films are made, 360p with a key frame every 60 frames
and 720p every 250, and from these clips of ten seconds are cut into shards by our writer: at the films' frame rate, and at
8 frames a second. Every contestant then makes the same samples: 16 frames, 4 a second, one random crop of each clip at 256 px.
Contestants take turns, epoch by epoch; time is CPU time of the whole process. What is called the limit decodes the
packets from the key frame before the first wanted frame to the last wanted one, and does nothing with them.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import cv2
import numpy as np
import webdataset

# Started as a script, this folder comes first on the path, and benchmarks/models.py would hide the package models.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pipelines.shards.loader as loader_module
from benchmarks.joined_clips import duration_s
from benchmarks.timing import Contest, header, hold, lines, machine, write_json
from models.preprocessing import training_box
from pipelines import schemas
from pipelines.identity import clip_id
from pipelines.shards.cutting import ShardConfig
from pipelines.shards.decode import DecodedClip, Picture, nearest_frames, picture_of
from pipelines.shards.geometry import ClipGeometry, Draw
from pipelines.shards.index import INDEX_FILE, ShardIndex
from pipelines.shards.loader import ClipLoader, Reading, render
from pipelines.shards.mixture import WHOLE, open_mixture
from pipelines.shards.writer import build_shards
from pipelines.video.encode import ffmpeg_binary

CLIP_S, RATE, STORED_RATE, SIDE = 10, 30, 8, 256
GEOMETRY = ClipGeometry(frames=16, fps=4.0, height=SIDE, width=SIDE)
FILMS = {"360p, GOP 60": (640, 360, 60), "720p, GOP 250": (1280, 720, 250)}
INDEX_CLIPS = 1_000_000


@dataclass(frozen=True)
class Sample:
    """What one contestant must make: the clip's key, its draw, and where the clip lies in its film (s)."""

    key: str
    draw: Draw
    film_start_s: float


def make_film(videos: Sequence[Path], target: Path, width: int, height: int, gop: int, seconds: float) -> Path:
    """All videos one after another, again and again, `seconds` long, in one H.264 stream with B-frames as x264 makes by default."""
    inputs = [argument for path in videos for argument in ("-i", str(path))]
    shape = f"fps={RATE},scale={width}:{height}:force_original_aspect_ratio=decrease,pad={width}:{height}:-1:-1,setsar=1,format=yuv420p"
    graph = "".join(f"[{number}:v:0]{shape}[v{number}];" for number in range(len(videos)))
    graph += "".join(f"[v{number}]" for number in range(len(videos))) + f"concat=n={len(videos)}:v=1,loop=-1:32767,setpts=N/({RATE}*TB)[out]"
    command = [
        ffmpeg_binary(), "-y", "-loglevel", "error", *inputs, "-filter_complex", graph, "-map", "[out]", "-t", str(seconds), "-r", str(RATE),
        "-c:v", "libx264", "-crf", "23", "-preset", "veryfast", "-g", str(gop), "-keyint_min", str(gop), "-sc_threshold", "0", str(target),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return target


def clip_table(film: Path, folder: Path, clips: int) -> None:
    """clips.parquet and selection.parquet: `clips` spans of ten seconds, all of one weight."""
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        base = stream.time_base or Fraction(1, 1000)
        pts = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
    rows = []
    for number in range(clips):
        first = number * CLIP_S * RATE
        start, end = pts[first], pts[first + CLIP_S * RATE]
        rows.append({
            "clip_id": clip_id(film.stem, start, end, (base.numerator, base.denominator), "benchmark"), "video_id": film.stem, "batch": "b",
            "path": str(film), "start_pts": start, "end_pts": end, "time_base_num": base.numerator, "time_base_den": base.denominator,
            "start_s": float(start * base), "end_s": float(end * base), "frames": CLIP_S * RATE, "width": 0, "height": 0, "frame_rate": float(RATE),
            "splitter": "benchmark", "source": "benchmark", "licence": "",
        })  # fmt: skip
    schemas.write_table(schemas.table_of(schemas.CLIPS, rows), folder / "clips.parquet", schemas.CLIPS)
    chosen = [{"clip_id": row["clip_id"], "video_id": row["video_id"], "weight": 1 / clips} for row in rows]
    schemas.write_table(schemas.table_of(schemas.SELECTION, chosen), folder / "selection.parquet", schemas.SELECTION)


class Ours:
    """The loader itself, one epoch a call, as a training asks for batches; nothing is kept between epochs."""

    def __init__(self, shards: Path, clips: int) -> None:
        self.loader = ClipLoader(
            open_mixture(WHOLE, shards), GEOMETRY, seed=0, phase="benchmark", global_batch=clips, reading=Reading(cache_bytes=0, prefetch=0)
        )  # fmt: skip
        self.batches = self.loader.batches(0, 1_000_000)

    def __call__(self) -> dict[str, np.ndarray]:
        batch = next(self.batches)
        return {key: video.numpy() for key, video in zip(batch.clip_ids, batch.video, strict=True)}

    def samples(self, epoch: int) -> dict[str, Sample]:
        """What the loader makes in an epoch: with equal weights, each clip once."""
        mixture, count = self.loader.mixture, self.loader.global_batch
        drawn = self.loader.sampler.draws(epoch * count, count)
        found = [Sample(mixture.clip_id(item.row), item, float(mixture.source_start_s[item.row])) for item in map(drawn.__getitem__, range(count))]
        return {sample.key: sample for sample in found}


class Turns:
    """A contestant that makes the samples of one epoch after another."""

    def __init__(self, ours: Ours, make: Callable[[dict[str, Sample]], dict[str, np.ndarray]]) -> None:
        self.ours, self.make, self.epoch = ours, make, 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.epoch += 1
        return self.make(self.ours.samples(self.epoch - 1))


def finish(clip: DecodedClip, draw: Draw, wanted_s: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """(C, T, H, W) uint8 of decoded frames: the same crop and resize for all contestants."""
    out = np.empty((3, GEOMETRY.frames, SIDE, SIDE), np.uint8)
    render(clip, nearest_frames(clip.times_s, wanted_s), np.asarray(box), draw.flip, out)
    return out


def box_of(draw: Draw, height: int, width: int) -> tuple[int, int, int, int]:
    return training_box(height, width, draw.words.tolist(), GEOMETRY.crop_scale, GEOMETRY.crop_aspect)


def gathered(frames: Iterator[av.VideoFrame], base: Fraction, wanted_s: np.ndarray, everything: bool = False) -> DecodedClip:
    """The frames nearest to `wanted_s` out of those decoded in order; decoding stops after the last, unless `everything`."""
    kept: dict[int, Picture] = {}
    former: av.VideoFrame | None = None
    rest = list(range(len(wanted_s)))
    for frame in frames:
        while rest and former is not None and frame.pts * base >= wanted_s[rest[0]]:
            nearer = former if wanted_s[rest[0]] - float(former.pts * base) <= float(frame.pts * base) - wanted_s[rest[0]] else frame
            if nearer.pts not in kept:
                kept[nearer.pts] = picture_of(nearer)
            rest.pop(0)
        former = frame
        if not rest and not everything:
            break
    if rest and former is not None and former.pts not in kept:
        kept[former.pts] = picture_of(former)
    pts = np.array(sorted(kept), np.int64)
    return DecodedClip([kept[one] for one in pts.tolist()], pts, base)


def by_webdataset(tars: list[str], seek: bool, everything: bool = False) -> Callable[[dict[str, Sample]], dict[str, np.ndarray]]:
    """Stock webdataset over the same tars, decoding with PyAV: from the key frame before the window, or from the start."""

    def make(samples: dict[str, Sample]) -> dict[str, np.ndarray]:
        made = {}
        for item in webdataset.WebDataset(tars, shardshuffle=False):
            sample = samples[item["__key__"]]
            wanted = sample.draw.times_s(GEOMETRY.frames)
            with av.open(io.BytesIO(item["mp4"])) as container:
                stream = container.streams.video[0]
                stream.thread_type = "NONE"
                base = stream.time_base or Fraction(1, 1000)
                if seek:
                    container.seek(max(0, int(wanted[0] / base) - round(1 / RATE / base)), stream=stream)
                clip = gathered(container.decode(stream), base, wanted, everything)
            made[sample.key] = finish(clip, sample.draw, wanted, box_of(sample.draw, clip.height, clip.width))
        return made

    return make


def by_original(film: Path) -> Callable[[dict[str, Sample]], dict[str, np.ndarray]]:
    """Random access into the long file, as the official loader does it, with an exact seek; crop and resize from its own size."""

    def make(samples: dict[str, Sample]) -> dict[str, np.ndarray]:
        made = {}
        for sample in samples.values():
            wanted = sample.draw.times_s(GEOMETRY.frames) + sample.film_start_s
            with av.open(str(film)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "NONE"
                base = stream.time_base or Fraction(1, 1000)
                container.seek(max(0, int(wanted[0] / base) - round(1 / RATE / base)), stream=stream)
                clip = gathered(container.decode(stream), base, wanted)
            made[sample.key] = finish(clip, sample.draw, wanted, box_of(sample.draw, clip.height, clip.width))
        return made

    return make


def by_limit(shards: Path) -> Callable[[dict[str, Sample]], dict[str, np.ndarray]]:
    """Nothing but decoding, of bytes that are in memory already."""
    index = ShardIndex(shards)
    held = {index.clip_id(row): index.read(index.entry(row)) for row in range(len(index))}

    def make(samples: dict[str, Sample]) -> dict[str, np.ndarray]:
        for sample in samples.values():
            wanted = sample.draw.times_s(GEOMETRY.frames)
            with av.open(io.BytesIO(held[sample.key]), format="mp4") as container:
                stream = container.streams.video[0]
                stream.thread_type = "NONE"
                base = stream.time_base or Fraction(1, 1000)
                container.seek(max(0, int(wanted[0] / base)), stream=stream)
                for frame in container.decode(stream):
                    if float(frame.pts * base) >= wanted[-1]:
                        break
        return {}

    return make


def agreement(ours: Ours, others: dict[str, Callable[[dict[str, Sample]], dict[str, np.ndarray]]], exact: Sequence[str]) -> str:
    """Asserts that all make the same samples: to the bit from the same tars, closely from the films (which were not encoded twice)."""
    made, samples, worst = ours(), ours.samples(0), 0.0
    for name, make in others.items():
        theirs = make(samples)
        assert made.keys() == theirs.keys(), name
        for key, video in made.items():
            if name in exact:
                assert np.array_equal(video, theirs[key]), f"{name}: {key}"
            else:
                difference = float(np.abs(video.astype(np.int16) - theirs[key]).mean())
                assert difference < 12, f"{name}: {key} differs by {difference:.1f} grey levels"
                worst = max(worst, difference)
    return f"same samples; from films within {worst:.1f} grey levels"


def overhead_ms(shards: Path, clips: int, rounds: int = 10) -> float:
    """CPU time of a sample in the loader without reading, decoding, cropping and resizing: clips are decoded already, pictures left empty."""
    loader = ClipLoader(
        open_mixture(WHOLE, shards), GEOMETRY, seed=0, phase="benchmark", global_batch=clips, reading=Reading(cache_bytes=8 * 2**30)
    )  # fmt: skip
    for batch in loader.batches(0, 2):
        assert len(batch.clip_ids) == clips
    with mock.patch.object(loader_module, "render", lambda *_: None):
        start = time.process_time()
        for _ in loader.batches(2, 2 + rounds):
            pass
        return 1e3 * (time.process_time() - start) / (rounds * clips)


def large_index(folder: Path) -> tuple[float, float]:
    """(CPU s to open, bytes a clip) of an index of a million made-up clips."""
    random = np.random.default_rng(0)
    whole = random.bytes(42 * INDEX_CLIPS).hex()
    ids, digests = ([whole[start : start + size] for start in range(first, first + size * INDEX_CLIPS, size)] for first, size in ((0, 20), (20 * INDEX_CLIPS, 64)))
    columns: dict[str, Any] = {name: [None] * INDEX_CLIPS for name in schemas.SHARD_INDEX.names}
    columns |= {
        "clip_id": ids, "sha256": digests, "shard": [f"shard-{number // 120:06d}.tar" for number in range(INDEX_CLIPS)],
        "offset": np.arange(INDEX_CLIPS) % 120 * 500_000, "length": random.integers(200_000, 800_000, INDEX_CLIPS), "frames": np.full(INDEX_CLIPS, CLIP_S * STORED_RATE),
        "first_pts_s": np.zeros(INDEX_CLIPS), "last_pts_s": random.random(INDEX_CLIPS) * CLIP_S, "weight": random.random(INDEX_CLIPS),
    }  # fmt: skip
    import pyarrow as pa

    table = pa.table({name: pa.array(columns[name], type=schemas.SHARD_INDEX.field(name).type, from_pandas=True) for name in schemas.SHARD_INDEX.names})
    schemas.write_table(table, folder / INDEX_FILE, schemas.SHARD_INDEX)
    start = time.process_time()
    index = ShardIndex(folder)
    return time.process_time() - start, index.nbytes / len(index)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("videos", type=Path, help="folder with videos of a few seconds or more each")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    videos = [path for path in sorted(options.videos.rglob("*")) if path.suffix in {".mp4", ".mkv", ".webm", ".mov"} and duration_s(path) > 4]
    cv2.setNumThreads(1)  # as the training program does: frames this small cost OpenCV's threads more than they save
    results = []
    with tempfile.TemporaryDirectory(prefix="loader-benchmark-") as scratch:
        root = Path(scratch)
        print("machine:", ", ".join(f"{key} {value}" for key, value in machine().items()))
        print(header())
        for name, (width, height, gop) in FILMS.items():
            film = make_film(videos, root / f"{height}.mp4", width, height, gop, (options.clips + 1) * CLIP_S)
            clip_table(film, root, options.clips)
            for rate in (None, STORED_RATE):
                shards = root / f"shards-{height}-{rate}"
                shards.mkdir()
                build_shards(shards, root, root, config=ShardConfig(short_side=SIDE, frame_rate=rate), progress=lambda *_: None)
                tars = [str(path) for path in sorted(shards.glob("*.tar"))]
                ours = Ours(shards, options.clips)
                others = {
                    "webdataset, exact seek": by_webdataset(tars, seek=True), "webdataset, from start": by_webdataset(tars, seek=False),
                    "webdataset, whole clip": by_webdataset(tars, seek=False, everything=True), "original file, seek": by_original(film),
                }  # fmt: skip
                parity = agreement(Ours(shards, options.clips), others, exact=list(others)[:3])
                contestants: dict[str, Callable[[], Any]] = {"loader": ours}
                contestants |= {label: Turns(ours, make) for label, make in others.items()} | {"limit: bare decode": Turns(ours, by_limit(shards))}
                stored = sum(path.stat().st_size for path in shards.glob("*.tar")) / options.clips / 1e3
                contest = Contest(
                    name=f"{name}, {rate or RATE}/s stored", contestants=contestants, check=lambda parity=parity: parity,  # type: ignore[misc]
                )  # fmt: skip
                result = hold(contest, repeats=options.rounds, clock=time.process_time)
                results.append(result)
                print(lines(result))
                print(
                    f"    {options.clips / result.median('loader'):.1f} clips a CPU-s; {stored:.0f} kB a clip of {CLIP_S} s; "
                    f"{overhead_ms(shards, options.clips):.2f} ms a sample besides reading, decoding and cropping"
                )
        seconds, size = large_index(root)
        print(f"index of {INDEX_CLIPS:,} clips: opened in {seconds:.2f} CPU-s, {size:.0f} bytes a clip")
        shutil.rmtree(root, ignore_errors=True)
    if options.json:
        write_json(options.json, machine(), results)


if __name__ == "__main__":
    main()
