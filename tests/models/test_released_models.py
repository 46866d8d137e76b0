"""Every released file against its published counts, on the meta device: no weights, all names and shapes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from models.errors import WeightsError
from models.official import KINDS
from models.weights import RELEASED, ReleasedPart, from_official, infer_config

PARTS = {f"{name}/{part}": entry for name, model in RELEASED.items() for part, entry in model.parts.items()}

# Parameters in millions and tensors, measured on the official modules.
PUBLISHED: dict[str, tuple[float, int | None]] = {
    "vitl/encoder": (303.885, 292),
    "vith/encoder": (631.648, None),
    "vitg/encoder": (1012.174, None),
    "vitg-384/target_encoder": (1012.174, None),
    "vitl/predictor": (22.1, 160),
    "vjepa2-ac-vitg/predictor": (305.2, None),
    "ssv2-vitl-16x2x3/classifiers.0": (49.5, None),
    "ssv2-vitg-384-64x2x3/classifiers.0": (93.5, None),
    "vjepa2_1_vitb_dist_vitG_384/ema_encoder": (86.833, 158),
    "vjepa2_1_vitl_dist_vitG_384/ema_encoder": (304.681, 302),
    "vjepa2_1_vitg_384/target_encoder": (1013.268, 494),
    "vjepa2_1_vitG_384/target_encoder": (1845.217, 590),
    "vjepa2_1_vitl_dist_vitG_384/predictor": (22.973, 162),
    "vjepa2_1_vitG_384/predictor": (59.433, 308),
}


def state_of(part: ReleasedPart) -> dict[str, torch.Tensor]:
    module_class = next(module for module, config in KINDS[part.kind] if isinstance(part.config, config))
    with torch.device("meta"):
        return module_class(part.config).state_dict()


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    return {name: state_of(part) for name, part in PARTS.items()}


@pytest.mark.parametrize("name", PARTS)
def test_released_part_has_its_tensors_and_parameters(name: str, states: dict[str, Any]) -> None:
    assert (len(states[name]), sum(value.numel() for value in states[name].values())) == (
        PARTS[name].tensors,
        PARTS[name].parameters,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    millions, tensors = PUBLISHED[name]
    digits = len(str(millions).partition(".")[2])
    assert round(PARTS[name].parameters / 1e6, digits) == millions
    assert tensors in (None, PARTS[name].tensors)


def test_every_published_file_is_there_with_its_clips() -> None:
    assert {name: (model.frames, model.img_size) for name, model in RELEASED.items()} == {
        "vitl": (64, 256),
        "vith": (64, 256),
        "vitg": (64, 256),
        "vitg-384": (64, 384),
        "vjepa2-ac-vitg": (64, 256),
        "vjepa2_1_vitb_dist_vitG_384": (64, 384),
        "vjepa2_1_vitl_dist_vitG_384": (64, 384),
        "vjepa2_1_vitg_384": (64, 384),
        "vjepa2_1_vitG_384": (64, 384),
        "ssv2-vitl-16x2x3": (16, 256),
        "ssv2-vitg-384-64x2x3": (64, 384),
        "diving48-vitl-256": (32, 256),
        "diving48-vitg-384-32x4x3": (32, 384),
        "ek100-vitl-256": (32, 256),
        "ek100-vitg-384": (32, 384),
    }
    assert all(model.url.endswith(f"/{name}.pt") for name, model in RELEASED.items())
    assert all(model.encoder is None or model.encoder in RELEASED for model in RELEASED.values())


def expected_keys(part: ReleasedPart) -> set[str]:
    """Official keys written out from the layout of facebookresearch/vjepa2, not from our modules."""
    config, both = part.config, ("weight", "bias")
    inner = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

    def stems(*names: str) -> set[str]:
        return {f"{name}.{leaf}" for name in names for leaf in both}

    def blocks(root: str, depth: int) -> set[str]:
        return stems(*(f"{root}.{index}.{name}" for index in range(depth) for name in inner))

    if part.kind == "encoder":
        keys = stems("patch_embed.proj") | blocks("blocks", config.depth)
        if not config.levels:
            return keys | stems("norm")
        keys |= stems("patch_embed_img.proj", *(f"norms_block.{level}" for level in range(4)))
        return keys | {"img_mod_embed", "video_mod_embed"}
    if part.kind == "probe":
        cross = (f"pooler.cross_attention_block.{name}" for name in ("norm1", "norm2", "xattn.q", "xattn.kv"))
        keys = blocks("pooler.blocks", 3) | stems(*cross) | {"pooler.query_tokens"}
        keys |= stems(*(f"pooler.cross_attention_block.mlp.{name}" for name in ("fc1", "fc2")))
        tasks = ("verb", "noun", "action")
        return keys | (
            stems("linear") if hasattr(config, "num_classes") else stems(*(f"{t}_classifier" for t in tasks))
        )
    keys = blocks("predictor_blocks", config.depth) | stems("predictor_norm", "predictor_proj")
    if part.kind == "action_predictor":
        return keys | stems("predictor_embed", "action_encoder", "state_encoder", "extrinsics_encoder")
    keys |= {f"mask_tokens.{index}" for index in range(config.num_mask_tokens)}
    if not config.modality_embeddings:
        return keys | stems("predictor_embed")
    keys |= {"img_mod_embed", "video_mod_embed"} | stems("predictor_proj_context")
    return keys | (stems("predictor_embed") if config.levels == 1 else stems("predictor_embed.0", "predictor_embed.2"))


@pytest.mark.parametrize("name", PARTS)
def test_keys_are_the_official_ones(name: str, states: dict[str, Any]) -> None:
    assert set(states[name]) == expected_keys(PARTS[name])


@pytest.mark.parametrize("name", PARTS)
def test_config_of_a_released_part_is_told_by_its_shapes(name: str, states: dict[str, Any]) -> None:
    part = PARTS[name]
    given = {"img_size": (384, 384)} if name.startswith("vitg-384") else {}
    wrapped = {f"module.backbone.{key}": value for key, value in states[name].items()}
    assert infer_config(part.kind, wrapped, **given) == part.config


def test_weights_of_another_release_are_refused_by_the_fields_that_differ(states: dict[str, Any]) -> None:
    with pytest.raises(WeightsError) as caught:
        from_official("encoder", dict.fromkeys(states["vith/encoder"], torch.zeros(1)), PARTS["vitl/encoder"].config)
    assert re.search(
        r"depth: the config says 24, the weights 32; unexpected: blocks\.24.* and 88 more", str(caught.value)
    )
