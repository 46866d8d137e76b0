"""Probes on frozen features: the paper's attentive probe, its action-anticipation probe, and a linear probe.

Tokens of several layers (Diving48 and Jester read four), or of several segments of one video, are concatenated along N
by the caller: the attentive probes have no positions, so they read any number of tokens in any order.
Parameter names are those of the released probes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ConfigError, ShapeError
from models.layers import (
    Block,
    Checkpointing,
    Mlp,
    attend,
    check_readable,
    check_tensors,
    config_from_dict,
    init_weights,
    rescale_residual_outputs,
    run_block,
)


@dataclass(frozen=True, kw_only=True)
class AttentiveProbeConfig:
    """``depth`` counts the cross-attention block: depth 4 is 3 self-attention blocks and 1 cross-attention block.

    norm_eps: upstream builds its poolers with torch's default, 1e-5, unlike encoder and predictors (1e-6).
    num_classes: ImageNet's, upstream's default.
    """

    embed_dim: int
    num_classes: int = 1000
    num_heads: int = 16
    depth: int = 4
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        _check_pooler(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AttentiveProbeConfig:
        return config_from_dict(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class AnticipationProbeConfig:
    """Classes of an AnticipationProbe, those of EPIC-KITCHENS-100 by default; with 0 verbs and 0 nouns it has one query and names actions only.

    ``depth`` and ``norm_eps`` as in AttentiveProbeConfig.
    """

    embed_dim: int
    verbs: int = 97
    nouns: int = 300
    actions: int = 3568
    num_heads: int = 16
    depth: int = 4
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        _check_pooler(self)
        if self.actions < 1 or min(self.verbs, self.nouns) < 0 or (self.verbs == 0) != (self.nouns == 0):
            raise ConfigError(
                "This anticipation probe has nothing to name",
                expected="verbs, nouns and actions all positive, or verbs and nouns both 0",
                found=f"{self.verbs} verbs, {self.nouns} nouns, {self.actions} actions",
                remedy="Count the classes of the training annotations.",
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is named, in the order of the queries."""
        return ("verb", "noun", "action") if self.verbs else ("action",)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AnticipationProbeConfig:
        return config_from_dict(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


PoolerConfig = AttentiveProbeConfig | AnticipationProbeConfig


def _check_pooler(config: PoolerConfig) -> None:
    counts = (config.embed_dim, config.depth, config.num_heads)
    if not all(isinstance(count, int) and count > 0 for count in counts) or config.embed_dim % config.num_heads:
        raise ConfigError(
            "This attentive probe cannot be built",
            expected="depth >= 1 and embed_dim a multiple of num_heads",
            found=f"depth {config.depth}, embed_dim {config.embed_dim}, num_heads {config.num_heads}",
            remedy="Choose num_heads that divides embed_dim.",
        )


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

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.xattn = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = queries + self.xattn(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))


class AttentivePooler(nn.Module):
    """Self-attention blocks without positions, then Q learned queries that read all tokens: (B, N, D) -> (B, Q, D)."""

    def __init__(self, config: PoolerConfig, num_queries: int) -> None:
        super().__init__()
        dim, heads, ratio, eps = config.embed_dim, config.num_heads, config.mlp_ratio, config.norm_eps
        self.query_tokens = nn.Parameter(torch.empty(1, num_queries, dim))
        self.cross_attention_block = CrossAttentionBlock(dim, heads, ratio, eps)
        self.blocks = nn.ModuleList(Block(dim, heads, ratio, norm_eps=eps) for _ in range(config.depth - 1))
        init_weights(self, config.init_std)
        nn.init.trunc_normal_(self.query_tokens, std=config.init_std)
        rescale_residual_outputs(self.blocks)
        with torch.no_grad():  # upstream scales it like the last self-attention block
            self.cross_attention_block.mlp.fc2.weight.div_(math.sqrt(2.0 * max(config.depth - 1, 1)))

    def forward(self, tokens: Tensor, checkpointing: Checkpointing = "none") -> Tensor:
        for block in self.blocks:
            tokens = run_block(block, tokens, None, None, checkpointing)
        return self.cross_attention_block(self.query_tokens.expand(tokens.shape[0], -1, -1), tokens)


class AttentiveProbe(nn.Module):
    """Attentive pooler and a linear: tokens (B, N, D) of a frozen encoder -> logits (B, num_classes).

    ``activation_checkpointing`` (attribute, "none") computes the self-attention blocks again in the backward pass.
    Source: arXiv 2506.09985 appendix on probe evaluation.
    """

    def __init__(self, config: AttentiveProbeConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        self.pooler = AttentivePooler(config, num_queries=1)
        self.linear = nn.Linear(config.embed_dim, config.num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Raises ShapeError unless tokens are (B, N, embed_dim)."""
        _check_features(tokens, self.config.embed_dim, self.pooler.query_tokens, dims=(3,))
        return self.linear(self.pooler(tokens, self.activation_checkpointing).squeeze(1))


class AnticipationProbe(nn.Module):
    """Three learned queries over encoder and predictor tokens, read by one linear each: verb, noun and action.

    ``activation_checkpointing`` as in AttentiveProbe.
    Source: arXiv 2506.09985 on EPIC-KITCHENS-100; upstream evals/action_anticipation_frozen.
    """

    def __init__(self, config: AnticipationProbeConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        self.pooler = AttentivePooler(config, num_queries=len(config.tasks))
        if config.verbs:
            self.verb_classifier = nn.Linear(config.embed_dim, config.verbs)
            self.noun_classifier = nn.Linear(config.embed_dim, config.nouns)
        self.action_classifier = nn.Linear(config.embed_dim, config.actions)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens (B, N, embed_dim) -> logits "verb" (B, verbs), "noun" (B, nouns), "action" (B, actions).

        Raises ShapeError on any other shape.
        """
        _check_features(tokens, self.config.embed_dim, self.pooler.query_tokens, dims=(3,))
        pooled = self.pooler(tokens, self.activation_checkpointing).unbind(1)
        return {
            task: self.get_submodule(f"{task}_classifier")(query)
            for task, query in zip(self.config.tasks, pooled, strict=True)
        }


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
        _check_features(features, self.config.embed_dim, self.linear.weight, dims=(2, 3))
        return self.linear(features.mean(dim=1) if features.dim() == 3 else features)


def _check_features(features: Tensor, embed_dim: int, weight: Tensor, dims: tuple[int, ...]) -> None:
    check_tensors(features=features)
    shape = tuple(features.shape)
    if len(shape) not in dims or shape[-1] != embed_dim or 0 in shape[1:] or not features.is_floating_point():
        raise ShapeError(
            "The probe cannot read these features",
            expected=" or ".join("(B, N, D)" if count == 3 else "(B, D)" for count in dims)
            + f" float with D = {embed_dim}",
            found=f"{shape} {features.dtype}",
            remedy="Pass features of the encoder this probe was built for.",
        )
    check_readable("features", features, weight)
