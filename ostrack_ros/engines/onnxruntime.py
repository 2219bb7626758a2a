"""ONNX Runtime: the engine that runs on any CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import EngineError, Prediction
from ostrack_ros.engines.contract import (
    SEARCH,
    TEMPLATE,
    BatchBuffers,
    check_graph,
    predictions,
)
from ostrack_ros.engines.models import Model, load_model
from ostrack_ros.engines.runtime import import_runtime
from ostrack_ros.engines.spec import ModelSpec

INSTALL = "pip install onnxruntime"
_QUIET = 3  # errors only: the rest says how graphs were optimised


class OnnxRuntimeEngine:
    """Runs a model on the CPU with ONNX Runtime, which computes in fp32.

    A graph in fp16 is run too: ONNX Runtime casts around what it has no fp16 kernels for, which
    costs 2 to 3 % (measured, ViT-S and ostrack_tiny). `threads` is the number of CPU threads, None
    for one per core. Not thread-safe.

    Raises BackendUnavailableError without ONNX Runtime, and EngineError for a precision other than
    fp32 and for a model that cannot be read.
    """

    def __init__(
        self, model: Model | Path, *, precision: str | None = None, threads: int | None = None
    ) -> None:
        ort = import_runtime("onnxruntime", INSTALL)
        if precision not in (None, "fp32"):
            raise EngineError(
                f"precision is {precision!r}, ONNX Runtime on a CPU computes in fp32 only"
            )
        if threads is not None and threads < 1:
            raise EngineError(f"threads is {threads}, expected at least 1")
        model = load_model(model) if isinstance(model, Path) else model
        self._spec = model.spec
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Workers that spin between frames would take the cores from the camera and the middleware.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(
                model.content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class but Exception
            raise EngineError(
                f"ONNX Runtime cannot read {model.path}: {_sentence(error)}; "
                "the file is damaged or uses unsupported operators, export it again"
            ) from error
        outputs = _ports(session.get_outputs())
        check_graph(model.path, model.spec, _ports(session.get_inputs()), outputs)
        self._outputs = list(outputs)
        self._session: Any = session
        self._buffers = BatchBuffers(model.spec)
        self._description = (
            f"ONNX Runtime {ort.__version__} on CPU (fp32, {threads or 'all'} threads)"
        )

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def description(self) -> str:
        return self._description

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        return self.infer_batch([template], [search])[0]

    def infer_batch(
        self, templates: Sequence[NDArray[np.uint8]], searches: Sequence[NDArray[np.uint8]]
    ) -> list[Prediction]:
        """Predict for up to `spec.batch` pairs in one run; see Engine.infer."""
        if self._session is None:
            raise EngineError("the ONNX Runtime engine was closed; make a new one")
        template, search = self._buffers.fill(templates, searches)
        try:
            values = self._session.run(self._outputs, {TEMPLATE: template, SEARCH: search})
        except Exception as error:  # its exceptions share no base class but Exception
            raise EngineError(f"ONNX Runtime failed: {_sentence(error)}") from error
        return predictions(dict(zip(self._outputs, values, strict=True)), len(templates))

    def close(self) -> None:
        self._session = None


def _ports(ports: Sequence[Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Types and shapes; -1 for a dimension that is not fixed."""
    names = {"float": "float32", "double": "float64"}
    found = {}
    for port in ports:
        element = port.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(d if isinstance(d, int) else -1 for d in port.shape)
        found[port.name] = (names.get(element, element), shape)
    return found


def _sentence(error: Exception) -> str:
    """The message without its `[ONNXRuntimeError] : 7 : INVALID_PROTOBUF :` preamble."""
    return str(error).rsplit(" : ", maxsplit=1)[-1].strip().rstrip(".") or type(error).__name__
