"""The official key layout of facebookresearch/vjepa2: weights in, strict to the last tensor, and out again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.assembly import build_module
from models.encoder import ENCODER_SIZES, LEVELS_2_1, EncoderConfig, VideoEncoder
from models.errors import WeightsError
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import AnticipationProbe, AnticipationProbeConfig, AttentiveProbe, AttentiveProbeConfig
from models.weight_shapes import (
    IGNORED_KEYS,
    check_fields,
    configured_value,
    contradictions,
    field_label,
    is_anticipation,
    known_fields,
    mlp_ratio,
    position_count,
    shape_facts,
    training_input,
)

KINDS: dict[str, tuple[tuple[type[nn.Module], type[Any]], ...]] = {
    "encoder": ((VideoEncoder, EncoderConfig),),
    "predictor": ((MaskedPredictor, PredictorConfig),),
    "action_predictor": ((ActionConditionedPredictor, ActionPredictorConfig),),
    "probe": ((AttentiveProbe, AttentiveProbeConfig), (AnticipationProbe, AnticipationProbeConfig)),
}
"""Modules with their configs by kind of official weights; an action-anticipation probe is the second kind of probe."""

_WRAPPER_PREFIX = re.compile(r"^(?:module\.|backbone\.|_orig_mod\.)+")
_PREDICTOR_HEADS = {384: 12, 1024: 16}  # heads by width of the released masked and action-conditioned predictors
_PROBE_HEADS = {1024: 16, 1408: 16}  # heads by width of the released probes: those of ViT-L and ViT-g, no other
_RELEASED_GRID = {"num_frames": 64, "img_size": (256, 256)}  # every 2.0 model but vitg-384


@torch.inference_mode(False)  # else weights loaded under it could never be trained
def from_official(kind: str, state_dict: Mapping[str, Tensor], config: Any, source: str = "") -> Any:
    """A float32 module on the CPU from tensors under official keys.

    ``kind``: encoder, predictor, action_predictor or probe. ``config``: the part's config (for a probe that of either
    probe), or a mapping of its fields. ``source`` names the weights in errors, a file for instance.
    The wrappers' prefixes ``module.``, ``backbone.`` and ``_orig_mod.`` are stripped. The unused position tables ``pos_embed`` and
    ``predictor_pos_embed`` are the only keys left out, and even they must agree: their length tells the frames and
    pixels of the training, so a 384 px checkpoint with a 256 px config is refused. Every other key must be consumed.
    The caller's tensors are not aliased: each is copied, to float32, once.
    Raises WeightsError with every field of the config that the shapes contradict, every missing, unexpected and
    wrong-shaped key, and every tensor that holds NaN or infinity.
    """
    source = source or f"official {kind} weights"
    tensors = strip_prefixes(state_dict, source)
    module_class, config = _resolve(kind, tensors, config)
    kept = {key: value for key, value in tensors.items() if key not in IGNORED_KEYS}
    differences = list(contradictions(kind, config, tensors, shapes_of(kept)))
    owned = {key: _copy(value).to(torch.float32, memory_format=torch.contiguous_format) for key, value in kept.items()}
    return build_module(module_class, config, owned, source, differences)


def to_official(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the module's tensors under official keys (without wrapper prefixes), on the CPU; any of four kinds."""
    known = [module_class for pairs in KINDS.values() for module_class, _ in pairs]
    if type(module) not in known:
        raise WeightsError(
            f"{type(module).__name__} has no official layout",
            expected=", ".join(module_class.__name__ for module_class in known),
            remedy="Pass one part; unwrap it first (engine, compile, data parallel).",
        )
    return {key: _copy(value) for key, value in module.state_dict().items()}


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU; a tensor on the meta device stays there."""
    return tensor.detach().clone() if tensor.is_meta else tensor.detach().to("cpu", copy=True)


def infer_config(kind: str, state_dict: Mapping[str, Tensor], source: str = "", **given: Any) -> Any:
    """The config that official tensors were made with: fields from shapes, the rest from ``given`` or the releases.

    Shapes do not tell the number of heads: it is that of the released model of this width, else it must be given.
    Nor do they tell frames and pixels, unless the unused position table is there: they are 64 and 256 then, except for
    V-JEPA 2.1 (384 px), because every 2.0 release but vitg-384 has these; give ``img_size=(384, 384)`` for that one.
    ``given`` fields win over the releases; one that contradicts a shape is refused by name. Raises WeightsError.
    """
    source = source or f"official {kind} weights"
    tensors = strip_prefixes(state_dict, source)
    shapes = shapes_of(tensors)
    _, config_class = _resolve_class(kind, is_anticipation(shapes))
    check_fields(config_class, given)
    facts = shape_facts(kind, shapes)
    inferred = _fields(kind, facts) | _training_grid(kind, facts, tensors, config_class)
    missing = [name for name in ("embed_dim", "depth") if name not in inferred]
    if missing:
        raise WeightsError(
            f"{source} is no {kind}",
            expected="official keys of this part",
            found=", ".join(list(shapes)[:8]) or "no tensors",
            remedy="Name the kind of part that these weights are.",
        )
    heads = given.get("num_heads", _released_heads(kind, facts))
    if heads is None:
        raise WeightsError(
            f"{source} is of no released size, and shapes do not tell the number of attention heads",
            expected="num_heads",
            found=", ".join(f"{name} {value}" for name, value in inferred.items()),
            remedy="Pass num_heads.",
        )
    config = config_class(**(inferred | {"num_heads": heads} | given))
    wrong = [
        f"{field_label(name)}: given {configured_value(config, name)}, the weights say {value}"
        for name, value in facts.items()
        if configured_value(config, name) != value
    ]
    if wrong:
        raise WeightsError(
            f"{source} contradicts the given configuration",
            found="; ".join(wrong),
            remedy="Leave out fields that shapes determine, or take the weights that fit them.",
        )
    return config


def kind_of_class(module_class: type[nn.Module]) -> str | None:
    """Kind of official part that this class holds; None for a class without official layout, such as a linear probe."""
    return next((kind for kind, pairs in KINDS.items() if any(module_class is pair[0] for pair in pairs)), None)


def kind_of(keys: Mapping[str, Any]) -> str | None:
    """Kind of official part that these keys belong to (wrapper prefixes allowed); None when they fit no kind."""
    bare = {_WRAPPER_PREFIX.sub("", key) for key in keys}
    if "pooler.query_tokens" in bare:
        return "probe"
    if "action_encoder.weight" in bare:
        return "action_predictor"
    if "predictor_proj.weight" in bare:
        return "predictor"
    return "encoder" if "patch_embed.proj.weight" in bare else None


def strip_prefixes(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors without the wrappers' prefixes. Raises WeightsError when two keys become one."""
    tensors: dict[str, Tensor] = {}
    for official_key, tensor in state_dict.items():
        key = _WRAPPER_PREFIX.sub("", official_key)
        if not isinstance(tensor, Tensor):
            raise WeightsError(
                f"{source}: {official_key} is no tensor",
                expected="a state dict of one part",
                found=type(tensor).__name__,
                remedy="Read the file with read_checkpoint, which takes one part.",
            )
        if key in tensors:
            raise WeightsError(
                f"{source}: two official keys name {key}", remedy="Pass the state dict of one part only."
            )
        tensors[key] = tensor
    return tensors


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor but the unused position tables."""
    return {key: tuple(value.shape) for key, value in tensors.items() if key not in IGNORED_KEYS}


def _resolve(kind: str, tensors: Mapping[str, Tensor], config: Any) -> tuple[type[nn.Module], Any]:
    """(module class, config) of a kind; a mapping becomes the config. Raises WeightsError."""
    module_class, config_class = _resolve_class(kind, is_anticipation(shapes_of(tensors)))
    if isinstance(config, Mapping):
        return module_class, config_class.from_dict(dict(config))
    if not isinstance(config, config_class):
        raise WeightsError(
            f"The config does not belong to a {kind} with these keys",
            expected=config_class.__name__,
            found=type(config).__name__,
            remedy="Build the config of the same part.",
        )
    return module_class, config


def _resolve_class(kind: str, anticipation: bool) -> tuple[type[nn.Module], type[Any]]:
    if kind not in KINDS:
        raise WeightsError(
            "Unknown kind of official weights", expected=", ".join(KINDS), found=kind, remedy="Name one of these."
        )
    return KINDS[kind][1 if kind == "probe" and anticipation else 0]


def _fields(kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields from facts: those of the same name, and the ones that facts only imply."""
    implied = ("mlp_hidden", "level_count", "out_width")
    inferred = {name: value for name, value in facts.items() if name not in implied}
    if "mlp_hidden" in facts:
        width = facts.get("predictor_embed_dim") or facts.get("embed_dim")
        if width:
            inferred["mlp_ratio"] = mlp_ratio(width, facts["mlp_hidden"])
    if kind == "encoder" and facts.get("level_count"):
        inferred["levels"] = LEVELS_2_1.get(facts.get("depth", 0), ())
    if "out_width" in facts:
        width = facts["out_width"] // facts["levels"]
        inferred["out_embed_dim"] = None if width == facts.get("embed_dim") else width
    if facts.get("modality_embeddings"):
        inferred |= {"rope_layout": "interleaved", "rope_reference": 16}
    return inferred


def _training_grid(
    kind: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], config_class: type[Any]
) -> dict[str, Any]:
    if "img_size" not in known_fields(config_class):
        return {}
    positions = position_count(kind, tensors)
    found = positions and training_input(positions, facts.get("tubelet_size", 2), facts.get("patch_size", 16))
    if found:
        return {"num_frames": found[0], "img_size": (found[1], found[1])}
    return _RELEASED_GRID | ({"img_size": (384, 384)} if facts.get("modality_embeddings") else {})


def _released_heads(kind: str, facts: Mapping[str, Any]) -> int | None:
    width, depth = facts.get("embed_dim"), facts.get("depth")
    if kind in ("predictor", "action_predictor"):
        return _PREDICTOR_HEADS.get(facts.get("predictor_embed_dim", 0))
    if kind == "probe":
        return _PROBE_HEADS.get(facts.get("embed_dim", 0))
    sizes = [size for size in ENCODER_SIZES.values() if size["embed_dim"] == width]
    return next((size["num_heads"] for size in sizes if size["depth"] == depth), None)
