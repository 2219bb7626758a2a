"""The mean of several networks' weights: one network, often better than each of them.

Run as `python -m ostrack_ros.training.averaging OUTPUT WEIGHTS...`. It works for networks that are
near each other: steps of one run (Izmailov et al., "Averaging Weights Leads to Wider Optima", UAI
2018) or runs that started from one network (Wortsman et al., "Model Soups", ICML 2022).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ostrack_ros.network.checkpoint import CheckpointError, read_weights
from ostrack_ros.training.state import write_weights


def average_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of each tensor, in the first file's types; counters are the first file's.

    Raises CheckpointError for a file that cannot be read or whose tensors are not those of the
    first, and ValueError without any file.
    """
    if not paths:
        raise ValueError("there are no weights to average: name at least one file")
    for path in paths:
        if path.suffix == ".onnx":
            raise CheckpointError(
                f"{path} is an exported model: its batch norms are in its convolutions, whose mean "
                "with other weights would be no network; average .safetensors files"
            )
    first = read_weights(paths[0])
    sums = {key: value.double() for key, value in first.items() if value.is_floating_point()}
    for path in paths[1:]:
        weights = read_weights(path)
        if different := _difference(first, weights):
            raise CheckpointError(
                f"{path} does not hold the same network as {paths[0]}: {different}"
            )
        for key, total in sums.items():
            total += weights[key].double()
    means = {key: (total / len(paths)).to(first[key].dtype) for key, total in sums.items()}
    return {**first, **means}


def _difference(first: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    """The first entry in which two networks differ; empty when they fit."""
    if missing := sorted(first.keys() ^ other.keys()):
        return f"only one of them has {missing[0]}"
    for key, value in first.items():
        if value.shape != other[key].shape:
            return f"{key} is {tuple(other[key].shape)} and {tuple(value.shape)}"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ostrack_ros.training.averaging", description=__doc__
    )
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("weights", type=Path, nargs="+", help="files of networks of one variant")
    arguments = parser.parse_args(argv)
    return write_weights(
        arguments.output,
        lambda: average_weights(arguments.weights),
        f"the mean of {len(arguments.weights)} networks",
    )


if __name__ == "__main__":
    sys.exit(main())
