"""The masked predictor: from context tokens to the representation of tokens it never saw (arXiv 2506.09985 section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.encoder import check_grid_divides, check_token_ids, config_grid
from models.errors import ConfigError, ShapeError
from models.layers import (
    Block,
    Checkpointing,
    broadcast_to_heads,
    check_heads,
    config_from_dict,
    group_spans,
    init_weights,
    rescale_residual_outputs,
    run_block,
)
from models.rope import Grid, RopeLayout, TableCache


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Shape of a MaskedPredictor. ``embed_dim`` is the encoder's width; the released predictors hold 10 mask tokens."""

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", tuple(self.img_size))  # JSON brings a list
        check_heads(self.predictor_embed_dim, self.num_heads, "predictor_embed_dim")
        check_grid_divides(self)
        if self.num_mask_tokens < 1:
            raise ConfigError("A predictor needs a mask token", expected="num_mask_tokens >= 1", found="0")

    @property
    def grid(self) -> Grid:
        """Tokens (T, H, W) of an input of the configured size."""
        return config_grid(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PredictorConfig:
        return config_from_dict(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class MaskedPredictor(nn.Module):
    """Narrow ViT over context tokens and mask tokens; attention needs no sorting because positions travel by id."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        width = config.predictor_embed_dim
        self.predictor_embed = nn.Linear(config.embed_dim, width)
        self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, width) for _ in range(config.num_mask_tokens))
        self.predictor_blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, config.embed_dim)
        self._tables = TableCache(width // config.num_heads, config.rope_layout)
        init_weights(self, config.init_std)
        rescale_residual_outputs(self.predictor_blocks)

    def forward(
        self,
        context_tokens: Tensor | Sequence[Tensor],
        context_ids: Tensor | Sequence[Tensor],
        target_ids: Tensor | Sequence[Tensor],
        mask_token: int | Sequence[int] = 0,
        grid: Grid | None = None,
    ) -> Any:
        """Predict the tokens named by target_ids (B, Ky) from context_tokens (B, Kx, D) at context_ids (B, Kx).

        Lists of these hold several mask groups, computed in one pass and never mixed. ``mask_token`` (one for all
        groups or one per group, modulo the number of tokens) is 0 for every group in upstream training: short- and
        long-range masks share it. ``grid`` (T, H, W) in tubelets and patches defaults to the configured input size.
        Returns (B, Ky, D) in the order of target_ids, or a list of these.
        """
        grid = self.config.grid if grid is None else grid
        contexts, contexts_at, targets_at = (_as_list(value) for value in (context_tokens, context_ids, target_ids))
        choices = [mask_token] * len(contexts) if isinstance(mask_token, int) else list(mask_token)
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
        rope = broadcast_to_heads(self._tables.gathered(grid, torch.cat(ids_by_group, dim=1)))
        spans = group_spans([kx + ky for kx, ky in zip(context_sizes, target_sizes, strict=True)])
        for block in self.predictor_blocks:
            tokens = run_block(block, tokens, rope, spans, self.activation_checkpointing)

        pieces = tokens.split([size for pair in zip(context_sizes, target_sizes, strict=True) for size in pair], dim=1)
        predicted = self.predictor_proj(self.predictor_norm(torch.cat(pieces[1::2], dim=1)))
        return predicted if isinstance(context_tokens, Tensor) else list(predicted.split(target_sizes, dim=1))

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
        for context, at, targets in zip(contexts, contexts_at, targets_at, strict=True):
            if context.dim() != 3 or context.shape[-1] != self.config.embed_dim or context.shape[:2] != at.shape:
                raise ShapeError(
                    "Context tokens do not match their ids",
                    expected=f"(B, Kx, {self.config.embed_dim}) with ids (B, Kx)",
                    found=f"{tuple(context.shape)} with ids {tuple(at.shape)}",
                    remedy="Pass the encoder's output for exactly these ids.",
                )
            check_token_ids(at, context.shape[0], total, "context_ids")
            check_token_ids(targets, context.shape[0], total, "target_ids")


def _as_list(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)
