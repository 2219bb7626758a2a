"""OpenVINO: the default engine on CPUs."""

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
from ostrack_ros.engines.runtime import BackendUnavailableError, import_runtime
from ostrack_ros.engines.spec import ModelSpec

INSTALL = "pip install openvino"

# Left alone, OpenVINO takes bf16 wherever the CPU has it, and boxes move by up to 0.15 of the
# region: the precision is always set.
_HINTS = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16")}


class OpenVinoEngine:
    """Runs a model on the CPU with OpenVINO.

    `precision` is fp32 (the default), or bf16 / fp16 on CPUs that compute in it; `threads` is the
    number of CPU threads, None for OpenVINO's own choice. Not thread-safe.

    Raises BackendUnavailableError without OpenVINO or for a precision that this CPU lacks, and
    EngineError for a model that cannot be read.
    """

    def __init__(
        self, model: Model | Path, *, precision: str | None = None, threads: int | None = None
    ) -> None:
        ov = import_runtime("openvino", INSTALL)
        model = load_model(model) if isinstance(model, Path) else model
        self._spec = model.spec
        self._core: Any = ov.Core()
        config = self._configuration(precision or "fp32", threads)
        try:
            graph = self._core.read_model(model=model.content)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot read {model.path}: {_last_line(error)}; "
                "the file is damaged or uses unsupported operators, export it again"
            ) from error
        outputs = _ports(graph.outputs)
        check_graph(model.path, model.spec, _ports(graph.inputs), outputs)
        self._outputs = list(outputs)
        try:
            compiled = self._core.compile_model(graph, "CPU", config)
            self._request: Any = compiled.create_infer_request()
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot compile {model.path}: {_last_line(error)}"
            ) from error
        self._buffers = BatchBuffers(model.spec)
        self._description = (
            f"OpenVINO {_version(ov)} on {self._device_name()} ({precision or 'fp32'}, "
            f"{compiled.get_property('INFERENCE_NUM_THREADS')} threads)"
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
        if self._request is None:
            raise EngineError("the OpenVINO engine was closed; make a new one")
        template, search = self._buffers.fill(templates, searches)
        try:
            outputs = self._request.infer(
                {TEMPLATE: template, SEARCH: search}, share_inputs=True, share_outputs=True
            )
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {_last_line(error)}") from error
        # The request writes its next answer into the same memory.
        answers = {name: np.array(outputs[name]) for name in self._outputs}
        return predictions(answers, len(templates))

    def close(self) -> None:
        self._request = None
        self._core = None

    def _configuration(self, precision: str, threads: int | None) -> dict[str, Any]:
        if precision not in _HINTS:
            raise EngineError(f"precision is {precision!r}, OpenVINO takes {', '.join(_HINTS)}")
        hint, capability = _HINTS[precision]
        if capability not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendUnavailableError(
                f"{self._device_name()} does not compute in {precision}; use precision fp32"
            )
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned, the threads of every process would sit on the same first cores.
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            if threads < 1:
                raise EngineError(f"threads is {threads}, expected at least 1")
            config["INFERENCE_NUM_THREADS"] = threads
        return config

    def _device_name(self) -> str:
        return " ".join(str(self._core.get_property("CPU", "FULL_DEVICE_NAME")).split())


def _ports(ports: Sequence[Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Types and shapes; -1 for a dimension that is not fixed."""
    return {
        port.get_any_name(): (
            str(np.dtype(port.get_element_type().to_dtype())),
            tuple(d.get_length() if d.is_static else -1 for d in port.get_partial_shape()),
        )
        for port in ports
    }


def _version(ov: Any) -> str:
    return str(ov.__version__).split("-", maxsplit=1)[0]


def _last_line(error: Exception) -> str:
    """OpenVINO's own sentence, below the lines that name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
