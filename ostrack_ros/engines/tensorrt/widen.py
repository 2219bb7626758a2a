"""Find, or make, the model in the precision that an engine is to be built in."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import logging
from typing import Any

from ostrack_ros.engines.base import EngineError
from ostrack_ros.engines.models import Model, load_model
from ostrack_ros.engines.spec import ModelSpec, Precision, SpecError

log = logging.getLogger(__name__)


def model_in(model: Model, precision: Precision) -> Model:
    """`model` typed as `precision`.

    It is the model itself, an export of the same checkpoint beside it, or, for fp32, the fp16
    graph with every tensor widened: the same weights, but nothing overflows or is rounded on the
    way.

    Raises EngineError where there is none.
    """
    if model.spec.precision == precision:
        return model
    if twin := _find_twin(model, precision):
        return twin
    if precision == "fp32":
        return _widen(model)
    raise EngineError(
        f"{model.path} is typed fp32 and there is no fp16 export of the same checkpoint beside it; "
        "run `ostrack export --precision fp16` and use that file, or ask for precision fp32"
    )


def _find_twin(model: Model, precision: Precision) -> Model | None:
    same = ("variant", "source_sha256", "batch")
    for sidecar in sorted(model.path.parent.glob("*.json")):
        path = sidecar.with_suffix(".onnx")
        try:
            spec = ModelSpec.load(path)
        except SpecError:
            continue
        if spec.precision != precision or not path.is_file():
            continue
        if all(getattr(spec, name) == getattr(model.spec, name) for name in same):
            log.info("taking %s, the %s export of the same checkpoint", path, precision)
            return load_model(path)
    return None


def _widen(model: Model) -> Model:
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise EngineError(
            f"making an fp32 engine of {model.path} needs the package onnx ({error}): `pip install "
            "onnx`, or put the file of `ostrack export --precision fp32` beside it"
        ) from error
    graph = onnx.load_model_from_string(model.content)
    _widen_graph(onnx, graph.graph)
    content: bytes = graph.SerializeToString()
    spec = dataclasses.replace(
        model.spec, precision="fp32", onnx_sha256=hashlib.sha256(content).hexdigest()
    )
    return Model(model.path, spec, content)


def _widen_graph(onnx: Any, graph: Any) -> None:
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen_tensor(onnx, tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = full
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(onnx, attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _widen_graph(onnx, attribute.g)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = full


def _widen_tensor(onnx: Any, tensor: Any) -> None:
    if tensor.data_type == onnx.TensorProto.FLOAT16:
        values = onnx.numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
