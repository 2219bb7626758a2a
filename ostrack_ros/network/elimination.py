"""Early candidate elimination (OSTrack, section 3.2).

After the attention of some blocks, the search tokens to which the template's central token attends
least are dropped: they are background, and later blocks need not carry them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Split:
    """Positions among the remaining search tokens, int64, by falling attention: `kept` [B, K] and
    `removed` [B, N - K]."""

    kept: Tensor
    removed: Tensor


def central_token(template_tokens: int) -> int:
    """Flat index of the template's central token; on even grids the one up and left of the middle.

    7x7 and 8x8 grids have it in row and column 3, 12x12 in 5, 14x14 in 6.
    """
    side = math.isqrt(template_tokens)
    middle = (side - 1) // 2
    return middle * side + middle


def split_candidates(attention: Tensor, keep_ratio: float) -> Split:
    """Rank the candidates by `attention` [B, N] and keep the first ceil(keep_ratio * N)."""
    count = attention.shape[1]
    order = torch.topk(attention, count, dim=1, largest=True, sorted=True).indices
    keep = math.ceil(keep_ratio * count)
    return Split(order[:, :keep], order[:, keep:])


def take_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """`tokens` [B, N, C] at `positions` [B, K] -> [B, K, C]."""
    return tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def kept_mask(removed: Sequence[Tensor], count: int) -> Tensor:
    """float32 [B, count]: 0 at the search-grid indices in `removed` (int64 [B, n] each), else 1."""
    gone = torch.cat(list(removed), dim=1).unsqueeze(1)
    cells = torch.arange(count, device=gone.device).view(1, count, 1)
    return 1 - (cells == gone).float().sum(dim=2)


def restore_tokens(tokens: Tensor, positions: Tensor, count: int) -> Tensor:
    """Put `tokens` [B, K, C] back at `positions` [B, K] of a zero [B, count, C].

    Written as a product with a 0/1 matrix, which is exact and which every engine runs fast; the
    equivalent scatter is a slow path or a plugin in several of them.
    """
    cells = torch.arange(count, device=positions.device)
    placement = (cells.view(1, count, 1) == positions.unsqueeze(1)).to(tokens.dtype)
    return placement @ tokens
