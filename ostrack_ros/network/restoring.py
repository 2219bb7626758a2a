"""Back from an exported model to a network that can be trained: the inverse of `export`.

Shipped models are ONNX files only, so this is where fine-tuning starts from.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ostrack_ros.network.ostrack import fp16_normalisation

_PREFIX = "inner.network."
PATCHES = "backbone.patch_embed.proj"
_HEAD_BLOCK = re.compile(r"(box_head\.conv[1-4]_\w+)\.0\.weight")
NORM_EPSILON = 1e-5


def read_exported(path: Path) -> dict[str, Tensor]:
    """The float32 tensors of the network that `path`, written by `export_network`, was made from.

    Batch norms went into the convolutions before them; here each comes back as one that changes
    nothing. That holds when evaluating; before training, which normalises by what a batch shows,
    `training.initialise.settle_norms` must give them what they usually see. Raises ValueError for
    a file that is no such export.
    """
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # onnx passes on whatever its parser raises
        raise ValueError(f"{path} is not an ONNX file: {error}") from error
    stored = {item.name: item for item in graph.initializer}
    weights = {
        name.removeprefix(_PREFIX): _tensor(item)
        for name, item in stored.items()
        if name.startswith(_PREFIX)
    }
    if f"{PATCHES}.weight" not in weights or f"{PATCHES}.bias" not in weights:
        raise ValueError(f"{path} is not an OSTrack network that this package exported")
    half = stored[f"{_PREFIX}{PATCHES}.weight"].data_type == onnx.TensorProto.FLOAT16
    weights |= _linear_weights(graph, stored)
    if half:
        _restore_normalisation(weights)
    for name in [match[1] for key in weights if (match := _HEAD_BLOCK.fullmatch(key))]:
        weights |= idle_norm(f"{name}.1", len(weights[f"{name}.0.weight"]))
    return weights


def _linear_weights(
    graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]
) -> dict[str, Tensor]:
    """The exporter stores them transposed and nameless; the bias added next says whose they are."""
    products: dict[str, str] = {}
    found: dict[str, Tensor] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            products[node.output[0]] = node.input[1]
        elif node.op_type == "Add":
            for value, bias in (node.input, reversed(node.input)):
                if value in products and bias.startswith(_PREFIX):
                    name = bias.removeprefix(_PREFIX).removesuffix(".bias")
                    found[f"{name}.weight"] = _tensor(stored[products[value]]).T.contiguous()
    return found


def _restore_normalisation(weights: dict[str, Tensor]) -> None:
    """Let the patch embedding expect normalised images again, see `_absorb_normalisation`."""
    slope, offset = fp16_normalisation()
    weight, bias = weights[f"{PATCHES}.weight"].double() / slope, weights[f"{PATCHES}.bias"]
    weights[f"{PATCHES}.weight"] = weight.float()
    weights[f"{PATCHES}.bias"] = (bias.double() - (weight * offset).sum(dim=(1, 2, 3))).float()


def idle_norm(name: str, channels: int) -> dict[str, Tensor]:
    """The tensors of a batch norm `name` that changes nothing when evaluating."""
    return {
        f"{name}.weight": torch.ones(channels),
        f"{name}.bias": torch.zeros(channels),
        f"{name}.running_mean": torch.zeros(channels),
        f"{name}.running_var": torch.full((channels,), 1 - NORM_EPSILON),
        f"{name}.num_batches_tracked": torch.tensor(0),
    }


def _tensor(item: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(numpy_helper.to_array(item).copy()).float()
