"""The weights a training goes on from: an official checkpoint, a Hugging Face folder or a folder of ours, taken whole or not at all.

Where a file holds two encoders, the student goes on from `encoder` (the weights as trained last) and the target from `target_encoder`
(their moving average): so upstream's trainer resumes too. A file with one encoder gives it to both. A predictor must be there. A new one
begins worse than a constant guess (at nano scale L1 0.83, the constant's 0.54, the encoder's own predictor 0.36) and meanwhile moves the
encoder by gradients that say nothing of clips; every release has the one it was trained with. Optimizer moments are not taken over: they
belong to another batch size and to other data, and a warm-up of a few hundred steps makes new ones.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.errors import TubeletError
from models.inspection import Inspection, PartInspection, inspect_checkpoint
from models.weights import infer_config, read_checkpoint
from pipelines.errors import InputError, TrainingError
from pipelines.identity import digest_of, file_sha256
from pipelines.lineage.exposure import read_start
from pipelines.recipes import Part, Recipe
from pipelines.store import MANIFEST, NO_PARTITION, Artefact, Store, write_atomic
from pipelines.weights.parts import Hints, modules_of, open_source

AVERAGES = ("target_encoder", "ema_encoder")
RECORD = "start.json"
UNTOLD = "no record: weights do not tell what they were trained on"
_WEIGHT_FILES = frozenset({".safetensors", ".json", ".bin", ".pt", ".pth"})
_DISTILLED = "take the release of a model that was not distilled: vitl, vith, vitg, vjepa2_1_vitg_384, vjepa2_1_vitG_384"


@dataclass(frozen=True)
class Start:
    """A checkpoint that fits a recipe. `student`, `target` and `predictor` name its parts; `notes` are sentences about it."""

    path: Path
    digest: str
    layout: str
    student: str
    target: str
    predictor: str
    notes: tuple[str, ...]
    hints: Hints

    def networks(self) -> dict[str, nn.Module]:
        """`encoder` (the student's), `target_encoder` and `predictor` in float32 on the CPU; every tensor of them was used.

        Raises `WeightsError` when the file holds other tensors than its configuration asks for.
        """
        names = {"encoder": self.student, "target_encoder": self.target, "predictor": self.predictor}
        built = dict(modules_of(open_source(self.path), tuple(dict.fromkeys(names.values())), self.hints))
        return {role: built[name].float() for role, name in names.items()}

    @property
    def record(self) -> dict[str, Any]:
        """What the lineage of everything that stands on these weights says of them."""
        manifest = _manifest(self.path)
        data = f"told by the lineage of {manifest['asset']}[{manifest['partition']}] {manifest['digest']}" if manifest else UNTOLD
        return {
            "name": self.path.name, "path": str(self.path), "digest": self.digest, "layout": self.layout,
            "parts": {"encoder": self.student, "target_encoder": self.target, "predictor": self.predictor},
            "licence": _licence(self.path) or "not told by these files", "training_data": data, "notes": list(self.notes),
        }  # fmt: skip

    @property
    def line(self) -> str:
        return (
            f"going on from {self.path.name} ({self.digest[:16]}): student from {self.student}, target from {self.target}, predictor from "
            f"{self.predictor}; optimizer moments begin at zero; training data: {self.record['training_data']}"
        )


def starting_recipe(recipe: Recipe, given: str | Path | None = None) -> Recipe:
    """The recipe with the checkpoint that is given in place of its own; the path must be a whole one.

    Raises `InputError` when a recipe that leaves its start open ("") is given none, or when nothing is there.
    """
    path = given or recipe.pretraining.start_from
    if path is None:
        return recipe
    if path == "":
        raise InputError(
            f"recipe {recipe.name} goes on from a checkpoint, and none was given", expected="the path of an official .pt file, a Hugging Face folder or a folder of ours",
            found="none", remedy="run `tubelet adapt CHECKPOINT VIDEOS`, or set start_from in the launchpad or in your own copy of the recipe",
        )  # fmt: skip
    place = Path(path).expanduser()
    if not place.is_absolute() or not place.exists():
        raise InputError(
            f"the starting weights {path} are not there", expected="the whole path of a checkpoint", found="nothing" if place.is_absolute() else "a relative path",
            remedy="write the path from / on, and check it",
        )  # fmt: skip
    return recipe.model_copy(update={"pretraining": recipe.pretraining.model_copy(update={"start_from": str(place)})})


def start_digest(path: str | Path) -> str:
    """Digest of starting weights by content: an artefact's own, the sha256 of a file (as sha256sum prints it), or one over the weight
    files and configurations of a folder. A file is read once in a process, however often it is asked for."""
    place = Path(path)
    manifest = _manifest(place)
    if manifest:
        return str(manifest["digest"])
    try:
        if place.is_dir():
            files = [file for file in sorted(place.iterdir()) if file.is_file() and file.suffix in _WEIGHT_FILES]
            return digest_of({file.name: _digest_of_file(file) for file in files}, 64)
        return _digest_of_file(place)
    except OSError as error:
        raise InputError(f"the starting weights {path} cannot be read", expected="a checkpoint", found=str(error), remedy="check the path") from error


def artefact_of(path: str | Path, store: Store) -> Artefact | None:
    """The artefact of this store that a path holds, by its digest, also as a copy elsewhere: then it is an input, and the lineage leads on
    through it. None when the store has no such."""
    manifest = _manifest(Path(path))
    if manifest is None:
        return None
    partition = None if manifest["partition"] == NO_PARTITION else manifest["partition"]
    return next((item for item in store.made(manifest["asset"], partition) if item.digest == manifest["digest"]), None)


def open_start(path: str | Path, recipe: Recipe, digest: str | None = None, *, known: bool = False) -> Start:
    """Look at a checkpoint and insist that it fits the recipe; its tensors are looked at, not copied. `known`: that `digest` is its
    digest, so that the file need not be read for it.

    Raises `InputError` that lists every difference and what to write into the recipe, also when the file is another one than that of
    `digest`; `WeightsError` when the file cannot be read.
    """
    place = Path(path)
    inspection = inspect_checkpoint(place)
    if inspection.layout != "official" and not place.is_dir():
        raise InputError(f"{place} is one file of a folder that says more", expected="the folder", found="a file in it", remedy=f"name {place.parent}")
    roles = _roles(inspection)
    found = digest if known and digest is not None else start_digest(place)
    if digest is not None and found != digest:
        raise InputError(
            f"{place} is another checkpoint than when this training was asked for", expected=digest, found=found, remedy="bring the old one back, or ask again",
        )  # fmt: skip
    parts = {part.name: part for part in inspection.parts}
    chosen = {role: parts[name] for role, name in roles.items()}
    broken = [f"{part.name}: {'; '.join(part.problems)}" for part in {part.name: part for part in chosen.values()}.values() if part.problems]
    if broken:
        raise InputError(f"{place} cannot be gone on from", expected="every tensor of each part, finite", found="; ".join(broken), remedy="download or export it again")
    _insist_on_fit(place, recipe, chosen)
    hints = Hints(
        heads=recipe.encoder.num_heads if chosen["encoder"].needs_heads else None,
        predictor_heads=recipe.predictor.num_heads if chosen["predictor"].needs_heads else None,
    )
    notes = tuple(note for note in inspection.notes if not note.startswith("Several encoders"))  # the roles have chosen
    return Start(place, found, inspection.layout, roles["encoder"], roles["target_encoder"], roles["predictor"], notes, hints)


@dataclass(frozen=True)
class StartingWeights:
    """Tensors as an engine (`encoder.*`, `predictor.*`) and the target encoder take them."""

    student: dict[str, Tensor]
    target: dict[str, Tensor]
    line: str


def load_start(path: str | Path, recipe: Recipe, digest: str | None, work_folder: Path, first: bool) -> StartingWeights:
    """The starting weights of one rank; the `first` one insists on the digest, for all, and writes the record for the lineage."""
    start = open_start(path, recipe, digest, known=not first)
    if first:
        write_atomic(work_folder / RECORD, json.dumps(start.record, indent=1))
    networks = start.networks()
    student = {f"{part}.{name}": value for part in ("encoder", "predictor") for name, value in networks[part].state_dict().items()}
    return StartingWeights(student, networks["target_encoder"].state_dict(), start.line)


def start_record(work_folder: Path, before: Path | None) -> dict[str, Any] | None:
    """The record of the weights that a phase, or the phase `before` it, went on from; None when it began at random ones."""
    if before is not None:
        return read_start(before)
    path = work_folder / RECORD
    return dict(json.loads(path.read_text())) if path.is_file() else None


def networks_of_record(record: dict[str, Any], recipe: Recipe) -> dict[str, nn.Module]:
    """The networks that a record names, for a probe before and after. Raises `TrainingError` when they are not there any more."""
    try:
        return open_start(record["path"], recipe, record["digest"]).networks()
    except TubeletError as error:
        raise TrainingError(
            f"what this encoder started from cannot be probed: {error.problem}", expected=f"{record['path']} with digest {record['digest'][:16]}",
            found=error.found or "nothing there", remedy="bring the checkpoint back: before and after need both",
        ) from error  # fmt: skip


def _roles(inspection: Inspection) -> dict[str, str]:
    """Names of the parts for student, target and predictor. Raises `InputError` when one is missing or cannot be told."""
    names = {kind: [part.name for part in inspection.parts if part.kind == kind] for kind in ("encoder", "predictor", "action_predictor")}
    encoders, averages = names["encoder"], [name for name in names["encoder"] if name in AVERAGES]
    held = ", ".join(f"{part.name or 'weights'} ({part.kind.replace('_', ' ')})" for part in inspection.parts)
    if not encoders or (len(encoders) > 1 and (len(averages) != 1 or "encoder" not in encoders)):
        raise InputError(
            f"{inspection.path} does not say which encoder to go on from", expected="one encoder, or encoder with target_encoder", found=held or "nothing",
            remedy="look with `tubelet weights inspect`; `tubelet weights convert --part` makes a checkpoint of the parts that you want",
        )  # fmt: skip
    if len(names["predictor"]) != 1:
        raise InputError(
            f"{inspection.path} has no masked predictor, and an encoder without its own would learn from noise at first", expected="an encoder with its predictor",
            found=held, remedy="take the whole checkpoint: the official .pt file and the published Hugging Face folder both hold it; an action predictor is another thing",
        )  # fmt: skip
    student = "encoder" if "encoder" in encoders else encoders[0]
    return {"encoder": student, "target_encoder": averages[0] if averages else student, "predictor": names["predictor"][0]}


def _insist_on_fit(place: Path, recipe: Recipe, chosen: dict[str, PartInspection]) -> None:
    """Raise `InputError` unless the checkpoint's configuration is the recipe's; frames and pixels may differ, positions are computed."""
    predictor = _config(place, chosen["predictor"])
    if predictor.out_embed_dim not in (None, predictor.embed_dim):
        raise InputError(
            f"the predictor in {place} predicts a teacher of width {predictor.out_embed_dim}, not its own encoder", expected=f"predictions of width {predictor.embed_dim}",
            found="a distilled model", remedy=_DISTILLED,
        )  # fmt: skip
    different: dict[str, tuple[Any, Any]] = {}
    for role in ("encoder", "target_encoder"):
        different |= dict(_differences("encoder", recipe.encoder, _config(place, chosen[role]), chosen[role].needs_heads))
    different |= dict(_differences("predictor", recipe.predictor, predictor, chosen["predictor"].needs_heads))
    if different:
        raise InputError(
            f"the starting weights {place} do not fit recipe {recipe.name}", expected="as the recipe says: " + ", ".join(f"{key} {ours}" for key, (ours, _) in different.items()),
            found="in the checkpoint: " + ", ".join(f"{key} {theirs}" for key, (_, theirs) in different.items()),
            remedy="set " + ", ".join(f"{key}: {theirs}" for key, (_, theirs) in different.items()) + " in the recipe, or take a checkpoint of its shape; nothing was loaded",
        )  # fmt: skip


def _differences(part: str, shape: Part, config: Any, heads_untold: bool) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name, ours in shape:
        theirs = getattr(config, name)
        same = math.isclose(ours, theirs, rel_tol=1e-6) if name == "mlp_ratio" else (ours == theirs)  # a hidden width over a width
        if not same and not (heads_untold and name == "num_heads"):
            yield f"{part}.{name}", (ours, theirs)


def _config(place: Path, part: PartInspection) -> Any:
    """A part's configuration. Of an official part of no released size its heads are untold: nothing contradicts the recipe's."""
    if part.config is not None:
        return part.config
    return infer_config(part.kind, read_checkpoint(place, part.name or None), part.name, num_heads=1)


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an artefact folder; None for a folder or file that is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if {"asset", "partition", "digest"} <= manifest.keys() else None


def _licence(path: Path) -> str:
    """What the model card of a Hugging Face folder says; "" where there is none."""
    folder = path if path.is_dir() else path.parent
    try:
        found = re.search(r"\A---\n(?:.*\n)*?license:\s*(\S+)\s*\n(?:.*\n)*?---", (folder / "README.md").read_text())
    except (OSError, UnicodeDecodeError):
        return ""
    return found.group(1) if found else ""


def _digest_of_file(path: Path) -> str:
    status = path.stat()
    return _cached_digest(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _cached_digest(path: str, size: int, mtime_ns: int) -> str:
    return file_sha256(Path(path))
