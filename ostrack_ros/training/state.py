"""Resumable training state: tensors only, written atomically."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ostrack_ros.files import produce_atomically
from ostrack_ros.training.errors import TrainingError
from ostrack_ros.training.schedule import Progress, WeightAverage

STATE_FILE = "state.safetensors"
WEIGHTS_FILE = "weights.safetensors"


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file whole or not at all."""
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    produce_atomically(path, lambda draft: save_file(on_cpu, draft))


def write_weights(output: Path, make: Callable[[], dict[str, Tensor]], what: str) -> int:
    """What commands that make one file of weights do last: save what `make` gives and say `what` it
    is, or say what was wrong. Returns the exit status."""
    try:
        weights = make()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    save_tensors(weights, output)
    print(f"{output}: {what}")
    return 0


def save_state(
    folder: Path,
    network: nn.Module,
    average: WeightAverage,
    optimizer: Optimizer,
    progress: Progress,
) -> None:
    """`state.safetensors` to go on from and `weights.safetensors`, the averaged network."""
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.state().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    tensors["progress"] = torch.tensor([progress.step, progress.seconds], dtype=torch.float64)
    save_tensors(average.values, folder / WEIGHTS_FILE)
    save_tensors(tensors, folder / STATE_FILE)


def restore_state(
    folder: Path,
    network: nn.Module,
    average: WeightAverage,
    optimizer: Optimizer,
    progress: Progress,
) -> bool:
    """Go on where `save_state` left off; False when there is nothing to go on from.

    Raises TrainingError when the file belongs to another network or optimiser.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return False
    tensors = load_file(path)
    try:
        network.load_state_dict(below(tensors, "network."))
        average.restore(below(tensors, "average."))
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in below(tensors, "optimizer.").items():
            index, name = key.split(".", 1)
            states.setdefault(int(index), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
        step, seconds = tensors["progress"].tolist()
    except (KeyError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"{path} does not fit this configuration ({error}); choose another output folder or "
            "remove the file"
        ) from error
    progress.step, progress.seconds = int(step), seconds
    return True


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
