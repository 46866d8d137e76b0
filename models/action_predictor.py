"""The action-conditioned predictor of V-JEPA 2-AC: the next frame's representation from frames, actions and poses.

Source: arXiv 2506.09985 section 3 and facebookresearch/vjepa2 app/vjepa_droid. The fields after ``rope_layout`` are
off by default (= official); together they are the recipe that learns at nano scale within a few hundred updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.encoder import check_grid_divides, settle_sizes
from models.errors import ConfigError, ShapeError
from models.incremental import FinishedStep, PastSteps, PatchGrid, continue_block, spans_after
from models.layers import (
    Block,
    Checkpointing,
    broadcast_to_heads,
    causal_spans,
    check_heads,
    check_readable,
    check_tensors,
    config_from_dict,
    init_weights,
    rescale_residual_outputs,
    run_block,
)
from models.linear import TokenLinear
from models.rope import RopeLayout, RopeTables, TableCache, check_rope, grid_positions


@dataclass(frozen=True, kw_only=True)
class ActionPredictorConfig:
    """Shape of an ActionConditionedPredictor; ``embed_dim`` is the encoder's width, ``img_size`` gives the patch grid.

    ``num_frames`` and ``tubelet_size`` describe the training clips and bound nothing here: every frame is one step.

    residual: predict the change of the frame instead of the frame. Paper: False.
    action_scale: factor on actions (m, rad, gripper) before their linear. Paper: 1.
    state_center: 7 numbers subtracted from states (m, rad, gripper) before ``state_scale`` multiplies. Paper: none, 1.
    init_std: std of the initial weights. Paper: .02.
    """

    embed_dim: int
    depth: int
    num_heads: int
    predictor_embed_dim: int = 1024
    mlp_ratio: float = 4.0
    img_size: tuple[int, int] = (256, 256)
    num_frames: int = 16
    tubelet_size: int = 2
    patch_size: int = 16
    action_embed_dim: int = 7
    use_extrinsics: bool = False
    rope_layout: RopeLayout = "tiled"
    residual: bool = False
    init_std: float = 0.02
    action_scale: float = 1.0
    state_center: tuple[float, ...] | None = None
    state_scale: float = 1.0

    def __post_init__(self) -> None:
        settle_sizes(self)
        check_heads(self.predictor_embed_dim, self.num_heads, "predictor_embed_dim")
        check_grid_divides(self, frames=False)
        check_rope(self.rope_layout, None)
        if self.state_center is not None:
            object.__setattr__(self, "state_center", tuple(float(value) for value in self.state_center))
            if len(self.state_center) != self.action_embed_dim:
                raise ConfigError(
                    "state_center does not match the state",
                    expected=f"{self.action_embed_dim} numbers",
                    found=str(len(self.state_center)),
                    remedy="Give one centre per state number.",
                )

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of one frame."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ActionPredictorConfig:
        return config_from_dict(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Steps:
    """Inputs of `count` steps that were found to fit together; `first` is the position of the first one in time."""

    frame_tokens: Tensor
    conditions: tuple[Tensor, ...]
    batch: int
    count: int
    first: int
    grid: PatchGrid

    @property
    def tokens_per_step(self) -> int:
        return len(self.conditions) + self.grid[0] * self.grid[1]


class ActionConditionedPredictor(nn.Module):
    """Block-causal ViT over steps of [action, state, (extrinsics,) patches]; step t predicts the frame of step t + 1.

    Action, state and extrinsics tokens turn by time alone (their row and column are 0), patches by time, row, column.
    As upstream, rows and columns of any frame are stretched to the rows of ``img_size``: row * R / rows, column * R /
    columns, R = ``patch_grid[0]``. On square frames of the configured size that changes nothing.
    """

    def __init__(self, config: ActionPredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        width = config.predictor_embed_dim
        self.predictor_embed = TokenLinear(config.embed_dim, width)
        self.action_encoder = nn.Linear(config.action_embed_dim, width)
        self.state_encoder = nn.Linear(config.action_embed_dim, width)
        self.extrinsics_encoder = nn.Linear(config.action_embed_dim - 1, width)  # always there in official weights
        self.predictor_blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = TokenLinear(width, config.embed_dim)
        self._tables = TableCache(width // config.num_heads, config.rope_layout)
        init_weights(self, config.init_std)
        rescale_residual_outputs(self.predictor_blocks)

    def forward(
        self,
        frame_tokens: Tensor,
        actions: Tensor,
        states: Tensor,
        extrinsics: Tensor | None = None,
        past: PastSteps | None = None,
        *,
        grid: PatchGrid | None = None,
    ) -> Tensor:
        """Predict frame_tokens (B, T * N, D) one step ahead, before any layer norm; N = patches of one frame.

        actions, states (B, T, 7) float: raw xyz in m, extrinsic xyz Euler angles in rad, gripper 0 open to 1 closed, in
        the robot base frame. extrinsics (B, T, 6): camera pose, needed exactly when ``use_extrinsics``. Any of them may
        have batch 1, shared by all B plans.
        past: steps finished by ``step`` (batch 1 or B) that these follow in time; nothing of these is kept.
        grid: patches (rows, columns) of the frames, if not those of ``img_size`` or of `past`.
        Returns (B, T * N, D). Raises ShapeError.
        """
        steps = self._check(frame_tokens, actions, states, extrinsics, past, grid)
        tokens, rope = self._tokens(steps), self._rope(steps)
        if past is None:
            spans = causal_spans(steps.count, steps.tokens_per_step)
            for block in self.predictor_blocks:
                tokens = run_block(block, tokens, rope, spans, self.activation_checkpointing)
        else:
            spans = spans_after(past.tokens, steps.count, steps.tokens_per_step)
            for index, block in self._numbered_blocks():
                tokens = continue_block(block, tokens, rope, spans, past.of_block(index))
        return self._frames(tokens, steps)

    def step(
        self,
        frame_tokens: Tensor,
        action: Tensor,
        state: Tensor,
        extrinsics: Tensor | None = None,
        past: PastSteps | None = None,
        *,
        grid: PatchGrid | None = None,
    ) -> tuple[Tensor, PastSteps]:
        """One step after `past` (none: the first), kept for those that follow.

        frame_tokens (B or 1, N, D), action, state (B or 1, 7), extrinsics (B or 1, 6); the rest as in ``forward``.
        Returns the predicted frame (B, N, D), equal to ``forward`` over all steps, and the past with this step added,
        shared (batch 1) as long as everything was. `past` itself stays as it is, so plans may branch from it. Gradients
        flow; ``activation_checkpointing`` does not apply. The last step of a plan is cheaper as ``forward(..., past)``.
        """
        for name, tensor in (("action", action), ("state", state), ("extrinsics", extrinsics)):
            if tensor is None:
                continue
            check_tensors(**{name: tensor})
            if tensor.dim() != 2:
                raise ShapeError(
                    f"{name} is not that of one step",
                    expected="(B or 1, numbers)",
                    found=str(tuple(tensor.shape)),
                    remedy="Pass one step at a time; forward takes several.",
                )
        camera = None if extrinsics is None else extrinsics.unsqueeze(1)
        steps = self._check(frame_tokens, action.unsqueeze(1), state.unsqueeze(1), camera, past, grid)
        tokens, rope = self._tokens(steps), self._rope(steps)
        kept: list[tuple[Tensor, Tensor]] = []
        for index, block in self._numbered_blocks():
            tokens = continue_block(block, tokens, rope, None, past.of_block(index) if past else ([], []), kept)
        keys, values = zip(*kept, strict=True)
        finished = (*(past.finished if past else ()), FinishedStep(keys=keys, values=values))
        return self._frames(tokens, steps), PastSteps(grid=steps.grid, finished=finished)

    def plan_bytes(self, steps: int) -> int:
        """About the memory one more plan of `steps` steps takes without gradients: keys and values of its finished steps,
        those one block joins, and the widest tensors of one block."""
        config = self.config
        tokens = config.patch_grid[0] * config.patch_grid[1] + (3 if config.use_extrinsics else 2)
        kept = 2 * config.depth * (steps - 1)
        passing = 2 * steps + 6 + 2 * config.mlp_ratio  # joined; queries, keys, values, residuals; hidden layer twice
        return int((kept + passing) * tokens * config.predictor_embed_dim * self.predictor_proj.weight.element_size())

    def _numbered_blocks(self) -> Iterator[tuple[int, Block]]:
        for index, block in enumerate(self.predictor_blocks):
            assert isinstance(block, Block)
            yield index, block

    def _tokens(self, steps: _Steps) -> Tensor:
        """(B, T * tokens_per_step, P): every step as [action, state, (extrinsics,) patches]."""
        encoders = (self.action_encoder, self.state_encoder, self.extrinsics_encoder)
        patches = self.predictor_embed(steps.frame_tokens).unflatten(1, (steps.count, -1))  # (B or 1, T, N, P)
        conditions = [
            encoder(condition).unsqueeze(2) for encoder, condition in zip(encoders, steps.conditions, strict=False)
        ]
        pieces = [piece.expand(steps.batch, -1, -1, -1) for piece in (*conditions, patches)]
        return torch.cat(pieces, dim=2).flatten(1, 2)

    def _frames(self, tokens: Tensor, steps: _Steps) -> Tensor:
        """The predicted frames (B, T * N, D) from the last block's tokens."""
        tokens = tokens.unflatten(1, (steps.count, -1))[:, :, len(steps.conditions) :].flatten(1, 2)
        predicted = self.predictor_proj(self.predictor_norm(tokens))
        return steps.frame_tokens + predicted if self.config.residual else predicted

    def _scaled_actions(self, actions: Tensor) -> Tensor:
        return actions if self.config.action_scale == 1.0 else actions * self.config.action_scale

    def _scaled_states(self, states: Tensor) -> Tensor:
        config = self.config
        if config.state_center is not None:
            states = states - torch.tensor(config.state_center, dtype=states.dtype, device=states.device)
        return states if config.state_scale == 1.0 else states * config.state_scale

    def _rope(self, steps: _Steps) -> RopeTables:
        """Tables of the steps' tokens; a condition token of step t stands at (t, 0, 0)."""
        (rows, columns), conditions, device = steps.grid, len(steps.conditions), steps.frame_tokens.device
        end = steps.first + steps.count
        whole = 1 << (end - 1).bit_length()  # a rollout meets every length: few tables serve all
        reference = self.config.patch_grid[0]

        def positions() -> Tensor:
            stretch = torch.tensor([1.0, reference / rows, reference / columns], device=device)
            patches = (grid_positions((whole, rows, columns), device) * stretch).view(whole, rows * columns, 3)
            # The first patch of a step stands at (t, 0, 0), where rows and columns do not turn.
            return torch.cat((patches[:, :1].expand(-1, conditions, -1), patches), dim=1).flatten(0, 1)

        cos, sin = self._tables.at((whole, rows, columns, conditions), device, positions)
        window = slice(steps.first * steps.tokens_per_step, end * steps.tokens_per_step)
        return broadcast_to_heads((cos[window], sin[window]))

    def _check(
        self,
        frame_tokens: Tensor,
        actions: Tensor,
        states: Tensor,
        extrinsics: Tensor | None,
        past: PastSteps | None,
        grid: PatchGrid | None,
    ) -> _Steps:
        config = self.config
        check_tensors(frame_tokens=frame_tokens, actions=actions, states=states)
        if (extrinsics is not None) != config.use_extrinsics:
            raise ShapeError(
                "Camera extrinsics do not fit the configuration",
                expected="extrinsics" if config.use_extrinsics else "no extrinsics (use_extrinsics is off)",
                found="none" if extrinsics is None else "extrinsics",
                remedy="Build the predictor with the matching use_extrinsics.",
            )
        if actions.dim() != 3 or actions.shape[-1] != config.action_embed_dim or actions.shape[1] < 1:
            raise ShapeError(
                "The predictor cannot read these actions",
                expected=f"(B, T, {config.action_embed_dim}), T >= 1",
                found=str(tuple(actions.shape)),
                remedy="Pass one action per frame.",
            )
        rows, columns = grid = self._grid(grid, past)
        count = actions.shape[1]
        given = {
            "frame_tokens": (frame_tokens, (count * rows * columns, config.embed_dim)),
            "actions": (actions, (count, config.action_embed_dim)),
            "states": (states, (count, config.action_embed_dim)),
        }
        if extrinsics is not None:
            given["extrinsics"] = (extrinsics, (count, config.action_embed_dim - 1))
        batches = [tensor.shape[0] for tensor, _ in given.values() if tensor.dim() == 3]
        batch = max(batches if past is None else [*batches, past.batch])
        for name, (tensor, shape) in given.items():
            if tensor.dim() != 3 or tensor.shape[1:] != shape or tensor.shape[0] not in (1, batch):
                raise ShapeError(
                    f"{name} does not fit the rest",
                    expected=f"({batch} or 1, {shape[0]}, {shape[1]}) for {count} steps of {rows} x {columns} patches",
                    found=str(tuple(tensor.shape)),
                    remedy="Frames, actions, states and past must be of the same steps, plans and image size.",
                )
            check_readable(name, tensor, self.predictor_embed.weight)
        if past is not None:
            head = config.num_heads, config.predictor_embed_dim // config.num_heads
            past.check_fits(blocks=config.depth, batch=batch, shape=(rows * columns + len(given) - 1, *head))
        conditions = [self._scaled_actions(actions), self._scaled_states(states)]
        if extrinsics is not None:
            conditions.append(extrinsics)
        return _Steps(
            frame_tokens=frame_tokens, conditions=tuple(conditions), batch=batch, count=count,
            first=0 if past is None else past.steps, grid=grid,
        )  # fmt: skip

    def _grid(self, grid: PatchGrid | None, past: PastSteps | None) -> PatchGrid:
        """The patch grid of the frames: as given, else that of the past, else the configured one."""
        if grid is None:
            return self.config.patch_grid if past is None else past.grid
        if len(grid) != 2 or min(grid) < 1 or (past is not None and past.grid != tuple(grid)):
            raise ShapeError(
                "grid does not name the patches of the frames",
                expected="(rows, columns)" if past is None else f"{past.grid}, as in the past",
                found=str(grid),
                remedy="Pass the patch rows and columns of one frame, the same at every step.",
            )
        return grid[0], grid[1]
