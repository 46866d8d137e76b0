"""Target sets: labelled videos the encoder should become good at, and the evaluation splits that must stay out of the pool.

Layout of a root: `<set>/train/<label>/*.mp4` and `<set>/eval/<label>/*.mp4`, with an optional `targets.yaml`
(`weights: {<set>: number}`, normalised; equal when absent).
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.checks import Check
from pipelines.curation.scenes import cut_videos
from pipelines.curation.sources import scan_folder
from pipelines.errors import InputError
from pipelines.identity import digest_of
from pipelines.recipes import Part
from pipelines.schemas import CLIPS, QUARANTINE, read_table, table_of, write_table
from pipelines.video.probe import MIN_DECODE_RATE, probe_files

logger = logging.getLogger("tubelet.curation")

SPLITS = ("train", "eval")
LAYOUT = "<set>/train/<label>/*.mp4 and <set>/eval/<label>/*.mp4"


class TargetsConfig(Part):
    workers: int = 2
    timeout_s: float = 30.0
    licence: str = ""


@dataclass(frozen=True)
class TargetFiles:
    """The files of one label of one split of one set; `weight` is the set's share of the selection (sums to 1 over sets)."""

    name: str
    weight: float
    split: str
    label: str
    files: list[str]


def read_targets_root(root: Path) -> list[TargetFiles]:
    """What is in a root, sorted by set, split and label; raises `InputError` when it is not laid out as it must be."""
    remedy = f"lay the target sets out as {LAYOUT}"
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", expected=LAYOUT, found="nothing there", remedy=remedy)
    sets = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not sets:
        raise InputError(f"{root} has no target set", expected=LAYOUT, found="no folder in it", remedy=remedy)
    weights = read_weights(root, sets)
    found: list[TargetFiles] = []
    for name in sets:
        for split in SPLITS:
            folder = root / name / split
            labels = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
            parts = [
                TargetFiles(name, weights[name], split, label, [file.path for file in scan_folder(folder / label)[0]])
                for label in labels
            ]
            if not any(part.files for part in parts):
                raise InputError(f"target set {name} has no {split} videos", expected=LAYOUT, found=f"no video below {folder}", remedy=remedy)
            found += [part for part in parts if part.files]
    return found


def read_weights(root: Path, sets: list[str]) -> dict[str, float]:
    """Share of each set, from `targets.yaml` where there is one, else equal; normalised to sum 1."""
    path = root / "targets.yaml"
    if not path.exists():
        return dict.fromkeys(sets, 1.0 / len(sets))
    import yaml

    content = yaml.safe_load(path.read_text()) or {}
    weights = content.get("weights") if isinstance(content, dict) else None
    numbers = weights if isinstance(weights, dict) else {}
    good = set(numbers) == set(sets) and all(isinstance(value, int | float) and value >= 0 for value in numbers.values())
    if not good or sum(numbers.values()) <= 0:
        raise InputError(
            f"{path} does not weigh the target sets", expected="weights: one number, 0 or more, for each of " + ", ".join(sets),
            found=str(weights), remedy="mend the file, or delete it for equal weights",
        )  # fmt: skip
    return {name: numbers[name] / sum(numbers.values()) for name in sets}


def root_digest(root: Path) -> str:
    """Digest of a root's layout and weights, and of its files' sizes and modification times."""
    parts = read_targets_root(root)
    stats = {path: (Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for part in parts for path in part.files}
    return digest_of([[asdict(part) for part in parts], stats])


def build_target_videos(
    folder: Path,
    targets_root: Path,
    config: TargetsConfig | None = None,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Probe the target sets into `folder`: targets.json, clips.parquet (one clip a file, with its label; source is
    "<set>/<split>") and quarantine.parquet. Returns the summary."""
    started = time.monotonic()
    config = config or TargetsConfig()
    parts = read_targets_root(targets_root)
    place = {path: part for part in parts for path in part.files}
    paths = sorted(place)

    def halfway(offset: int) -> Callable[..., None] | None:
        return (lambda done, total, text="": progress(offset + done, 2 * len(paths), text)) if progress else None

    videos, rejects = probe_files(
        paths, batch="targets", source="targets", licence=config.licence, workers=config.workers,
        timeout_s=config.timeout_s, progress=halfway(0),
    )  # fmt: skip
    for row in [*videos, *rejects]:
        row["source"] = f"{place[row['path']].name}/{place[row['path']].split}"
    clips, more = cut_videos(
        videos, None, labels=[place[video["path"]].label for video in videos], workers=config.workers,
        progress=halfway(len(paths)),
    )  # fmt: skip
    write_table(table_of(CLIPS, clips), folder / "clips.parquet", CLIPS)
    write_table(table_of(QUARANTINE, rejects + more), folder / "quarantine.parquet", QUARANTINE)
    (folder / "targets.json").write_text(json.dumps([asdict(part) for part in parts], indent=1, sort_keys=True))
    return {
        "sets": len({part.name for part in parts}), "labels": len({(part.name, part.label) for part in parts}),
        "videos": len(videos), "clips": len(clips), "quarantined": len(rejects) + len(more),
        "evaluation_clips": sum(clip["source"].endswith("/eval") for clip in clips), "seconds": time.monotonic() - started,
    }  # fmt: skip


def set_weights(target_folder: Path) -> dict[str, float]:
    """Share of each target set, by name, from a target_videos artefact."""
    return {part["name"]: float(part["weight"]) for part in json.loads((target_folder / "targets.json").read_text())}


def check_target_videos(folder: Path) -> dict[str, Check]:
    """Blocking check: every set has clips in both splits with at least two labels, and most files decode."""
    clips = read_table(folder / "clips.parquet", CLIPS).to_pylist()
    rejected = len(read_table(folder / "quarantine.parquet", QUARANTINE))
    counts = Counter(clip["source"] for clip in clips)
    wanted = {f"{name}/{split}" for name in set_weights(folder) for split in SPLITS}
    labels = {source: {clip["label"] for clip in clips if clip["source"] == source} for source in wanted}
    thin = sorted(source for source in wanted if len(labels[source]) < 2)
    found = ", ".join(f"{source}: {counts[source]} clips of {len(labels[source])} labels" for source in sorted(wanted))
    enough = len(clips) >= MIN_DECODE_RATE * (len(clips) + rejected)
    return {
        "not_empty": Check(
            not thin and enough and len(clips) > 0, f"two labels or more in each split of each set, and {MIN_DECODE_RATE:.0%} of the files decodable",
            f"{found}; {rejected} files quarantined", f"mend the target sets; their layout is {LAYOUT}",
        )
    }  # fmt: skip
