"""What the network is taught: where the target is (focal loss) and its box (L1 and GIoU).

Weights follow OSTrack, section 3.4. The published code reads the box at the network's own peak,
which is noise while training from scratch. Here every cell next to the true centre learns the box,
the nearer the more (after TTFNet, AAAI 2020): the tracker's peak is off by one in three of ten.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ostrack_ros.network.elimination import kept_mask
from ostrack_ros.network.head import Maps
from ostrack_ros.network.vit import Features

FOCAL_ALPHA = 2.0
FOCAL_BETA = 4.0
WEIGHT_GIOU = 2.0
WEIGHT_L1 = 5.0
WEIGHT_QUALITY = 2.0
"""Scores that aim at an overlap rather than at 1 are less far off: about as much as this makes up
for."""
MIN_OVERLAP = 0.7


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars of one batch; `total` carries the gradient. `hit` is the share of present targets
    whose score peak lies within one cell of the truth, `iou` the mean IoU of that peak's box."""

    total: Tensor
    focal: Tensor
    giou: Tensor
    l1: Tensor
    hit: Tensor
    iou: Tensor


def tracking_losses(
    maps: Maps, box: Tensor, present: Tensor, quality_score: bool = False
) -> Losses:
    """`box` [B, 4] cx, cy, w, h in fractions of the search region; `present` bool [B].

    Absent targets teach an empty score map and no box. With `quality_score` the score at the
    target's centre learns the overlap of the box read there instead of 1 (quality focal loss, Li et
    al., NeurIPS 2020), so that it tells how good the box is.
    """
    batch, _, side, _ = maps.score.shape
    weight = present.float()
    count = weight.sum().clamp_min(1)
    cell = (box[:, :2] * side).floor().clamp(0, side - 1)
    target = gaussian_targets(box, side) * weight[:, None, None]
    positive = torch.zeros_like(target, dtype=torch.bool)
    rows = torch.arange(batch, device=box.device)
    x, y = cell[:, 0].long(), cell[:, 1].long()
    positive[rows, y, x] = present

    boxes = decoded_boxes(maps.offset.float(), maps.size.float())
    iou, giou = box_overlap(boxes, box[:, None])

    score = maps.score[:, 0].float()
    aim = iou.detach().view_as(score) if quality_score else torch.ones_like(score)
    likelihood = aim * score.log() + (1 - aim) * (1 - score).log()
    hard = (aim - score).abs() ** FOCAL_ALPHA * likelihood * positive
    easy = (1 - target) ** FOCAL_BETA * score**FOCAL_ALPHA * (1 - score).log() * ~positive
    focal = -(hard + easy).sum() / count
    if quality_score:
        focal = WEIGHT_QUALITY * focal

    nearness = nearness_to_center(box, side) * weight[:, None, None]
    l1 = ((boxes - box[:, None]).abs().mean(2) * nearness.flatten(1)).sum() / count
    giou_loss = ((1 - giou) * nearness.flatten(1)).sum() / count

    peak = score.flatten(1).argmax(1)
    near = ((peak % side - x).abs() <= 1) & ((peak // side - y).abs() <= 1)
    return Losses(
        total=focal + WEIGHT_GIOU * giou_loss + WEIGHT_L1 * l1,
        focal=focal.detach(),
        giou=giou_loss.detach(),
        l1=l1.detach(),
        hit=(near & present).sum() / count,
        iou=((iou[rows, peak] * weight).sum() / count).detach(),
    )


def score_imitation(score: Tensor, taught: Tensor) -> Tensor:
    """Binary cross entropy of a score map [B, 1, S, S] to the teacher's, summed over cells and
    averaged over the batch."""
    return F.binary_cross_entropy(score, taught, reduction="sum") / len(score)


def feature_imitation(own: Features, taught: Features) -> Tensor:
    """Mean squared difference of the search features [B, N, C] at the positions that neither
    network eliminated."""
    removed = (*own.removed, *taught.removed)
    squares = (own.search.float() - taught.search.float()).square().mean(2)
    if not removed:
        return squares.mean()
    # What both eliminated is counted twice by the mask of the two together.
    kept = kept_mask(removed, squares.shape[1]).clamp_min(0)
    return (squares * kept).sum() / kept.sum().clamp_min(1)


def gaussian_targets(box: Tensor, side: int) -> Tensor:
    """Heat maps float32 [B, side, side] with 1 at the box centre's cell, as CornerNet spreads
    them: the wider, the further a centre may move with an IoU of at least 0.7."""
    width, height = box[:, 2] * side, box[:, 3] * side
    sigma = ((2 * _radius(width, height) + 1) / 6)[:, None, None]
    cells = torch.arange(side, device=box.device)
    center = (box[:, :2] * side).floor().clamp(0, side - 1)
    dx = (cells[None, None, :] - center[:, 0, None, None]) ** 2
    dy = (cells[None, :, None] - center[:, 1, None, None]) ** 2
    return torch.exp(-(dx + dy) / (2 * sigma**2))


def decoded_boxes(offset: Tensor, size: Tensor) -> Tensor:
    """The box that each cell stands for: [B, S * S, 4] cx, cy, w, h in fractions of the search
    region, from the maps `offset` and `size` [B, 2, S, S]."""
    side = offset.shape[-1]
    cells = torch.arange(side, device=offset.device, dtype=offset.dtype)
    y, x = torch.meshgrid(cells, cells, indexing="ij")
    center = (torch.stack([x, y]) + offset) / side
    return torch.cat([center, size], 1).flatten(2).transpose(1, 2)


def nearness_to_center(box: Tensor, side: int) -> Tensor:
    """How much each cell learns the box: [B, side, side], 1 in all, falling with the distance of
    the cell's middle from the box centre and 0 beyond the neighbours of the centre's cell."""
    cells = torch.arange(side, device=box.device)
    center = (box[:, :2] * side).clamp(0, side)
    home = center.floor().clamp(0, side - 1)

    def along(axis: int) -> Tensor:
        near = (cells[None, :] - home[:, axis, None]).abs() <= 1
        return torch.exp(-((cells[None, :] + 0.5 - center[:, axis, None]) ** 2)) * near

    weight = along(1)[:, :, None] * along(0)[:, None, :]
    return weight / weight.sum((1, 2), keepdim=True)


def box_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU [...] of boxes [..., 4] given as cx, cy, w, h."""
    a_low, a_high = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    b_low, b_high = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    inter = (a_high.minimum(b_high) - a_low.maximum(b_low)).clamp_min(0).prod(-1)
    union = (a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inter).clamp_min(1e-9)
    hull = (a_high.maximum(b_high) - a_low.minimum(b_low)).prod(-1).clamp_min(1e-9)
    iou = inter / union
    return iou, iou - (hull - union) / hull


def _radius(width: Tensor, height: Tensor) -> Tensor:
    """CornerNet's radius: the least of three quadratics' roots, never below 0.

    The three cases are: both corners moved inwards, both outwards, and one each way.
    """
    total, area = width + height, width * height
    ratio = (1 - MIN_OVERLAP) / (1 + MIN_OVERLAP)
    shifted = (total - (total**2 - 4 * area * ratio).clamp_min(0).sqrt()) / 2
    inner = (2 * total - (4 * total**2 - 16 * area * (1 - MIN_OVERLAP)).clamp_min(0).sqrt()) / 8
    linear = 2 * MIN_OVERLAP * total
    constant = 4 * MIN_OVERLAP * (MIN_OVERLAP - 1) * area
    outer = (-linear + (linear**2 - 4 * 4 * MIN_OVERLAP * constant).clamp_min(0).sqrt()) / (
        8 * MIN_OVERLAP
    )
    return shifted.minimum(inner).minimum(outer).clamp_min(0)
