"""The V-JEPA 2 and 2.1 encoder: a ViT over 3-D tubelets with rotary positions.

Sources: arXiv 2506.09985 section 2 and table 12; for 2.1 arXiv 2603.14482 and app/vjepa_2_1 of facebookresearch/vjepa2.
"""

from __future__ import annotations

import operator
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
    check_tensors,
    config_from_dict,
    group_spans,
    init_weights,
    rescale_residual_outputs,
    run_block,
)
from models.rope import Grid, RopeLayout, TableCache, check_rope
from models.tokenizers import PatchEmbed3D, modality_embeddings


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of a VideoEncoder. ``img_size`` (px) and ``num_frames`` are what it was trained at: inputs may differ.

    ``rope_layout``: "tiled" is what the 2.0 checkpoints and the paper's numbers used (see models.rope).
    The last four fields are V-JEPA 2.1's, off by default; ``encoder_2_1`` sets them as released. ``rope_reference``
    (patches, 16 in 2.1): rows and columns are spread over this many positions whatever the input's size.
    ``image_tokenizer``: a single frame has its own patch embedding and gives one time step. ``modality_embeddings``: a
    learned vector is added to the tokens of images, another to those of videos. ``levels``: 0-based blocks, ascending,
    the last block among them, each with its own output norm (``norms_block``) in the place of one ``norm``.
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
    rope_reference: int | None = None
    image_tokenizer: bool = False
    modality_embeddings: bool = False
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        settle_sizes(self)
        object.__setattr__(self, "levels", tuple(self.levels))  # JSON brings a list
        check_heads(self.embed_dim, self.num_heads, "embed_dim")
        check_grid_divides(self)
        check_rope(self.rope_layout, self.rope_reference)
        ascending = list(self.levels) == sorted(set(self.levels))
        if self.levels and not (ascending and self.levels[0] >= 0 and self.levels[-1] == self.depth - 1):
            raise ConfigError(
                "These blocks cannot be the encoder's levels",
                expected=f"ascending 0-based blocks that end with the last one, {self.depth - 1}",
                found=str(self.levels),
                remedy=f"Released 2.1 encoders use {LEVELS_2_1}, by depth.",
            )

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


LEVELS_2_1: dict[int, tuple[int, ...]] = {
    12: (2, 5, 8, 11),
    24: (5, 11, 17, 23),
    40: (9, 19, 29, 39),
    48: (11, 23, 37, 47),
}
"""EncoderConfig.levels of V-JEPA 2.1 by depth; 37 breaks the pattern of quarters upstream too."""


def encoder_2_1(size: str, img_size: tuple[int, int] = (384, 384), num_frames: int = 64) -> EncoderConfig:
    """V-JEPA 2.1 encoder of a size. Released: vit_base and vit_large (distilled), vit_giant, vit_gigantic."""
    fields = ENCODER_SIZES.get(size)
    if fields is None or fields["depth"] not in LEVELS_2_1:
        raise ConfigError(
            "V-JEPA 2.1 has no such size",
            expected=", ".join(name for name, known in ENCODER_SIZES.items() if known["depth"] in LEVELS_2_1),
            found=size,
            remedy="Name one of these sizes.",
        )
    return EncoderConfig(
        **fields,
        img_size=img_size,
        num_frames=num_frames,
        rope_layout="interleaved",
        rope_reference=16,
        image_tokenizer=True,
        modality_embeddings=True,
        levels=LEVELS_2_1[fields["depth"]],
    )


def config_grid(config: Any) -> Grid:
    """Tokens (T, H, W) of an input of the size in any config with img_size, num_frames, tubelet_size, patch_size."""
    height, width = config.img_size
    return config.num_frames // config.tubelet_size, height // config.patch_size, width // config.patch_size


_SIZES = (
    "embed_dim", "predictor_embed_dim", "depth", "num_heads", "num_frames", "tubelet_size", "patch_size", "in_chans",
    "num_mask_tokens", "action_embed_dim",
)  # fmt: skip


def settle_sizes(config: Any) -> None:
    """Make img_size a pair (one number is a square); raise ConfigError unless all sizes and counts are positive ints."""
    size = config.img_size
    object.__setattr__(config, "img_size", (size, size) if isinstance(size, int) else tuple(size))
    found = {name: getattr(config, name) for name in _SIZES if hasattr(config, name)}
    found |= {f"img_size[{side}]": pixels for side, pixels in enumerate(config.img_size)}
    wrong = [f"{name} {value!r}" for name, value in found.items() if not isinstance(value, int) or value < 1]
    if len(config.img_size) != 2:
        wrong.append(f"img_size {config.img_size}")
    if not config.mlp_ratio > 0:
        wrong.append(f"mlp_ratio {config.mlp_ratio!r}")
    if wrong:
        raise ConfigError(
            f"{type(config).__name__} cannot be built",
            expected="positive ints, img_size (height, width), mlp_ratio above 0",
            found=", ".join(wrong),
            remedy="Correct these fields.",
        )


def check_grid_divides(config: Any, frames: bool = True) -> None:
    """Raise ConfigError unless size and (unless told otherwise) frames are multiples of patch and tubelet."""
    height, width = config.img_size
    odd_frames = frames and config.num_frames % config.tubelet_size
    if height % config.patch_size or width % config.patch_size or odd_frames:
        raise ConfigError(
            "The input does not divide into tubelets",
            expected=f"img_size a multiple of {config.patch_size} px, num_frames of {config.tubelet_size}",
            found=f"img_size {height} x {width}, num_frames {config.num_frames}",
            remedy="Round img_size and num_frames.",
        )


def check_token_ids(token_ids: Tensor, batch: int, tokens: int, name: str) -> None:
    """Raise ShapeError unless token_ids is (batch, K) int64 with values in [0, tokens)."""
    check_tensors(**{name: token_ids})
    if token_ids.dim() != 2 or token_ids.shape[0] != batch or token_ids.dtype != torch.int64:
        raise ShapeError(
            f"{name} must name the tokens of every sample",
            expected=f"({batch}, K) int64",
            found=f"{tuple(token_ids.shape)} {token_ids.dtype}",
            remedy="Pass one row of kept indices per sample.",
        )
    # Reading values on an accelerator would stall every step; there the gather fails on ids beyond the grid, and
    # negative ones count from its end.
    if token_ids.device.type == "cpu" and token_ids.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in token_ids.aminmax())
        if low < 0 or high >= tokens:
            raise ShapeError(
                f"{name} lies outside the token grid",
                expected=f"ids from 0 to {tokens - 1}",
                found=f"{low} to {high}",
                remedy="Draw the mask for the grid of this video.",
            )


def check_groups(groups: Sequence[Tensor], batch: int, grid: Grid) -> None:
    """Raise ShapeError unless there is a group of token ids and each fits the grid."""
    if not groups:
        raise ShapeError(
            "token_ids is an empty list",
            expected="at least one group",
            found="none",
            remedy="Pass None to encode every token.",
        )
    for group in groups:
        check_token_ids(group, batch, grid[0] * grid[1] * grid[2], "token_ids")


def check_samples(samples: Sequence[int], token_ids: Any, batch: int) -> None:
    """Raise ShapeError unless token_ids is a list of groups and there is a sample of the batch for each."""
    groups = len(token_ids) if isinstance(token_ids, list | tuple) else 0
    if not groups or len(samples) != groups or min(samples) < 0 or max(samples) >= batch:
        raise ShapeError(
            "samples does not say which sample each group is of",
            expected=f"a list of groups, and as many numbers from 0 to {batch - 1}",
            found=f"{groups} groups, samples {list(samples)}",
            remedy="Pass one number for each group of token_ids, or None when a group holds all samples.",
        )


def joined_in_time(
    video: Tensor, grid: Grid, packed_ids: Tensor, sizes: Sequence[int], samples: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """All clips as one long video (1, C, B * T, H, W), and the ids (1, sum of sizes) of its tokens."""
    begins = torch.tensor(samples, device=video.device) * (grid[0] * grid[1] * grid[2])
    per_group = torch.tensor(sizes, device=video.device)
    begins = torch.repeat_interleave(begins, per_group, output_size=packed_ids.shape[1])
    return video.transpose(0, 1).flatten(1, 2).unsqueeze(0), packed_ids + begins


class VideoEncoder(nn.Module):
    """V-JEPA 2 encoder; its output after the final norm is the feature everybody uses.

    ``activation_checkpointing`` (attribute, "none") computes blocks again in the backward pass: "full" or "selective".
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        self.patch_embed = PatchEmbed3D(config.in_chans, config.embed_dim, config.tubelet_size, config.patch_size)
        if config.image_tokenizer:
            self.patch_embed_img = PatchEmbed3D(config.in_chans, config.embed_dim, 1, config.patch_size)
        if config.modality_embeddings:
            self.img_mod_embed, self.video_mod_embed = modality_embeddings(config.embed_dim)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        if config.levels:
            self.norms_block = nn.ModuleList(nn.LayerNorm(config.embed_dim, eps=1e-6) for _ in config.levels)
        else:
            self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self._tables = TableCache(config.embed_dim // config.num_heads, config.rope_layout, config.rope_reference)
        init_weights(self, config.init_std)
        rescale_residual_outputs(self.blocks)

    def forward(
        self,
        video: Tensor,
        token_ids: Tensor | Sequence[Tensor] | None = None,
        layers: Sequence[int] | None = None,
        all_levels: bool = False,
        samples: Sequence[int] | None = None,
    ) -> Any:
        """Encode video (B, C, T, H, W) of any float dtype: any H, W multiple of the patch, any T multiple of the tubelet.

        A single frame (T == 1) is repeated to a static tubelet, or is an image where the config has an image tokenizer;
        both give one time step. ``token_ids`` names the kept tokens, (B, K) int64, or a list of such groups that never
        see each other; token id = t * Hp * Wp + h * Wp + w. With ``samples`` each group (1, K) is of the one sample of that
        number: so samples that keep unequal numbers of tokens share a pass without padding.

        Returns the last block through its norm, (B, N or K, D), or a list with one tensor per group when token_ids is a
        list. With ``layers`` (0-based blocks) a list over layers of that: a level of the config through its own norm,
        any other block through the norm of the output. With ``all_levels``, the input of the 2.1 predictor and the
        target of its loss, all levels each through its norm side by side, (B, N or K, len(levels) * D); an encoder
        without levels has one, its output.
        Raises ShapeError on sizes that do not divide, wrong dtypes and ids outside the grid.
        """
        video, grid, image = self._checked(video)
        if samples is not None:
            check_samples(samples, token_ids, video.shape[0])
        if token_ids is None:
            packed_ids, spans, sizes = None, None, [grid[0] * grid[1] * grid[2]]
            rope = broadcast_to_heads(self._tables.full(grid, video.device))
        else:
            groups = [token_ids] if isinstance(token_ids, Tensor) else list(token_ids)
            check_groups(groups, video.shape[0] if samples is None else 1, grid)
            sizes = [group.shape[1] for group in groups]
            packed_ids, spans = torch.cat(groups, dim=1), group_spans(sizes)
            rope = broadcast_to_heads(self._tables.gathered(grid, packed_ids))
            if samples is not None:
                video, packed_ids = joined_in_time(video, grid, packed_ids, sizes, samples)

        def unpack(normed: Tensor) -> Any:
            return list(normed.split(sizes, dim=1)) if isinstance(token_ids, list | tuple) else normed

        tokens = self._tokens(video, packed_ids, image)
        wanted = self._blocks_to_read(layers, all_levels)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks[: max(wanted) + 1]):
            tokens = run_block(block, tokens, rope, spans, self.activation_checkpointing)
            if index in wanted:
                outputs[index] = self._norm_of(index)(tokens)
        if layers is not None:
            return [unpack(outputs[index]) for index in wanted]
        return unpack(outputs[wanted[0]] if len(wanted) == 1 else torch.cat([outputs[i] for i in wanted], dim=-1))

    def _tokens(self, video: Tensor, token_ids: Tensor | None, image: bool) -> Tensor:
        """Embedded tubelets or image patches (B, K or N, D), marked with their modality."""
        tokens = (self.patch_embed_img if image else self.patch_embed)(video, token_ids)
        if not self.config.modality_embeddings:
            return tokens
        return tokens + (self.img_mod_embed if image else self.video_mod_embed).to(tokens.dtype)

    def _norm_of(self, block: int) -> nn.Module:
        levels = self.config.levels
        if not levels:
            return self.norm
        return self.norms_block[levels.index(block) if block in levels else -1]

    def _checked(self, video: Tensor) -> tuple[Tensor, Grid, bool]:
        """The video (a single frame repeated unless it is an image), its grid, and whether it is an image."""
        config = self.config
        check_tensors(video=video)
        image = video.dim() == 5 and video.shape[2] == 1 and config.image_tokenizer
        if video.dim() == 5 and video.shape[2] == 1 and not image:
            video = video.expand(-1, -1, config.tubelet_size, -1, -1)
        tubelet = 1 if image else config.tubelet_size
        if (
            video.dim() != 5
            or not video.is_floating_point()
            or video.shape[1] != config.in_chans
            or video.shape[2] % tubelet
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
        return video, (frames // tubelet, height // config.patch_size, width // config.patch_size), image

    def _blocks_to_read(self, layers: Sequence[int] | None, all_levels: bool) -> list[int]:
        if layers is None:
            return list(self.config.levels) if all_levels and self.config.levels else [self.config.depth - 1]
        if all_levels:
            raise ShapeError(
                "layers and all_levels exclude each other",
                expected="one of them",
                found="both",
                remedy=f"Pass layers={list(self.config.levels)} for the levels as a list.",
            )
        try:
            wanted = [operator.index(layer) for layer in layers]
        except TypeError:
            wanted = []
        if not wanted or min(wanted) < 0 or max(wanted) >= self.config.depth:
            raise ShapeError(
                "layers names blocks that do not exist",
                expected=f"0-based blocks from 0 to {self.config.depth - 1}",
                found=str(layers),
                remedy="Pass a list of at least one existing block.",
            )
        return wanted


def encode_frames(encoder: VideoEncoder, frames: Tensor) -> Tensor:
    """Encode each frame alone as a static clip, the way V-JEPA 2-AC sees the world, image tokenizer or not.

    frames (B, C, H, W) float -> (B, Hp * Wp, D) after the encoder's final norm, before any further layer norm.
    """
    if frames.dim() != 4:
        raise ShapeError(
            "encode_frames takes single frames",
            expected="(B, C, H, W)",
            found=str(tuple(frames.shape)),
            remedy="Fold time into the batch first.",
        )
    return encoder(frames.unsqueeze(2).expand(-1, -1, encoder.config.tubelet_size, -1, -1))


def layer_norm_features(tokens: Tensor) -> Tensor:
    """LayerNorm over the last dim without weights, eps 1e-5: the space in which 2.0 targets and 2-AC live."""
    return F.layer_norm(tokens, (tokens.shape[-1],), eps=1e-5)
