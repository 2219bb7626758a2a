"""A deserialised engine with its buffers, ready to run."""

from __future__ import annotations

import itertools
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import EngineError
from ostrack_ros.engines.cache import Plan
from ostrack_ros.engines.contract import (
    SEARCH,
    TEMPLATE,
    Port,
    check_graph,
)
from ostrack_ros.engines.models import Model
from ostrack_ros.engines.tensorrt.api import TensorRtApi
from ostrack_ros.engines.tensorrt.cuda import Cuda, DeviceBuffer, GpuMemoryError, PinnedArray

log = logging.getLogger(__name__)


class PlanError(EngineError):
    """A plan cannot be used by this TensorRT on this GPU, or is not one of our graphs."""


@dataclass(frozen=True, slots=True)
class Timings:
    """GPU milliseconds of one run without a CUDA graph."""

    to_device: float
    execute: float
    to_host: float


class Session:
    """Runs one plan on one GPU, on a stream of its own, through pinned host memory.

    The copies and the network are captured into a CUDA graph, so that a run is one launch. Where
    capturing fails, they are enqueued one by one; `captured` tells which.

    Raises PlanError when the plan is not usable, GpuMemoryError when the GPU is full.
    """

    def __init__(
        self,
        api: TensorRtApi,
        cuda: Cuda,
        plan: Plan,
        model: Model,
        *,
        use_graph: bool = True,
    ) -> None:
        self._api = api
        self._cuda = cuda
        self._resources = ExitStack()
        self._graph: Any = None
        self._context: Any = None
        cuda.activate()
        try:
            self._load(plan, model)
            if use_graph:
                self._try_capture()
        except BaseException:
            self.close()
            raise

    @property
    def captured(self) -> bool:
        return self._graph is not None

    @property
    def gpu_bytes(self) -> int:
        """GPU memory of buffers and scratch space; weights and CUDA's own come on top."""
        return self._gpu_bytes

    def run(
        self, template: NDArray[np.uint8], search: NDArray[np.uint8]
    ) -> dict[str, NDArray[np.float32]]:
        """`template` uint8 [B, Z, Z, 3] and `search` uint8 [B, X, X, 3] -> copies of the graph's
        outputs by name (docs/graph.md).

        Shapes are the caller's to check: smaller arrays would be broadcast. Raises EngineError
        when the GPU fails or the session is closed.
        """
        if self._context is None:
            raise EngineError("the TensorRT engine is closed; make a new one")
        self._cuda.activate()
        np.copyto(self._host[TEMPLATE].array, template)
        np.copyto(self._host[SEARCH].array, search)
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._enqueue()
        self._cuda.synchronize(self._stream)
        return {name: self._host[name].array.copy() for name in self._outputs}

    def measure(self) -> Timings:
        """Time one run of the last inputs, part by part; for benchmarks."""
        self._cuda.activate()
        with ExitStack() as events:
            marks = []
            for _ in range(4):
                mark = self._cuda.new_event()
                events.callback(self._cuda.free_event, mark)
                marks.append(mark)
            steps = (self._upload, self._execute, self._download)
            self._cuda.record(marks[0], self._stream)
            for step, mark in zip(steps, marks[1:], strict=True):
                step()
                self._cuda.record(mark, self._stream)
            pairs = itertools.pairwise(marks)
            return Timings(*(self._cuda.milliseconds(start, end) for start, end in pairs))

    def close(self) -> None:
        """Free GPU and pinned memory; harmless when called again.

        What CUDA refuses is logged: after a failed kernel it refuses everything, and the driver
        frees the memory when the process ends.
        """
        try:
            self._cuda.activate()
            self._resources.close()
        except EngineError as error:
            log.warning("could not free everything of a TensorRT engine: %s", error)
        self._graph = self._context = None

    def _load(self, plan: Plan, model: Model) -> None:
        api, cuda = self._api, self._cuda
        runtime = api.runtime()
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise PlanError(api.explain(f"{api.name} rejects the engine file"))
        try:
            inputs, outputs = _ports(api, engine)
            check_graph(model.path, model.spec, inputs, outputs)
        except EngineError as error:
            raise PlanError(str(error)) from error

        self._stream = cuda.new_stream()
        self._resources.callback(cuda.free_stream, self._stream)
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._host = {name: self._pinned(port) for name, port in {**inputs, **outputs}.items()}
        self._device = {name: self._buffer(host.size) for name, host in self._host.items()}

        self._context = engine.create_execution_context()
        if self._context is None:
            free, total = cuda.free_memory()
            scratch = api.scratch_bytes(engine)
            raise GpuMemoryError(
                api.explain(
                    f"no execution context: it needs {scratch >> 20} MiB and {free >> 20} of "
                    f"{total >> 20} MiB are free on {cuda.device}; close other GPU programs or "
                    "take a smaller model"
                )
            )
        # Freed before engine and runtime, which the context needs to the end: the callbacks run
        # in reverse order, and these closures hold the last references.
        self._resources.callback(lambda *_: None, runtime, engine)
        self._resources.callback(self._drop_context)
        self._gpu_bytes = sum(b.size for b in self._device.values()) + api.scratch_bytes(engine)
        for name, buffer in self._device.items():
            if not self._context.set_tensor_address(name, buffer.address):
                raise PlanError(api.explain(f"{api.name} refuses the buffer of {name!r}"))

    def _drop_context(self) -> None:
        # Without waiting, memory would be freed under a running kernel.
        try:
            self._cuda.synchronize(self._stream)
        finally:
            self._context = None

    def _pinned(self, port: Port) -> PinnedArray:
        dtype, shape = port
        array = PinnedArray(self._cuda, shape, dtype)
        self._resources.callback(array.free)
        array.array[...] = 0
        return array

    def _buffer(self, size: int) -> DeviceBuffer:
        buffer = DeviceBuffer(self._cuda, size)
        self._resources.callback(buffer.free)
        return buffer

    def _try_capture(self) -> None:
        # The first run of a context sets up what must not happen inside a capture.
        self._enqueue()
        self._cuda.synchronize(self._stream)
        if not self._api.can_capture(self._context, self._stream):
            log.info("%s cannot capture this engine into a CUDA graph", self._api.name)
            return
        try:
            graph = self._cuda.capture(self._stream, self._enqueue)
        except GpuMemoryError:
            raise
        except EngineError as error:
            log.warning(
                "running without a CUDA graph, which costs some launch time per frame: %s", error
            )
            # A failed capture may leave the context mid-way: prove that it still runs.
            self._enqueue()
            self._cuda.synchronize(self._stream)
            return
        self._graph = graph
        self._resources.callback(self._cuda.free_graph, graph)

    def _enqueue(self) -> None:
        self._upload()
        self._execute()
        self._download()

    def _upload(self) -> None:
        for name in self._inputs:
            self._cuda.to_device(self._device[name], self._host[name], self._stream)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError(self._api.explain(f"{self._api.name} could not run the engine"))

    def _download(self) -> None:
        for name in self._outputs:
            self._cuda.to_host(self._host[name], self._device[name], self._stream)


def _ports(api: TensorRtApi, engine: Any) -> tuple[dict[str, Port], dict[str, Port]]:
    """The engine's inputs and outputs by name."""
    module = api.module
    known = {module.DataType.UINT8: "uint8", module.DataType.FLOAT: "float32"}
    inputs: dict[str, Port] = {}
    outputs: dict[str, Port] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = engine.get_tensor_dtype(name)
        is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
        ports = inputs if is_input else outputs
        ports[name] = (known.get(dtype, str(dtype)), tuple(engine.get_tensor_shape(name)))
    return inputs, outputs
