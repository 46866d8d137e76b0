"""The action-conditioned predictor of V-JEPA 2-AC: the next frame's representation from frames, actions and poses.

Source: arXiv 2506.09985 section 3 and facebookresearch/vjepa2 app/vjepa_droid. The fields after ``rope_layout`` are
off by default (= official); together they are the recipe that learns at nano scale within a few hundred updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.encoder import check_grid_divides
from models.errors import ConfigError, ShapeError
from models.layers import (
    Block,
    Checkpointing,
    broadcast_to_heads,
    causal_spans,
    check_heads,
    config_from_dict,
    init_weights,
    rescale_residual_outputs,
    run_block,
)
from models.rope import RopeLayout, RopeTables, TableCache, grid_positions


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
        object.__setattr__(self, "img_size", tuple(self.img_size))  # JSON brings lists
        check_heads(self.predictor_embed_dim, self.num_heads, "predictor_embed_dim")
        check_grid_divides(self)
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


class ActionConditionedPredictor(nn.Module):
    """Block-causal ViT over steps of [action, state, (extrinsics,) patches]; step t predicts the frame of step t + 1.

    Action, state and extrinsics tokens turn by time alone (their row and column are 0), patches by time, row, column.
    """

    def __init__(self, config: ActionPredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        width = config.predictor_embed_dim
        self.predictor_embed = nn.Linear(config.embed_dim, width)
        self.action_encoder = nn.Linear(config.action_embed_dim, width)
        self.state_encoder = nn.Linear(config.action_embed_dim, width)
        self.extrinsics_encoder = nn.Linear(config.action_embed_dim - 1, width)  # always there in official weights
        self.predictor_blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, config.embed_dim)
        self._tables = TableCache(width // config.num_heads, config.rope_layout)
        init_weights(self, config.init_std)
        rescale_residual_outputs(self.predictor_blocks)

    def forward(
        self, frame_tokens: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None
    ) -> Tensor:
        """Predict frame_tokens (B, T * N, D) one step ahead, before any layer norm; N = patches of one frame.

        actions, states (B, T, 7) float: raw xyz in m, extrinsic xyz Euler angles in rad, gripper 0 open to 1 closed, in
        the robot base frame. extrinsics (B, T, 6): camera pose, needed exactly when ``use_extrinsics``. Any of
        frame_tokens, states and extrinsics may have batch 1, shared by all B actions of a planner.
        Returns (B, T * N, D). Raises ShapeError.
        """
        batch, steps = self._check(frame_tokens, actions, states, extrinsics)
        patches = self.predictor_embed(frame_tokens).unflatten(1, (steps, -1))  # (B or 1, T, N, P)
        pieces = [
            self.action_encoder(self._scaled_actions(actions)).unsqueeze(2),
            self.state_encoder(self._scaled_states(states)).unsqueeze(2),
        ]
        if extrinsics is not None:
            pieces.append(self.extrinsics_encoder(extrinsics).unsqueeze(2))
        conditions = len(pieces)
        tokens = torch.cat([piece.expand(batch, -1, -1, -1) for piece in (*pieces, patches)], dim=2).flatten(1, 2)

        tokens_per_step = tokens.shape[1] // steps
        rope = self._rope(steps, conditions, tokens.device)
        spans = causal_spans(steps, tokens_per_step)
        for block in self.predictor_blocks:
            tokens = run_block(block, tokens, rope, spans, self.activation_checkpointing)
        tokens = tokens.unflatten(1, (steps, tokens_per_step))[:, :, conditions:].flatten(1, 2)
        predicted = self.predictor_proj(self.predictor_norm(tokens))
        return frame_tokens + predicted if self.config.residual else predicted

    def _scaled_actions(self, actions: Tensor) -> Tensor:
        return actions if self.config.action_scale == 1.0 else actions * self.config.action_scale

    def _scaled_states(self, states: Tensor) -> Tensor:
        config = self.config
        if config.state_center is not None:
            states = states - torch.tensor(config.state_center, dtype=states.dtype, device=states.device)
        return states if config.state_scale == 1.0 else states * config.state_scale

    def _rope(self, steps: int, conditions: int, device: torch.device) -> RopeTables:
        """Tables of T steps of [conditions, patches]; a condition token of step t stands at (t, 0, 0)."""
        rows, columns = self.config.patch_grid

        def positions() -> Tensor:
            patches = grid_positions((steps, rows, columns), device).view(steps, rows * columns, 3)
            # The first patch of a step stands at (t, 0, 0), where rows and columns do not turn.
            return torch.cat((patches[:, :1].expand(-1, conditions, -1), patches), dim=1).flatten(0, 1)

        return broadcast_to_heads(self._tables.at((steps, rows, columns, conditions), device, positions))

    def _check(
        self, frame_tokens: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None
    ) -> tuple[int, int]:
        config = self.config
        if actions.dim() != 3 or actions.shape[-1] != config.action_embed_dim or actions.shape[1] < 1:
            raise ShapeError(
                "The predictor cannot read these actions",
                expected=f"(B, T, {config.action_embed_dim}), T >= 1",
                found=str(tuple(actions.shape)),
                remedy="Pass one action per frame.",
            )
        batch, steps = actions.shape[0], actions.shape[1]
        rows, columns = config.patch_grid
        expected: Sequence[tuple[str, Tensor | None, tuple[int, int]]] = (
            ("frame_tokens", frame_tokens, (steps * rows * columns, config.embed_dim)),
            ("states", states, (steps, config.action_embed_dim)),
            ("extrinsics", extrinsics, (steps, config.action_embed_dim - 1)),
        )
        for name, tensor, shape in expected:
            if tensor is not None and (
                tensor.dim() != 3 or tensor.shape[1:] != shape or tensor.shape[0] not in (1, batch)
            ):
                raise ShapeError(
                    f"{name} does not fit the actions",
                    expected=f"({batch} or 1, {shape[0]}, {shape[1]}) for {steps} steps of {rows} x {columns} patches",
                    found=str(tuple(tensor.shape)),
                    remedy="Frames, actions and states must cover the same steps at the configured image size.",
                )
        if (extrinsics is not None) != config.use_extrinsics:
            raise ShapeError(
                "Camera extrinsics do not fit the configuration",
                expected="extrinsics" if config.use_extrinsics else "no extrinsics (use_extrinsics is off)",
                found="none" if extrinsics is None else "extrinsics",
                remedy="Build the predictor with the matching use_extrinsics.",
            )
        return batch, steps
