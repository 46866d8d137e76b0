"""The FLOPs the networks really spend: 2 per multiply-add of matrix products and attention, nothing for the rest.

What is skipped is not counted: tokens outside the masks, keys of other groups and of later steps, blocks after the last
wanted layer, outputs nobody reads. Counts agree with torch.utils.flop_counter on the unfused attention; a fused backward
pass makes its scores once more, which by custom is not counted as work of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.action_predictor import ActionPredictorConfig
from models.encoder import EncoderConfig
from models.errors import ShapeError
from models.layers import Checkpointing, Span, causal_spans, group_spans
from models.predictor import PredictorConfig
from models.probes import AnticipationProbeConfig, AttentiveProbeConfig, LinearProbeConfig
from models.rope import Grid


@dataclass(frozen=True, kw_only=True)
class Flops:
    """One forward pass of a network, in FLOPs.

    inputs: linears that read data, whose backward pass makes no gradient of their input.
    blocks: transformer blocks; ``again`` of that is what full activation checkpointing spends a second time (all but
        the last linear of each block, whose output the backward pass does not need).
    rest: everything else.
    """

    inputs: int
    blocks: int
    again: int
    rest: int

    @property
    def forward(self) -> int:
        return self.inputs + self.blocks + self.rest

    def backward(self, checkpointing: Checkpointing = "none") -> int:
        """Gradients of all weights and activations; selective checkpointing keeps linears and fused attention, so it adds nothing."""
        return 2 * (self.blocks + self.rest) + self.inputs + (self.again if checkpointing == "full" else 0)


def train_step_flops(
    trained: Sequence[Flops], frozen: Sequence[Flops] = (), checkpointing: Checkpointing = "none"
) -> int:
    """Forward and backward pass of the trained networks and forward pass of the frozen ones (teacher, encoder)."""
    students = sum(network.forward + network.backward(checkpointing) for network in trained)
    return students + sum(network.forward for network in frozen)


def encoder_flops(
    config: EncoderConfig,
    batch: int,
    grid: Grid,
    kept: int | Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    image: bool = False,
) -> Flops:
    """VideoEncoder on a grid (T, H, W) in tubelets and patches; ``kept`` tokens per group (None: all of the grid).

    ``layers`` as in the call. ``image``: through the image tokenizer, one frame a token.
    """
    sizes = _sizes(grid[0] * grid[1] * grid[2] if kept is None else kept)
    frames = 1 if image else config.tubelet_size
    pixels = config.in_chans * frames * config.patch_size**2
    depth = config.depth if layers is None else max(layers) + 1
    tokens = sum(sizes)
    blocks, again = _blocks(config.embed_dim, config.mlp_ratio, depth, batch, tokens, group_spans(sizes))
    return Flops(inputs=_linear(batch * tokens, pixels, config.embed_dim), blocks=blocks, again=again, rest=0)


def predictor_flops(
    config: PredictorConfig, batch: int, context_sizes: int | Sequence[int], target_sizes: int | Sequence[int]
) -> Flops:
    """MaskedPredictor with so many context and target tokens in every mask group; context tokens carry gradients."""
    contexts, targets = _sizes(context_sizes), _sizes(target_sizes)
    if len(contexts) != len(targets):
        raise ShapeError(
            "The mask groups do not match",
            expected="as many context_sizes as target_sizes",
            found=f"{len(contexts)}, {len(targets)}",
            remedy="Pass one size of each for every group.",
        )
    width, dim = config.predictor_embed_dim, config.embed_dim
    groups = [context + target for context, target in zip(contexts, targets, strict=True)]
    embed = _linear(batch * sum(contexts), dim, width)
    if config.levels > 1:
        embed += _linear(batch * sum(contexts), config.levels * dim, dim)
    read_out = sum(targets) + (sum(contexts) if config.context_output else 0)
    outputs = _linear(batch * read_out, width, config.levels * (config.out_embed_dim or dim))
    blocks, again = _blocks(width, config.mlp_ratio, config.depth, batch, sum(groups), group_spans(groups))
    return Flops(inputs=0, blocks=blocks, again=again, rest=embed + outputs)


def action_predictor_flops(
    config: ActionPredictorConfig,
    batch: int,
    steps: int,
    past_steps: int = 0,
    patch_grid: tuple[int, int] | None = None,
    frames_carry_gradients: bool = False,
) -> Flops:
    """ActionConditionedPredictor over ``steps`` new steps that also see ``past_steps`` finished ones.

    Every input has the batch of the plans. ``frames_carry_gradients``: in training, some frames are predictions
    (rollout loss); a frozen encoder's do not.
    """
    rows, columns = patch_grid or config.patch_grid
    width, numbers = config.predictor_embed_dim, config.action_embed_dim
    patches = batch * steps * rows * columns
    conditions = 3 if config.use_extrinsics else 2
    per_step = rows * columns + conditions
    condition_flops = 2 * _linear(batch * steps, numbers, width)
    if config.use_extrinsics:
        condition_flops += _linear(batch * steps, numbers - 1, width)
    embed = _linear(patches, config.embed_dim, width)
    spans = causal_spans(past_steps + steps, per_step)
    if spans is not None:
        spans = spans[past_steps:]
    blocks, again = _blocks(width, config.mlp_ratio, config.depth, batch, steps * per_step, spans)
    return Flops(
        inputs=condition_flops + (0 if frames_carry_gradients else embed),
        blocks=blocks,
        again=again,
        rest=_linear(patches, width, config.embed_dim) + (embed if frames_carry_gradients else 0),
    )


def probe_flops(
    config: AttentiveProbeConfig | AnticipationProbeConfig | LinearProbeConfig, batch: int, tokens: int
) -> Flops:
    """A probe on ``tokens`` tokens of a frozen encoder for every sample."""
    dim = config.embed_dim
    if isinstance(config, LinearProbeConfig):
        return Flops(inputs=_linear(batch, dim, config.num_classes), blocks=0, again=0, rest=0)
    if isinstance(config, AnticipationProbeConfig):
        queries, classes = len(config.tasks), config.verbs + config.nouns + config.actions
    else:
        queries, classes = 1, config.num_classes
    blocks, again = _blocks(dim, config.mlp_ratio, config.depth - 1, batch, tokens, None)
    pooling = (
        _linear(batch * queries, dim, dim)
        + _linear(batch * tokens, dim, 2 * dim)
        + 4 * batch * queries * tokens * dim
        + 2 * _linear(batch * queries, dim, int(dim * config.mlp_ratio))
    )
    return Flops(inputs=0, blocks=blocks, again=again, rest=pooling + _linear(batch, dim, classes))


def _sizes(sizes: int | Sequence[int]) -> list[int]:
    return [sizes] if isinstance(sizes, int) else list(sizes)


def _linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def _blocks(
    dim: int, mlp_ratio: float, depth: int, batch: int, tokens: int, spans: Sequence[Span] | None
) -> tuple[int, int]:
    """FLOPs of ``depth`` blocks over (batch, tokens, dim), and those that full checkpointing repeats."""
    pairs = tokens * tokens
    if spans is not None:
        pairs = sum((span.query_end - span.query_start) * (span.key_end - span.key_start) for span in spans)
    rows, hidden = batch * tokens, int(dim * mlp_ratio)
    attention = 4 * batch * pairs * dim  # scores, then the weighted sum of the values
    again = _linear(rows, dim, 3 * dim) + attention + _linear(rows, dim, dim) + _linear(rows, dim, hidden)
    return depth * (again + _linear(rows, hidden, dim)), depth * again
