"""Probes on frozen features: the paper's attentive probe (upstream layout) and a linear probe."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ConfigError, ShapeError
from models.layers import Block, Mlp, attend, config_from_dict, init_weights

_NORM_EPS = 1e-5  # upstream builds its pooler with torch's default, unlike encoder and predictor (1e-6)


@dataclass(frozen=True, kw_only=True)
class AttentiveProbeConfig:
    """``depth`` counts the cross-attention block: depth 4 is 3 self-attention blocks and 1 cross-attention block."""

    embed_dim: int
    num_classes: int
    num_heads: int = 16
    depth: int = 4
    mlp_ratio: float = 4.0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.depth < 1 or self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise ConfigError(
                "This attentive probe cannot be built",
                expected="depth >= 1 and embed_dim a multiple of num_heads",
                found=f"depth {self.depth}, embed_dim {self.embed_dim}, num_heads {self.num_heads}",
                remedy="Choose num_heads that divides embed_dim.",
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AttentiveProbeConfig:
        return config_from_dict(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class CrossAttention(nn.Module):
    """Queries attend to tokens; upstream has no output projection here."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        query = self.q(queries).unflatten(-1, (self.num_heads, -1))
        key, value = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return attend(query, key, value, None)


class CrossAttentionBlock(nn.Module):
    """``q += xattn(q, norm1(tokens)); q += mlp(norm2(q))`` - the queries themselves are not normed before attention."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.xattn = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = queries + self.xattn(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))


class AttentivePooler(nn.Module):
    """Self-attention blocks without positions, then one learned query that reads all tokens: (B, N, D) -> (B, 1, D)."""

    def __init__(self, config: AttentiveProbeConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.query_tokens = nn.Parameter(torch.empty(1, 1, dim))
        self.cross_attention_block = CrossAttentionBlock(dim, config.num_heads, config.mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, norm_eps=_NORM_EPS) for _ in range(config.depth - 1)
        )
        init_weights(self, config.init_std)
        nn.init.trunc_normal_(self.query_tokens, std=config.init_std)
        with torch.no_grad():
            self.cross_attention_block.mlp.fc2.weight.div_(math.sqrt(2.0))
            for position, block in enumerate(self.blocks, start=2):
                assert isinstance(block, Block)
                block.attn.proj.weight.div_(math.sqrt(2.0 * position))
                block.mlp.fc2.weight.div_(math.sqrt(2.0 * position))

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.cross_attention_block(self.query_tokens.expand(tokens.shape[0], -1, -1), tokens)


class AttentiveProbe(nn.Module):
    """Attentive pooler and a linear: tokens (B, N, D) of a frozen encoder -> logits (B, num_classes).

    Source: arXiv 2506.09985 appendix on probe evaluation; keys are those of the released probes.
    """

    def __init__(self, config: AttentiveProbeConfig) -> None:
        super().__init__()
        self.config = config
        self.pooler = AttentivePooler(config)
        self.linear = nn.Linear(config.embed_dim, config.num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Raises ShapeError unless tokens are (B, N, embed_dim)."""
        _check_features(tokens, self.config.embed_dim, dims=(3,))
        return self.linear(self.pooler(tokens).squeeze(1))


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig:
    """One linear from ``embed_dim`` features to ``num_classes`` outputs (classes or regressed numbers)."""

    embed_dim: int
    num_classes: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LinearProbeConfig:
        return config_from_dict(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class LinearProbe(nn.Module):
    """Linear read-out of pooled features (B, D), or of tokens (B, N, D) averaged over N; returns (B, num_classes)."""

    def __init__(self, config: LinearProbeConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.embed_dim, config.num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Raises ShapeError unless the last axis is embed_dim."""
        _check_features(features, self.config.embed_dim, dims=(2, 3))
        return self.linear(features.mean(dim=1) if features.dim() == 3 else features)


def _check_features(features: Tensor, embed_dim: int, dims: tuple[int, ...]) -> None:
    if features.dim() not in dims or features.shape[-1] != embed_dim:
        raise ShapeError(
            "The probe cannot read these features",
            expected=" or ".join("(B, N, D)" if count == 3 else "(B, D)" for count in dims) + f" with D = {embed_dim}",
            found=str(tuple(features.shape)),
            remedy="Pass features of the encoder this probe was built for.",
        )
