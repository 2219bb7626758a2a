"""Ask a graph which candidates it kept.

A file of `ostrack export` holds the answer as a tensor that is no output (docs/graph.md). Two
engines of the same file can be compared by it once it is made one.
"""

from __future__ import annotations

import dataclasses
import math

from ostrack_ros.engines.contract import KEPT, kept_port
from ostrack_ros.engines.models import Model

# Field numbers of onnx.proto, all of the wire type "length-delimited" but the two varints.
_MODEL_GRAPH = 7
_GRAPH_OUTPUT = 12
_NODE_OUTPUT = 2
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2
_SHAPE_DIMENSION = 1
_DIMENSION_VALUE = 1
_FLOAT = 1


def with_kept_output(model: Model) -> Model:
    """`model` with `kept_candidates` float32 [N, S, S] as a third output, in memory only.

    It is the same model where the file has no such tensor: a network without candidate elimination,
    or a file that another program or an older release wrote.

    Concatenated protobuf messages are merged and their repeated fields appended (Protocol Buffers,
    Encoding, "Last One Wins"), so this needs no ONNX library, which a robot has not.
    """
    if _field(_NODE_OUTPUT, KEPT.encode()) not in model.content:
        return model
    _, shape = kept_port(model.spec)
    dimensions = b"".join(
        _field(_SHAPE_DIMENSION, _number(_DIMENSION_VALUE, size)) for size in shape
    )
    tensor = _number(_TENSOR_ELEMENT, _FLOAT) + _field(_TENSOR_SHAPE, dimensions)
    value = _field(_VALUE_NAME, KEPT.encode())
    value += _field(_VALUE_TYPE, _field(_TYPE_TENSOR, tensor))
    graph = _field(_MODEL_GRAPH, _field(_GRAPH_OUTPUT, value))
    return dataclasses.replace(model, content=model.content + graph)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    groups = max(1, math.ceil(value.bit_length() / 7))
    parts = [value >> 7 * i & 0x7F | 0x80 for i in range(groups)]
    parts[-1] &= 0x7F
    return bytes(parts)
