"""The mixed pool of the built-in corpus: what files there are, and the one call that makes them all.

Demo scale: about 150 files and 900 s, from which scene cutting makes over 200 clips. Everything a stage could get wrong
is in it on purpose and written down in corpus.json: cuts, exact and re-encoded duplicates, and files that are no video.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.corpus.motions import FILMS
from pipelines.corpus.targets import FRAME_RATE, SECONDS, SIZE, TargetPair, make_pair, plan_targets
from pipelines.errors import InputError
from pipelines.identity import stable_seed
from pipelines.simulation.appearance import Appearance
from pipelines.simulation.arm import SimulatedArm
from pipelines.simulation.recorded import recorded_folder
from pipelines.simulation.rendering import require_gl
from pipelines.video.encode import ffmpeg_binary, write_video
from pipelines.video.workers import map_killable

VERSION = 1
FILE_LIMIT_S = 300.0
SIZES = ((128, 128), (128, 128), (128, 128), (120, 160), (144, 192), (96, 128), (112, 144))
FRAME_RATES = (8.0, 8.0, 10.0, 10.0, 12.5, 15.0)


@dataclass(frozen=True)
class Scale:
    """How many files of each kind, and films per class and split of each target set."""

    films: dict[str, tuple[int, float, float]]  # kind of motion -> files, shortest and longest seconds
    multi_shot: int
    exact_copies: int
    reencoded: int
    train: int
    evaluation: int


SCALES = {
    "demo": Scale(
        {"free": (56, 4.0, 12.0), "push": (14, 4.0, 6.0), "lift": (10, 4.0, 6.0), "grip": (6, 3.0, 5.0),
         "fall": (12, 2.0, 4.0), "slide": (10, 2.5, 5.0), "pan": (10, 4.0, 7.0), "still": (6, 2.0, 6.0)},
        multi_shot=14, exact_copies=4, reencoded=6, train=8, evaluation=6,
    ),
    # For comparing selections: the demo's pool, and evaluation splits large enough to tell encoders apart.
    "study": Scale(
        {"free": (56, 4.0, 12.0), "push": (14, 4.0, 6.0), "lift": (10, 4.0, 6.0), "grip": (6, 3.0, 5.0),
         "fall": (12, 2.0, 4.0), "slide": (10, 2.5, 5.0), "pan": (10, 4.0, 7.0), "still": (6, 2.0, 6.0)},
        multi_shot=14, exact_copies=4, reencoded=6, train=8, evaluation=30,
    ),
    "smoke": Scale(
        {"free": (3, 3.0, 7.0), "push": (1, 3.0, 3.0), "lift": (1, 3.0, 3.0), "fall": (1, 2.0, 2.0),
         "pan": (1, 3.0, 3.0), "still": (1, 2.0, 2.0)},
        multi_shot=1, exact_copies=1, reencoded=1, train=2, evaluation=2,
    ),
}  # fmt: skip
# Names say what is in front of the camera, not what a stage is to find out.
PREFIX = {"free": "arm", "push": "arm", "lift": "arm", "grip": "arm", "fall": "objects", "slide": "objects"}
SHOT_KINDS = ("free", "push", "slide", "free", "pan")
# Table colours far apart, so that the shots of one file differ as real cuts do.
SHOT_TABLES = ((0.20, 0.35, 0.30), (0.80, 0.55, 0.35), (0.25, 0.25, 0.45), (0.85, 0.85, 0.80), (0.55, 0.20, 0.20))


@dataclass(frozen=True)
class PoolFile:
    """One film of the pool: its shots as (kind, seconds), and how it is encoded."""

    name: str
    number: int
    shots: tuple[tuple[str, float], ...]
    frame_rate: float
    height: int
    width: int
    crf: int

    @property
    def frames(self) -> list[int]:
        """Frames of each shot."""
        return [round(seconds * self.frame_rate) for _, seconds in self.shots]


@dataclass(frozen=True)
class Job:
    """One item of work for a worker."""

    folder: str
    seed: int
    item: PoolFile | TargetPair


def make_corpus(
    folder: Path, *, seed: int, scale: Literal["demo", "study", "smoke"] | str = "demo", workers: int = 2,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make the corpus in `folder`: pool/*.mp4, targets/<set>/{train,eval}/<label>/*.mp4 and, last, corpus.json.

    Returns what corpus.json says: counts, seconds, and per file its shots, cuts (s), twin or damage. Cached: the same
    (seed, scale, version) returns at once; an interrupted one goes on. Every file depends on (seed, its number) alone,
    not on the worker. Raises RenderingError or EncodeError with the remedy when this machine cannot make films.
    """
    if scale not in SCALES:
        raise InputError("unknown scale of the corpus", expected=" or ".join(SCALES), found=scale, remedy="name one of these")
    shape = SCALES[scale]

    def build(filling: Path) -> dict[str, Any]:
        require_gl()
        ffmpeg_binary()
        films = plan_pool(seed, shape)
        pairs = plan_targets(filling, seed=seed, train=shape.train, evaluation=shape.evaluation)
        # The longest first, so that no worker is left alone with one at the end.
        items: list[PoolFile | TargetPair] = [*sorted(films, key=lambda film: (-sum(film.frames), film.name)), *pairs]
        outcomes = map_killable(
            "pipelines.corpus.pool:make_file", [Job(str(filling), seed, item) for item in items], workers=workers,
            timeout_s=FILE_LIMIT_S, progress=progress,
        )  # fmt: skip
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome.failure is not None:
                name = item.name if isinstance(item, PoolFile) else item.paths[0]
                raise InputError(
                    f"making {name} failed", expected="a film", found=f"{outcome.failure}: {outcome.detail}",
                    remedy="mend the cause and run again: films that are finished are kept; `make doctor` says what is missing",
                )  # fmt: skip
        pool = [_described(film) for film in films] + _copies(filling, films, shape) + _damaged(filling, films)
        targets = [
            {"path": path, "set": pair.set_name, "split": pair.split, "label": Path(path).parent.name, "pair": pair.number,
             "seconds": SECONDS, "frame_rate": FRAME_RATE, "height": SIZE, "width": SIZE}
            for pair in pairs
            for path in pair.paths
        ]  # fmt: skip
        return {
            "pool_files": len(pool), "target_files": len(targets),
            "pool_shots": sum(len(entry["shots"]) for entry in pool),
            "pool_seconds": round(sum(entry["seconds"] for entry in pool), 3),
            "target_seconds": SECONDS * len(targets), "pool": sorted(pool, key=lambda entry: entry["path"]), "targets": targets,
        }  # fmt: skip

    return recorded_folder(folder, "corpus.json", {"version": VERSION, "seed": seed, "scale": scale}, build)


def plan_pool(seed: int, shape: Scale) -> list[PoolFile]:
    """Every film of the pool, numbered; lengths, sizes and rates are drawn once from the seed."""
    random = np.random.default_rng(stable_seed("pool", VERSION, seed))
    kinds: list[tuple[str, tuple[tuple[str, float], ...]]] = []
    for kind, (count, shortest, longest) in shape.films.items():
        # Spread evenly over the lengths rather than drawn, so that the whole costs the same for every seed.
        for seconds in np.linspace(shortest, longest, count):
            kinds.append((PREFIX.get(kind, kind), ((kind, round(float(seconds), 1)),)))
    for index in range(shape.multi_shot):
        shots = tuple(
            (SHOT_KINDS[int(random.integers(len(SHOT_KINDS)))], round(float(random.uniform(2.5, 4.5)), 1))
            for _ in range(2 + index % 3)
        )
        kinds.append(("shots", shots))
    numbers: dict[str, int] = {}
    films = []
    for number, (prefix, shots) in enumerate(kinds):
        numbers[prefix] = numbers.get(prefix, 0) + 1
        height, width = SIZES[int(random.integers(len(SIZES)))]
        rate, crf = FRAME_RATES[int(random.integers(len(FRAME_RATES)))], int(random.integers(18, 25))
        films.append(PoolFile(f"{prefix}_{numbers[prefix]:04d}", number, shots, rate, height, width, crf))
    return films


@lru_cache(maxsize=1)
def _arm() -> SimulatedArm:
    # Kept by a worker process over its files; every film resets state, look and size, so nothing passes between them.
    return SimulatedArm(0)


def make_file(job: Job) -> None:
    """Make the file or files of one job, unless they are there."""
    if isinstance(job.item, TargetPair):
        make_pair(_arm(), job.item)
        return
    film, path = job.item, Path(job.folder) / "pool" / f"{job.item.name}.mp4"
    if not path.is_file():
        write_video(path, _frames(film, job.seed), film.frame_rate, crf=film.crf)


def _frames(film: PoolFile, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(stable_seed("pool film", seed, film.number))
    arm = _arm()
    arm.height, arm.width = film.height, film.width
    first_table = int(random.integers(len(SHOT_TABLES)))
    for shot, (kind, seconds) in enumerate(film.shots):
        if len(film.shots) == 1:
            arm.set_appearance(_usual_look(random))
        else:
            table = SHOT_TABLES[(first_table + shot) % len(SHOT_TABLES)]
            turn = 70.0 * (shot % 2) - 20.0
            look = Appearance(table_rgb=table, azimuth_deg=58.0 + turn).sample(random, strength=1.5)
            arm.set_appearance(look)
        yield from FILMS[kind](arm, random, seconds, film.frame_rate)


def _usual_look(random: np.random.Generator) -> Appearance:
    """Mostly the robot's own camera under varying light and colours; sometimes moved a little, seldom elsewhere."""
    chance = random.random()
    if chance < 0.6:
        return Appearance().sample(random, strength=0.8, move_camera=False)
    return Appearance().sample(random, strength=1.0 if chance < 0.9 else 3.0)


def _described(film: PoolFile) -> dict[str, Any]:
    ends = np.cumsum(film.frames)
    return {
        "path": f"pool/{film.name}.mp4", "frames": int(ends[-1]), "seconds": round(float(ends[-1]) / film.frame_rate, 4),
        "cuts_s": [round(float(end) / film.frame_rate, 4) for end in ends[:-1]], "twin": None, "damage": None,
        **{key: value for key, value in asdict(film).items() if key not in ("name", "number")},
    }  # fmt: skip


def _copies(folder: Path, films: list[PoolFile], shape: Scale) -> list[dict[str, Any]]:
    """Byte-exact copies and re-encoded ones (another crf, some another size) of films spread over the pool."""
    from pipelines.episodes.episode import decode_all

    count = shape.exact_copies + shape.reencoded
    chosen = [films[(index * 2 + 1) * len(films) // (2 * count)] for index in range(count)]
    described = []
    for index, film in enumerate(chosen):
        path, twin = folder / "pool" / f"copy_{index + 1:04d}.mp4", folder / "pool" / f"{film.name}.mp4"
        entry = {**_described(film), "path": f"pool/{path.name}", "twin": f"pool/{twin.name}"}
        if index < shape.exact_copies:
            entry["copy"] = "exact"
            if not path.is_file():
                shutil.copyfile(twin, path)
        else:
            smaller = index % 2 == 1
            height, width = (
                (film.height * 3 // 8 * 2, film.width * 3 // 8 * 2) if smaller else (film.height, film.width)
            )
            entry |= {"copy": "reencoded", "crf": 30, "height": height, "width": width}
            if not path.is_file():
                write_video(
                    path, _resized(decode_all(twin), height, width), film.frame_rate, crf=30, preset="fast", bframes=2
                )
        described.append(entry)
    return described


def _resized(frames: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    import cv2

    for frame in frames:
        yield cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _damaged(folder: Path, films: list[PoolFile]) -> list[dict[str, Any]]:
    """A film cut off before its index (moov), a text file and an empty file, all named .mp4."""
    whole = (folder / "pool" / f"{films[0].name}.mp4").read_bytes()
    contents = {
        "truncated": whole[: len(whole) * 6 // 10],
        "text": b"This is a note that somebody renamed to .mp4.\n" * 20,
        "empty": b"",
    }
    described = []
    for index, (damage, content) in enumerate(contents.items(), start=1):
        path = folder / "pool" / f"upload_{index:04d}.mp4"
        path.write_bytes(content)
        described.append(
            {
                "path": f"pool/{path.name}",
                "frames": 0,
                "seconds": 0.0,
                "cuts_s": [],
                "shots": [],
                "twin": None,
                "damage": damage,
            }
        )
    return described
