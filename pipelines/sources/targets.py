"""Target videos: the files of the target sets probed and cut, whole or at their annotated segments, with their labels."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.checks import Check
from pipelines.curation.scenes import Cut, gather_cuts, whole_clips, write_cut
from pipelines.parts import open_parts
from pipelines.recipes import Part
from pipelines.schemas import CLIPS, QUARANTINE, read_table
from pipelines.sources.target_sets import LAYOUT, SPLITS, Span, TargetFiles, read_targets_root, recorded
from pipelines.video.probe import FILES_PER_PART, MIN_DECODE_RATE, PROBE, Probed, probe_files
from pipelines.video.workers import Crew

BATCH = "targets"


class TargetsConfig(Part):
    workers: int = 2
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
            clip = (tuple(part.spans[number]) if part.spans else None, part.label)
            gathered.setdefault(path, {}).setdefault(place, []).append(clip)  # type: ignore[arg-type]
    return {
        path: [(source, words, sorted(clips, key=lambda clip: (clip[0] or (), clip[1]))) for (source, words), clips in sorted(uses.items())]
        for path, uses in sorted(gathered.items())
    }  # fmt: skip


def cut_targets(probed: Probed, uses: dict[str, list[Use]]) -> Cut:
    """The clips of probed target files: one for each use of a whole file, or one for each of its segments."""
    videos, signals, spans = [], [], []
    for row, recording in zip(probed.videos, probed.signals, strict=True):
        for source, licence, clips in uses[row["path"]]:
            videos.append({**row, "source": source, "licence": licence, "label": clips[0][1]})
            signals.append(recording)
            segments = [(*span, label) for span, label in clips if span is not None]
            spans.append(segments or None)
    cut = whole_clips(videos, signals, spans)
    return Cut(cut.clips, [*({**row, "source": uses[row["path"]][0][0]} for row in probed.quarantine), *cut.rejects], cut.looks)


def build_target_videos(
    folder: Path,
    targets_root: Path,
    config: TargetsConfig | None = None,
    progress: Callable[..., None] | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Probe and cut the target sets into `folder`: targets.json, clips.parquet (with labels; source is "<set>/<split>"),
    looks.npy and quarantine.parquet. Returns the summary."""
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
            write_cut(piece, cut_targets(probed, uses))
            return {"videos": len(probed.videos), "worker_cpu_s": crew.cpu_s - before}

        pieces = parts.map("targets", paths, FILES_PER_PART, probe_batch)
        gather_cuts(folder, [piece.folder for piece in pieces])
        cost = parts.cost(len(paths), "files")
        videos = sum(piece.summary["videos"] for piece in pieces)
    (folder / "targets.json").write_text(json.dumps([recorded(part) for part in sets], indent=1, sort_keys=True))
    clips = Counter(read_table(folder / "clips.parquet", CLIPS, columns=["source"]).column("source").to_pylist())
    return {
        "sets": len({part.name for part in sets}), "labels": len({(part.name, part.label) for part in sets if part.label}),
        "videos": videos, "clips": clips.total(), "quarantined": len(read_table(folder / "quarantine.parquet", QUARANTINE, columns=["path"])),
        "evaluation_clips": sum(count for source, count in clips.items() if source.endswith("/eval")), "cost": cost,
        "seconds": time.monotonic() - started,
    }  # fmt: skip


def build_no_targets(folder: Path) -> dict[str, Any]:
    """A target_videos artefact without any set, for a curation that nothing steers. Returns the summary."""
    gather_cuts(folder, [])
    (folder / "targets.json").write_text("[]")
    return {"sets": 0, "labels": 0, "videos": 0, "clips": 0, "quarantined": 0, "evaluation_clips": 0}


def set_weights(target_folder: Path) -> dict[str, float]:
    """Share of each target set, by name, from a target_videos artefact."""
    return {part["name"]: float(part["weight"]) for part in json.loads((target_folder / "targets.json").read_text())}


def check_target_videos(folder: Path) -> dict[str, Check]:
    """Blocking check: every set has clips in both splits, with at least two labels where it has labels at all, and most
    files decode. It holds where there is no set on purpose."""
    clips = read_table(folder / "clips.parquet", CLIPS, columns=["source", "label"]).to_pylist()
    rejected = len(read_table(folder / "quarantine.parquet", QUARANTINE, columns=["path"]))
    counts = Counter(clip["source"] for clip in clips)
    labels: dict[str, set[str]] = {}
    for clip in clips:
        labels.setdefault(clip["source"], set()).update([clip["label"]] if clip["label"] else [])
    labelled = {source.rsplit("/", 1)[0] for source, own in labels.items() if own}
    wanted = sorted(f"{name}/{split}" for name in set_weights(folder) for split in SPLITS)
    thin = [
        source for source in wanted
        if not counts[source] or (source.rsplit("/", 1)[0] in labelled and len(labels[source]) == 1)
    ]  # fmt: skip
    found = ", ".join(f"{source}: {counts[source]} clips of {len(labels.get(source, ()))} labels" for source in wanted)
    enough = len(clips) >= MIN_DECODE_RATE * (len(clips) + rejected)
    return {
        "not_empty": Check(
            not thin and enough and (len(clips) > 0 or not wanted),
            f"clips in both splits of each set, two labels or more where there are labels, and {MIN_DECODE_RATE:.0%} of the files decodable",
            f"{found or 'no target sets'}; {rejected} files quarantined", f"mend the target sets; their layout is {LAYOUT}",
        )
    }  # fmt: skip
