"""The transformer block shared by encoder, predictors and probes, over tokens packed along one axis.

Several groups of tokens (mask groups, or the steps of a causal sequence) travel in one tensor (B, N, D): linears,
norms and MLPs see all of them at once and only attention is done span by span, dense, without a mask.
Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from models.errors import ConfigError, ShapeError
from models.linear import TokenLinear
from models.rope import RopeTables, rotate

Checkpointing = Literal["none", "full", "selective"]
"""What a network keeps for its backward pass: everything; block inputs only; or matrix products and attention."""


@dataclass(frozen=True)
class Span:
    """Queries [query_start, query_end) of the packed token axis attend to keys [key_start, key_end)."""

    query_start: int
    query_end: int
    key_start: int
    key_end: int


def group_spans(sizes: Sequence[int]) -> list[Span] | None:
    """One dense span per group of a packed axis; None when there is only one group."""
    if len(sizes) == 1:
        return None
    spans, start = [], 0
    for size in sizes:
        spans.append(Span(start, start + size, start, start + size))
        start += size
    return spans


def causal_spans(steps: int, tokens_per_step: int) -> list[Span] | None:
    """Step t attends to all tokens of steps <= t and to its own in both directions; None when there is one step.

    Does half the work of one masked call and never builds the (steps * tokens)^2 mask.
    """
    if steps == 1:
        return None
    return [
        Span(step * tokens_per_step, (step + 1) * tokens_per_step, 0, (step + 1) * tokens_per_step)
        for step in range(steps)
    ]


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span] | None) -> Tensor:
    """Softmax attention of (B, N, heads, head_dim) tensors, span by span; returns (B, N, heads * head_dim)."""
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if spans is None:
        attended = F.scaled_dot_product_attention(query, key, value)
    else:
        queries = query.split([span.query_end - span.query_start for span in spans], dim=2)
        parts = zip(queries, by_span(key, spans), by_span(value, spans), strict=True)
        attended = torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=2)
    return attended.transpose(1, 2).flatten(2)


def by_span(keys: Tensor, spans: Sequence[Span]) -> Sequence[Tensor]:
    """What each span attends to, of (B, heads, N, head_dim).

    Groups that attend to themselves are split off at once: the backward pass of a slice fills a tensor as long as all
    spans together, which for many spans is most of the work.
    """
    if all((span.key_start, span.key_end) == (span.query_start, span.query_end) for span in spans):
        return keys.split([span.key_end - span.key_start for span in spans], dim=2)
    return [keys[:, :, span.key_start : span.key_end] for span in spans]


class Attention(nn.Module):
    """Multi-head self-attention with packed qkv projection (rows q, k, v) and optional rotary positions."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = TokenLinear(dim, 3 * dim)
        self.proj = TokenLinear(dim, dim)

    def project(self, tokens: Tensor, rope: RopeTables | None) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (B, N, D) -> query, key, value, each (B, N, heads, head_dim), the first two turned.

        rope tables broadcast to (B, N, 1, 1, head_dim).
        """
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, head_dim)
        if rope is None:
            query, key, value = qkv.unbind(2)
            return query, key, value
        query, key = rotate(qkv[:, :, :2], rope).unbind(2)  # q and k turn in one call
        return query, key, qkv[:, :, 2]

    def forward(self, tokens: Tensor, rope: RopeTables | None, spans: Sequence[Span] | None) -> Tensor:
        return self.proj(attend(*self.project(tokens, rope), spans))


class Mlp(nn.Module):
    """Two linears around an exact (erf) GELU."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden_dim)
        self.fc2 = TokenLinear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block: ``x += attn(norm1(x)); x += mlp(norm2(x))``."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor, rope: RopeTables | None = None, spans: Sequence[Span] | None = None) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), rope, spans)
        return tokens + self.mlp(self.norm2(tokens))


def run_block(
    block: nn.Module,
    tokens: Tensor,
    rope: RopeTables | None,
    spans: Sequence[Span] | None,
    checkpointing: Checkpointing,
) -> Tensor:
    """One block; what its backward pass needs is kept, or computed again (activation checkpointing)."""
    if checkpointing == "none" or not torch.is_grad_enabled():
        return block(tokens, rope, spans)
    if checkpointing == "full":
        return checkpoint(block, tokens, rope, spans, use_reentrant=False)
    if checkpointing == "selective":
        return checkpoint(block, tokens, rope, spans, use_reentrant=False, context_fn=_keep_products)
    raise ConfigError(
        "Unknown activation checkpointing",
        expected="none, full or selective",
        found=repr(checkpointing),
        remedy="Set activation_checkpointing to one of these.",
    )


_KEPT = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
    | ({torch.ops.mkldnn._linear_pointwise.default} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else set())
)


def _keep_products() -> Any:
    """Contexts that keep matrix products and attention and compute the cheap rest (norms, GELU, rotation) again."""

    def policy(_: Any, op: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def compile_blocks(module: nn.Module) -> None:
    """Compile every Block of a network, each as one graph without breaks; blocks of one shape share the compiled code."""
    for part in module.modules():
        if isinstance(part, Block):
            part.compile(fullgraph=True)


def broadcast_to_heads(tables: RopeTables) -> RopeTables:
    """(N, head_dim) or (B, N, head_dim) tables as (1 or B, N, 1, 1, head_dim), for q and k of all heads at once."""
    cos, sin = (table.unsqueeze(0) if table.dim() == 2 else table for table in tables)
    return cos[:, :, None, None], sin[:, :, None, None]


def init_weights(module: nn.Module, std: float) -> None:
    """Truncated normal (cut at +-2 absolute) for Linear and Conv3d weights, zero biases, LayerNorm (1, 0)."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv3d):
            nn.init.trunc_normal_(part.weight, std=std, a=-2.0, b=2.0)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


@torch.no_grad()
def rescale_residual_outputs(blocks: Iterable[nn.Module]) -> None:
    """Divide what block i (1-based) writes to the residual stream by sqrt(2 i)."""
    for depth, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        block.attn.proj.weight.div_(math.sqrt(2.0 * depth))
        block.mlp.fc2.weight.div_(math.sqrt(2.0 * depth))


def check_tensors(**given: Any) -> None:
    """Raise ShapeError naming the first argument that is no tensor."""
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise ShapeError(
                f"{name} is no tensor",
                expected="torch.Tensor",
                found=type(value).__name__,
                remedy="Convert it, for example with torch.as_tensor.",
            )


def check_readable(name: str, tensor: Tensor, weight: Tensor) -> None:
    """Raise ShapeError unless a network with this weight can take the tensor's dtype where it is."""
    kind = weight.device.type
    readable = tensor.dtype == weight.dtype
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        readable = tensor.is_floating_point() and tensor.dtype != torch.float64
    if not readable or tensor.device != weight.device:
        raise ShapeError(
            f"{name} has another dtype or place than the network's weights",
            expected=f"{weight.dtype} on {weight.device}",
            found=f"{tensor.dtype} on {tensor.device}",
            remedy="Convert it with .to(device, dtype), or run under autocast for another float dtype.",
        )


def check_heads(dim: int, num_heads: int, name: str) -> int:
    """Head dim of a width; raises ConfigError unless it is even and holds three rotary axes."""
    head_dim = dim // num_heads if num_heads > 0 else 0
    if num_heads <= 0 or dim % num_heads or head_dim % 2 or head_dim < 6:
        raise ConfigError(
            f"{name} {dim} does not split into {num_heads} rotary heads",
            expected="an even head size of at least 6",
            found=f"{dim} / {num_heads}",
            remedy=f"Choose num_heads so that {name} / num_heads is even.",
        )
    return head_dim


def config_from_dict(config_class: type[Any], values: dict[str, Any]) -> Any:
    """A frozen config from plain JSON values (lists become tuples); unknown or missing fields raise ConfigError."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return config_class(**fields)
    except TypeError as error:
        raise ConfigError(
            f"{config_class.__name__} does not accept these fields: {error}",
            expected=", ".join(config_class.__dataclass_fields__),
            found=", ".join(values),
            remedy="Correct the field names; nothing is ignored in silence.",
        ) from error
