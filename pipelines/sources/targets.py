"""Target videos: the files of the target sets probed and cut, whole or at their annotated segments, with their labels."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.checks import Check
from pipelines.curation.scenes import Cut, SceneConfig, cut_videos, gather_cuts, whole_clips, write_cut
from pipelines.errors import Reject
from pipelines.parts import open_parts
from pipelines.recipes import Part
from pipelines.schemas import CLIPS, QUARANTINE, read_table
from pipelines.sources.folder import first_names
from pipelines.sources.target_sets import LAYOUT, SPLITS, Span, TargetFiles, read_targets_root, recorded
from pipelines.video.probe import FILES_PER_PART, MIN_DECODE_RATE, PROBE, Probed, probe_files
from pipelines.video.workers import Crew

BATCH = "targets"
EVALUATION, SCENES = "/eval", "/eval scenes"
"""How the source of an evaluation clip ends, and that of its file's scenes, which are there to be found in the pool alone."""

NEARLY_WHOLE = 0.95  # of a file: a scene that long is the file's own clip


class TargetsConfig(Part):
    """`scenes` is how the pool is cut: a pool clip is a scene, and is compared with the scenes of evaluation files too."""

    workers: int = 2
    scenes: SceneConfig = SceneConfig()
    timeout_s: float = 30.0
    licence: str = ""  # of the sets that name none of their own


Use = tuple[str, str, list[tuple[Span | None, str]]]
"""What one set makes of a file: (source "<set>/<split>", licence, (span, label) of each clip)."""


def uses_of(parts: Sequence[TargetFiles], licence: str) -> dict[str, list[Use]]:
    """path -> what each set and split makes of it, sorted."""
    gathered: dict[str, dict[tuple[str, str], list[tuple[Span | None, str]]]] = {}
    for part in parts:
        for number, path in enumerate(part.files):
            place = (f"{part.name}/{part.split}", part.licence or licence)
            clip = (part.spans[number] if part.spans else None, part.label)
            gathered.setdefault(path, {}).setdefault(place, []).append(clip)
    return {
        path: [(source, words, sorted(clips, key=lambda clip: (clip[0] or (), clip[1]))) for (source, words), clips in sorted(uses.items())]
        for path, uses in sorted(gathered.items())
    }  # fmt: skip


def cut_targets(probed: Probed, uses: dict[str, list[Use]], scenes: SceneConfig) -> Cut:
    """The clips of probed target files: one for each use of a whole file, or one for each of its segments; then the scenes that
    evaluation files have several of, without a label."""
    videos, signals, spans = [], [], []
    for row, recording in zip(probed.videos, probed.signals, strict=True):
        for source, licence, clips in uses[row["path"]]:
            videos.append({**row, "source": source, "licence": licence, "label": clips[0][1]})
            signals.append(recording)
            segments = [(*span, label) for span, label in clips if span is not None]
            spans.append(segments or None)
    cut = whole_clips(videos, signals, spans)
    held_out = [number for number, video in enumerate(videos) if video["source"].endswith(EVALUATION)]
    scenes_of = [{**videos[number], "source": videos[number]["source"].removesuffix(EVALUATION) + SCENES, "label": ""} for number in held_out]
    found = cut_videos(scenes_of, [signals[number] for number in held_out], scenes)
    seconds = {video["path"]: video["duration_s"] for video in scenes_of}
    parts = [row for row, clip in enumerate(found.clips) if clip["end_s"] - clip["start_s"] < NEARLY_WHOLE * seconds[clip["path"]]]
    rejects = [*({**row, "source": uses[row["path"]][0][0]} for row in probed.quarantine), *cut.rejects]
    return Cut([*cut.clips, *(found.clips[row] for row in parts)], rejects, np.concatenate([cut.looks, found.looks[parts]]))


def build_target_videos(
    folder: Path,
    targets_root: Path,
    config: TargetsConfig | None = None,
    progress: Callable[..., None] | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Probe and cut the target sets into `folder`: targets.json, clips.parquet (with labels; source is "<set>/<split>", or
    "<set>/eval scenes"), looks.npy and quarantine.parquet. Returns the summary."""
    started = time.monotonic()
    config = config or TargetsConfig()
    sets = read_targets_root(targets_root)
    uses = uses_of(sets, config.licence)
    paths = list(uses)
    starts = {path: number for number, path in enumerate(paths)}
    with open_parts(work) as parts, Crew(PROBE, config.workers) as crew:

        def probe_batch(piece: Path, batch: Sequence[str]) -> dict[str, Any]:
            before = crew.cpu_s
            probed = probe_files(
                batch, batch=BATCH, source=BATCH, timeout_s=config.timeout_s, crew=crew,
                progress=(lambda done, total, text="": progress(starts[batch[0]] + done, len(paths), text)) if progress else None,
            )  # fmt: skip
            write_cut(piece, cut_targets(probed, uses, config.scenes))
            return {"videos": len(probed.videos), "worker_cpu_s": crew.cpu_s - before}

        pieces = parts.map("targets", paths, FILES_PER_PART, probe_batch)
        gather_cuts(folder, [piece.folder for piece in pieces])
        cost = parts.cost(len(paths), "files")
        videos = sum(piece.summary["videos"] for piece in pieces)
    (folder / "targets.json").write_text(json.dumps([recorded(part) for part in sets], indent=1, sort_keys=True))
    clips = Counter(read_table(folder / "clips.parquet", CLIPS, columns=["source"]).column("source").to_pylist())
    return {
        "sets": len({part.name for part in sets}), "labels": len({(part.name, part.label) for part in sets if part.label}),
        "videos": videos, "clips": sum(count for source, count in clips.items() if not source.endswith(SCENES)), "quarantined": len(read_table(folder / "quarantine.parquet", QUARANTINE, columns=["path"])),
        "evaluation_clips": sum(count for source, count in clips.items() if source.endswith(EVALUATION)),
        "evaluation_scenes": sum(count for source, count in clips.items() if source.endswith(SCENES)), "cost": cost, "seconds": time.monotonic() - started,
    }  # fmt: skip


def build_no_targets(folder: Path) -> dict[str, Any]:
    """A target_videos artefact without any set, for a curation that nothing steers. Returns the summary."""
    gather_cuts(folder, [])
    (folder / "targets.json").write_text("[]")
    return {"sets": 0, "labels": 0, "videos": 0, "clips": 0, "quarantined": 0, "evaluation_clips": 0, "evaluation_scenes": 0}


def set_weights(target_folder: Path) -> dict[str, float]:
    """Share of each target set, by name, from a target_videos artefact."""
    return {part["name"]: float(part["weight"]) for part in json.loads((target_folder / "targets.json").read_text())}


def check_target_videos(folder: Path) -> dict[str, Check]:
    """Blocking check: every set has clips in both splits, with at least two labels where it has labels at all, most of its
    training files decode, and all of its evaluation files. It holds where there is no set on purpose.

    An evaluation file that gave no clip would stay in the pool. Only one too short for a clip has nothing to keep out.
    """
    clips = [clip for clip in read_table(folder / "clips.parquet", CLIPS, columns=["source", "label", "path"]).to_pylist() if not clip["source"].endswith(SCENES)]
    codes = {row["path"]: row["code"] for row in read_table(folder / "quarantine.parquet", QUARANTINE, columns=["path", "code"]).to_pylist()}
    parts = json.loads((folder / "targets.json").read_text())
    files: dict[str, set[str]] = {f"{part['name']}/{split}": set() for part in parts for split in SPLITS}
    for part in parts:
        files[f"{part['name']}/{part['split']}"].update(part["files"])
    counts = Counter(clip["source"] for clip in clips)
    labels: dict[str, set[str]] = {source: set() for source in files}
    for clip in clips:
        labels[clip["source"]].update([clip["label"]] if clip["label"] else [])
    labelled = {source.rsplit("/", 1)[0] for source, own in labels.items() if own}
    lost = {source: sorted(own - {clip["path"] for clip in clips if clip["source"] == source}) for source, own in sorted(files.items())}
    thin = [
        source for source in files
        if not counts[source] or (source.rsplit("/", 1)[0] in labelled and len(labels[source]) == 1)
        or len(lost[source]) > (1 - MIN_DECODE_RATE) * len(files[source])
    ]  # fmt: skip
    in_pool = [
        f"{path}: {codes.get(path, 'no clip')}"
        for source in lost if source.endswith(EVALUATION) for path in lost[source] if codes.get(path) != Reject.TOO_SHORT
    ]  # fmt: skip
    found = ", ".join(
        f"{source}: {counts[source]} clips of {len(labels[source])} labels from {len(files[source]) - len(lost[source])} of {len(files[source])} files"
        for source in lost
    )
    remedy = f"mend the target sets; their layout is {LAYOUT}"
    if in_pool:
        remedy = (
            f"where it says {Reject.TIMEOUT} or {Reject.WORKER_DIED}, run the same again when the machine is less busy: every file is opened anew; "
            "bring back or mend the other files, or take them out of their set (quarantine.parquet names all)"
        )
    return {
        "not_empty": Check(
            not thin and not in_pool,
            f"clips in both splits of each set, two labels or more where there are labels, {MIN_DECODE_RATE:.0%} of the training files decodable, "
            "and every evaluation file, so that it can be kept out of the pool",
            (found or "no target sets") + (f"; evaluation files that cannot be kept out of the pool: {first_names(in_pool)}" if in_pool else ""), remedy,
        )
    }  # fmt: skip
