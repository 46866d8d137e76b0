"""What `tubelet weights` prints: an inspection as text or JSON, and what a conversion did."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from models.encoder import ENCODER_SIZES
from models.weights import Inspection, PartInspection
from pipelines.weights.convert import Converted
from pipelines.weights.options import HEADS


def inspection_text(inspection: Inspection) -> str:
    """A table of parts, each part's configuration, what is wrong, and what one can do next."""
    rows: list[tuple[str, ...]] = [("part", "what", "size", "tensors", "parameters", "dtype")]
    rows += [
        (part.name or "(no name)", part.kind.replace("_", " "), size_name(part), str(part.tensors), millions(part.parameters), ", ".join(part.dtypes))
        for part in inspection.parts
    ]  # fmt: skip
    lines = [f"{inspection.path}: {inspection.layout} layout, {bytes_text(_size(inspection.path))}", "", *_table(rows)]
    for part in inspection.parts:
        lines += ["", *_details(part)]
    if inspection.notes:
        lines += ["", "notes", *(f"  {note}" for note in inspection.notes)]
    lines += ["", "next", *(f"  {line}" for line in _next(inspection))]
    return "\n".join(lines)


def inspection_json(inspection: Inspection) -> str:
    """The same for machines; `usable` says whether nothing is wrong with a part."""
    parts = [
        {**asdict(part), "config": None if part.config is None else part.config.to_dict(), "size": size_name(part), "usable": not part.problems}
        for part in inspection.parts
    ]  # fmt: skip
    return json.dumps(
        {"path": str(inspection.path), "layout": inspection.layout, "bytes": _size(inspection.path), "parts": parts, "notes": inspection.notes},
        indent=1, default=list,
    )  # fmt: skip


def is_sound(inspection: Inspection) -> bool:
    """Whether every part can be loaded, if need be with its number of attention heads told."""
    return not any(part.problems for part in inspection.parts)


def converted_text(done: Converted) -> str:
    """What was written, that it was read back, and what is not in it."""
    width = max(len(name) for name, *_ in done.parts)
    lines = [f"{name:<{width}}  {kind}, {millions(count)} parameters, digest {digest[:12]}, read back equal" for name, kind, count, digest in done.parts]
    lines += [f"wrote {path}  {bytes_text(size)}" for path, size in done.files]
    if done.removed:
        lines.append(f"removed {', '.join(done.removed)}, of the model that was there")
    if done.left_out:
        lines.append(f"left out: {'; '.join(done.left_out)}")
    lines += [f"note: {note}" for note in done.notes]
    encoders = [name for name, kind, *_ in done.parts if kind == "VideoEncoder"]
    if done.to == "huggingface":
        lines.append(f'open it with transformers.AutoModel.from_pretrained("{done.destination}")')
    elif done.to == "official" and len(encoders) == 1 and encoders[0] in ("encoder", "target_encoder") and done.destination.suffix != ".safetensors":
        other = "target_encoder, which upstream's evaluations read" if encoders[0] == "encoder" else "encoder, which upstream's PyTorch Hub reads"
        lines.append(f"the file has {encoders[0]} and no {other} (set checkpoint_key there)")
    return "\n".join(lines)


def size_name(part: PartInspection) -> str:
    """vit_large, or width x depth for a size that has no name; empty where no config is known."""
    config = part.config
    if config is None:
        return ""
    values = config.to_dict()
    if part.kind == "encoder":
        for name, size in ENCODER_SIZES.items():
            if all(values[key] == size[key] for key in ("embed_dim", "depth", "num_heads")):
                return name
    width = values.get("predictor_embed_dim") or values["embed_dim"]
    return f"{width} x {values['depth']}" if "depth" in values else str(width)


def millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def bytes_text(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file()) if path.is_dir() else path.stat().st_size


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _details(part: PartInspection) -> list[str]:
    """The part's configuration, ignored keys and problems, each on its line."""
    lines = [part.name or "(no name)"]
    if part.config is not None:
        lines.append("  config    " + ", ".join(f"{name} {_value(value)}" for name, value in _telling_fields(part.config).items()))
    if part.ignored:
        lines.append(f"  ignored   {', '.join(part.ignored)}")
    if part.needs_heads:
        lines.append(f"  config    the number of attention heads is not in the file: {HEADS[part.kind]} N says it")
    lines += [f"  PROBLEM   {problem}" for problem in part.problems] or ["  problems  none"]
    return lines


def _telling_fields(config: Any) -> dict[str, Any]:
    """The fields of a config that have no default or another value than it, and those that no shape tells."""
    defaults = {entry.name: entry.default for entry in fields(config)}
    return {name: value for name, value in config.to_dict().items() if name in ("img_size", "num_frames", "num_heads") or value != defaults[name]}


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "x".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _next(inspection: Inspection) -> list[str]:
    """Commands that work on this file, with the choices that have to be made."""
    usable = [part for part in inspection.parts if not part.problems]
    encoders = [part for part in usable if part.kind == "encoder"]
    if not usable:
        return ["nothing can be loaded from it; see the problems above"]
    choice = f" --part {'|'.join(part.name for part in encoders)}" if len(encoders) > 1 else ""
    options = "".join(f" {option} N" for option in sorted({HEADS[part.kind] for part in usable if part.needs_heads}))
    lines = [f"tubelet features {inspection.path} VIDEO_OR_FOLDER{choice}{' --heads N' if '--heads' in options else ''}"] if encoders else []
    targets = {"official": ("huggingface", "tubelet"), "huggingface": ("tubelet", "official"), "tubelet": ("huggingface", "official")}[inspection.layout]
    for target in targets:
        if target == "huggingface" and not encoders:
            continue
        destination = "FILE.pt" if target == "official" else "FOLDER"
        lines.append(f"tubelet weights convert {inspection.path} {destination} --to {target}{choice if target == 'huggingface' else ''}{options}")
    return lines
