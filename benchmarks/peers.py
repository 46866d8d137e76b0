"""The other implementations, built around our weights: transformers' VJEPA2 and a checkout of the official repository."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
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
from models.action_predictor import ActionConditionedPredictor
from models.encoder import VideoEncoder
from models.predictor import MaskedPredictor
from models.weights import VJEPA2, to_huggingface


class HuggingFace:
    """transformers' VJEPA2Model, opened from a folder that we export."""

    def __init__(self, encoder: VideoEncoder, predictor: MaskedPredictor) -> None:
        import transformers

        level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            to_huggingface(VJEPA2(encoder, predictor), folder, image_size=encoder.config.img_size[0])
            self.model = transformers.VJEPA2Model.from_pretrained(folder).eval()
        transformers.logging.set_verbosity(level)
        self.model.to(next(encoder.parameters()).device)

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
        raise SystemExit(
            f"{checkout} is no checkout of facebookresearch/vjepa2: src/models/vision_transformer.py missing."
        )
    warnings.filterwarnings("ignore", message=".*sdp_kernel.*")
    stand_in("timm.models.layers", drop_path=_no_drop_path)
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    return importlib.import_module("src.models")


def stand_in(name: str, **content: Any) -> None:
    """Where the package of module `name` is not installed, let a module with nothing but `content` be imported in its place."""
    package = name.partition(".")[0]
    known = sys.modules.get(package)
    if getattr(known, "__spec__", None) or (known is None and importlib.util.find_spec(package) is not None):
        return
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        path = ".".join(parts[:length])
        module = sys.modules.setdefault(path, types.ModuleType(path))
        module.__path__ = []  # what makes it a package to the import statement
        if length > 1:
            setattr(sys.modules[".".join(parts[: length - 1])], parts[length - 1], module)
    vars(sys.modules[name]).update(content)


def _no_drop_path(tokens: Tensor, probability: float = 0.0, training: bool = False) -> Tensor:
    if probability and training:
        raise RuntimeError("timm is not installed, and drop path was asked for.")
    return tokens


def official_encoder(checkout: Path, encoder: VideoEncoder, checkpointing: bool = False) -> nn.Module:
    """Their encoder with our weights; `checkpointing`: its blocks keep nothing but their inputs for the backward pass."""
    import_official(checkout)
    module = importlib.import_module("src.models.vision_transformer")
    config = encoder.config
    theirs = module.VisionTransformer(
        img_size=config.img_size, patch_size=config.patch_size, num_frames=config.num_frames,
        tubelet_size=config.tubelet_size, embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio, norm_layer=_LAYER_NORM, use_rope=True, use_sdpa=True,
        use_activation_checkpointing=checkpointing,
    )  # fmt: skip
    return _loaded(theirs, encoder)


def official_predictor(checkout: Path, predictor: MaskedPredictor, checkpointing: bool = False) -> nn.Module:
    """Their predictor with our weights."""
    import_official(checkout)
    module = importlib.import_module("src.models.predictor")
    config = predictor.config
    theirs = module.VisionTransformerPredictor(
        img_size=config.img_size, patch_size=config.patch_size, num_frames=config.num_frames,
        tubelet_size=config.tubelet_size, embed_dim=config.embed_dim, predictor_embed_dim=config.predictor_embed_dim,
        depth=config.depth, num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, norm_layer=_LAYER_NORM,
        use_rope=True, use_mask_tokens=True, num_mask_tokens=config.num_mask_tokens,
        use_activation_checkpointing=checkpointing,
    )  # fmt: skip
    return _loaded(theirs, predictor)


def official_action_predictor(checkout: Path, predictor: ActionConditionedPredictor, frames: int) -> nn.Module:
    """Their action-conditioned predictor with our weights; `frames` sizes the causal mask that it builds beforehand."""
    import_official(checkout)
    module = importlib.import_module("src.models.ac_predictor")
    config = predictor.config
    theirs = module.VisionTransformerPredictorAC(
        img_size=config.img_size, patch_size=config.patch_size, num_frames=frames * config.tubelet_size,
        tubelet_size=config.tubelet_size, embed_dim=config.embed_dim, predictor_embed_dim=config.predictor_embed_dim,
        depth=config.depth, num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, norm_layer=_LAYER_NORM,
        use_extrinsics=config.use_extrinsics,
    )  # fmt: skip
    return _loaded(theirs, predictor)


_LAYER_NORM: Any = partial(nn.LayerNorm, eps=1e-6)


def _loaded(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    parameter = next(ours.parameters())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs.to(parameter.device, parameter.dtype)
