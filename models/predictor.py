"""The masked predictor: from context tokens to the representation of tokens it never saw.

Sources: arXiv 2506.09985 section 2; for 2.1 arXiv 2603.14482 and app/vjepa_2_1 of facebookresearch/vjepa2.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.encoder import ENCODER_SIZES, check_grid_divides, check_token_ids, config_grid, settle_sizes
from models.errors import ConfigError, ShapeError
from models.layers import (
    Block,
    Checkpointing,
    broadcast_to_heads,
    check_heads,
    check_readable,
    check_tensors,
    config_from_dict,
    group_spans,
    init_weights,
    rescale_residual_outputs,
    run_block,
)
from models.linear import TokenLinear
from models.rope import Grid, RopeLayout, TableCache, as_grid, check_rope
from models.tokenizers import modality_embeddings

MaskTokenPolicy = Literal["shared", "per_strategy"]
Modality = Literal["video", "image"]


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Shape of a MaskedPredictor. ``embed_dim`` is the encoder's width; released predictors hold 10 (2.1: 8) mask tokens.

    ``mask_token_policy``: "shared" is what the paper's training does in effect, every mask group with one token;
    "per_strategy" gives group i the i-th, so that short- and long-range masks learn their own.
    The other fields after it are V-JEPA 2.1's, off by default; ``predictor_2_1`` sets them as released.
    ``rope_reference`` as in EncoderConfig. ``modality_embeddings``: one vector for images and one for videos, added to
    all tokens. ``levels``: how many levels of the encoder come in side by side, through a two-layer embedding, and go
    out. ``out_embed_dim``: width of one predicted level, None for embed_dim (distilled students predict their teacher's
    1664). ``context_output``: the context tokens are predicted too, through ``predictor_proj_context``.
    """

    embed_dim: int
    depth: int
    num_heads: int
    predictor_embed_dim: int = 384
    mlp_ratio: float = 4.0
    num_mask_tokens: int = 2
    img_size: tuple[int, int] = (256, 256)
    num_frames: int = 16
    tubelet_size: int = 2
    patch_size: int = 16
    rope_layout: RopeLayout = "tiled"
    init_std: float = 0.02
    mask_token_policy: MaskTokenPolicy = "shared"
    rope_reference: int | None = None
    modality_embeddings: bool = False
    levels: int = 1
    out_embed_dim: int | None = None
    context_output: bool = False

    def __post_init__(self) -> None:
        settle_sizes(self)
        check_heads(self.predictor_embed_dim, self.num_heads, "predictor_embed_dim")
        check_grid_divides(self)
        check_rope(self.rope_layout, self.rope_reference)
        if self.levels < 1 or (self.out_embed_dim is not None and self.out_embed_dim < 1):
            raise ConfigError(
                "A predictor needs something to predict",
                expected="levels and out_embed_dim of at least 1",
                found=f"levels {self.levels}, out_embed_dim {self.out_embed_dim}",
                remedy="Use levels=1 for a 2.0 encoder; out_embed_dim=None is the encoder's width.",
            )
        if self.mask_token_policy not in ("shared", "per_strategy"):
            raise ConfigError(
                "Unknown mask token policy",
                expected="shared or per_strategy",
                found=str(self.mask_token_policy),
                remedy="Use shared for what released weights were trained with.",
            )

    @property
    def grid(self) -> Grid:
        """Tokens (T, H, W) of an input of the configured size."""
        return config_grid(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PredictorConfig:
        return config_from_dict(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def predictor_2_1(size: str, img_size: tuple[int, int] = (384, 384), num_frames: int = 64) -> PredictorConfig:
    """Predictor released beside ``encoder_2_1(size)``.

    vit_base and vit_large are distilled from vit_gigantic: 12 blocks that predict the teacher's last level. vit_giant
    and vit_gigantic: 24 blocks, four levels in and out. Upstream's hub builds them without the reference grid they were
    trained with, which misplaces tokens at 384 px; here they have it.
    """
    if size not in ("vit_base", "vit_large", "vit_giant", "vit_gigantic"):
        raise ConfigError(
            "No V-JEPA 2.1 predictor of this size was released",
            expected="vit_base, vit_large, vit_giant, vit_gigantic",
            found=size,
            remedy="Name one of these sizes, or write a PredictorConfig.",
        )
    distilled = size in ("vit_base", "vit_large")
    return PredictorConfig(
        embed_dim=ENCODER_SIZES[size]["embed_dim"],
        depth=12 if distilled else 24,
        num_heads=12,
        num_mask_tokens=8,
        img_size=img_size,
        num_frames=num_frames,
        rope_layout="interleaved",
        rope_reference=16,
        modality_embeddings=True,
        levels=1 if distilled else 4,
        out_embed_dim=ENCODER_SIZES["vit_gigantic"]["embed_dim"] if distilled else None,
        context_output=True,
    )


class MaskedPredictor(nn.Module):
    """Narrow ViT over context tokens and mask tokens; attention needs no sorting because positions travel by id."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        width = config.predictor_embed_dim
        self.predictor_embed: nn.Module = TokenLinear(config.embed_dim, width)
        if config.levels > 1:
            self.predictor_embed = nn.Sequential(
                TokenLinear(config.levels * config.embed_dim, config.embed_dim),
                nn.GELU(),
                TokenLinear(config.embed_dim, width),
            )
        self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, width) for _ in range(config.num_mask_tokens))
        self.predictor_blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        outputs = config.levels * (config.out_embed_dim or config.embed_dim)
        self.predictor_proj = TokenLinear(width, outputs)
        if config.context_output:
            self.predictor_proj_context = TokenLinear(width, outputs)
        if config.modality_embeddings:
            self.img_mod_embed, self.video_mod_embed = modality_embeddings(width)
        self._tables = TableCache(width // config.num_heads, config.rope_layout, config.rope_reference)
        init_weights(self, config.init_std)
        rescale_residual_outputs(self.predictor_blocks)

    def forward(
        self,
        context_tokens: Tensor | Sequence[Tensor],
        context_ids: Tensor | Sequence[Tensor],
        target_ids: Tensor | Sequence[Tensor],
        mask_token: int | Sequence[int] = 0,
        grid: Grid | None = None,
        modality: Modality = "video",
    ) -> Any:
        """Predict the tokens named by target_ids (B, Ky) from context_tokens (B, Kx, levels * D) at context_ids (B, Kx).

        Lists of these hold several mask groups, computed in one pass and never mixed. ``mask_token``, modulo the number
        of tokens: one for all groups, or with the policy "per_strategy" that of the first group, the next group having
        the next; a list, one per group, wins over the policy. Upstream training uses 0 for every group: short- and
        long-range masks share it. ``grid`` (T, H, W) in tubelets and patches, (1, H, W) for images, defaults to the
        configured input size. ``modality`` picks the modality embedding of a predictor that has them.

        Returns (B, Ky, levels * out_embed_dim) in the order of target_ids, or a list of these. With
        ``config.context_output`` a pair of that: predictions of the targets and, in the order of context_ids, of the
        context.
        Raises ShapeError on groups, ids, widths and dtypes that do not fit.
        """
        grid = self.config.grid if grid is None else as_grid(grid)
        contexts, contexts_at, targets_at = (_as_list(value) for value in (context_tokens, context_ids, target_ids))
        if modality not in ("video", "image"):
            raise ShapeError("Unknown modality", expected="video or image", found=str(modality))
        choices = self.mask_choices(mask_token, len(contexts))
        self._check(contexts, contexts_at, targets_at, choices, grid)

        context_sizes = [context.shape[1] for context in contexts]
        target_sizes = [ids.shape[1] for ids in targets_at]
        batch = contexts[0].shape[0]
        embedded = self.predictor_embed(torch.cat(contexts, dim=1)).split(context_sizes, dim=1)
        tokens_by_group, ids_by_group = [], []
        for context, at, targets, choice in zip(embedded, contexts_at, targets_at, choices, strict=True):
            mask = self.mask_tokens[choice % len(self.mask_tokens)].to(context.dtype)
            tokens_by_group += [context, mask.expand(batch, targets.shape[1], -1)]
            ids_by_group += [at, targets]
        tokens = torch.cat(tokens_by_group, dim=1)  # (B, ctx0 | tgt0 | ctx1 | tgt1 ..., P)
        if self.config.modality_embeddings:
            tokens = tokens + (self.img_mod_embed if modality == "image" else self.video_mod_embed).to(tokens.dtype)
        rope = broadcast_to_heads(self._tables.gathered(grid, torch.cat(ids_by_group, dim=1)))
        spans = group_spans([kx + ky for kx, ky in zip(context_sizes, target_sizes, strict=True)])
        for block in self.predictor_blocks:
            tokens = run_block(block, tokens, rope, spans, self.activation_checkpointing)

        pieces = tokens.split([size for pair in zip(context_sizes, target_sizes, strict=True) for size in pair], dim=1)

        def read_out(head: nn.Module, part: Sequence[Tensor], sizes: list[int]) -> Any:
            outputs = head(self.predictor_norm(torch.cat(list(part), dim=1)))
            return outputs if isinstance(context_tokens, Tensor) else list(outputs.split(sizes, dim=1))

        predicted = read_out(self.predictor_proj, pieces[1::2], target_sizes)
        if not self.config.context_output:
            return predicted
        return predicted, read_out(self.predictor_proj_context, pieces[0::2], context_sizes)

    def mask_choices(self, mask_token: int | Sequence[int], groups: int) -> list[int]:
        """Which mask token each of so many groups gets, before the modulo; see forward."""
        try:
            if isinstance(mask_token, Sequence):
                return [operator.index(token) for token in mask_token]
            first = operator.index(mask_token)
        except TypeError as error:
            raise ShapeError(
                "mask_token does not name a mask token",
                expected="an int, or one for each mask group",
                found=repr(mask_token),
                remedy="Use 0 for what upstream trains.",
            ) from error
        return [first + group * (self.config.mask_token_policy == "per_strategy") for group in range(groups)]

    def _check(
        self,
        contexts: list[Tensor],
        contexts_at: list[Tensor],
        targets_at: list[Tensor],
        choices: list[int],
        grid: Grid,
    ) -> None:
        if not contexts or not len(contexts) == len(contexts_at) == len(targets_at) == len(choices):
            raise ShapeError(
                "The mask groups do not match",
                expected="as many context_tokens as context_ids, target_ids and mask tokens, at least one",
                found=f"{len(contexts)}, {len(contexts_at)}, {len(targets_at)}, {len(choices)}",
                remedy="Pass lists of equal length.",
            )
        total = grid[0] * grid[1] * grid[2]
        width = self.config.levels * self.config.embed_dim
        for context, at, targets in zip(contexts, contexts_at, targets_at, strict=True):
            check_tensors(context_tokens=context, context_ids=at, target_ids=targets)
            if context.dim() != 3 or context.shape[-1] != width or context.shape[:2] != at.shape:
                raise ShapeError(
                    "Context tokens do not match their ids",
                    expected=f"(B, Kx, {width}) with ids (B, Kx)",
                    found=f"{tuple(context.shape)} with ids {tuple(at.shape)}",
                    remedy="Pass the encoder's output for exactly these ids"
                    + (", encoded with all_levels=True." if self.config.levels > 1 else "."),
                )
            check_readable("context_tokens", context, self.predictor_norm.weight)
            check_token_ids(at, contexts[0].shape[0], total, "context_ids")
            check_token_ids(targets, contexts[0].shape[0], total, "target_ids")


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
