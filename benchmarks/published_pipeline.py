"""What one frame costs the way OSTrack was published: eager PyTorch, from crop to box.

The same work in the same order as the published inference code, on our network's weights: the crop
is padded whole and gets an attention mask, images are normalised as float tensors, every block
forms its full softmax attention, eliminated candidates are appended as zeros and scattered back,
and head, window and box decode run operator by operator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ostrack_ros.engines.spec import IMAGENET_MEAN, IMAGENET_STD
from ostrack_ros.network.elimination import central_token
from ostrack_ros.network.head import CenterHead
from ostrack_ros.network.ostrack import OSTrack
from ostrack_ros.network.vit import Attention
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.tracker import CLIP_MARGIN


class PublishedPipeline:
    """Tracks one target in RGB images with `network`, in eval mode, on `device`."""

    def __init__(
        self,
        network: OSTrack,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._network = network.eval().to(device=device, dtype=dtype)
        self._variant = network.variant
        self._device, self._dtype = torch.device(device), dtype
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(shape)
        self._std = torch.tensor(IMAGENET_STD, device=device).view(shape)
        side = self._variant.score_size
        steps = torch.arange(1, side + 1, device=device)
        hann = 0.5 * (1 - torch.cos(2 * math.pi / (side + 1) * steps))
        self._window = (hann.view(1, 1, -1, 1) * hann.view(1, 1, 1, -1)).to(dtype)
        tokens = self._variant.template_tokens
        self._central = torch.zeros(1, tokens, dtype=torch.bool, device=device)
        self._central[0, central_token(tokens)] = True
        self._box = Box(0, 0, 0, 0)

    @torch.no_grad()
    def init(self, image: NDArray[np.uint8], box: Box) -> None:
        variant = self._variant
        patch, _, mask = _sample(image, box, variant.template_factor, variant.template_size)
        self._template, _ = self._to_tensors(patch, mask)
        self._box = box

    @torch.no_grad()
    def update(self, image: NDArray[np.uint8]) -> Box:
        """Find the target in uint8 [H, W, 3] RGB."""
        variant = self._variant
        patch, scale, mask = _sample(image, self._box, variant.search_factor, variant.search_size)
        search, _ = self._to_tensors(patch, mask)
        score, size, offset = self._forward(self._template, search)
        response = self._window * score
        side = variant.score_size
        _, peak = torch.max(response.flatten(1), dim=1, keepdim=True)
        row, column = torch.div(peak, side, rounding_mode="floor"), peak % side
        both = peak.unsqueeze(1).expand(-1, 2, 1)
        extent = size.flatten(2).gather(2, both).squeeze(-1)
        shift = offset.flatten(2).gather(2, both).squeeze(-1)
        found = torch.cat(
            [
                (column.to(shift) + shift[:, :1]) / side,
                (row.to(shift) + shift[:, 1:]) / side,
                extent,
            ],
            dim=1,
        ).view(-1, 4)
        cx, cy, width, height = (found.mean(dim=0) * variant.search_size / scale).tolist()
        half = 0.5 * variant.search_size / scale
        center = (cx + self._box.cx - half, cy + self._box.cy - half)
        box = Box.from_center(*center, width, height)
        self._box = box.clipped(image.shape[1], image.shape[0], CLIP_MARGIN)
        return self._box

    def _to_tensors(
        self, patch: NDArray[np.uint8], mask: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor]:
        tensor = torch.tensor(patch).to(self._device).float().permute(2, 0, 1).unsqueeze(0)
        normalised = ((tensor / 255.0) - self._mean) / self._std
        return normalised.to(self._dtype), torch.from_numpy(mask).to(self._device).unsqueeze(0)

    def _forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        backbone = self._network.backbone
        schedule = self._variant.elimination
        z = backbone.patch_embed(template) + backbone.pos_embed_z
        x = backbone.patch_embed(search) + backbone.pos_embed_x
        template_count, search_count = z.shape[1], x.shape[1]
        tokens = torch.cat([z, x], dim=1)
        positions = torch.arange(search_count, device=tokens.device).unsqueeze(0)
        removed = []
        for index, block in enumerate(backbone.blocks):
            mixed, attention = _attend(block.attn, block.norm1(tokens))
            tokens = tokens + mixed
            if schedule and index in schedule.blocks:
                tokens, positions, dropped = self._eliminate(
                    attention, tokens, template_count, positions, schedule.keep_ratio
                )
                removed.append(dropped)
            tokens = tokens + block.mlp(block.norm2(tokens))
        tokens = backbone.norm(tokens)
        z, x = tokens[:, :template_count], tokens[:, template_count:]
        if removed:
            order = torch.cat([positions, *removed], dim=1)
            blank = torch.zeros(
                x.shape[0], search_count - x.shape[1], x.shape[2], device=x.device, dtype=x.dtype
            )
            x = torch.cat([x, blank], dim=1)
            index = order.unsqueeze(-1).expand(-1, -1, x.shape[2])
            x = torch.zeros_like(x).scatter_(dim=1, index=index, src=x)
        tokens = torch.cat([z, x], dim=1)
        side = self._variant.score_size
        features = tokens[:, -search_count:].unsqueeze(-1).permute(0, 3, 2, 1).contiguous()
        return self._head(features.view(1, -1, side, side))

    def _eliminate(
        self,
        attention: Tensor,
        tokens: Tensor,
        template_count: int,
        positions: Tensor,
        keep_ratio: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cross = attention[:, :, :template_count, template_count:]
        heads, candidates = cross.shape[1], cross.shape[3]
        mask = self._central.unsqueeze(1).unsqueeze(-1).expand(-1, heads, -1, candidates)
        cross = cross[mask].view(1, heads, -1, candidates).mean(dim=2).mean(dim=1)
        order = torch.sort(cross, dim=1, descending=True).indices
        keep = math.ceil(keep_ratio * candidates)
        kept, dropped = order[:, :keep], order[:, keep:]
        z, x = tokens[:, :template_count], tokens[:, template_count:]
        x = x.gather(1, kept.unsqueeze(-1).expand(1, -1, x.shape[2]))
        tokens = torch.cat([z, x], dim=1)
        return tokens, positions.gather(1, kept), positions.gather(1, dropped)

    def _head(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        head: CenterHead = self._network.box_head
        maps = []
        for tower in ("ctr", "size", "offset"):
            x = features
            for layer in range(1, 6):
                x = getattr(head, f"conv{layer}_{tower}")(x)
            maps.append(x)
        score, size, offset = maps
        return (
            torch.clamp(score.sigmoid_(), min=1e-4, max=1 - 1e-4),
            torch.clamp(size.sigmoid_(), min=1e-4, max=1 - 1e-4),
            offset,
        )


def _attend(attention: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Attention with its whole matrix [B, heads, N, N] in memory."""
    batch, count, dim = x.shape
    width = dim // attention.heads
    qkv = attention.qkv(x).reshape(batch, count, 3, attention.heads, width).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    weights = ((query @ key.transpose(-2, -1)) * width**-0.5).softmax(dim=-1)
    mixed = (weights @ value).transpose(1, 2).reshape(batch, count, dim)
    return attention.proj(mixed), weights


def _sample(
    image: NDArray[np.uint8], box: Box, factor: float, size: int
) -> tuple[NDArray[np.uint8], float, NDArray[np.bool_]]:
    """The crop padded to its full size and resized, its scale, and the mask of its padding."""
    side = math.ceil(math.sqrt(box.area) * factor)
    x1, y1 = round(box.cx - 0.5 * side), round(box.cy - 0.5 * side)
    x2, y2 = x1 + side, y1 + side
    left, top = max(0, -x1), max(0, -y1)
    right, bottom = max(x2 - image.shape[1] + 1, 0), max(y2 - image.shape[0] + 1, 0)
    crop = image[y1 + top : y2 - bottom, x1 + left : x2 - right]
    padded = cv2.copyMakeBorder(crop, top, bottom, left, right, cv2.BORDER_CONSTANT)
    mask = np.ones(padded.shape[:2])
    mask[top : side - bottom, left : side - right] = 0
    resized = cv2.resize(padded, (size, size))
    return resized, size / side, cv2.resize(mask, (size, size)).astype(np.bool_)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """PyTorch on `count` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
