"""Runs one curation stage on folders, as a process of its own that a test may kill: python stage_runner.py STAGE ROOT OUT WORK.

ROOT holds the stages' inputs, made by `prepare`: batch.json and the folders of the stages before. Prints the summary as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.sources.folder import SourceFile
from pipelines.sources.registry import Batch


def videos(root: Path, out: Path, work: Path) -> dict[str, Any]:
    from pipelines.video.probe import build_videos

    record = json.loads((root / "batch.json").read_text())
    batch = Batch(**{**record, "files": tuple(SourceFile(**file) for file in record["files"]), "poison": tuple(record["poison"])})
    return build_videos(out, batch, work=work)


def clips(root: Path, out: Path, work: Path) -> dict[str, Any]:
    from pipelines.curation.scenes import build_clips

    return build_clips(out, root / "videos", work=work)


def clip_embeddings(root: Path, out: Path, work: Path) -> dict[str, Any]:
    from pipelines.curation.embedding import build_embeddings

    return build_embeddings(out, root / "clips", work=work)


def target_videos(root: Path, out: Path, work: Path) -> dict[str, Any]:
    from pipelines.sources.targets import build_target_videos

    return build_target_videos(out, Path((root / "targets.txt").read_text()), work=work)


def target_embeddings(root: Path, out: Path, work: Path) -> dict[str, Any]:
    from pipelines.curation.embedding import build_embeddings

    return build_embeddings(out, root / "target_videos", work=work)


def distinct_clips(root: Path, out: Path, work: Path) -> dict[str, Any]:
    from pipelines.curation.duplicates import build_distinct

    return build_distinct(
        out, {"pool-0001": (root / "clips", root / "clip_embeddings")}, root / "target_videos", root / "target_embeddings", work=work
    )


def clip_clusters(root: Path, out: Path, work: Path) -> dict[str, Any]:
    from pipelines.curation.increment import update_clusters

    return update_clusters(out, None, root / "distinct_clips", root / "target_videos", root / "target_embeddings", work=work)


def curated_clips(root: Path, out: Path, work: Path) -> dict[str, Any]:
    from pipelines.curation.retrieval import build_selection

    return build_selection(out, root / "distinct_clips", root / "clip_clusters", root / "target_videos", root / "target_embeddings")


STAGES: dict[str, Callable[[Path, Path, Path], dict[str, Any]]] = {
    stage.__name__: stage
    for stage in (videos, clips, clip_embeddings, target_videos, target_embeddings, distinct_clips, clip_clusters, curated_clips)
}
"""In the order in which they need each other."""


def prepare(root: Path, pool: list[Path], targets: Path) -> None:
    """Write ROOT's own inputs: the batch of `pool` files and where the target sets are."""
    files = tuple(SourceFile(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in pool)
    (root / "batch.json").write_text(json.dumps(asdict(Batch("pool-0001", "pool", files, "CC0", "someone"))))
    (root / "targets.txt").write_text(str(targets))


if __name__ == "__main__":
    name, *folders = sys.argv[1:]
    print(json.dumps(STAGES[name](*map(Path, folders))))
