"""Weights on a coarse grid: exported files are as large as before but compress to half.

Run as `python -m ostrack_ros.training.rounding OUTPUT WEIGHTS --levels 16` on what a training or an
averaging left, before the export. Of an fp16 weight's 11 significant bits the network needs about
half, but a git repository or a wheel must store what is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ostrack_ros.network.checkpoint import CheckpointError, read_weights
from ostrack_ros.training.state import save_tensors

# fp16 holds whole numbers up to 2,048 exactly, so at 256 levels weights of 8 times the usual size.
FEWEST_LEVELS, MOST_LEVELS = 2, 256
DEFAULT_LEVELS = 16


def round_matrices(weights: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Every floating-point tensor of two or more dimensions, rounded to whole multiples of its own
    step, the power of two nearest to its root mean square over `levels`. An error is at most half
    a step. A power of two, so that fp16 holds the multiples exactly; one step for the whole tensor,
    so that few different values occur in it. Vectors (biases, norms) and counters are left alone.

    Raises ValueError for `levels` outside [2, 256].
    """
    if not FEWEST_LEVELS <= levels <= MOST_LEVELS:
        raise ValueError(f"levels is {levels}, expected {FEWEST_LEVELS} to {MOST_LEVELS}")
    return {
        key: _rounded(value, levels) if value.ndim > 1 and value.is_floating_point() else value
        for key, value in weights.items()
    }


def _rounded(values: Tensor, levels: int) -> Tensor:
    exact = values.double()
    size = exact.square().mean().sqrt()
    if size == 0:
        return values
    step = torch.exp2(torch.log2(size / levels).round())
    return (torch.round(exact / step) * step).to(values.dtype)


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
    arguments = parser.parse_args(argv)
    try:
        rounded = round_matrices(read_weights(arguments.weights), arguments.levels)
    except (CheckpointError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    save_tensors(rounded, arguments.output)
    print(f"{arguments.output}: matrices on grids of {arguments.levels} steps to their size")
    return 0


if __name__ == "__main__":
    sys.exit(main())
