"""The V-JEPA 2 video encoder: a ViT over 3-D tubelets with rotary positions (arXiv 2506.09985 section 2, table 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
class EncoderConfig:
    """Shape of a VideoEncoder. ``img_size`` (px) and ``num_frames`` are what it was trained at: inputs may differ.

    ``rope_layout``: "tiled" is what the 2.0 checkpoints and the paper's numbers used (see models.rope).
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    img_size: tuple[int, int] = (256, 256)
    num_frames: int = 16
    tubelet_size: int = 2
    patch_size: int = 16
    in_chans: int = 3
    rope_layout: RopeLayout = "tiled"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", tuple(self.img_size))  # JSON brings a list
        check_heads(self.embed_dim, self.num_heads, "embed_dim")
        check_grid_divides(self)

    @property
    def grid(self) -> Grid:
        """Tokens (T, H, W) of an input of the configured size."""
        return config_grid(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        return config_from_dict(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


ENCODER_SIZES: dict[str, dict[str, Any]] = {
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "vit_giant": {"embed_dim": 1408, "depth": 40, "num_heads": 22, "mlp_ratio": 48 / 11},
    "vit_gigantic": {"embed_dim": 1664, "depth": 48, "num_heads": 26, "mlp_ratio": 64 / 13},
}
"""EncoderConfig fields by size; giant is upstream's vit_giant_xformers, gigantic the 2.1 "2B" with its intended MLP."""


def config_grid(config: Any) -> Grid:
    """Tokens (T, H, W) of an input of the size in any config with img_size, num_frames, tubelet_size, patch_size."""
    height, width = config.img_size
    return config.num_frames // config.tubelet_size, height // config.patch_size, width // config.patch_size


def check_grid_divides(config: Any) -> None:
    """Raise ConfigError unless size and frames are multiples of patch and tubelet."""
    height, width = config.img_size
    if height % config.patch_size or width % config.patch_size or config.num_frames % config.tubelet_size:
        raise ConfigError(
            "The input does not divide into tubelets",
            expected=f"img_size a multiple of {config.patch_size} px, num_frames of {config.tubelet_size}",
            found=f"img_size {height} x {width}, num_frames {config.num_frames}",
            remedy="Round img_size and num_frames.",
        )


def check_token_ids(token_ids: Tensor, batch: int, tokens: int, name: str) -> None:
    """Raise ShapeError unless token_ids is (batch, K) int64 with values in [0, tokens)."""
    if token_ids.dim() != 2 or token_ids.shape[0] != batch or token_ids.dtype != torch.int64:
        raise ShapeError(
            f"{name} must name the tokens of every sample",
            expected=f"({batch}, K) int64",
            found=f"{tuple(token_ids.shape)} {token_ids.dtype}",
            remedy="Pass one row of kept indices per sample.",
        )
    # Reading values on an accelerator would stall every step; there the gather itself refuses bad ids.
    if token_ids.device.type == "cpu" and token_ids.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in token_ids.aminmax())
        if low < 0 or high >= tokens:
            raise ShapeError(
                f"{name} lies outside the token grid",
                expected=f"ids from 0 to {tokens - 1}",
                found=f"{low} to {high}",
                remedy="Draw the mask for the grid of this video.",
            )


class PatchEmbed3D(nn.Module):
    """Tubelets to tokens. ``proj`` holds the official Conv3d weight (D, C, tubelet, patch, patch), used as a linear."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        kernel = (config.tubelet_size, config.patch_size, config.patch_size)
        self.kernel = kernel
        self.proj = nn.Conv3d(config.in_chans, config.embed_dim, kernel_size=kernel, stride=kernel)

    def forward(self, video: Tensor, token_ids: Tensor | None) -> Tensor:
        """video (B, C, T, H, W); token_ids (B, K) or None for all; returns (B, K or N, D)."""
        batch, channels, frames, height, width = video.shape
        depth, rows, columns = self.kernel
        tubelets = video.reshape(
            batch, channels, frames // depth, depth, height // rows, rows, width // columns, columns
        ).permute(0, 2, 4, 6, 1, 3, 5, 7)
        pixels = tubelets.reshape(batch, -1, channels * depth * rows * columns)  # (B, N, C * tubelet * patch^2)
        if token_ids is not None:
            pixels = pixels[torch.arange(batch, device=video.device).unsqueeze(1), token_ids]
        return F.linear(pixels.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


class VideoEncoder(nn.Module):
    """V-JEPA 2 encoder; its output after the final norm is the feature everybody uses.

    ``activation_checkpointing`` (attribute, "none") computes blocks again in the backward pass: "full" or "selective".
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        self.patch_embed = PatchEmbed3D(config)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self._tables = TableCache(config.embed_dim // config.num_heads, config.rope_layout)
        init_weights(self, config.init_std)
        rescale_residual_outputs(self.blocks)

    def forward(
        self,
        video: Tensor,
        token_ids: Tensor | Sequence[Tensor] | None = None,
        layers: Sequence[int] | None = None,
    ) -> Any:
        """Encode video (B, C, T, H, W) float: any H, W multiple of the patch, any T multiple of the tubelet.

        A single frame (T == 1) is repeated to a static tubelet. ``token_ids`` names the kept tokens, (B, K) int64, or a
        list of such groups that never see each other; token id = t * Hp * Wp + h * Wp + w.
        Returns (B, N or K, D), or a list with one tensor per group when token_ids is a list. With ``layers`` (0-based
        blocks) a list over layers of that, each layer's output through the final norm.
        Raises ShapeError on sizes that do not divide, wrong dtypes and ids outside the grid.
        """
        video, grid = self._checked(video)
        groups = None if token_ids is None else [token_ids] if isinstance(token_ids, Tensor) else list(token_ids)
        if groups is None:
            packed_ids, spans, sizes = None, None, [grid[0] * grid[1] * grid[2]]
            rope = broadcast_to_heads(self._tables.full(grid, video.device))
        else:
            for group in groups:
                check_token_ids(group, video.shape[0], grid[0] * grid[1] * grid[2], "token_ids")
            sizes = [group.shape[1] for group in groups]
            packed_ids, spans = torch.cat(groups, dim=1), group_spans(sizes)
            rope = broadcast_to_heads(self._tables.gathered(grid, packed_ids))

        def unpack(tokens: Tensor) -> Any:
            normed = self.norm(tokens)
            return list(normed.split(sizes, dim=1)) if isinstance(token_ids, list | tuple) else normed

        tokens = self.patch_embed(video, packed_ids)
        wanted = None if layers is None else self._checked_layers(layers)
        last = self.config.depth - 1 if wanted is None else max(wanted)
        outputs: dict[int, Any] = {}
        for index, block in enumerate(self.blocks[: last + 1]):
            tokens = run_block(block, tokens, rope, spans, self.activation_checkpointing)
            if wanted is not None and index in wanted:
                outputs[index] = unpack(tokens)
        return unpack(tokens) if wanted is None else [outputs[index] for index in wanted]

    def _checked(self, video: Tensor) -> tuple[Tensor, Grid]:
        config = self.config
        if video.dim() == 5 and video.shape[2] == 1:
            video = video.expand(-1, -1, config.tubelet_size, -1, -1)
        if (
            video.dim() != 5
            or not video.is_floating_point()
            or video.shape[1] != config.in_chans
            or video.shape[2] % config.tubelet_size
            or video.shape[3] % config.patch_size
            or video.shape[4] % config.patch_size
            or 0 in video.shape
        ):
            raise ShapeError(
                "The encoder cannot read this video",
                expected=f"(B, {config.in_chans}, T, H, W) float with T a multiple of {config.tubelet_size} (or 1) and "
                f"H, W multiples of {config.patch_size}",
                found=f"{tuple(video.shape)} {video.dtype}",
                remedy="Prepare frames with models.preprocessing.",
            )
        _, _, frames, height, width = video.shape
        return video, (frames // config.tubelet_size, height // config.patch_size, width // config.patch_size)

    def _checked_layers(self, layers: Sequence[int]) -> list[int]:
        wanted = list(layers)
        if not wanted or min(wanted) < 0 or max(wanted) >= self.config.depth:
            raise ShapeError(
                "layers names blocks that do not exist",
                expected=f"0-based blocks from 0 to {self.config.depth - 1}",
                found=str(wanted),
                remedy="Name at least one existing block.",
            )
        return wanted


def encode_frames(encoder: VideoEncoder, frames: Tensor) -> Tensor:
    """Encode each frame alone as a static clip, the way V-JEPA 2-AC sees the world.

    frames (B, C, H, W) float -> (B, Hp * Wp, D) after the encoder's final norm, before any further layer norm.
    """
    if frames.dim() != 4:
        raise ShapeError(
            "encode_frames takes single frames",
            expected="(B, C, H, W)",
            found=str(tuple(frames.shape)),
            remedy="Fold time into the batch first.",
        )
    return encoder(frames.unsqueeze(2))


def layer_norm_features(tokens: Tensor) -> Tensor:
    """LayerNorm over the last dim without weights, eps 1e-5: the space in which 2.0 targets and 2-AC live."""
    return F.layer_norm(tokens, (tokens.shape[-1],), eps=1e-5)
