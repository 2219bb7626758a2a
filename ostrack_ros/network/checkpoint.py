"""Reading checkpoints without running anything that is in them."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ostrack_ros.network.ostrack import OSTrack

# In every published checkpoint, used by none of its networks: remains of the ImageNet classifier.
UNUSED_KEYS = frozenset({"backbone.cls_token", "backbone.pos_embed"})


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit the network."""


class _Inert:
    """Stands in for every class a checkpoint names that is not tensor data.

    The published files pickle their training settings and statistics beside the weights. torch's
    safe loader refuses such classes; replaced by this one they load as empty shells.
    """

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


def read_weights(path: Path) -> dict[str, Tensor]:
    """The network's tensors, on the CPU, from a published `.pth.tar` (its `net` entry), from a
    `.safetensors` file of our own training, or from an exported `.onnx` (see `read_exported`).

    Raises CheckpointError saying what the file is instead. No code named in the file is imported
    or called.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # the library's own error type is not public
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    if path.suffix == ".onnx":
        from ostrack_ros.network.restoring import read_exported  # onnx, which not all need

        try:
            return read_exported(path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    content = _load_tensors_only(path)
    weights = content.get("net") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content)
        raise CheckpointError(
            f"{path} has no entry 'net' with the network's weights (found: {found}); "
            "expected a checkpoint as OSTrack's training writes it"
        )
    wrong = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"{path}: 'net' holds something other than tensors at {wrong[:3]}")
    return dict(weights)


def load_network(network: OSTrack, weights: dict[str, Tensor]) -> None:
    """Strictly copy `weights` into `network`.

    Raises CheckpointError naming missing, unknown and misshapen entries.
    """
    wanted = network.state_dict()
    given = {key: value for key, value in weights.items() if key not in UNUSED_KEYS}
    problems = [
        *(f"missing {key}" for key in wanted.keys() - given.keys()),
        *(f"unknown {key}" for key in given.keys() - wanted.keys()),
        *(
            f"{key} is {tuple(given[key].shape)}, expected {tuple(wanted[key].shape)}"
            for key in wanted.keys() & given.keys()
            if wanted[key].shape != given[key].shape
        ),
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise CheckpointError(
            f"the checkpoint does not fit variant {network.variant.name} "
            f"({len(problems)} differences: {shown}); is it for another variant?"
        )
    network.load_state_dict(given, strict=True)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _load_tensors_only(path: Path) -> Any:
    """torch's own safe loader, with stand-ins for the classes it does not know."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is not a checkpoint of PyTorch 1.6 or newer (no zip archive); is the "
            "download complete?"
        )
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(type("Inert", (_Inert,), {}), name) for name in names]
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read safely: {reason}") from error
