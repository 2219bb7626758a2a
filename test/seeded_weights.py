"""Deterministic network weights, made from the names of their tensors (see ../shared/parity)."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor

from ostrack_ros.network.ostrack import OSTrack


def seeded_state(network: OSTrack, seed: int) -> dict[str, Tensor]:
    """Weights for every tensor of `network`, in the scale of trained ones."""
    return {
        key: seeded_tensor(key, tuple(value.shape), seed).to(value.dtype)
        for key, value in network.state_dict().items()
    }


def seeded_tensor(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    noise = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape)
    return torch.from_numpy(np.asarray(_scaled(key, noise), np.float32))


def _scaled(key: str, noise: np.ndarray) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros_like(noise)
    if key.endswith("running_var"):
        return 1 + 0.2 * np.tanh(noise)
    if key.endswith("running_mean"):
        return 0.1 * noise
    if key.endswith(("pos_embed", "cls_token")) or "pos_embed_" in key:
        return 0.3 * noise
    fixed = {"box_head.conv5_offset.bias": 0.5, "box_head.conv5_ctr.bias": -2.0}
    fixed["box_head.conv5_size.bias"] = math.log(0.25 / 0.75)
    if key in fixed:
        return np.full_like(noise, fixed[key])
    scales = {"box_head.conv5_size.weight": 0.05}
    scales |= dict.fromkeys(("box_head.conv5_ctr.weight", "box_head.conv5_offset.weight"), 0.08)
    if key in scales:
        return scales[key] * noise
    if noise.ndim == 1:
        return 1 + 0.1 * noise if key.endswith("weight") else 0.05 * noise
    return noise * 1.5 / math.sqrt(math.prod(noise.shape[1:]))
