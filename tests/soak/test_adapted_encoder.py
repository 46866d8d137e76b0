"""The whole of `tubelet adapt` on real videos: from a checkpoint in the official layout to a verdict. Needs TUBELET_SHARED."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from models.weights import to_official
from pipelines.pretraining.run import build_student
from pipelines.recipes import PRESETS, Recipe
from pipelines.shards.index import ShardIndex
from pipelines.sources.folder import VIDEO_SUFFIXES
from pipelines.sources.target_sets import read_targets_root
from pipelines.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("intel-sample-videos/asl_gestures", "mdn", "cosmos-curate")


@pytest.mark.soak
@pytest.mark.skipif("TUBELET_SHARED" not in os.environ, reason="TUBELET_SHARED is not set: no shared data")
def test_released_layout_and_a_folder_of_videos_end_in_a_verdict_on_what_was_held_out(tmp_path: Path) -> None:
    content = yaml.safe_load((PRESETS / "smoke.yaml").read_text()) | {"name": "adapt-tiny"}
    content["pretraining"]["start_from"] = ""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "adapt-tiny.yaml").write_text(yaml.safe_dump(content))
    recipe = Recipe.model_validate(content)
    student = build_student(recipe, recipe.pretraining.pretrain)
    parts = {"encoder": student.encoder, "target_encoder": student.encoder, "predictor": student.predictor}
    torch.save({name: {f"module.backbone.{key}": value for key, value in to_official(module).items()} for name, module in parts.items()}, tmp_path / "tiny.pt")
    (tmp_path / "videos").mkdir()
    for folder in FOLDERS:
        for path in (Path(os.environ["TUBELET_SHARED"]) / "data" / folder).iterdir():
            if path.suffix in VIDEO_SUFFIXES:
                (tmp_path / "videos" / f"{path.parent.name}-{path.name}").symlink_to(path)

    def adapt() -> str:
        command = [sys.executable, str(REPOSITORY / "tubelet.py"), "adapt", str(tmp_path / "tiny.pt"), str(tmp_path / "videos"), "--recipe", "adapt-tiny"]
        environment = {
            **os.environ, "TUBELET_STORE": str(tmp_path / "store"), "TUBELET_RECIPES": str(tmp_path / "recipes"), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stderr

    words = adapt()
    print(words[-1500:])
    assert "going on from tiny.pt" in words and "  verdict: " in words and "no labels were given" in words
    store = Store.open(tmp_path / "store", create=False)
    for asset in ("pretrained_encoder", "cooled_encoder"):
        assert json.loads(store.current(asset, "adapt-tiny").file("lineage.json").read_text())["start_from"]["name"] == "tiny.pt"
    (targets,) = (tmp_path / "store" / "adapt").glob("*/targets.yaml")
    held = {Path(path).name for part in read_targets_root(targets) if part.split == "eval" for path in part.files}
    videos = {row["video_id"] for row in read_rows(store, held)}
    assert len(held) == 4 and videos and not videos & set(ShardIndex(store.current("training_shards").path).column("video_id"))
    assert "nothing to do: all up to date" in adapt()


def read_rows(store: Store, names: set[str]) -> list[dict[str, object]]:
    """Rows of the probed videos with these file names."""
    from pipelines.schemas import VIDEOS, read_table

    (batch,) = store.partitions("videos")
    return [row for row in read_table(store.current("videos", batch).file("videos.parquet"), VIDEOS).to_pylist() if Path(row["path"]).name in names]
