"""Checkpoints that are complete or absent: written beside, listed with their hashes, renamed; the one before is kept.

A damaged one costs an interval: the one before is taken.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import TrainingError
from pipelines.identity import file_sha256
from pipelines.store import write_atomic
from pipelines.training.engine import Engine, EngineState

logger = logging.getLogger("tubelet.checkpoint")

MANIFEST = "MANIFEST.json"
STATE = "state.json"
STUDENT = "student.safetensors"
OPTIMIZER = "optimizer.safetensors"
KEPT = 2

Beside = tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]


class Writer:
    """Writes checkpoints under `folder` beside the training: `save` returns when the state is copied, one is written at a time.

    Every `keep_every`-th step's is kept for good, of the others the two newest. As a context it waits for the last one, whatever
    ends the training.
    """

    def __init__(self, folder: Path, engine: Engine, keep_every: int | None = None) -> None:
        self.folder, self.engine, self.keep_every = folder, engine, keep_every
        self._thread: threading.Thread | None = None
        self._problem: BaseException | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.finish()
        except Exception as problem:
            if error is None:
                raise
            logger.warning("the last checkpoint was not written: %s", problem)

    def save(self, step: int, beside: Callable[[], Beside]) -> None:
        """Begin checkpoint `step`. All ranks call this; rank 0 copies its state, asks `beside` for what lies outside the engine (tensors
        by file name, and JSON-able state), and writes in the background."""
        self.finish()
        state = self.engine.state()
        if state is not None:
            tensors, content = beside()
            files = {STUDENT: state.weights, OPTIMIZER: moments_file(state), **tensors}
            # The text is made now: what it is made of goes on changing.
            text = json.dumps({**content, "step": step}, indent=1)
            self._thread = threading.Thread(target=self._write, args=(step, files, text), name=f"checkpoint-{step}")
            self._thread.start()

    def check(self) -> None:
        """Raise what went wrong with the last one, as soon as it is known."""
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem

    def finish(self) -> None:
        """Wait for the one being written; raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _write(self, step: int, files: dict[str, dict[str, torch.Tensor]], text: str) -> None:
        try:
            write(self.folder, step, files, text)
            prune(self.folder, self.keep_every)
        except BaseException as error:  # whatever it is, the training must hear of it
            self._problem = error


def write(folder: Path, step: int, files: dict[str, dict[str, torch.Tensor]], text: str) -> None:
    """Write checkpoint `step`: nothing is visible under the final name before every byte is on the disk."""
    draft = folder / f".draft-{name_of(step)}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, tensors in files.items():
        save_file(tensors, draft / name)
    (draft / STATE).write_text(text)
    seal(draft)
    final = folder / name_of(step)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(draft, final)
    _flush(folder)


def prune(folder: Path, keep_every: int | None) -> None:
    """Remove all checkpoints but the two newest and every `keep_every`-th step's, and what was set aside before these."""
    passing = [path for path in sorted(folder.glob("step-*")) if not (keep_every and step_of(path) % keep_every == 0)]
    aside = folder.glob("damaged-*") if len(passing) >= KEPT else ()
    for old in (*passing[:-KEPT], *aside):
        shutil.rmtree(old)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose bytes are the listed ones; None when there never was one. Drafts are removed; damaged ones are set
    aside and named in the log. Raises `TrainingError` when all are damaged: the training would begin again without a word."""
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
    damaged = sorted(path.name for path in folder.glob("damaged-*"))
    if damaged:
        raise TrainingError(
            f"no checkpoint in {folder} is whole", expected="one whose bytes are those of its list", found=", ".join(damaged),
            remedy="bring one back from a copy, or delete these folders: then the training begins anew",
        )  # fmt: skip
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
    """What is wrong with a sealed folder, empty when nothing is. Raises `OSError` when it is there and cannot be read, as a file system
    that hangs for a moment: that says nothing about its bytes."""
    try:
        files = json.loads((folder / manifest).read_text())["files"]
        for name, entry in files.items():
            if (folder / name).stat().st_size != entry["bytes"]:
                return f"{name} has another size"
            if file_sha256(folder / name) != entry["sha256"]:
                return f"{name} has other bytes"
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def moments_file(state: EngineState) -> dict[str, torch.Tensor]:
    return {**state.moments, "step": torch.tensor(state.steps)}


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
