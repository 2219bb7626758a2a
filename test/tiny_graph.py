"""A hand-made graph that honours the contract of docs/graph.md, for tests of its users."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.spec import ModelSpec, sidecar_path

TEMPLATE_SIZE, SEARCH_SIZE, SCORE_SIZE = 8, 16, 4

SPEC = ModelSpec(
    name="tiny_graph",
    variant="tiny_graph",
    template_size=TEMPLATE_SIZE,
    search_size=SEARCH_SIZE,
    template_factor=2.0,
    search_factor=4.0,
    score_size=SCORE_SIZE,
    precision="fp32",
    elimination=None,
    parameters=0,
    licence="none",
    source_checkpoint="made by hand",
    source_sha256="0" * 64,
    onnx_sha256="",
)


def write_tiny_graph(
    path: Path,
    *,
    batch: int = 1,
    score_size: int = SCORE_SIZE,
    result_name: str = "result",
    half: bool = False,
) -> ModelSpec:
    """Write the graph and a sidecar that fits it, unless `score_size` or `result_name` say other.

    result = mean of search, mean of template, 0.25, 0.5, maximum of the score map, 0.125, with
    means as fractions of 255; score_map = red of search averaged over square patches, / 255;
    kept_candidates, hidden as in an exported file, = where the score map is above its mean. With
    `half` the weights and the arithmetic are fp16, inputs and outputs as ever.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    element, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    patch = SEARCH_SIZE // score_size
    constants = {
        "scale": np.array(1 / 255, dtype),
        "tail": np.tile(np.array([[0.25, 0.5]], dtype), (batch, 1)),
        "response": np.full((batch, 1), 0.125, dtype),
        "pixels": np.array([1, 2, 3], np.int64),
        "cells": np.array([1, 2], np.int64),
        "red": np.array(0, np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["template"], ["template_float"], to=TensorProto.FLOAT),
        node("Cast", ["search"], ["search_float"], to=TensorProto.FLOAT),
        node("Cast", ["template_float"], ["template_typed"], to=element),
        node("Cast", ["search_float"], ["search_typed"], to=element),
        node("Mul", ["template_typed", "scale"], ["t"]),
        node("Mul", ["search_typed", "scale"], ["s"]),
        node("ReduceMean", ["s", "pixels"], ["search_mean"], keepdims=0),
        node("ReduceMean", ["t", "pixels"], ["template_mean"], keepdims=0),
        node("Transpose", ["s"], ["planes"], perm=[0, 3, 1, 2]),
        node(
            "AveragePool",
            ["planes"],
            ["pooled"],
            kernel_shape=[patch, patch],
            strides=[patch, patch],
        ),
        node("Gather", ["pooled", "red"], ["scores"], axis=1),
        node("ReduceMax", ["scores", "cells"], ["best"], keepdims=0),
        node("Unsqueeze", ["search_mean", "axis"], ["search_mean_column"]),
        node("Unsqueeze", ["template_mean", "axis"], ["template_mean_column"]),
        node("Unsqueeze", ["best", "axis"], ["best_column"]),
        node(
            "Concat",
            ["search_mean_column", "template_mean_column", "tail", "best_column", "response"],
            ["row"],
            axis=1,
        ),
        node("Cast", ["row"], [result_name], to=TensorProto.FLOAT),
        node("Cast", ["scores"], ["score_map"], to=TensorProto.FLOAT),
        node("ReduceMean", ["scores", "cells"], ["mean_score"], keepdims=1),
        node("Greater", ["scores", "mean_score"], ["above"]),
        node("Cast", ["above"], ["kept_candidates"], to=TensorProto.FLOAT),
    ]
    constants["axis"] = np.array([1], np.int64)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, size, size, 3])
            for name, size in (("template", TEMPLATE_SIZE), ("search", SEARCH_SIZE))
        ],
        [
            helper.make_tensor_value_info(result_name, TensorProto.FLOAT, [batch, 6]),
            helper.make_tensor_value_info(
                "score_map", TensorProto.FLOAT, [batch, score_size, score_size]
            ),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    path.write_bytes(content)
    spec = replace(
        SPEC,
        name=path.stem,
        batch=batch,
        precision="fp16" if half else "fp32",
        onnx_sha256=hashlib.sha256(content).hexdigest(),
    )
    sidecar_path(path).write_text(spec.to_json(), encoding="utf-8")
    return spec


def expected(
    template: NDArray[np.uint8], search: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the graph answers for one pair: result [6] and score_map [S, S]."""
    patch = SEARCH_SIZE // SCORE_SIZE
    red = search[..., 0].reshape(SCORE_SIZE, patch, SCORE_SIZE, patch) / 255
    scores = red.mean(axis=(1, 3))
    result = np.array([search.mean() / 255, template.mean() / 255, 0.25, 0.5, scores.max(), 0.125])
    return result, scores


def random_pair(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A template and a search region of the graph's sizes."""
    random = np.random.default_rng(seed)
    return (
        random.integers(0, 256, (TEMPLATE_SIZE, TEMPLATE_SIZE, 3), dtype=np.uint8),
        random.integers(0, 256, (SEARCH_SIZE, SEARCH_SIZE, 3), dtype=np.uint8),
    )
