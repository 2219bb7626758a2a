"""A hand-made model that really finds something: the red blob in the search region.

It honours the graph's contract (docs/graph.md), so tests can follow a red square through real
nodes and real inference, with results that are right or wrong for good reasons.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.spec import ModelSpec, PresenceCalibration, sidecar_path

TEMPLATE_SIZE, SEARCH_SIZE, SCORE_SIZE = 32, 64, 16
SEARCH_FACTOR = 4.0
RED = (220, 40, 40)
"""RGB of a target the model sees; grey of any brightness is nothing to it."""

SPEC = ModelSpec(
    name="red_blob",
    variant="red_blob",
    template_size=TEMPLATE_SIZE,
    search_size=SEARCH_SIZE,
    template_factor=2.0,
    search_factor=SEARCH_FACTOR,
    score_size=SCORE_SIZE,
    precision="fp32",
    elimination=None,
    parameters=0,
    licence="none",
    source_checkpoint="made by hand",
    source_sha256="0" * 64,
    onnx_sha256="",
    presence=PresenceCalibration(("score",), (20.0,), -10.0, "made by hand"),
)


def write_red_blob_model(path: Path) -> ModelSpec:
    """Write the .onnx file and its sidecar.

    Redness of a pixel = clip((red - (green + blue) / 2) / 100, 0, 1); score_map = its mean over
    cells; score = the map's maximum; centre = the centroid of the redness; size = a quarter of the
    region, that is, the size of the box before.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    patch = SEARCH_SIZE // SCORE_SIZE
    centres = (np.arange(SEARCH_SIZE, dtype=np.float32) + 0.5) / SEARCH_SIZE
    share = 1.0 / SEARCH_FACTOR
    constants = {
        "mix": np.array([0.01, -0.005, -0.005], np.float32).reshape(1, 1, 1, 3),
        "zero": np.array(0.0, np.float32),
        "one": np.array(1.0, np.float32),
        "x_centres": centres.reshape(1, 1, SEARCH_SIZE),
        "y_centres": centres.reshape(1, SEARCH_SIZE, 1),
        "channel": np.array([3], np.int64),
        "pixels": np.array([1, 2], np.int64),
        "template_pixels": np.array([1, 2, 3], np.int64),
        "tiny": np.array(1e-3, np.float32),
        "half_tiny": np.array(0.5e-3, np.float32),
        "size": np.array([[share, share]], np.float32),
        "plane": np.array([1], np.int64),
        "column": np.array([1], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["search"], ["s"], to=TensorProto.FLOAT),
        node("Cast", ["template"], ["t"], to=TensorProto.FLOAT),
        node("Mul", ["s", "mix"], ["mixed"]),
        node("ReduceSum", ["mixed", "channel"], ["raw"], keepdims=0),
        node("Clip", ["raw", "zero", "one"], ["redness"]),
        node("Unsqueeze", ["redness", "plane"], ["planes"]),
        node(
            "AveragePool",
            ["planes"],
            ["pooled"],
            kernel_shape=[patch, patch],
            strides=[patch, patch],
        ),
        node("Squeeze", ["pooled", "plane"], ["score_map"]),
        node("ReduceMax", ["score_map", "pixels"], ["best"], keepdims=0),
        node("ReduceSum", ["redness", "pixels"], ["mass"], keepdims=0),
        node("Add", ["mass", "tiny"], ["mass_safe"]),
        node("Mul", ["redness", "x_centres"], ["x_weighted"]),
        node("Mul", ["redness", "y_centres"], ["y_weighted"]),
        node("ReduceSum", ["x_weighted", "pixels"], ["x_sum"], keepdims=0),
        node("ReduceSum", ["y_weighted", "pixels"], ["y_sum"], keepdims=0),
        node("Add", ["x_sum", "half_tiny"], ["x_safe"]),
        node("Add", ["y_sum", "half_tiny"], ["y_safe"]),
        node("Div", ["x_safe", "mass_safe"], ["cx"]),
        node("Div", ["y_safe", "mass_safe"], ["cy"]),
        # The template has no say here, but the contract wants it read.
        node("ReduceMean", ["t", "template_pixels"], ["t_mean"], keepdims=0),
        node("Mul", ["t_mean", "zero"], ["nothing"]),
        node("Add", ["best", "nothing"], ["score"]),
        *(
            node("Unsqueeze", [name, "column"], [f"{name}_column"])
            for name in ("cx", "cy", "score", "best")
        ),
        node(
            "Concat",
            ["cx_column", "cy_column", "size", "score_column", "best_column"],
            ["result"],
            axis=1,
        ),
    ]
    float_type = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "red_blob",
        [
            helper.make_tensor_value_info(name, TensorProto.UINT8, [1, size, size, 3])
            for name, size in (("template", TEMPLATE_SIZE), ("search", SEARCH_SIZE))
        ],
        [
            helper.make_tensor_value_info("result", float_type, [1, 6]),
            helper.make_tensor_value_info("score_map", float_type, [1, SCORE_SIZE, SCORE_SIZE]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    path.write_bytes(content)
    spec = replace(SPEC, onnx_sha256=hashlib.sha256(content).hexdigest())
    sidecar_path(path).write_text(spec.to_json(), encoding="utf-8")
    return spec


def scene(
    width: int = 320,
    height: int = 240,
    centre: tuple[float, float] | None = (160.0, 120.0),
    side: int = 40,
) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3]: a red square on grey stripes; `centre` None leaves it away."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (90 + 60 * (np.arange(width) // 16 % 2))[None, :, None]
    if centre is not None:
        x, y = round(centre[0] - side / 2), round(centre[1] - side / 2)
        image[max(0, y) : max(0, y + side), max(0, x) : max(0, x + side)] = RED
    return image
