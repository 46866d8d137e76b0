"""Open or describe any weight file or folder: official, Hugging Face or our own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.assembly import empty_module, key_problems, listed, module_shapes
from models.checkpoints import PART_MEANINGS, Checkpoint, Layout, choose_part, huggingface_folder, open_checkpoint
from models.encoder import EncoderConfig, VideoEncoder
from models.errors import TubeletError, WeightsError
from models.huggingface import describe_folder, encoder_from_huggingface
from models.module_files import load_module, read_description
from models.official import KINDS, from_official, infer_config, kind_of, kind_of_class, strip_prefixes
from models.released import RELEASED, ReleasedModel
from models.weight_shapes import IGNORED_KEYS, check_fields, position_count


@dataclass(frozen=True)
class PartInspection:
    """One set of weights. ``config`` is None where it cannot be told; ``problems`` keep the part from being loaded.

    ``name`` is "" in a file that is one set of weights; ``kind`` as in from_official, or "unknown"; ``ignored`` names the
    keys and entries that loading leaves out. ``needs_heads``: it can be loaded with ``num_heads`` given, not without.
    """

    name: str
    kind: str
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    config: Any
    ignored: tuple[str, ...]
    problems: tuple[str, ...]
    needs_heads: bool = False


@dataclass(frozen=True)
class Inspection:
    """What a weight file or folder holds; ``notes`` are sentences about it as a whole."""

    path: Path
    layout: Layout
    parts: tuple[PartInspection, ...]
    notes: tuple[str, ...]


def load_encoder(path: Path | str, part: str | None = None, **given: Any) -> VideoEncoder:
    """The encoder in any weight file or folder, in float32 (our own folders: in the dtype they were saved in), on the CPU.

    ``part`` names the encoder in a file that holds several (``encoder``, ``target_encoder``, ``ema_encoder``) or the
    module in a folder of ours; where there is only one encoder it may be left out. Official files carry no config: it
    is inferred as infer_config does, with ``given`` EncoderConfig fields, and a file that still has its released name
    (vitg-384.pt) gives the frames and pixels of that release. Elsewhere the stored config must agree with ``given``.
    Raises WeightsError naming the file, ConfigError for unknown fields.
    """
    check_fields(EncoderConfig, given)
    checkpoint = open_checkpoint(path)
    if checkpoint.layout == "official":
        return _load_official_encoder(checkpoint, part, given)
    encoder = _load_stored_encoder(checkpoint, part)
    wrong = [
        f"{name}: given {value}, stored {getattr(encoder.config, name)}"
        for name, value in given.items()
        if getattr(encoder.config, name) != (tuple(value) if isinstance(value, list) else value)
    ]
    if wrong:
        raise WeightsError(
            f"{path} has another configuration than the given one",
            found="; ".join(wrong),
            remedy="Leave these fields out: this folder carries its configuration.",
        )
    return encoder


def inspect_checkpoint(path: Path | str) -> Inspection:
    """Describe a weight file or folder, reading every tensor once to find numbers that are not finite.

    Raises WeightsError when nothing can be read at all; what is wrong with a readable part is among its problems.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.layout == "huggingface":
        parts = _inspect_huggingface(checkpoint)
    elif checkpoint.layout == "tubelet":
        parts = [_inspect_ours(checkpoint, name, tensors) for name, tensors in checkpoint.parts.items()]
    else:
        parts = [_inspect_official(checkpoint, name, tensors) for name, tensors in checkpoint.parts.items()]
    return Inspection(checkpoint.path, checkpoint.layout, tuple(parts), tuple(_notes(checkpoint, parts)))


def _load_official_encoder(checkpoint: Checkpoint, part: str | None, given: dict[str, Any]) -> VideoEncoder:
    encoders = tuple(name for name, tensors in checkpoint.parts.items() if kind_of(tensors) == "encoder")
    if not encoders:
        raise WeightsError(
            f"{checkpoint.path} holds no encoder",
            expected="patch_embed, blocks and norm",
            found=", ".join(f"{name or 'weights'} ({kind_of(t) or 'unknown'})" for name, t in checkpoint.parts.items()),
            remedy="Take the file of an encoder.",
        )
    name, tensors = choose_part(checkpoint, part, encoders)
    source = f"{checkpoint.path} part {name}" if name else str(checkpoint.path)
    config = infer_config("encoder", tensors, source, **(released_input(checkpoint, "encoder", tensors) | given))
    return from_official("encoder", tensors, config, source)


def released_input(checkpoint: Checkpoint, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Frames and pixels of a part in a file that still has its released name, unless its weights tell them."""
    released = RELEASED.get(checkpoint.path.stem)
    if released is None or kind == "probe":
        return {}
    if position_count(kind, strip_prefixes(tensors, str(checkpoint.path))) is not None:
        return {}
    return {"img_size": (released.img_size, released.img_size), "num_frames": released.frames}


def _load_stored_encoder(checkpoint: Checkpoint, part: str | None) -> VideoEncoder:
    path = checkpoint.path
    if checkpoint.layout == "huggingface":
        if part not in (None, "encoder"):
            raise WeightsError(
                f"{path} has no part {part}",
                expected="encoder, the only one of a Hugging Face folder",
                found=str(part),
                remedy="Name no part.",
            )
        return encoder_from_huggingface(huggingface_folder(path))
    folder, names = (path, tuple(checkpoint.parts)) if path.is_dir() else (path.parent, (path.stem,))
    encoders = tuple(name for name in names if read_description(folder / f"{name}.json")[0] is VideoEncoder)
    if not encoders:
        raise WeightsError(
            f"{path} holds no encoder", expected="a VideoEncoder", found=listed(names), remedy="Name another folder."
        )
    known = Checkpoint(path, "tubelet", {name: {} for name in encoders}, {})
    return load_module(folder, choose_part(known, part)[0])


def _inspect_official(checkpoint: Checkpoint, name: str, tensors: Mapping[str, Tensor]) -> PartInspection:
    kind = kind_of(tensors)
    entries = checkpoint.ignored.get(name, ())
    if kind is None:
        return _part(name, "unknown", tensors, None, entries, ["no part of V-JEPA 2: its keys fit none"])
    config, needs_heads, problems, ignored = None, False, [], entries
    try:
        bare = strip_prefixes(tensors, name or "these weights")
        ignored = (*(key for key in bare if key in IGNORED_KEYS), *entries)
        kept = {key: value for key, value in bare.items() if key not in IGNORED_KEYS}
        given = released_input(checkpoint, kind, tensors)
        try:
            shaped = config = infer_config(kind, bare, name, **given)
        except WeightsError:
            shaped = infer_config(kind, bare, name, **given, num_heads=1)  # no shape depends on the number of heads
            needs_heads = True
        module_class = next(module for module, config_class in KINDS[kind] if isinstance(shaped, config_class))
        found = key_problems(module_shapes(empty_module(module_class, shaped)), kept)
        problems += [f"{label}: {listed(keys)}" for label, keys in found]
    except TubeletError as error:
        problems.append(str(error))
    return replace(_part(name, kind, tensors, config, ignored, problems), needs_heads=needs_heads)


def _inspect_ours(checkpoint: Checkpoint, name: str, tensors: Mapping[str, Tensor]) -> PartInspection:
    path = checkpoint.path / f"{name}.json" if name else checkpoint.path.with_suffix(".json")
    config, problems, kind = None, [], "unknown"
    try:
        module_class, config = read_description(path)
        kind = kind_of_class(module_class) or "probe"  # a linear probe has no official kind
        found = key_problems(module_shapes(empty_module(module_class, config)), tensors)
        problems = [f"{label}: {listed(keys)}" for label, keys in found]
    except TubeletError as error:
        problems.append(str(error))
    return _part(name or checkpoint.path.stem, kind, tensors, config, (), problems)


def _inspect_huggingface(checkpoint: Checkpoint) -> list[PartInspection]:
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    parts = []
    for part in describe_folder(folder, next(iter(checkpoint.parts.values()))):
        parts.append(_part(part.name, part.name, part.tensors, part.config, (), part.problems))
    return parts


def _part(
    name: str, kind: str, tensors: Mapping[str, Tensor], config: Any, ignored: Iterable[str], problems: Iterable[str]
) -> PartInspection:
    kept = {key: value for key, value in tensors.items() if key.rpartition(".")[2] not in IGNORED_KEYS}
    return PartInspection(
        name=name,
        kind=kind,
        tensors=len(kept),
        parameters=sum(value.numel() for value in kept.values()),
        dtypes=tuple(sorted({str(value.dtype).removeprefix("torch.") for value in kept.values()})),
        config=config,
        ignored=tuple(ignored),
        problems=tuple(problems),
    )


def _notes(checkpoint: Checkpoint, parts: Sequence[PartInspection]) -> Iterator[str]:
    encoders = [part.name for part in parts if part.kind == "encoder"]
    if len(encoders) > 1:
        meanings = "; ".join(f"{name} is {PART_MEANINGS.get(name, 'another encoder')}" for name in encoders)
        yield f"Several encoders: {meanings}. Choose one (part=NAME, or --part NAME)."
    if checkpoint.layout == "official" and checkpoint.ignored.get(""):
        yield f"Entries that are no weights: {listed(checkpoint.ignored[''])}."
    same = [name for name, model in RELEASED.items() if _is_release(model, parts)]
    if same and checkpoint.layout == "official":
        yield f"Shapes are those of the released {' or '.join(same)}; shapes do not prove the origin."
    for part in parts:
        tensors = checkpoint.parts.get(part.name, {})
        inferred = checkpoint.layout == "official" and part.kind == "encoder" and part.config is not None
        if inferred and position_count("encoder", strip_prefixes(tensors, part.name)) is None:
            frames, (height, width) = part.config.num_frames, part.config.img_size
            yield (
                f"{part.name or 'These weights'}: the file does not tell the frames and pixels of its training; "
                f"{frames} frames at {height} x {width} px are assumed."
            )
        mask_tokens = [value for key, value in tensors.items() if "mask_token" in key]
        zero = sum(not value.any() for value in mask_tokens)
        if zero:
            yield f"{part.name or 'predictor'}: {zero} of {len(mask_tokens)} mask tokens are zero, so never trained."


def _is_release(model: ReleasedModel, parts: Sequence[PartInspection]) -> bool:
    """Whether these parts have the counts of the release's, a probe file with any number of probes among them."""
    if model.hub_part is None:
        (probe,) = model.parts.values()
        return bool(parts) and all(
            (part.tensors, part.parameters) == (probe.tensors, probe.parameters) for part in parts
        )
    found = {part.name: (part.tensors, part.parameters) for part in parts}
    shared = found.keys() & model.parts.keys()
    return model.hub_part in shared and all(
        found[name] == (model.parts[name].tensors, model.parts[name].parameters) for name in shared
    )
