"""The released checkpoints, part by part: where they are, how they are built, how many tensors and parameters they hold.

Names are those of the files of facebookresearch/vjepa2 without ``.pt``. Sources: its README, src/hub/backbones.py and
configs/; arXiv 2506.09985 and 2603.14482. Counts were taken from modules built from these configs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.action_predictor import ActionPredictorConfig
from models.encoder import ENCODER_SIZES, EncoderConfig, encoder_2_1
from models.predictor import PredictorConfig, predictor_2_1
from models.probes import AnticipationProbeConfig, AttentiveProbeConfig

_BASE_URL = "https://dl.fbaipublicfiles.com/vjepa2"


@dataclass(frozen=True, kw_only=True)
class ReleasedPart:
    """One set of weights in a released file. ``kind`` as in from_official; counts without unused position tables."""

    kind: str
    config: Any
    tensors: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """One released file: ``parts`` by their key in it, frames and pixels of its clips.

    ``hub_part`` is the encoder that upstream's PyTorch Hub loads; its evaluations load ``target_encoder`` instead. For a
    probe: ``encoder`` names the released encoder that it reads, ``layers`` the 0-based blocks (none: the last one).
    """

    url: str
    version: str
    frames: int
    img_size: int
    parts: dict[str, ReleasedPart]
    hub_part: str | None = None
    encoder: str | None = None
    layers: tuple[int, ...] = ()


# (tensors, parameters) of encoder and masked predictor, by size.
_COUNTS_2_0 = {
    "vit_large": ((292, 303_885_312), (160, 22_086_016)),
    "vit_huge": ((388, 631_648_000), (160, 22_282_880)),
    "vit_giant": ((484, 1_012_173_952), (160, 22_381_312)),
}
_COUNTS_2_1 = {
    "vit_base": ((158, 86_833_152), (162, 22_874_752)),
    "vit_large": ((302, 304_680_960), (162, 22_973_056)),
    "vit_giant": ((494, 1_013_267_968), (308, 55_400_704)),
    "vit_gigantic": ((590, 1_845_216_768), (308, 59_433_472)),
}


def _part(kind: str, config: Any, counts: tuple[int, int]) -> ReleasedPart:
    return ReleasedPart(kind=kind, config=config, tensors=counts[0], parameters=counts[1])


def _encoder(size: str, img_size: int) -> ReleasedPart:
    config = EncoderConfig(**ENCODER_SIZES[size], img_size=(img_size, img_size), num_frames=64)
    return _part("encoder", config, _COUNTS_2_0[size][0])


def _video_model(file: str, size: str, img_size: int) -> ReleasedModel:
    encoder = _encoder(size, img_size)
    predictor = PredictorConfig(
        embed_dim=encoder.config.embed_dim,
        depth=12,
        num_heads=12,
        num_mask_tokens=10,
        img_size=(img_size, img_size),
        num_frames=64,
    )
    return ReleasedModel(
        url=f"{_BASE_URL}/{file}.pt",
        version="2.0",
        frames=64,
        img_size=img_size,
        parts={
            "encoder": encoder,
            "target_encoder": encoder,
            "predictor": _part("predictor", predictor, _COUNTS_2_0[size][1]),
        },
        hub_part="encoder",
    )


def _action_model() -> ReleasedModel:
    encoder = _encoder("vit_giant", 256)
    predictor = ActionPredictorConfig(embed_dim=1408, depth=24, num_heads=16, img_size=(256, 256), num_frames=64)
    return ReleasedModel(
        url=f"{_BASE_URL}/vjepa2-ac-vitg.pt",
        version="2-AC",
        frames=64,
        img_size=256,
        parts={"encoder": encoder, "predictor": _part("action_predictor", predictor, (300, 305_220_992))},
        hub_part="encoder",
    )


def _video_model_2_1(file: str, size: str) -> ReleasedModel:
    encoder_counts, predictor_counts = _COUNTS_2_1[size]
    # The distilled students are published as their moving average alone.
    part = "ema_encoder" if size in ("vit_base", "vit_large") else "target_encoder"
    return ReleasedModel(
        url=f"{_BASE_URL}/{file}.pt",
        version="2.1",
        frames=64,
        img_size=384,
        parts={
            part: _part("encoder", encoder_2_1(size), encoder_counts),
            "predictor": _part("predictor", predictor_2_1(size), predictor_counts),
        },
        hub_part=part,
    )


def _probe(file: str, encoder: str, frames: int, classes: int | None, layers: tuple[int, ...] = ()) -> ReleasedModel:
    size, img_size = ("vit_large", 256) if encoder == "vitl" else ("vit_giant", 384)
    width = ENCODER_SIZES[size]["embed_dim"]
    if classes is None:
        # The paper counts 300 nouns; upstream's head has as many as its training annotations name, so trust the file.
        config: Any = AnticipationProbeConfig(embed_dim=width, verbs=97, nouns=300, actions=3568)
        outputs = config.verbs + config.nouns + config.actions
        tensors, queries = 55, 3
    else:
        config = AttentiveProbeConfig(embed_dim=width, num_classes=classes)
        tensors, queries, outputs = 51, 1, classes
    # 3 self-attention blocks of 12 D^2, the cross-attention block of 11 D^2 without output projection, linears.
    parameters = 47 * width**2 + (13 * 3 + 12 + queries) * width + outputs * (width + 1)
    return ReleasedModel(
        url=f"{_BASE_URL}/evals/{file}.pt",
        version="2.0",
        frames=frames,
        img_size=img_size,
        parts={"classifiers.0": _part("probe", config, (tensors, parameters))},
        encoder=encoder,
        layers=layers,
    )


RELEASED: dict[str, ReleasedModel] = {
    "vitl": _video_model("vitl", "vit_large", 256),
    "vith": _video_model("vith", "vit_huge", 256),
    "vitg": _video_model("vitg", "vit_giant", 256),
    "vitg-384": _video_model("vitg-384", "vit_giant", 384),
    "vjepa2-ac-vitg": _action_model(),
    "vjepa2_1_vitb_dist_vitG_384": _video_model_2_1("vjepa2_1_vitb_dist_vitG_384", "vit_base"),
    "vjepa2_1_vitl_dist_vitG_384": _video_model_2_1("vjepa2_1_vitl_dist_vitG_384", "vit_large"),
    "vjepa2_1_vitg_384": _video_model_2_1("vjepa2_1_vitg_384", "vit_giant"),
    "vjepa2_1_vitG_384": _video_model_2_1("vjepa2_1_vitG_384", "vit_gigantic"),
    "ssv2-vitl-16x2x3": _probe("ssv2-vitl-16x2x3", "vitl", 16, 174),
    "ssv2-vitg-384-64x2x3": _probe("ssv2-vitg-384-64x2x3", "vitg-384", 64, 174),
    "diving48-vitl-256": _probe("diving48-vitl-256", "vitl", 32, 48, (17, 19, 21, 23)),
    "diving48-vitg-384-32x4x3": _probe("diving48-vitg-384-32x4x3", "vitg-384", 32, 48, (24, 29, 34, 39)),
    "ek100-vitl-256": _probe("ek100-vitl-256", "vitl", 32, None),
    "ek100-vitg-384": _probe("ek100-vitg-384", "vitg-384", 32, None),
}
"""Every released file by its name without ``.pt``."""
