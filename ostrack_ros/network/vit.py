"""The one-stream vision transformer: template and search tokens in one sequence.

Parameter names are those of the published checkpoints, which follow timm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostrack_ros.network.elimination import (
    Split,
    central_token,
    restore_tokens,
    split_candidates,
    take_tokens,
)
from ostrack_ros.network.variants import PATCH_SIZE, Variant

LAYER_NORM_EPS = 1e-6
MLP_RATIO = 4


@dataclass(frozen=True, slots=True)
class Features:
    """`search` [B, Nx, C]: the search region's tokens, zeros where candidates were eliminated;
    `removed`: their flat search-grid indices, int64 [B, n] for each eliminating block in order,
    by falling attention."""

    search: Tensor
    removed: tuple[Tensor, ...]


class PatchEmbed(nn.Module):
    """Non-overlapping patches -> tokens."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H/16 * W/16, C]."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention that can also report one row of its softmax."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.qkv = nn.Linear(dim, 3 * width)
        self.proj = nn.Linear(width, dim)

    def forward(
        self, x: Tensor, row: int | None = None, first: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """`x` [B, N, C] -> tokens `first` to N after attending to all N, [B, N - first, C], and
        the attention of token `row` to all tokens [B, N] (mean over heads, in fp32 whatever the
        network's precision) if a row is asked for.
        """
        batch, count, _ = x.shape
        qkv: Tensor = self.qkv(x)
        qkv = qkv.reshape(batch, count, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = _attend(query[:, :, first:], key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count - first, -1))
        if row is None:
            return out, None
        scale = self.head_dim**-0.5
        logits = (query[:, :, row : row + 1] * scale) @ key.transpose(-2, -1)
        # Not mean(): TensorRT 8.6 ignores the axes of ReduceMean in opset 18, without a word.
        return out, logits.float().softmax(dim=-1).sum(dim=1)[:, 0] / self.heads


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention [B, H, N, D]."""
    if query.device.type != "cpu" or not query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value)
    # Training on a CPU: there and back the fused operation takes half as long again as these.
    shape = query.shape
    query, key, value = (tokens.flatten(0, 1) for tokens in (query, key, value))
    weights = torch.bmm(query * shape[-1] ** -0.5, key.transpose(1, 2)).softmax(dim=-1)
    return torch.bmm(weights, value).reshape(shape)


class Mlp(nn.Module):
    """Two linear layers with exact GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block; candidates are eliminated between attention and MLP."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        dim = variant.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, variant.heads, variant.attention_width)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, variant.mlp_width or MLP_RATIO * dim)

    def forward(
        self, x: Tensor, template_tokens: int, keep_ratio: float | None, last: bool = False
    ) -> tuple[Tensor, Split | None]:
        """`x` [B, N, C]; with a `keep_ratio` fewer search tokens come out than went in. Out of the
        `last` block come search tokens only: nobody asks for the template's any more."""
        row = None if keep_ratio is None else central_token(template_tokens)
        dropped = template_tokens if last else 0
        mixed, attention = self.attn(self.norm1(x), row, dropped)
        x = x[:, dropped:] + mixed
        split = None
        if attention is not None and keep_ratio is not None:
            split = split_candidates(attention[:, template_tokens:], keep_ratio)
            start = template_tokens - dropped
            search = take_tokens(x[:, start:], split.kept)
            x = torch.cat([x[:, :start], search], dim=1) if start else search
        return x + self.mlp(self.norm2(x)), split


class VisionTransformer(nn.Module):
    """Joint feature learning and relation modelling (OSTrack, section 3.1)."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        dim = variant.embed_dim
        self.elimination = variant.elimination
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed_z = nn.Parameter(torch.zeros(1, variant.template_tokens, dim))
        self.pos_embed_x = nn.Parameter(torch.zeros(1, variant.score_size**2, dim))
        self.blocks = nn.ModuleList(Block(variant) for _ in range(variant.depth))
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        nn.init.trunc_normal_(self.pos_embed_z, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_x, std=0.02)

    def embed(self, template: Tensor, search: Tensor) -> Tensor:
        """The inputs of `forward` -> the first block's tokens [B, Nz + Nx, C]."""
        z = self.patch_embed(template) + self.pos_embed_z
        x = self.patch_embed(search)
        x = x + central_positions(self.pos_embed_x, x.shape[1])
        return torch.cat([z, x], dim=1)

    def forward(
        self, template: Tensor, search: Tensor, keep_ratio: float | None = None
    ) -> Features:
        """Normalised RGB `template` [B, 3, Z, Z] and `search` [B, 3, X, X] -> Features.

        `keep_ratio` replaces the schedule's own (the training warms it up from 1). A `search`
        smaller than the variant's is taken for the middle of its search region.
        """
        tokens = self.embed(template, search)
        template_tokens = self.pos_embed_z.shape[1]
        search_tokens = tokens.shape[1] - template_tokens
        positions: Tensor | None = None
        removed: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            keep, last = self._keep_ratio(index, keep_ratio), index == len(self.blocks) - 1
            tokens, split = block(tokens, template_tokens, keep, last)
            if split is None:
                continue
            if positions is None:
                removed.append(split.removed)
                positions = split.kept
            else:
                removed.append(positions.gather(1, split.removed))
                positions = positions.gather(1, split.kept)
        tokens = self.norm(tokens)
        if positions is not None:
            tokens = restore_tokens(tokens, positions, search_tokens)
        return Features(tokens, tuple(removed))

    def _keep_ratio(self, block: int, override: float | None) -> float | None:
        if self.elimination is None or block not in self.elimination.blocks:
            return None
        ratio = self.elimination.keep_ratio if override is None else override
        return ratio if ratio < 1 else None


def central_positions(grid: Tensor, count: int) -> Tensor:
    """The middle `count` positions (a square number) of a square grid [1, N, C]."""
    if count == grid.shape[1]:
        return grid
    full, side = math.isqrt(grid.shape[1]), math.isqrt(count)
    start = (full - side) // 2
    rows = grid.reshape(1, full, full, -1)[:, start : start + side, start : start + side]
    return rows.reshape(1, count, -1)
