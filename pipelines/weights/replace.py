"""A folder of weights in place of another: the old model's files go, everything else in the folder stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from models.checkpoints import is_ours

_TRANSFORMERS = ("model.safetensors", "pytorch_model.bin")
_PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")


def weight_files(folder: Path) -> set[str]:
    """Names of the files in a folder that are a model: our parts, and what transformers reads of a folder."""
    parts = [path for path in folder.glob("*.safetensors") if is_ours(path)]
    found = {path.name for path in parts} | {path.with_suffix(".json").name for path in parts}
    for name in _TRANSFORMERS:
        index = folder / f"{name}.index.json"
        shards = _content(index).get("weight_map")
        found |= {name, index.name}
        found |= {shard for shard in map(str, shards.values()) if shard.endswith(Path(name).suffix)} if isinstance(shards, dict) else set()
    if "model_type" in _content(folder / "config.json"):
        found |= {"config.json", *_PREPROCESSORS}
    return {name for name in found if Path(name).name == name and (folder / name).is_file()}


def replace_folder(draft: Path, destination: Path) -> tuple[str, ...]:
    """Move the files of `draft` into `destination`, whose old weight files go; returns the names that are gone.

    The old files wait beside the folder until every new one is in place, and come back when one cannot be put there;
    a process that is killed in between leaves them in that hidden folder.
    """
    destination.mkdir(exist_ok=True)
    new = sorted(path.name for path in draft.iterdir())
    old = sorted(weight_files(destination) | {name for name in new if (destination / name).is_file()})
    aside = draft.with_name(f"{draft.name}.old")
    aside.mkdir()
    try:
        for name in old:
            os.replace(destination / name, aside / name)
        for name in new:
            os.replace(draft / name, destination / name)
    except BaseException:
        for name in new:
            if not (draft / name).exists():
                (destination / name).unlink()
        for name in old:
            if (aside / name).exists():
                os.replace(aside / name, destination / name)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
    return tuple(name for name in old if name not in new)


def _content(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
