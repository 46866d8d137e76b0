"""V-JEPA 2 written down plainly, the way the published trainer computes it: what models/ is measured against.

Nothing here is clever, on purpose. Rotary tables are rebuilt in every layer, for queries and keys apart and for each
axis apart, and for every head when tokens are masked; every mask group is its own pass through the patch embedding and
all blocks; the patch convolution runs over all tokens before the kept ones are gathered; the predictor sorts its
tokens and back again row by row. Written from the paper (arXiv 2506.09985) and from what upstream's code was seen to do.
Parameter names are those of models/, so that ``load_state_dict`` copies weights across.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder import EncoderConfig
from models.predictor import PredictorConfig

Grid = tuple[int, int, int]


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """tokens (B, N, D) at ids (B, K) -> (B, K, D)."""
    return torch.gather(tokens, 1, ids.unsqueeze(-1).repeat(1, 1, tokens.shape[-1]))


def reordered(rows: Tensor, order: Tensor) -> Tensor:
    """Every sample of rows (B, N, ...) in its own order (B, N), one after the other."""
    return torch.stack([row[places] for row, places in zip(rows, order, strict=True)])


def rotate_axis(part: Tensor, positions: Tensor) -> Tensor:
    """Rotate part (B, heads, N, d) by positions (N,) or (B, heads, N) along one axis, with 2.0's tiled tables."""
    half = part.shape[-1] // 2
    frequencies = 1.0 / 10000.0 ** (torch.arange(half, dtype=part.dtype, device=part.device) / half)
    angles = positions.unsqueeze(-1) * frequencies
    sin, cos = (torch.cat((wave, wave), dim=-1) for wave in (angles.sin(), angles.cos()))
    turned = torch.stack((-part[..., 1::2], part[..., 0::2]), dim=-1).flatten(-2)
    return part * cos + turned * sin


class PlainAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, ids: Tensor | None, grid: Grid) -> Tensor:
        heads = self.qkv(tokens).unflatten(-1, (3 * self.num_heads, -1)).transpose(1, 2)  # (B, 3 * heads, N, head_dim)
        query, key, value = heads.chunk(3, dim=1)
        if ids is None:
            at = torch.arange(grid[0] * grid[1] * grid[2], device=tokens.device)
        else:
            at = ids.unsqueeze(1).repeat(1, self.num_heads, 1)
        per_frame, per_row = grid[1] * grid[2], grid[2]
        time = at // per_frame
        row = (at - per_frame * time) // per_row
        column = at - per_frame * time - per_row * row
        axis_dim = 2 * ((query.shape[-1] // 3) // 2)
        turned_query, turned_key = [], []
        for axis, positions in enumerate((time, row, column)):
            part = slice(axis * axis_dim, (axis + 1) * axis_dim)
            turned_query.append(rotate_axis(query[..., part], positions))
            turned_key.append(rotate_axis(key[..., part], positions))
        query = torch.cat([*turned_query, query[..., 3 * axis_dim :]], dim=-1)
        key = torch.cat([*turned_key, key[..., 3 * axis_dim :]], dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class PlainMlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class PlainBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = PlainAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = PlainMlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor, ids: Tensor | None, grid: Grid) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), ids, grid)
        return tokens + self.mlp(self.norm2(tokens))


class PlainPatchEmbed(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        kernel = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.embed_dim, kernel_size=kernel, stride=kernel)

    def forward(self, video: Tensor) -> Tensor:
        return self.proj(video).flatten(2).transpose(1, 2)


class PlainEncoder(nn.Module):
    """One clip and at most one mask group a call."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PlainPatchEmbed(config)
        self.blocks = nn.ModuleList(
            PlainBlock(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)

    def forward(self, video: Tensor, ids: Tensor | None = None) -> Tensor:
        """video (B, C, T, H, W), kept token ids (B, K) or None -> (B, K or N, D)."""
        config, (frames, height, width) = self.config, video.shape[2:]
        grid = (frames // config.tubelet_size, height // config.patch_size, width // config.patch_size)
        tokens = self.patch_embed(video)
        if ids is not None:
            tokens = gather_tokens(tokens, ids)
        for block in self.blocks:
            tokens = block(tokens, ids, grid)
        return self.norm(tokens)


class PlainPredictor(nn.Module):
    """One mask group a call, at the grid it was built for."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.predictor_embed_dim
        self.predictor_embed = nn.Linear(config.embed_dim, width)
        self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, width) for _ in range(config.num_mask_tokens))
        self.predictor_blocks = nn.ModuleList(
            PlainBlock(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, config.embed_dim)

    def forward(self, context_tokens: Tensor, context_ids: Tensor, target_ids: Tensor, mask_token: int = 0) -> Tensor:
        """context_tokens (B, Kx, D) at context_ids (B, Kx), target_ids (B, Ky) -> (B, Ky, D)."""
        grid, batch = self.config.grid, context_tokens.shape[0]
        context = self.predictor_embed(context_tokens)
        everywhere = self.mask_tokens[mask_token].repeat(batch, grid[0] * grid[1] * grid[2], 1)
        tokens = torch.cat([context, gather_tokens(everywhere, target_ids)], dim=1)
        ids = torch.cat([context_ids, target_ids], dim=1)
        order = torch.argsort(ids, dim=1)
        ids, tokens = reordered(ids, order), reordered(tokens, order)
        for block in self.predictor_blocks:
            tokens = block(tokens, ids, grid)
        tokens = self.predictor_norm(tokens)
        back = torch.argsort(order, dim=1)
        tokens = reordered(tokens, back)
        return self.predictor_proj(tokens[:, context.shape[1] :])


def pretraining_loss(
    encoder: PlainEncoder,
    predictor: PlainPredictor,
    target_encoder: PlainEncoder,
    video: Tensor,
    context_ids: Sequence[Tensor],
    target_ids: Sequence[Tensor],
) -> Tensor:
    """L1 between predicted and layer-normed teacher tokens, averaged over mask groups; one pass a group."""
    with torch.no_grad():
        targets = target_encoder(video)
        targets = F.layer_norm(targets, (targets.shape[-1],))
    contexts = [encoder(video, ids) for ids in context_ids]
    predictions = [predictor(*group) for group in zip(contexts, context_ids, target_ids, strict=True)]
    losses = [
        (predicted - gather_tokens(targets, ids)).abs().mean()
        for predicted, ids in zip(predictions, target_ids, strict=True)
    ]
    return torch.stack(losses).mean()
