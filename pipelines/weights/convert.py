"""Weights from one layout to another: written beside the destination, read back, compared, then put into place."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from models.checkpoints import is_ours, write_safetensors
from models.encoder import VideoEncoder
from models.errors import WeightsError
from models.predictor import MaskedPredictor
from models.probes import AttentiveProbe
from models.weights import (
    VJEPA2,
    from_huggingface,
    from_official,
    infer_config,
    load_module,
    read_checkpoint,
    save_module,
    state_digest,
    to_huggingface,
    to_official,
)
from pipelines.errors import InputError
from pipelines.store import disk_error
from pipelines.weights.parts import Hints, Source, modules_of, open_source
from pipelines.weights.replace import replace_folder

Target = Literal["tubelet", "official", "huggingface"]
_PICKLED = (".pt", ".pth", ".tar")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """`parts` narrows what is converted (empty: all that the target can hold); a Hugging Face folder has one encoder, so
    where there are several one must be named."""

    source: Path
    destination: Path
    to: str
    parts: tuple[str, ...] = ()
    hints: Hints = field(default_factory=Hints)
    overwrite: bool = False


@dataclass(frozen=True)
class Converted:
    """Parts as (name, class, parameters, digest of the weights), files with bytes, what is not in them, what the reader of
    the new files has to be told, and the files of an older model that are gone from the destination."""

    destination: Path
    to: str
    parts: tuple[tuple[str, str, int, str], ...]
    files: tuple[tuple[Path, int], ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    removed: tuple[str, ...]


Part = tuple[str, str, int, str]
Parts = tuple[Part, ...]
Notes = tuple[str, ...]


def convert(request: Conversion) -> Converted:
    """Convert, verify and publish; nothing appears at the destination unless every digest agrees.

    Raises InputError on a request that cannot be met, WeightsError on weights that do not fit.
    """
    if request.to not in get_args(Target):
        raise InputError(f"There is no layout {request.to}", expected=", ".join(get_args(Target)), found=request.to, remedy="Choose one with --to.")
    _insist_on_free(request)
    source = open_source(request.source, request.parts[0] if len(request.parts) == 1 else None)
    chosen, left_out = _choose(request, source)
    draft = request.destination.with_name(f".{request.destination.stem}.{uuid.uuid4().hex[:8]}{request.destination.suffix}")
    try:
        request.destination.parent.mkdir(parents=True, exist_ok=True)
        parts, notes = _WRITERS[request.to](request, source, chosen, draft)
        files, removed = _publish(draft, request.destination)
        return Converted(request.destination, request.to, parts, files, left_out, notes, removed)
    except OSError as error:
        told = disk_error(error, request.destination.absolute().parent)
        raise told or InputError(
            f"{request.destination} cannot be written", expected="a place where files can be made", found=str(error), remedy="Choose another destination.",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if draft.is_file():
            draft.unlink()


def _insist_on_free(request: Conversion) -> None:
    source, destination = request.source.resolve(), request.destination.resolve()
    if source == destination or source in destination.parents or destination in source.parents:
        raise InputError("The destination lies in the source, or the source in it", expected="two places", found=str(destination), remedy="Name another destination.")
    into_file = request.to == "official"
    suffix = request.destination.suffix
    if into_file and suffix not in (*_PICKLED, ".safetensors"):
        raise InputError(
            f"{request.destination} does not name a weight file", expected="a name that ends in .pt (every part in one file) or .safetensors (one part)",
            found=suffix or "no suffix", remedy=f"Write to {request.destination}.pt.",
        )  # fmt: skip
    if not into_file and suffix in (*_PICKLED, ".safetensors"):
        raise InputError(f"The {request.to} layout is a folder", expected="the name of a folder", found=str(request.destination), remedy="Leave out the suffix.")
    taken = destination.exists() and (not destination.is_dir() or any(destination.iterdir()))
    if taken and (not request.overwrite or destination.is_dir() == into_file):
        raise InputError(
            f"{request.destination} exists already", expected="a new name, or an empty folder", found="a folder with files" if destination.is_dir() else "a file",
            remedy="Choose another name." if destination.is_dir() == into_file else "Choose another name, or say --overwrite.",
        )  # fmt: skip


def _choose(request: Conversion, source: Source) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names to convert, what is left out and why)."""
    unknown = [name for name in request.parts if name not in source.kinds]
    if unknown:
        raise InputError(f"{request.source} has no part {', '.join(unknown)}", expected=", ".join(source.kinds), found=", ".join(unknown), remedy="Name one of them with --part.")
    if source.checkpoint.layout == request.to == "huggingface":
        raise InputError(f"{request.source} is a Hugging Face folder already", expected="another layout", found="--to huggingface", remedy="Copy the folder.")
    chosen = request.parts or tuple(source.kinds)
    why = {name: "not asked for" for name in source.kinds if name not in chosen}
    if request.to == "huggingface":
        encoders = [name for name in chosen if source.kinds[name] == "encoder"] or [name for name in source.kinds if source.kinds[name] == "encoder"]
        if len(encoders) != 1:
            raise WeightsError(
                f"A Hugging Face folder has one encoder, {request.source} has {len(encoders) or 'none'}", expected="one of its encoders",
                found=", ".join(encoders) or ", ".join(source.kinds),
                remedy="Choose with --part: target_encoder (the moving average) is what upstream evaluates, encoder what PyTorch Hub publishes." if encoders else "Take the file of an encoder.",
            )  # fmt: skip
        # The predictor belongs to an encoder that was named alone; a probe comes when it was named.
        wanted = {"predictor"} if set(request.parts) <= set(encoders) else set()
        kept = [name for name in source.kinds if name in encoders or name in request.parts or source.kinds[name] in wanted]
        why = {name: "a Hugging Face folder has no place for it" if source.kinds[name] in ("action_predictor", "probe") else "another encoder" for name in source.kinds if name not in kept}
        if len({source.kinds[name] for name in kept} - {"action_predictor"}) != len(kept):
            raise InputError(
                "A Hugging Face folder has one encoder, and at most one masked predictor and one probe", expected="such parts",
                found=", ".join(f"{name} ({source.kinds[name].replace('_', ' ')})" for name in kept), remedy="Name other parts with --part.",
            )  # fmt: skip
        chosen = tuple(kept)
    if request.to == "official" and request.destination.suffix == ".safetensors" and len(chosen) != 1:
        raise InputError("A safetensors file holds one part", expected="--part, or a name that ends in .pt", found=", ".join(chosen), remedy="Choose with --part, or write a .pt file.")
    return chosen, tuple(f"{name} ({reason})" for name, reason in why.items()) + source.left_out


def _to_tubelet(request: Conversion, source: Source, chosen: tuple[str, ...], draft: Path) -> tuple[Parts, Notes]:
    told = []
    for name, module in modules_of(source, chosen, request.hints):
        safe = name.replace(".", "_")
        save_module(module, draft, safe)
        told.append(_verified(_part(safe, module), load_module(draft, safe)))
    return tuple(told), ()


def _to_official(request: Conversion, source: Source, chosen: tuple[str, ...], draft: Path) -> tuple[Parts, Notes]:
    content: dict[str, Any] = {}
    probes: list[dict[str, Tensor]] = []
    notes: list[str] = []
    waiting = []  # (kind, config, part) to read back once everything is written
    for name, module in modules_of(source, chosen, request.hints):
        kind, tensors = source.kinds[name], to_official(module.float())
        notes += _untold(name, kind, module)
        waiting.append((kind, module.config, _part(f"classifiers.{len(probes)}" if kind == "probe" else name, module)))
        # Upstream's trainers load into wrapped modules and strip "backbone." only, with strict=False: bare keys
        # would be skipped there in silence.
        wrapper = "module.backbone." if isinstance(module, VideoEncoder | MaskedPredictor) else "module."
        if draft.suffix == ".safetensors":
            content = tensors
        elif kind == "probe":
            probes.append({wrapper + key: value for key, value in tensors.items()})
        else:
            content[name] = {wrapper + key: value for key, value in tensors.items()}
    if draft.suffix == ".safetensors":
        write_safetensors(content, draft, {"format": "pt"})
    else:
        torch.save(content | ({"classifiers": probes} if probes else {}), draft)
    content.clear()
    probes.clear()
    told = []
    for kind, config, part in waiting:
        tensors = read_checkpoint(draft, None if draft.suffix == ".safetensors" else part[0])
        told.append(_verified(part, from_official(kind, tensors, config, str(draft))))
    return tuple(told), tuple(notes)


def _to_huggingface(request: Conversion, source: Source, chosen: tuple[str, ...], draft: Path) -> tuple[Parts, Notes]:
    modules = {name: module.float() for name, module in modules_of(source, chosen, request.hints)}
    told = {type(module): _part(name, module) for name, module in modules.items()}
    model = VJEPA2(_only(modules, VideoEncoder), _only(modules, MaskedPredictor), _only(modules, AttentiveProbe))
    to_huggingface(model, draft, image_size=model.encoder.config.img_size[0])
    del model, modules  # what was written is read back whole
    back = from_huggingface(draft)
    read: dict[type, Any] = {type(module): module for module in (back.encoder, back.predictor, back.probe)}
    return tuple(_verified(part, read.get(kind)) for kind, part in told.items()), ()


_WRITERS = {"tubelet": _to_tubelet, "official": _to_official, "huggingface": _to_huggingface}


def _only(modules: dict[str, nn.Module], kind: type[nn.Module]) -> Any:
    return next((module for module in modules.values() if isinstance(module, kind)), None)


def _untold(name: str, kind: str, module: Any) -> list[str]:
    """What the official layout, which has no configuration, would make a reader believe of this part that is not so."""
    config, tensors = module.config, module.state_dict()
    told = infer_config(kind, tensors, name, num_heads=config.num_heads).to_dict()
    try:
        infer_config(kind, tensors, name)
    except WeightsError:
        del told["num_heads"]
    wrong = [f"{field_name} {value}" for field_name, value in config.to_dict().items() if field_name != "init_std" and told.get(field_name) != value]
    return [f"{name}: the official layout does not tell {', '.join(wrong)}; give this to whoever reads the file"] if wrong else []


def _part(name: str, module: nn.Module) -> Part:
    return name, type(module).__name__, sum(value.numel() for value in module.parameters()), state_digest(module)


def _verified(part: Part, read: nn.Module | None) -> Part:
    """The part, when `read` has its digest. Raises WeightsError when it has not."""
    name, _, _, digest = part
    if read is None or state_digest(read) != digest:
        raise WeightsError(f"{name} came back different from what was written", expected=f"digest {digest[:12]}", found="another", remedy="Look at disk and memory of this machine, and try again; nothing was kept.")
    return part


def _publish(draft: Path, destination: Path) -> tuple[tuple[tuple[Path, int], ...], tuple[str, ...]]:
    """Put the draft into place: (files with bytes, names of an older model's files that are gone)."""
    if draft.is_file():
        description = destination.with_suffix(".json")
        stale = destination.suffix == ".safetensors" and is_ours(destination)  # else it would be read as ours
        os.replace(draft, destination)
        if stale:
            description.unlink()
        return ((destination, destination.stat().st_size),), (description.name,) if stale else ()
    names = sorted(path.name for path in draft.iterdir())
    removed = replace_folder(draft, destination)
    return tuple((destination / name, (destination / name).stat().st_size) for name in names), removed
