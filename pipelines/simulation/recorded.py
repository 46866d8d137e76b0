"""Folders of recorded files that are made once: cached by what was asked for, resumable, complete only with their marker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import InputError


def recorded_folder(
    folder: Path, marker: str, request: dict[str, Any], build: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """The summary of `folder`, which `build` fills unless it already holds exactly `request`.

    `marker` is the JSON file, written last, that says what a folder holds: `{"request": ..., **summary}`; without it
    a folder is not complete. `build` fills the folder in place and should keep files that are already there, as their
    content depends on `request` alone: an interrupted request goes on where it was. A folder with another request is
    emptied first; one with files that were not made here is refused (InputError).
    """
    path, started = folder / marker, folder / f".{marker}.started"
    if path.is_file():
        found = json.loads(path.read_text())
        if found.get("request") == request:
            return found
    elif folder.exists() and any(folder.iterdir()) and not started.is_file():
        raise InputError(
            f"{folder} holds files that were not made here", expected=f"an empty folder, or one with {marker}",
            found=f"{sum(1 for _ in folder.iterdir())} entries", remedy="Choose another folder",
        )  # fmt: skip
    wanted = json.dumps(request, sort_keys=True)
    try:
        if folder.exists() and (path.exists() or (started.is_file() and started.read_text() != wanted)):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        started.write_text(wanted)
        summary = {"request": request, **build(folder)}
        text = json.dumps(summary, indent=1, sort_keys=True) + "\n"
        started.write_text(text)
        started.rename(path)
    except OSError as error:
        raise InputError(
            f"cannot write {folder}", found=str(error), remedy="Make room or choose a folder that can be written"
        ) from error
    return json.loads(text)
