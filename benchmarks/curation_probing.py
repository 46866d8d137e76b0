"""Probing and cutting beside PySceneDetect's own command: frames per CPU-second and F1 on films whose cuts are known.

    python benchmarks/curation_probing.py FOLDER_WITH_VIDEOS [--films 4] [--shots 40] [--rounds 3]

Ours is everything the assets `videos` and `clips` do: sha256 of the file, payload hash, every frame decoded, signals,
cuts, scores, small pictures, tables. Theirs is `scenedetect detect-adaptive` (and `detect-content`) on the same film,
which finds cuts only. CPU time is that of whole processes, start-up included (their command starts once a film), taken in turn.
"""

from __future__ import annotations

import argparse
import csv
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

# Started as a script, this folder comes first on the path, and benchmarks/models.py would hide the package models.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.joined_clips import duration_s, join_clips
from pipelines.curation.cuts import CutQuality, cut_quality
from pipelines.curation.scenes import SceneConfig, cut_videos
from pipelines.sources.folder import scan_folder
from pipelines.video.probe import probe_files

TOLERANCE_S = 0.05
LEAST_S = 4.0  # sources shorter than this give no shot


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ours(films: Sequence[Path]) -> tuple[list[list[float]], float, int]:
    """(cuts in s of each film, CPU s, frames) of our probe and cutter, one batch, one worker."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = children_cpu_s()
    probed = probe_files([str(film) for film in films], batch="b", source="s", workers=1)
    cut = cut_videos(probed.videos, probed.signals, SceneConfig(min_clip_s=0.3, max_clip_s=600.0))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = children_cpu_s() - children + after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime
    starts = [[row["start_s"] for row in cut.clips if row["path"] == str(film) and row["start_s"] > 0] for film in films]
    return starts, cpu_s, sum(row["frames"] for row in probed.videos)


def theirs(detector: str, folder: Path) -> Callable[[Path], tuple[list[float], float]]:
    """(cuts in s, CPU s) of PySceneDetect's command on one film."""
    command = shutil.which("scenedetect") or str(Path(sys.executable).with_name("scenedetect"))

    def run(film: Path) -> tuple[list[float], float]:
        before = children_cpu_s()
        subprocess.run(
            [command, "-q", "-i", str(film), "-o", str(folder), detector, "list-scenes", "-q", "-f", "scenes.csv", "-s"], check=True, capture_output=True
        )
        cpu_s = children_cpu_s() - before
        with open(folder / "scenes.csv", newline="") as handle:
            starts = [float(row["Start Time (seconds)"]) for row in csv.DictReader(handle)]
        return [start for start in starts if start > 0], cpu_s

    return run


def show(name: str, quality: CutQuality, frames: int, cpu_s: float) -> str:
    return (
        f"{name:<34} {frames / cpu_s:8.0f} frames/CPU-s   F1 {quality.f1:.3f} ({quality.matched} of {quality.known} known, "
        f"{quality.found} found), offset {1000 * quality.offset_s:.1f} ms"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", type=Path)
    parser.add_argument("--films", type=int, default=4)
    parser.add_argument("--shots", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args(arguments)
    sources = [Path(file.path) for file in scan_folder(options.videos)[0]]
    sources = [path for path in sources if _usable(path)]
    with tempfile.TemporaryDirectory(prefix="tubelet-probing-") as scratch:
        folder = Path(scratch)
        joined = [join_clips(folder / f"film_{number}.mp4", sources, seed=options.seed + number, shots=options.shots) for number in range(options.films)]
        known = [cuts for _, cuts in joined]
        subjects = {detector: theirs(detector, folder) for detector in ("detect-adaptive", "detect-content")}
        ratios: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(options.rounds):
            mine, cpu_s, frames = ours([film for film, _ in joined])
            print(show("probe and cut", cut_quality(known, mine, TOLERANCE_S), frames, cpu_s))
            for name, run in subjects.items():
                found = [run(film) for film, _ in joined]
                other = sum(item[1] for item in found)
                print(show(f"scenedetect {name}", cut_quality(known, [item[0] for item in found], TOLERANCE_S), frames, other))
                ratios[name].append(other / cpu_s)
        for name, values in ratios.items():
            print(f"ratio to scenedetect {name}: median {statistics.median(values):.2f}x (of {', '.join(f'{value:.2f}' for value in values)})")


def _usable(path: Path) -> bool:
    """Whether shots can be cut from it: probed, long enough, of one frame rate."""
    row = probe_files([str(path)], batch="b", source="s", workers=1).videos
    return bool(row) and row[0]["duration_s"] >= LEAST_S and not row[0]["variable_frame_rate"] and duration_s(path) > LEAST_S


if __name__ == "__main__":
    main()
