"""The modules of any weight file, one after another: official checkpoints, Hugging Face folders, our own folders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from models.checkpoints import PART_MEANINGS, Checkpoint, huggingface_folder, open_checkpoint
from models.errors import WeightsError
from models.inspection import released_input
from models.module_files import read_description
from models.official import kind_of, kind_of_class
from models.weight_shapes import IGNORED_KEYS
from models.weights import from_huggingface, from_official, infer_config, load_module
from pipelines.errors import InputError
from pipelines.weights.options import speaking_of_options

ENCODER_PARTS = tuple(part for part in PART_MEANINGS if part.endswith("encoder"))
_WHOLE = ""


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What shapes do not tell, for weights of no released size: attention heads, and the pixels they were made for."""

    heads: int | None = None
    predictor_heads: int | None = None
    probe_heads: int | None = None
    image_size: int | None = None

    def given(self, kind: str) -> dict[str, Any]:
        """The fields to pass to `infer_config` for a part of this kind."""
        heads = {"encoder": self.heads, "probe": self.probe_heads}.get(kind, self.predictor_heads)
        given: dict[str, Any] = {} if heads is None else {"num_heads": heads}
        if self.image_size is not None and kind != "probe":
            given["img_size"] = (self.image_size, self.image_size)
        return given


@dataclass(frozen=True)
class Source:
    """An opened checkpoint: parts that are modules by name with their kind, and why everything else is left out."""

    checkpoint: Checkpoint
    kinds: dict[str, str]
    left_out: tuple[str, ...]


def open_source(path: Path, part: str | None = None) -> Source:
    """Look into a weight file or folder; `part` names the encoder of a file that holds one under no name.

    Raises WeightsError when it cannot be read or holds no part of a V-JEPA 2 model.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.layout == "huggingface":
        keys = next(iter(checkpoint.parts.values()))
        kinds = {_encoder_name(part): "encoder"}
        kinds |= {"predictor": "predictor"} if any("predictor." in key for key in keys) else {}
        kinds |= {"probe": "probe"} if any(key.startswith("pooler.") for key in keys) else {}
        return Source(checkpoint, kinds, ())
    if checkpoint.layout == "tubelet":
        names = tuple(checkpoint.parts) if path.is_dir() else (path.stem,)
        return Source(checkpoint, {name: _stored_kind(path if path.is_dir() else path.parent, name) for name in names}, ())
    kinds, left_out = {}, []
    for name, tensors in checkpoint.parts.items():
        kind = kind_of(tensors)
        shown = name or _flat_name(kind, part)
        if kind is None:
            left_out.append(f"{shown or 'the tensors'} (no part of a V-JEPA 2 model)")
            continue
        kinds[shown] = kind
        tables = sorted(key.rpartition(".")[2] for key in tensors if key.rpartition(".")[2] in IGNORED_KEYS)
        left_out += [f"{table} of {shown} (a position table that rotary positions replace)" for table in tables]
    for name, entries in checkpoint.ignored.items():
        left_out += [f"{entry}{f' of {name}' if name else ''}" for entry in entries]
    if not kinds:
        raise InputError(
            f"{path} holds no part of a V-JEPA 2 model", expected="an encoder, a predictor or a probe", found=", ".join(left_out) or "nothing",
            remedy="Look with `tubelet weights inspect` what it holds.",
        )  # fmt: skip
    return Source(checkpoint, kinds, tuple(left_out))


def modules_of(source: Source, names: tuple[str, ...], hints: Hints) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the named parts, built one at a time. Raises WeightsError on tensors that do not fit."""
    checkpoint, path = source.checkpoint, source.checkpoint.path
    if checkpoint.layout == "huggingface":
        model = from_huggingface(huggingface_folder(path))
        for name in names:
            module = getattr(model, "encoder" if source.kinds[name] == "encoder" else name)
            if module is not None:
                yield name, _agreeing(name, module, hints.given(source.kinds[name]), path)
        return
    for name in names:
        if checkpoint.layout == "tubelet":
            module = load_module(path, name) if path.is_dir() else load_module(path.parent, path.stem)
            yield name, _agreeing(name, module, hints.given(source.kinds[name]), path)
        else:
            yield name, _official_module(source, name, hints)


def _agreeing(name: str, module: Any, given: dict[str, Any], path: Path) -> nn.Module:
    """The module, unless the configuration that came with it contradicts what was given. Raises InputError."""
    stored = {field: getattr(module.config, field) for field in given if hasattr(module.config, field)}  # a linear probe has no heads
    wrong = [f"{field} {given[field]} given, {value} stored" for field, value in stored.items() if value != given[field]]
    if wrong:
        raise InputError(
            f"{path}: {name} has another configuration than the given one", expected="options that agree with it", found="; ".join(wrong),
            remedy="Leave these options out: this layout carries its configuration.",
        )  # fmt: skip
    return module  # type: ignore[no-any-return]


def _official_module(source: Source, name: str, hints: Hints) -> nn.Module:
    checkpoint, kind, where = source.checkpoint, source.kinds[name], f"{source.checkpoint.path}: {name}"
    tensors = checkpoint.parts[_WHOLE] if checkpoint.is_flat else checkpoint.parts[name]
    given = released_input(checkpoint, kind, tensors) | hints.given(kind)
    with speaking_of_options(kind):
        config = infer_config(kind, tensors, where, **given)
    try:
        return from_official(kind, tensors, config, where)  # type: ignore[no-any-return]
    except WeightsError as error:
        remedy = f"Look with `tubelet weights inspect {checkpoint.path}`; --part converts the other parts. {error.remedy}"
        raise WeightsError(error.problem, expected=error.expected, found=error.found, remedy=remedy) from error


def _stored_kind(folder: Path, name: str) -> str:
    """Kind of a module in a folder of ours; a linear probe has no official kind and counts as a probe."""
    return kind_of_class(read_description(folder / f"{name}.json")[0]) or "probe"


def _encoder_name(part: str | None) -> str:
    return part if part in ENCODER_PARTS else "encoder"


def _flat_name(kind: str | None, part: str | None) -> str:
    """A name for tensors that lie in a file without one."""
    if kind == "encoder":
        return _encoder_name(part)
    return "predictor" if kind == "action_predictor" else kind or ""
