"""Names and configs of transformers' VJEPA2 (5.x, model type "vjepa2") in terms of ours.

Read from transformers/models/vjepa2 and written down here; transformers itself is never imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.encoder import EncoderConfig
from models.errors import ConfigError, WeightsError
from models.predictor import PredictorConfig
from models.probes import AttentiveProbeConfig

MODEL_TYPE = "vjepa2"
NORM_EPS = 1e-6
"""layer_norm_eps: one number for encoder, predictor and pooler, although upstream's pooler uses 1e-5."""

_POOLER_MLP_RATIO = 4.0  # not configurable there
_DEFAULTS: dict[str, Any] = {
    "patch_size": 16,
    "crop_size": 256,
    "frames_per_clip": 64,
    "tubelet_size": 2,
    "hidden_size": 1024,
    "in_chans": 3,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "mlp_ratio": 4.0,
    "initializer_range": 0.02,
    "num_pooler_layers": 3,
    "pred_hidden_size": 384,
    "pred_num_attention_heads": 12,
    "pred_num_hidden_layers": 12,
    "pred_num_mask_tokens": 10,
    "pred_mlp_ratio": 4.0,
}
_REQUIRED: dict[str, Any] = {
    "hidden_act": "gelu",
    "qkv_bias": True,
    "layer_norm_eps": NORM_EPS,
    "drop_path_rate": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attention_dropout": 0.0,
}
_COUNTS = {name for name, value in _DEFAULTS.items() if isinstance(value, int)}
_MAY_BE_ZERO = {"num_pooler_layers", "pred_num_hidden_layers"}

_ENCODER_STEMS = {"patch_embed.proj": "encoder.embeddings.patch_embeddings.proj", "norm": "encoder.layernorm"}
_PREDICTOR_STEMS = {
    "predictor_embed": "predictor.embeddings.predictor_embeddings",
    "predictor_norm": "predictor.layernorm",
    "predictor_proj": "predictor.proj",
}
MASK_TOKENS = "predictor.embeddings.mask_tokens"
"""All mask tokens in one tensor (n, 1, 1, width); ours are n tensors (1, 1, width)."""


def foreign_names(part: str, key: str) -> tuple[str, ...]:
    """Names there of our tensor ``key`` of a part (encoder, predictor, probe), without the prefix ``vjepa2.``.

    Several names are several tensors that ours holds one below the other: queries, keys and values.
    The mask tokens are the one exception, see MASK_TOKENS.
    """
    stem, _, leaf = key.rpartition(".")
    if part == "probe":
        return _probe_names(stem, leaf)
    stems = _ENCODER_STEMS if part == "encoder" else _PREDICTOR_STEMS
    if stem in stems:
        return (f"{stems[stem]}.{leaf}",)
    _, block, inner = stem.split(".", 2)
    root = f"{part}.layer.{block}"
    if inner == "attn.qkv":
        return tuple(f"{root}.attention.{name}.{leaf}" for name in ("query", "key", "value"))
    return (f"{root}.{inner.replace('attn.proj', 'attention.proj')}.{leaf}",)


def _probe_names(stem: str, leaf: str) -> tuple[str, ...]:
    if stem == "linear":
        return (f"classifier.{leaf}",)
    if stem == "pooler":  # pooler.query_tokens
        return (f"{stem}.{leaf}",)
    if stem.startswith("pooler.cross_attention_block."):
        root, inner = "pooler.cross_attention_layer", stem.removeprefix("pooler.cross_attention_block.")
    else:
        _, _, block, inner = stem.split(".", 3)
        root = f"pooler.self_attention_layers.{block}"
    packed = {
        "xattn.q": ("cross_attn.q_proj",),
        "xattn.kv": ("cross_attn.k_proj", "cross_attn.v_proj"),
        "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": ("self_attn.out_proj",),
        "norm1": ("layer_norm1",),
        "norm2": ("layer_norm2",),
    }
    return tuple(f"{root}.{name}.{leaf}" for name in packed.get(inner, (inner,)))


def configs_from_foreign(values: dict[str, Any], path: Path, num_labels: int | None) -> dict[str, Any]:
    """Our configs by part (encoder, predictor unless it has no layers, and probe when num_labels is given) of a config.json.

    Fields that are absent have transformers' defaults. Raises WeightsError naming the file and the field.
    """
    if values.get("model_type") != MODEL_TYPE:
        raise WeightsError(
            f"{path} describes another architecture",
            expected=f'model_type "{MODEL_TYPE}"',
            found=repr(values.get("model_type")),
            remedy="Take a V-JEPA 2 folder, for example one of facebook/vjepa2-*.",
        )
    settings = {name: values.get(name, default) for name, default in _DEFAULTS.items()}
    wrong = [f"{name} {values[name]!r}" for name, needed in _REQUIRED.items() if values.get(name, needed) != needed]
    wrong += [
        f"{name} {value!r}"
        for name, value in settings.items()
        if not (_is_count(value, name) if name in _COUNTS else _is_positive(value))
    ]
    if wrong:
        raise WeightsError(
            f"{path} asks for what these networks do not do",
            expected=", ".join(f"{name} {needed!r}" for name, needed in _REQUIRED.items())
            + "; whole numbers for sizes and counts",
            found=", ".join(wrong),
            remedy="Take the config.json that was published with the weights.",
        )
    size = settings["crop_size"]
    shared = {
        "embed_dim": settings["hidden_size"],
        "img_size": (size, size),
        "num_frames": settings["frames_per_clip"],
        "tubelet_size": settings["tubelet_size"],
        "patch_size": settings["patch_size"],
        "init_std": settings["initializer_range"],
    }
    try:
        configs: dict[str, Any] = {
            "encoder": EncoderConfig(
                depth=settings["num_hidden_layers"],
                num_heads=settings["num_attention_heads"],
                mlp_ratio=settings["mlp_ratio"],
                in_chans=settings["in_chans"],
                **shared,
            )
        }
        if settings["pred_num_hidden_layers"]:
            configs["predictor"] = PredictorConfig(
                depth=settings["pred_num_hidden_layers"],
                num_heads=settings["pred_num_attention_heads"],
                predictor_embed_dim=settings["pred_hidden_size"],
                mlp_ratio=settings["pred_mlp_ratio"],
                num_mask_tokens=settings["pred_num_mask_tokens"],
                **shared,
            )
        if num_labels is not None:
            configs["probe"] = AttentiveProbeConfig(
                embed_dim=settings["hidden_size"],
                num_classes=num_labels,
                num_heads=settings["num_attention_heads"],
                depth=settings["num_pooler_layers"] + 1,
                norm_eps=NORM_EPS,
                init_std=settings["initializer_range"],
            )
    except ConfigError as error:
        raise WeightsError(
            f"{path} contradicts itself: {error.problem}",
            expected=error.expected,
            found=error.found,
            remedy="Take the config.json that was published with the weights.",
        ) from error
    return configs


def config_to_foreign(
    encoder: EncoderConfig, predictor: PredictorConfig | None, probe: AttentiveProbeConfig | None, image_size: int
) -> dict[str, Any]:
    """The fields of a config.json that these configs determine. Raises WeightsError where transformers lacks a field.

    Without a predictor its depth is written as 0: the folder then promises no predictor.
    """
    _refuse_what_is_lacking(encoder, predictor, probe, image_size)
    settings = _DEFAULTS | _REQUIRED
    settings |= {
        "patch_size": encoder.patch_size,
        "crop_size": image_size,
        "frames_per_clip": encoder.num_frames,
        "tubelet_size": encoder.tubelet_size,
        "hidden_size": encoder.embed_dim,
        "in_chans": encoder.in_chans,
        "num_attention_heads": encoder.num_heads,
        "num_hidden_layers": encoder.depth,
        "mlp_ratio": encoder.mlp_ratio,
        "initializer_range": encoder.init_std,
        "pred_zero_init_mask_tokens": True,
    }
    if predictor is None:
        settings |= {"pred_num_hidden_layers": 0}
    else:
        settings |= {
            "pred_hidden_size": predictor.predictor_embed_dim,
            "pred_num_attention_heads": predictor.num_heads,
            "pred_num_hidden_layers": predictor.depth,
            "pred_num_mask_tokens": predictor.num_mask_tokens,
            "pred_mlp_ratio": predictor.mlp_ratio,
        }
    if probe is not None:
        settings["num_pooler_layers"] = probe.depth - 1
    return settings


def _refuse_what_is_lacking(
    encoder: EncoderConfig, predictor: PredictorConfig | None, probe: AttentiveProbeConfig | None, image_size: int
) -> None:
    lacking = []
    for name, config in (("encoder", encoder), ("predictor", predictor)):
        if config is None:
            continue
        lacking += [f"{name} rope_layout {config.rope_layout}"] if config.rope_layout != "tiled" else []
        for field in ("rope_reference", "image_tokenizer", "modality_embeddings", "context_output"):
            lacking += [f"{name} {field}"] if getattr(config, field, None) else []
        lacking += [f"{name} levels {config.levels}"] if config.levels not in ((), 1) else []
    if predictor is not None:
        lacking += [
            f"predictor {name} {getattr(predictor, name)} beside the encoder's {getattr(encoder, name)}"
            for name in ("embed_dim", "patch_size", "tubelet_size")
            if getattr(predictor, name) != getattr(encoder, name)
        ]
        lacking += ["predictor out_embed_dim"] if predictor.out_embed_dim not in (None, predictor.embed_dim) else []
    if probe is not None:
        needed = {
            "embed_dim": encoder.embed_dim,
            "num_heads": encoder.num_heads,
            "mlp_ratio": _POOLER_MLP_RATIO,
            "norm_eps": NORM_EPS,
        }
        lacking += [
            f"probe {name} {getattr(probe, name)} where transformers computes with {value}"
            for name, value in needed.items()
            if getattr(probe, name) != value
        ]
    if image_size < 1 or image_size % encoder.patch_size:
        lacking.append(f"image_size {image_size} px, no multiple of the patch of {encoder.patch_size} px")
    if lacking:
        raise WeightsError(
            "transformers' VJEPA2 cannot hold this model",
            expected="V-JEPA 2.0 parts of one width, with tiled rotary tables and square images",
            found="; ".join(lacking),
            remedy="Use to_official or save_module, or build the part with these settings first: what it computes "
            "would change, so nothing is adjusted here.",
        )


def _is_count(value: Any, name: str) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= (0 if name in _MAY_BE_ZERO else 1)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
