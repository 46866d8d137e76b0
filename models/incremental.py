"""Going on from finished steps: keys and values of a causal sequence, kept and shared among all plans that follow it.

Planning imagines hundreds of plans from one history. What a block computed for a finished step never changes, so its keys
and values are kept once, with the batch size they were computed at: a history observed once (batch 1) serves every plan
and is widened to the plans only inside attention, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import ShapeError
from models.layers import Attention, Block, Span, attend
from models.rope import RopeTables

PatchGrid = tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedStep:
    """Keys (turned by their positions) and values of one step, per block (B or 1, tokens, heads, head_dim)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class PastSteps:
    """The finished steps of a sequence, oldest first, of frames of `grid` patches (rows, columns).

    A value: going on from it makes a new one that shares its tensors, so plans may branch from the same past. It belongs
    to the weights, dtype and device it was computed with; change the weights and it is stale. Memory: per step and block
    2 * batch * tokens * width elements (V-JEPA 2-AC at 256 px in bfloat16: 1.06 MB a block, 25.4 MB a step and plan).
    """

    grid: PatchGrid
    finished: tuple[FinishedStep, ...]

    @property
    def steps(self) -> int:
        return len(self.finished)

    @property
    def batch(self) -> int:
        """1 when every step is shared by all plans."""
        return max(step.keys[0].shape[0] for step in self.finished)

    @property
    def tokens(self) -> int:
        return sum(step.keys[0].shape[1] for step in self.finished)

    def of_block(self, index: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values that block `index` left, step by step."""
        return [step.keys[index] for step in self.finished], [step.values[index] for step in self.finished]

    def check_fits(self, *, blocks: int, batch: int, shape: tuple[int, int, int]) -> None:
        """Raise ShapeError unless `batch` plans of a network with `blocks` blocks can go on from here.

        shape: (tokens of one step, heads, head_dim).
        """
        for step in self.finished:
            tensors = (*step.keys, *step.values)
            fits = all(tensor.shape[1:] == shape and tensor.shape[0] in (1, batch) for tensor in tensors)
            if len(step.keys) != blocks or not fits:
                raise ShapeError(
                    "past does not fit the rest",
                    expected=f"keys and values of {blocks} blocks, ({batch} or 1, {', '.join(map(str, shape))})",
                    found=f"{len(step.keys)} blocks, {tuple(step.keys[0].shape)}",
                    remedy="Go on from a past of this predictor, with batch 1 or that of the plans, and the same frames.",
                )


def spans_after(past_tokens: int, steps: int, tokens_per_step: int) -> list[Span] | None:
    """Each of `steps` new steps attends to the whole past, to the new steps before it and to itself."""
    if steps == 1:
        return None
    ends = [step * tokens_per_step for step in range(1, steps + 1)]
    return [Span(end - tokens_per_step, end, 0, past_tokens + end) for end in ends]


def continue_block(
    block: Block,
    tokens: Tensor,
    rope: RopeTables,
    spans: Sequence[Span] | None,
    past: tuple[list[Tensor], list[Tensor]],
    keep: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """One block over new tokens (B, N, D) that also attend to past keys and values (B or 1, n, heads, head_dim).

    The block's new keys and values are added to `keep`, if given.
    """
    tokens = tokens + _attend(block.attn, block.norm1(tokens), rope, spans, past, keep)
    return tokens + block.mlp(block.norm2(tokens))


def _attend(
    attention: Attention,
    tokens: Tensor,
    rope: RopeTables,
    spans: Sequence[Span] | None,
    past: tuple[list[Tensor], list[Tensor]],
    keep: list[tuple[Tensor, Tensor]] | None,
) -> Tensor:
    query, key, value = attention.project(tokens, rope)
    if keep is not None:
        # Both are windows into larger tensors, which would stay in memory with them.
        keep.append((key.contiguous(), value.contiguous()))
    return attention.proj(attend(query, _join(past[0], key), _join(past[1], value), spans))


def _join(past: Sequence[Tensor], new: Tensor) -> Tensor:
    if not past:
        return new
    if past[0].dtype != new.dtype or past[0].device != new.device:
        raise ShapeError(
            "past was computed in another precision or place",
            expected=f"{new.dtype} on {new.device}",
            found=f"{past[0].dtype} on {past[0].device}",
            remedy="Compute all steps of a sequence with the same weights, autocast setting and device.",
        )
    return torch.cat([piece.expand(new.shape[0], -1, -1, -1) for piece in (*past, new)], dim=1)
