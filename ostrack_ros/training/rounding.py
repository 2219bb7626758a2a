"""Weights on a coarse grid: exported files are as large as before but compress to half and less.

Run as `python -m ostrack_ros.training.rounding OUTPUT WEIGHTS --levels 16` on what a training or an
averaging left, before the export. Of an fp16 weight's 11 significant bits the network needs about
half, but a git repository or a wheel must store what is there. With `--config`, the configuration
the network was trained with, fewer levels will do: pairs of its pictures tell what every layer
sees, and each rounded weight's error is made up for by those that are rounded after it (Frantar et
al., "GPTQ", ICLR 2023).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from tqdm import tqdm

from ostrack_ros.network.checkpoint import load_network, read_weights
from ostrack_ros.network.head import CenterHead
from ostrack_ros.network.ostrack import OSTrack, fp16_normalisation
from ostrack_ros.network.restoring import NORM_EPSILON, PATCHES, idle_norm
from ostrack_ros.network.variants import get_variant
from ostrack_ros.training.config import load_config
from ostrack_ros.training.data import pair_stream, sample_inputs
from ostrack_ros.training.state import write_weights

# fp16 holds whole numbers up to 2,048 exactly, so at 256 levels weights of 8 times the usual size.
FEWEST_LEVELS, MOST_LEVELS = 2, 256
DEFAULT_LEVELS = 16
DAMPING = 0.01

Layer: TypeAlias = nn.Linear | nn.Conv2d


def round_matrices(weights: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Every floating-point tensor of two or more dimensions, rounded to whole multiples of its own
    step, the power of two nearest to its root mean square over `levels`. An error is at most half
    a step. A power of two, so that fp16 holds the multiples exactly; one step for the whole tensor,
    so that few different values occur in it. Vectors (biases, norms) and counters are left alone.

    Raises ValueError for `levels` outside [2, 256].
    """
    _check_levels(levels)
    return {
        key: _rounded(value, levels) if value.ndim > 1 and value.is_floating_point() else value
        for key, value in weights.items()
    }


@torch.no_grad()
def fold_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with the box head's batch norms folded into the convolutions before them, as the
    export does: what is rounded must be what is written. The norms left behind do nothing."""
    folded = dict(weights)
    for tower, _ in CenterHead.TOWERS:
        for layer in range(1, 5):
            conv, norm = (f"box_head.conv{layer}_{tower}.{part}" for part in (0, 1))
            kernel, bias = fuse_conv_bn_weights(
                weights[f"{conv}.weight"],
                weights[f"{conv}.bias"],
                weights[f"{norm}.running_mean"],
                weights[f"{norm}.running_var"],
                NORM_EPSILON,
                weights[f"{norm}.weight"],
                weights[f"{norm}.bias"],
            )
            folded |= {f"{conv}.weight": kernel.detach(), f"{conv}.bias": bias.detach()}
            folded |= idle_norm(norm, len(bias))
    return folded


@torch.no_grad()
def round_network(
    network: OSTrack, levels: int, inputs: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Round the matrices of `network` as `round_matrices` would, but layer by layer so that their
    outputs change little on `inputs`, normalised templates and search regions [B, 3, H, W], some
    300 pairs. Its norms should be folded already. The patch embedding is rounded as fp16 files hold
    it, which take other inputs.

    Returns, by layer, the share of its output's energy by which it is off on what it sees. Raises
    ValueError for `levels` outside [2, 256].
    """
    _check_levels(levels)
    network.eval()
    slope, _ = fp16_normalisation()
    off: dict[str, float] = {}
    for names in tqdm(_stages(network), desc="rounding", leave=False):
        layers: dict[str, Layer] = {name: network.get_submodule(name) for name in names}  # type: ignore[misc]
        with _second_moments(layers) as moments:
            for template, search in inputs:
                network(template, search)
        for name, layer in layers.items():
            # One factor for each input: what the file holds is weight * scale.
            scale = torch.ones_like(layer.weight)
            if name == PATCHES:
                scale *= slope.float()
            matrix = (layer.weight * scale).flatten(1).double()
            factors = scale.flatten(1)[0].double()
            gram = moments[name] / torch.outer(factors, factors)
            step = _step(matrix, levels)
            rounded = matrix if step is None else _round_columns(matrix, gram, step)
            error = rounded - matrix
            energy = ((matrix @ gram) * matrix).sum().clamp_min(1e-30)
            off[name] = float(((error @ gram) * error).sum() / energy)
            layer.weight.copy_(rounded.view_as(layer.weight).float() / scale)
    for positions in (network.backbone.pos_embed_z, network.backbone.pos_embed_x):
        positions.copy_(_rounded(positions, levels))
    return off


def _stages(network: OSTrack) -> list[list[str]]:
    """The layers in the order in which data meet them; each stage is rounded on what the stages
    before it, rounded, give."""
    blocks = [
        [
            f"backbone.blocks.{index}.{part}"
            for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        ]
        for index in range(network.variant.depth)
    ]
    towers = [tower for tower, _ in CenterHead.TOWERS]
    head = [[f"box_head.conv{layer}_{tower}.0" for tower in towers] for layer in range(1, 5)]
    last = [f"box_head.conv5_{tower}" for tower in towers]
    return [[PATCHES], *blocks, *head, last]


@contextmanager
def _second_moments(layers: dict[str, Layer]) -> Iterator[dict[str, Tensor]]:
    """While it lasts, each layer's sum of x x^T over its inputs, float64 [K, K], is taken."""
    moments = {
        name: torch.zeros(layer.weight[0].numel(), layer.weight[0].numel(), dtype=torch.float64)
        for name, layer in layers.items()
    }

    def watch(name: str, layer: Layer, x: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            size, stride = layer.kernel_size, layer.stride
            patches = F.unfold(x, size, padding=layer.padding, stride=stride)  # type: ignore[arg-type]
            x = patches.transpose(1, 2)
        rows = x.flatten(0, -2)
        # In float32: a sum over thousands of rows, several times faster than in float64.
        moments[name] += (rows.T @ rows).double()

    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, name=name: watch(name, module, args[0])
        )
        for name, layer in layers.items()
    ]
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()


def _round_columns(matrix: Tensor, gram: Tensor, step: float) -> Tensor:
    """`matrix` [O, K] to multiples of `step`, column by column; the columns still to come are
    shifted by what least changes the output for inputs with second moments `gram` [K, K]."""
    gram = gram / gram.diagonal().mean().clamp_min(1e-30)
    identity = torch.eye(len(gram), dtype=gram.dtype)
    inverse = torch.linalg.cholesky(torch.linalg.inv(gram + DAMPING * identity), upper=True)
    rest, rounded = matrix.clone(), torch.empty_like(matrix)
    for column in range(matrix.shape[1]):
        rounded[:, column] = torch.round(rest[:, column] / step) * step
        error = (rest[:, column] - rounded[:, column]) / inverse[column, column]
        rest[:, column:] -= error[:, None] * inverse[column, column:]
    return rounded


def _rounded(values: Tensor, levels: int) -> Tensor:
    step = _step(values, levels)
    if step is None:
        return values
    return (torch.round(values.double() / step) * step).to(values.dtype)


def _step(values: Tensor, levels: int) -> float | None:
    size = float(values.double().square().mean().sqrt())
    return 2.0 ** round(math.log2(size / levels)) if size else None


def _check_levels(levels: int) -> None:
    if not FEWEST_LEVELS <= levels <= MOST_LEVELS:
        raise ValueError(f"levels is {levels}, expected {FEWEST_LEVELS} to {MOST_LEVELS}")


def _round_on_pairs(
    weights: dict[str, Tensor], levels: int, config_path: Path
) -> dict[str, Tensor]:
    _check_levels(levels)  # before the pictures are read
    config = load_config(config_path)
    network = OSTrack(get_variant(config.variant))
    load_network(network, fold_norms(weights))
    device = torch.device("cpu")
    batches = pair_stream(config, device, config.seed)
    off = round_network(network, levels, list(sample_inputs(batches, device)))
    worst = max(off, key=lambda name: off[name])
    print(f"outputs are off by at most {off[worst]:.1%} of their energy ({worst})")
    return network.state_dict()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ostrack_ros.training.rounding", description=__doc__
    )
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("weights", type=Path, help="a network's weights (.safetensors)")
    parser.add_argument(
        "--levels",
        type=int,
        default=DEFAULT_LEVELS,
        help=f"steps in a matrix' root mean square (default: {DEFAULT_LEVELS})",
    )
    parser.add_argument(
        "--config", type=Path, help="its training configuration: round by what its pairs need"
    )
    arguments = parser.parse_args(argv)
    levels, config = arguments.levels, arguments.config

    def rounded() -> dict[str, Tensor]:
        weights = read_weights(arguments.weights)
        return (
            _round_on_pairs(weights, levels, config) if config else round_matrices(weights, levels)
        )

    return write_weights(
        arguments.output, rounded, f"matrices on grids of {levels} steps to their size"
    )


if __name__ == "__main__":
    sys.exit(main())
