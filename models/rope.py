"""Three-dimensional rotary position tables: time, height and width each turn a third of every attention head.

With ``d = 2 * ((head_dim // 3) // 2)`` dims per axis, frequency k is ``10000 ** (-k / (d / 2))``; the dims beyond
3 * d stay untouched. Adjacent dims (2i, 2i+1) form the rotated pair. In the 2.0 checkpoints the cos and sin tables are
*tiled* (f0..fn f0..fn) although the pairs are adjacent, so a pair turns by two different angles; weights trained that
way need it back ("tiled"). V-JEPA 2.1 repeats each frequency for its pair ("interleaved").
Source: facebookresearch/vjepa2 src/models/utils/modules.py; arXiv 2506.09985 section 2.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from models.errors import ConfigError, ShapeError

RopeLayout = Literal["tiled", "interleaved"]
Grid = tuple[int, int, int]
RopeTables = tuple[Tensor, Tensor]

_BASE = 10000.0


def as_grid(sizes: Sequence[int]) -> Grid:
    """(T, H, W) as a tuple of ints. Raises ShapeError unless it is three positive ones."""
    try:
        grid = tuple(operator.index(size) for size in sizes)
    except TypeError:
        grid = ()
    if len(grid) != 3 or min(grid) < 1:
        raise ShapeError(
            "grid does not name the tokens of a clip",
            expected="(T, H, W), three positive ints in tubelets and patches",
            found=repr(sizes),
            remedy="Divide frames by tubelet_size, height and width by patch_size.",
        )
    return grid[0], grid[1], grid[2]


def check_rope(layout: str, reference: int | None) -> None:
    """Raise ConfigError unless the layout is known and the reference grid is None or at least two patches wide."""
    if layout not in get_args(RopeLayout):
        raise ConfigError(
            "Unknown rotary layout",
            expected=" or ".join(get_args(RopeLayout)),
            found=repr(layout),
            remedy="Use tiled for released 2.0 weights, interleaved for 2.1.",
        )
    if reference is not None and reference < 2:
        raise ConfigError(
            "A rotary reference grid needs two patches",
            expected="rope_reference None or at least 2",
            found=str(reference),
            remedy="V-JEPA 2.1 uses 16, the grid of 256 px.",
        )


def grid_positions(grid: Grid, device: torch.device) -> Tensor:
    """Positions (T*H*W, 3) float32 of every token of a grid in tubelets and patches, time-major raster order."""
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def interpolated_positions(grid: Grid, reference: int, device: torch.device) -> Tensor:
    """grid_positions with rows and columns stretched to span 0..reference - 1, time untouched (V-JEPA 2.1)."""
    scales = [1.0, *((reference - 1) / max(size - 1, 1) for size in grid[1:])]
    return grid_positions(grid, device) * torch.tensor(scales, device=device)


def position_tables(positions: Tensor, head_dim: int, layout: RopeLayout) -> RopeTables:
    """Tables (N, head_dim) float32 for positions (N, 3): ``rotated = x * cos + swap_pairs(x) * sin``.

    The sign of the pair swap is folded into sin. A position of 0 on an axis leaves that axis untouched.
    """
    axis_dim = 2 * ((head_dim // 3) // 2)
    exponents = torch.arange(axis_dim // 2, device=positions.device, dtype=torch.float32) / (axis_dim / 2.0)
    angles = positions.float().unsqueeze(-1) * (1.0 / _BASE**exponents)  # (N, 3, axis_dim / 2)
    if layout == "tiled":
        angles = torch.cat((angles, angles), dim=-1)
    else:
        angles = angles.repeat_interleave(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    sin = torch.stack((-sin[..., 0::2], sin[..., 1::2]), dim=-1).flatten(-2)
    rest = head_dim - 3 * axis_dim
    cos = torch.nn.functional.pad(cos.flatten(1), (0, rest), value=1.0)
    sin = torch.nn.functional.pad(sin.flatten(1), (0, rest), value=0.0)
    return cos, sin


class TableCache:
    """Position tables of the grids met so far, built once per (grid, device) in float32.

    Not a module and without buffers on purpose: tables are no weights, never enter a state dict, are never cast by
    ``.to(bfloat16)``, and a model built on the meta device needs no initialisation for them.
    """

    def __init__(self, head_dim: int, layout: RopeLayout, reference: int | None = None, capacity: int = 8) -> None:
        self.head_dim = head_dim
        self.layout: RopeLayout = layout
        self.reference = reference
        self._capacity = capacity
        self._tables: dict[tuple[tuple[int, ...], torch.device], RopeTables] = {}

    def at(self, key: tuple[int, ...], device: torch.device, positions: Callable[[], Tensor]) -> RopeTables:
        """Tables (N, head_dim) of positions() (N, 3), remembered under (key, device)."""
        known = self._tables.get((key, device))
        if known is not None:
            return known
        if len(self._tables) >= self._capacity:
            self._tables.pop(next(iter(self._tables)), None)  # None: another thread may have been first
        # Tables made under inference_mode could not be saved for a later backward.
        with torch.inference_mode(False), torch.no_grad():
            tables = self._tables[key, device] = position_tables(positions(), self.head_dim, self.layout)
        return tables

    def full(self, grid: Grid, device: torch.device) -> RopeTables:
        """Tables (T*H*W, head_dim) of a whole grid."""
        if self.reference is None:
            return self.at(grid, device, lambda: grid_positions(grid, device))
        reference = self.reference
        return self.at(grid, device, lambda: interpolated_positions(grid, reference, device))

    def gathered(self, grid: Grid, token_ids: Tensor) -> RopeTables:
        """Tables (B, K, head_dim) of the tokens named by ids (B, K)."""
        cos, sin = self.full(grid, token_ids.device)
        return cos[token_ids], sin[token_ids]


def rotate(queries_keys: Tensor, tables: RopeTables) -> Tensor:
    """Rotate (B, N, ..., head_dim) by tables that broadcast to it; computed in float32 when the tables are wider."""
    cos, sin = tables
    swapped = queries_keys.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(queries_keys * cos, swapped, sin).to(queries_keys.dtype)
