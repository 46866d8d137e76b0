"""The other implementations, built around our weights: transformers' VJEPA2 and a checkout of the official repository."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain_reference import gather_tokens
from models.encoder import VideoEncoder
from models.predictor import MaskedPredictor


class HuggingFace:
    """transformers' VJEPA2Model holding a copy of our weights."""

    def __init__(self, encoder: VideoEncoder, predictor: MaskedPredictor) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        ours, theirs = encoder.config, predictor.config
        config = transformers.VJEPA2Config(
            patch_size=ours.patch_size,
            crop_size=ours.img_size[0],
            frames_per_clip=ours.num_frames,
            tubelet_size=ours.tubelet_size,
            hidden_size=ours.embed_dim,
            num_attention_heads=ours.num_heads,
            num_hidden_layers=ours.depth,
            mlp_ratio=ours.mlp_ratio,
            pred_hidden_size=theirs.predictor_embed_dim,
            pred_num_attention_heads=theirs.num_heads,
            pred_num_hidden_layers=theirs.depth,
            pred_num_mask_tokens=theirs.num_mask_tokens,
            pred_mlp_ratio=theirs.mlp_ratio,
        )
        weights = {
            **_hugging_face_keys(encoder.state_dict(), "encoder.", "blocks."),
            **_hugging_face_keys(predictor.state_dict(), "predictor.", "predictor_blocks."),
        }
        parameter = next(encoder.parameters())
        self.model = transformers.VJEPA2Model(config).to(parameter.device, parameter.dtype).eval()
        self.model.load_state_dict(weights, strict=True)
        self.attention = str(self.model.config._attn_implementation)

    def encode(self, video: Tensor) -> Tensor:
        """All tokens (B, N, D) of video (B, C, T, H, W)."""
        return self.model.encoder(pixel_values_videos=video.transpose(1, 2)).last_hidden_state

    def encode_masked(self, video: Tensor, groups: Sequence[Tensor]) -> list[Tensor]:
        """Context features as in pretraining: dropped tokens are never seen.

        ``VJEPA2Model(context_mask=...)`` is something else: it encodes all tokens and gathers afterwards, so that context
        features know what was masked. Who wants the real thing has to walk through the layers by hand, as here.
        """
        encoder, outputs = self.model.encoder, []
        for ids in groups:
            tokens = gather_tokens(encoder.embeddings(video.transpose(1, 2)), ids)
            for layer in encoder.layer:
                tokens = layer(tokens, ids)[0]
            outputs.append(encoder.layernorm(tokens))
        return outputs

    def predict(self, tokens: Tensor, context_ids: Sequence[Tensor], target_ids: Sequence[Tensor]) -> list[Tensor]:
        """Target tokens of each group from all encoder tokens (B, N, D); mask token 1, transformers' only choice."""
        return [
            self.model.predictor(tokens, [context], [target]).last_hidden_state
            for context, target in zip(context_ids, target_ids, strict=True)
        ]


def _hugging_face_keys(state: dict[str, Tensor], prefix: str, blocks: str) -> dict[str, Tensor]:
    """Our keys under transformers' names: packed qkv rows become query, key and value; mask tokens one stack."""
    renamed = {
        "patch_embed.": "embeddings.patch_embeddings.",
        "norm.": "layernorm.",
        "predictor_embed.": "embeddings.predictor_embeddings.",
        "predictor_norm.": "layernorm.",
        "predictor_proj.": "proj.",
    }
    tensors: dict[str, Tensor] = {}
    mask_tokens = []
    for key, value in state.items():
        if key.startswith("mask_tokens."):
            mask_tokens.append(value)
        elif key.startswith(blocks):
            name = prefix + "layer." + key.removeprefix(blocks).replace(".attn.", ".attention.")
            if ".qkv." in name:
                for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    tensors[name.replace(".qkv.", f".{part}.")] = rows
            else:
                tensors[name] = value
        else:
            start = next(old for old in renamed if key.startswith(old))
            tensors[prefix + renamed[start] + key.removeprefix(start)] = value
    if mask_tokens:
        tensors[prefix + "embeddings.mask_tokens"] = torch.stack(mask_tokens)
    return tensors


@dataclass(frozen=True)
class Official:
    """Modules of a facebookresearch/vjepa2 checkout that lies beside this project; nothing of it is in here."""

    encoder: nn.Module
    predictor: nn.Module

    def encode_masked(self, video: Tensor, groups: Sequence[Tensor]) -> list[Tensor]:
        return [self.encoder(video, masks=ids) for ids in groups]

    def predict(
        self, contexts: Sequence[Tensor], context_ids: Sequence[Tensor], target_ids: Sequence[Tensor], mask_token: int
    ) -> list[Tensor]:
        groups = zip(contexts, context_ids, target_ids, strict=True)
        return [self.predictor(*group, mask_index=mask_token) for group in groups]

    def loss(
        self, target_encoder: nn.Module, video: Tensor, context_ids: Sequence[Tensor], target_ids: Sequence[Tensor]
    ) -> Tensor:
        """The pretraining loss with their networks, put together as their trainer does."""
        with torch.no_grad():
            targets = target_encoder(video)
            targets = F.layer_norm(targets, (targets.shape[-1],))
        contexts = self.encode_masked(video, context_ids)
        predictions = self.predict(contexts, context_ids, target_ids, mask_token=0)
        pairs = zip(predictions, (gather_tokens(targets, ids) for ids in target_ids), strict=True)
        return torch.stack([(predicted - wanted).abs().mean() for predicted, wanted in pairs]).mean()


def import_official(checkout: Path) -> types.ModuleType:
    """Put the checkout on the import path; timm, of which it uses one function that does nothing here, may be absent."""
    if not (checkout / "src" / "models" / "vision_transformer.py").is_file():
        raise SystemExit(f"{checkout} is no checkout of facebookresearch/vjepa2: src/models/vision_transformer.py missing.")
    warnings.filterwarnings("ignore", message=".*sdp_kernel.*")
    if "timm" not in sys.modules and importlib.util.find_spec("timm") is None:
        stub = types.ModuleType("timm.models.layers")
        stub.drop_path = _no_drop_path  # type: ignore[attr-defined]
        sys.modules |= {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models")}
        sys.modules["timm.models.layers"] = stub
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    return importlib.import_module("src.models")


def _no_drop_path(tokens: Tensor, probability: float = 0.0, training: bool = False) -> Tensor:
    if probability and training:
        raise RuntimeError("timm is not installed, and drop path was asked for.")
    return tokens


def official_encoder(checkout: Path, encoder: VideoEncoder) -> nn.Module:
    """Their encoder with our weights."""
    import_official(checkout)
    module = importlib.import_module("src.models.vision_transformer")
    config = encoder.config
    theirs = module.VisionTransformer(
        img_size=config.img_size, patch_size=config.patch_size, num_frames=config.num_frames,
        tubelet_size=config.tubelet_size, embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio, norm_layer=_LAYER_NORM, use_rope=True, use_sdpa=True,
    )  # fmt: skip
    return _loaded(theirs, encoder)


def official_predictor(checkout: Path, predictor: MaskedPredictor) -> nn.Module:
    """Their predictor with our weights."""
    import_official(checkout)
    module = importlib.import_module("src.models.predictor")
    config = predictor.config
    theirs = module.VisionTransformerPredictor(
        img_size=config.img_size, patch_size=config.patch_size, num_frames=config.num_frames,
        tubelet_size=config.tubelet_size, embed_dim=config.embed_dim, predictor_embed_dim=config.predictor_embed_dim,
        depth=config.depth, num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, norm_layer=_LAYER_NORM,
        use_rope=True, use_mask_tokens=True, num_mask_tokens=config.num_mask_tokens,
    )  # fmt: skip
    return _loaded(theirs, predictor)


_LAYER_NORM: Any = partial(nn.LayerNorm, eps=1e-6)


def _loaded(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    parameter = next(ours.parameters())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs.to(parameter.device, parameter.dtype)
