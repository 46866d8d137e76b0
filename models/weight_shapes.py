"""What the shapes of official tensors say about the configuration they were made with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from models.assembly import Shapes
from models.errors import ConfigError

Facts = dict[str, Any]
"""Config fields that shapes determine. Three stand for others: ``mlp_hidden`` for mlp_ratio, ``level_count`` for an
encoder's levels, ``out_width`` (all levels together) for a predictor's out_embed_dim."""

_RELEASED_INPUTS = ((64, 256), (64, 384), (16, 256), (32, 256), (16, 384), (32, 384))  # (frames, px)
_POSITION_TABLES = {"encoder": "pos_embed", "predictor": "predictor_pos_embed"}
# Sin-cos tables that the official trainer stores but never uses together with rotary positions.
IGNORED_KEYS = frozenset(_POSITION_TABLES.values())


def shape_facts(kind: str, shapes: Shapes) -> Facts:
    """Fields of the kind's config (encoder, predictor, action_predictor, probe) that these shapes determine.

    A field whose tensor is absent or of an unknown rank is left out; nothing is raised here.
    """
    facts: Facts = {
        "encoder": _encoder_facts,
        "predictor": _predictor_facts,
        "action_predictor": _action_predictor_facts,
        "probe": _probe_facts,
    }[kind](shapes)
    return {name: value for name, value in facts.items() if value is not None}


def contradictions(kind: str, config: Any, tensors: Mapping[str, Tensor], keys: Shapes) -> Iterator[str]:
    """One phrase for every field in which the config and the weights differ.

    ``tensors`` may still hold the unused position tables: their length tells the input size of the training.
    ``keys`` are the shapes without them.
    """
    for name, value in shape_facts(kind, keys).items():
        configured = configured_value(config, name)
        if configured != value:
            yield f"{field_label(name)}: the config says {configured}, the weights {value}"
    positions = position_count(kind, tensors)
    if positions is not None and positions != math.prod(config.grid):
        frames, (height, width) = config.num_frames, config.img_size
        example = training_input(positions, config.tubelet_size, config.patch_size)
        made_for = f" (for example {example[0]} frames at {example[1]} x {example[1]} px)" if example else ""
        yield (
            f"img_size and num_frames: these weights were made for {positions} positions{made_for}, the config says "
            f"{frames} frames at {height} x {width} px ({math.prod(config.grid)} positions); set img_size and "
            "num_frames to those of the training, inputs of other sizes may still be given to the model"
        )


def field_label(fact: str) -> str:
    """The config field that a fact is about, and in what terms it is told."""
    labels = {"mlp_hidden": "mlp_ratio (hidden width)", "level_count": "levels (how many)"}
    return (labels | {"out_width": "out_embed_dim (all levels together)"}).get(fact, fact)


def configured_value(config: Any, fact: str) -> Any:
    """The config's value of a fact, in the terms of ``shape_facts``."""
    if fact == "mlp_hidden":
        width = getattr(config, "predictor_embed_dim", config.embed_dim)
        return int(width * config.mlp_ratio)
    if fact == "level_count":
        return len(config.levels)
    if fact == "out_width":
        return config.levels * (config.out_embed_dim or config.embed_dim)
    return getattr(config, fact)


def mlp_ratio(width: int, hidden: int) -> float:
    """The ratio r with int(width * r) == hidden."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def position_count(kind: str, tensors: Mapping[str, Tensor]) -> int | None:
    """Rows N of the unused sin-cos table (1, N, D), one a token of the training input; None without such a table."""
    table = tensors.get(_POSITION_TABLES.get(kind, ""))
    return table.shape[1] if table is not None and table.dim() == 3 and table.shape[0] == 1 else None


def training_input(positions: int, tubelet_size: int = 2, patch_size: int = 16) -> tuple[int, int] | None:
    """(frames, px of the square image) with this many tokens: a released recipe's, else at its pixels, else any."""
    for frames, size in _RELEASED_INPUTS:
        if (frames // tubelet_size) * (size // patch_size) ** 2 == positions:
            return frames, size
    for size in (256, 384):  # the 2-AC trainer builds its encoder for 512 frames
        if positions % (size // patch_size) ** 2 == 0:
            return positions // (size // patch_size) ** 2 * tubelet_size, size
    for frames in (64, 16, 32, 8, 4, 2):
        side = math.isqrt(positions // max(1, frames // tubelet_size))
        if side > 1 and side * side * (frames // tubelet_size) == positions:
            return frames, side * patch_size
    return None


def known_fields(config_class: type[Any]) -> set[str]:
    """Field names of a config class."""
    return {field.name for field in fields(config_class)}


def check_fields(config_class: type[Any], given: Mapping[str, Any]) -> None:
    """Raise ConfigError unless every given name is a field of the config class."""
    known = known_fields(config_class)
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ConfigError(
            f"{config_class.__name__} has no field {', '.join(unknown)}",
            expected=", ".join(sorted(known)),
            found=", ".join(given),
            remedy="Correct the field names.",
        )


def _encoder_facts(shapes: Shapes) -> Facts:
    width, channels, tubelet, patch, _ = _rank(shapes.get("patch_embed.proj.weight"), 5)
    return {
        "embed_dim": width or _rank(shapes.get("norm.weight"), 1)[0],
        "depth": _count(shapes, "blocks"),
        "mlp_hidden": _rank(shapes.get("blocks.0.mlp.fc1.weight"), 2)[0],
        "patch_size": patch,
        "tubelet_size": tubelet,
        "in_chans": channels,
        "image_tokenizer": "patch_embed_img.proj.weight" in shapes,
        "modality_embeddings": "img_mod_embed" in shapes,
        "level_count": _count(shapes, "norms_block") or 0,
    }


def _trunk_facts(shapes: Shapes) -> Facts:
    width, embed_dim = _rank(shapes.get("predictor_embed.weight"), 2)
    return {
        "embed_dim": embed_dim,
        "predictor_embed_dim": width,
        "depth": _count(shapes, "predictor_blocks"),
        "mlp_hidden": _rank(shapes.get("predictor_blocks.0.mlp.fc1.weight"), 2)[0],
    }


def _predictor_facts(shapes: Shapes) -> Facts:
    facts = _trunk_facts(shapes)
    inner, all_levels = _rank(shapes.get("predictor_embed.0.weight"), 2)  # two layers where several levels come in
    if inner:
        facts |= {"embed_dim": inner, "predictor_embed_dim": _rank(shapes.get("predictor_embed.2.weight"), 2)[0]}
    return facts | {
        "num_mask_tokens": _count(shapes, "mask_tokens"),
        "modality_embeddings": "img_mod_embed" in shapes,
        "levels": all_levels // inner if inner else 1,
        "out_width": _rank(shapes.get("predictor_proj.weight"), 2)[0],
        "context_output": "predictor_proj_context.weight" in shapes,
    }


def _action_predictor_facts(shapes: Shapes) -> Facts:
    return _trunk_facts(shapes) | {"action_embed_dim": _rank(shapes.get("action_encoder.weight"), 2)[1]}


def _probe_facts(shapes: Shapes) -> Facts:
    facts: Facts = {
        "embed_dim": _rank(shapes.get("pooler.query_tokens"), 3)[2],
        "depth": 1 + (_count(shapes, "pooler.blocks") or 0),
        "mlp_hidden": _rank(shapes.get("pooler.cross_attention_block.mlp.fc1.weight"), 2)[0],
    }
    if not is_anticipation(shapes):
        return facts | {"num_classes": _rank(shapes.get("linear.weight"), 2)[0]}
    heads = {"verbs": "verb_classifier", "nouns": "noun_classifier", "actions": "action_classifier"}
    return facts | {name: _rank(shapes.get(f"{head}.weight"), 2)[0] or 0 for name, head in heads.items()}


def is_anticipation(shapes: Shapes) -> bool:
    """Whether a probe's tensors are those of an action-anticipation probe."""
    return "action_classifier.weight" in shapes


def _rank(shape: tuple[int, ...] | None, rank: int) -> tuple[Any, ...]:
    return shape if shape is not None and len(shape) == rank else (None,) * rank


def _count(shapes: Shapes, stem: str) -> int | None:
    """One more than the highest index N of the keys ``stem.N...``; None without such keys."""
    pattern = re.compile(rf"{re.escape(stem)}\.(\d+)(?:\.|$)")
    found = [int(match.group(1)) for key in shapes if (match := pattern.match(key))]
    return max(found) + 1 if found else None
