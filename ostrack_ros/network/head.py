"""The centre head: score, offset and size maps, and the decoding of a box from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SCORE_EPS = 1e-4


@dataclass(frozen=True, slots=True)
class Maps:
    """`score` [B, 1, S, S] in (0, 1); `size` [B, 2, S, S], width and height as fractions of the
    search region; `offset` [B, 2, S, S], x and y in cells from the cell's own index."""

    score: Tensor
    size: Tensor
    offset: Tensor


def _conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class CenterHead(nn.Module):
    """Three towers of four 3x3 convolutions and a 1x1 each (OSTrack, section 3.3).

    The towers' widths are `channels`, /2, /4 and /8; published models have 256.
    """

    TOWERS = (("ctr", 1), ("offset", 2), ("size", 2))

    def __init__(self, embed_dim: int, channels: int) -> None:
        super().__init__()
        widths = [embed_dim, channels, channels // 2, channels // 4, channels // 8]
        for tower, outputs in self.TOWERS:
            for layer in range(4):
                block = _conv_block(widths[layer], widths[layer + 1])
                self.add_module(f"conv{layer + 1}_{tower}", block)
            self.add_module(f"conv5_{tower}", nn.Conv2d(widths[4], outputs, 1))
        # Training starts from "hardly ever here": at even odds, the focal loss of all the empty
        # cells would drown everything else for the first hundred steps.
        nn.init.constant_(self.get_submodule("conv5_ctr").bias, -4.6)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Maps:
        """Search features [B, C, S, S] -> Maps in float32."""
        score, offset, size = (self._tower(features, tower) for tower, _ in self.TOWERS)
        return Maps(_bounded_sigmoid(score), _bounded_sigmoid(size), offset)

    def _tower(self, x: Tensor, tower: str) -> Tensor:
        for layer in range(1, 5):
            x = self.get_submodule(f"conv{layer}_{tower}")(x)
        last = self.get_submodule(f"conv5_{tower}")
        out: Tensor = last(x.to(last.weight.dtype))  # type: ignore[arg-type]
        return out.float()


def _bounded_sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid().clamp(SCORE_EPS, 1 - SCORE_EPS)


def hann_window(size: int) -> Tensor:
    """The window that prefers small motion, float32 [size, size], without zeros at its border."""
    steps = torch.arange(1, size + 1, dtype=torch.float64)
    hann = 0.5 * (1 - torch.cos(2 * torch.pi * steps / (size + 1)))
    return torch.outer(hann, hann).float()


def decode(maps: Maps, window: Tensor | None = None) -> Tensor:
    """The box at the (windowed) score's maximum.

    Returns float32 [B, 6]: cx, cy, width, height as fractions of the search region, the raw score
    at that cell, and the score after `window` [S, S] (the raw one again without a window).
    """
    batch, _, side, _ = maps.score.shape
    score = maps.score.reshape(batch, side * side)
    response = score if window is None else score * window.reshape(1, side * side)
    peak = response.argmax(dim=1, keepdim=True)
    cell_x, cell_y = peak % side, peak // side
    width, height = _at(maps.size, peak)
    offset_x, offset_y = _at(maps.offset, peak)
    return torch.cat(
        [
            (cell_x.to(offset_x.dtype) + offset_x) / side,
            (cell_y.to(offset_y.dtype) + offset_y) / side,
            width,
            height,
            score.gather(1, peak),
            response.gather(1, peak),
        ],
        dim=1,
    )


def _at(maps: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Both channels of `maps` [B, 2, S, S] at the flat `cell` [B, 1], each [B, 1]."""
    flat = maps.flatten(2)
    return flat[:, 0].gather(1, cell), flat[:, 1].gather(1, cell)
