"""Folders of recorded files that are made once: cached by what was asked for, resumable, and never half there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import InputError
from pipelines.identity import digest_of


def recorded_folder(
    folder: Path, marker: str, request: dict[str, Any], build: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """The summary of `folder`, which `build` fills unless it already holds exactly `request`.

    `marker` is the JSON file, written last, that says what a folder holds: `{"request": ..., **summary}`. `build` gets a
    folder beside the final one, which survives an interruption: it should keep files that are already there, as their
    content depends on `request` alone. A folder with another request is replaced; one without the marker is refused.
    """
    path = folder / marker
    if path.is_file():
        found = json.loads(path.read_text())
        if found.get("request") == request:
            return found
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"{folder} holds files that were not made here", expected=f"an empty folder, or one with {marker}",
            found=f"{sum(1 for _ in folder.iterdir())} entries", remedy="Choose another folder",
        )  # fmt: skip
    partial = folder.with_name(f".{folder.name}.{digest_of(request)}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        summary = {"request": request, **build(partial)}
        (partial / marker).write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        raise InputError(
            f"cannot write {folder}", found=str(error), remedy="Make room or choose a folder that can be written"
        ) from error
    return summary
