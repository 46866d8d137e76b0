"""Checkpoints that are complete or absent: written beside, listed with their hashes, renamed; the one before is kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.identity import file_sha256
from pipelines.store import write_atomic
from pipelines.training.engine import Engine, EngineState

logger = logging.getLogger("tubelet.checkpoint")

MANIFEST = "MANIFEST.json"
STATE = "state.json"
STUDENT = "student.safetensors"
OPTIMIZER = "optimizer.safetensors"
KEPT = 2


def save(folder: Path, step: int, engine: Engine, fill: Callable[[Path], dict[str, Any]]) -> None:
    """Write checkpoint `step` under `folder`: all ranks call this, rank 0 writes.

    `fill(path)` adds what lies outside the engine and returns the JSON-able state to keep. Nothing is visible under the
    final name before every byte is on the disk.
    """
    engine_state = engine.state()
    if engine_state is not None:
        draft = folder / f".draft-{name_of(step)}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write_engine_state(draft, engine_state)
        (draft / STATE).write_text(json.dumps({**fill(draft), "step": step}, indent=1))
        seal(draft)
        final = folder / name_of(step)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(draft, final)
        _flush(folder)
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)
    engine.barrier()


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose bytes are the listed ones. Drafts are removed; damaged ones are set aside and named in the log."""
    for draft in folder.glob(".draft-*"):
        shutil.rmtree(draft, ignore_errors=True)
    for path in sorted(folder.glob("step-*"), reverse=True):
        problem = verify(path)
        if not problem:
            return path
        logger.warning("checkpoint %s is damaged (%s): set aside, taking the one before", path.name, problem)
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    return None


def name_of(step: int) -> str:
    return f"step-{step:09d}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def seal(folder: Path, manifest: str = MANIFEST) -> None:
    """Write the list of all files of `folder` with their hashes last, everything flushed to the disk."""
    files = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file() and item.name != manifest):
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        _flush(path)
    write_atomic(folder / manifest, json.dumps({"files": files}, indent=1))
    _flush(folder)


def verify(folder: Path, manifest: str = MANIFEST) -> str:
    """What is wrong with a sealed folder, empty when nothing is."""
    try:
        files = json.loads((folder / manifest).read_text())["files"]
        for name, entry in files.items():
            if (folder / name).stat().st_size != entry["bytes"]:
                return f"{name} has another size"
            if file_sha256(folder / name) != entry["sha256"]:
                return f"{name} has other bytes"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def write_engine_state(folder: Path, state: EngineState) -> None:
    save_file(state.weights, folder / STUDENT)
    write_moments(folder, state)


def write_moments(folder: Path, state: EngineState) -> None:
    save_file({**state.moments, "step": torch.tensor(state.steps)}, folder / OPTIMIZER)


def read_engine_state(folder: Path) -> EngineState:
    return EngineState(load_file(folder / STUDENT), *read_moments(folder))


def read_moments(folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    moments = load_file(folder / OPTIMIZER)
    return moments, int(moments.pop("step"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
