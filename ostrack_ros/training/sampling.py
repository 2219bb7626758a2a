"""Resampling of the bank's textures through homographies: OpenCV's on a CPU, PyTorch's elsewhere.

Both do the same; on a CPU OpenCV's takes a tenth of the time, as it reads only what it needs of a
texture and works on bytes.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def sample(
    textures: Tensor,
    chosen: Tensor,
    view: Tensor,
    size: int,
    used: Tensor,
    mirror: Tensor | None = None,
    bend: Tensor | None = None,
) -> Tensor:
    """Pictures float32 [B, C, size, size] of the `chosen` [B] of uint8 `textures` [N, C, T, T].

    `view` [B, 3, 3] maps pixels of the result to texels; integers are borders between pixels, and
    pixel 0 reaches from 0 to 1. Beyond the `used` [B, 2] part (width, height) of a texture there
    is zero, or its mirror image where `mirror` [B] is set. `bend` [B, 2, size, size] displaces the
    texels looked up.
    """
    if textures.device.type == "cpu":
        return _by_opencv(textures, chosen, view, size, used, mirror, bend)
    return _by_torch(textures, chosen, view, size, used, mirror, bend)


def pixel_centers(size: int, device: torch.device) -> Tensor:
    """float32 [size * size, 2] (x, y), row by row."""
    steps = torch.arange(size, device=device) + 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def apply_homographies(matrix: Tensor, points: Tensor) -> Tensor:
    """Homographies [B, 3, 3] on points [B, P, 2]."""
    mapped = points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]
    return mapped[..., :2] / mapped[..., 2:].clamp_min(1e-3)


def _by_torch(
    textures: Tensor,
    chosen: Tensor,
    view: Tensor,
    size: int,
    used: Tensor,
    mirror: Tensor | None,
    bend: Tensor | None,
) -> Tensor:
    side = textures.shape[-1]
    texels = _texels(view, size, bend)
    limit = used[:, None, None, :]
    inside = ((texels >= 0) & (texels <= limit)).all(-1)
    if mirror is not None:
        folded = torch.remainder(texels, 2 * limit)
        folded = torch.where(folded > limit, 2 * limit - folded, folded)
        texels = torch.where(mirror[:, None, None, None], folded, texels)
        inside |= mirror[:, None, None]
    # Half a texel inwards: the used part's border must not blend with the empty rest.
    texels = texels.maximum(torch.full_like(limit, 0.5)).minimum(limit - 0.5)
    grid = texels * (2 / side) - 1
    result = F.grid_sample(textures[chosen].float(), grid, mode="bilinear", align_corners=False)
    return result * inside[:, None]


def _by_opencv(
    textures: Tensor,
    chosen: Tensor,
    view: Tensor,
    size: int,
    used: Tensor,
    mirror: Tensor | None,
    bend: Tensor | None,
) -> Tensor:
    pictures = textures.numpy()
    numbers = chosen.tolist()
    result = np.empty((len(numbers), textures.shape[1], size, size), np.uint8)
    # OpenCV's integers are the middles of pixels.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrices = np.linalg.inv(half) @ view.double().numpy() @ half
    for row, number in enumerate(numbers):
        width, height = (int(value) for value in used[row].tolist())
        border = cv2.BORDER_REFLECT if mirror is not None and mirror[row] else cv2.BORDER_CONSTANT
        maps = None
        if bend is not None and bend[row].any():
            texels = _texels(view[row : row + 1], size, bend[row : row + 1])[0] - 0.5
            maps = (texels[..., 0].contiguous().numpy(), texels[..., 1].contiguous().numpy())
        for channel, plane in enumerate(pictures[number, :, :height, :width]):
            result[row, channel] = _warped(plane, matrices[row], size, border, maps)
    return torch.from_numpy(result).float()


def _warped(
    plane: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    size: int,
    border: int,
    maps: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
) -> NDArray[np.uint8]:
    if maps is not None:
        moved = cv2.remap(plane, *maps, interpolation=cv2.INTER_LINEAR, borderMode=border)
    else:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = cv2.warpPerspective(plane, matrix, (size, size), flags=flags, borderMode=border)
    return np.asarray(moved, np.uint8)


def _texels(view: Tensor, size: int, bend: Tensor | None) -> Tensor:
    """Where each pixel looks: [B, size, size, 2]."""
    pixels = pixel_centers(size, view.device).expand(len(view), -1, -1)
    texels = apply_homographies(view, pixels).view(len(view), size, size, 2)
    return texels if bend is None else texels + bend.permute(0, 2, 3, 1)
