"""A TensorRT and a CUDA runtime that live in host memory, for tests without a GPU.

`FakeTensorRt("TensorRT 8.6.1")` offers exactly what the real bindings of that version offer of what
this package uses, as recorded in tensorrt_api.json (test_tensorrt.py checks names and parameters).
Behind it ONNX Runtime computes, so outputs are real: copies, addresses, names and capturing all
have to be right for an engine to answer correctly. `Faults` makes things go wrong.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

RECORDED: dict[str, dict[str, dict[str, Any]]] = json.loads(
    Path(__file__).with_name("tensorrt_api.json").read_text(encoding="utf-8")
)
ABSENT = "absent"
PLAN_MAGIC = b"FAKEPLAN"


@dataclass
class Faults:
    """What shall go wrong. `cuda` maps a function's name to the error code it returns."""

    cuda: dict[str, int] = field(default_factory=dict)
    no_cuda: bool = False
    build_error: str = ""
    build_seconds: float = 0.0
    context: bool = False
    execute: bool = False
    capture_in_execute: bool = False
    capturable: bool = True
    score_offset: float = 0.0
    only_precision: str = ""
    """With `score_offset`: only engines of this precision are off."""
    swapped_candidates: int = 0
    """How many candidates are kept in the place of others."""


@dataclass
class _Shape:
    name: str
    element: str
    shape: tuple[int, ...]
    is_input: bool


class FakeTensorRt:
    """Looks like the module of the version named as in tensorrt_api.json."""

    def __init__(self, recorded: str, cuda: FakeCuda, faults: Faults | None = None) -> None:
        family, self.__version__ = recorded.split()
        self.__name__ = "tensorrt_rtx" if family == "TensorRT-RTX" else "tensorrt"
        self.faults = faults or cuda.faults
        self.cuda = cuda
        self.builds: list[dict[str, Any]] = []
        self._add_classes()
        self._add_enums(RECORDED["tensorrt"][recorded])
        self._remove_absent(RECORDED["tensorrt"][recorded])

    def _add_enums(self, table: dict[str, Any]) -> None:
        members: dict[str, dict[str, int]] = {}
        for path, value in table.items():
            if isinstance(value, int):
                owner, name = path.rsplit(".", 1)
                members.setdefault(owner, {})[name] = value
        for owner, values in members.items():
            kind = enum.IntEnum(owner.rsplit(".", 1)[-1], values)
            if owner == "ILogger.Severity":
                self.ILogger.Severity = kind  # type: ignore[attr-defined]
            else:
                setattr(self, owner, kind)

    def _remove_absent(self, table: dict[str, Any]) -> None:
        for path, value in table.items():
            owner, name = path.rsplit(".", 1)
            kind = self.__dict__.get(owner)
            if value == ABSENT and kind is not None and name in vars(kind):
                delattr(kind, name)
        if table["IProgressMonitor.__init__"] == ABSENT:
            del self.IProgressMonitor

    def _add_classes(self) -> None:
        module = self

        class ILogger:
            def __init__(self) -> None:
                pass

            def log(self, severity: Any, msg: str) -> None:
                raise NotImplementedError

        class IProgressMonitor:
            def __init__(self) -> None:
                pass

            def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
                raise NotImplementedError

            def step_complete(self, phase_name: str, step: int) -> bool:
                raise NotImplementedError

            def phase_finish(self, phase_name: str) -> None:
                raise NotImplementedError

        class ITensor:
            def __init__(self, dtype: Any) -> None:
                self._dtype = dtype

            @property
            def dtype(self) -> Any:
                return self._dtype

        class ILayer:
            def __init__(self, type: Any, dtype: Any) -> None:
                self._type = type
                self._output = ITensor(dtype)
                self._precision: Any = None
                self.output_type: Any = None

            @property
            def type(self) -> Any:
                return self._type

            @property
            def precision(self) -> Any:
                return self._precision

            @precision.setter
            def precision(self, value: Any) -> None:
                self._precision = value

            def get_output(self, index: int) -> ITensor:
                return self._output

            def set_output_type(self, index: int, dtype: Any) -> None:
                self.output_type = dtype

        class INetworkDefinition:
            def __init__(self, flags: int) -> None:
                self.flags = flags
                self.content = b""
                self.layers: list[ILayer] = []

            def __len__(self) -> int:  # as the real one: an empty network is falsy
                return len(self.layers)

            @property
            def num_layers(self) -> int:
                return len(self.layers)

            def get_layer(self, index: int) -> ILayer:
                return self.layers[index]

        class IBuilderConfig:
            def __init__(self) -> None:
                self.flags = {module.BuilderFlag.TF32}
                self.targets: dict[int, Any] = {}
                self._monitor: Any = None
                self._capabilities = 0

            def set_flag(self, flag: Any) -> None:
                self.flags.add(flag)

            def clear_flag(self, flag: Any) -> None:
                self.flags.discard(flag)

            @property
            def progress_monitor(self) -> Any:
                return self._monitor

            @progress_monitor.setter
            def progress_monitor(self, monitor: Any) -> None:
                self._monitor = monitor

            @property
            def num_compute_capabilities(self) -> int:
                return self._capabilities

            @num_compute_capabilities.setter
            def num_compute_capabilities(self, count: int) -> None:
                self._capabilities = count

            def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
                self.targets[index] = compute_capability
                return index < self._capabilities

        class IHostMemory(bytes):
            @property
            def nbytes(self) -> int:
                return len(self)

        class Builder:
            def __init__(self, logger: Any) -> None:
                module._start(logger)
                self.logger = logger

            def create_network(self, flags: int = 0) -> INetworkDefinition:
                return INetworkDefinition(flags)

            def create_builder_config(self) -> IBuilderConfig:
                return IBuilderConfig()

            def build_serialized_network(self, network: Any, config: Any) -> IHostMemory | None:
                return module._build(self.logger, network, config, IHostMemory)

        class ParserError:
            def __init__(self, desc: str) -> None:
                self._desc = desc

            def desc(self) -> str:
                return self._desc

            def node(self) -> int:
                return 0

        class OnnxParser:
            def __init__(self, network: Any, logger: Any) -> None:
                self.network = network
                self.errors: list[ParserError] = []

            def parse(self, model: bytes, path: str | None = None) -> bool:
                import onnx

                try:
                    graph = onnx.load_model_from_string(model).graph
                except Exception:  # protobuf's own
                    self.errors.append(ParserError("Failed to parse the ONNX model."))
                    return False
                self.network.content = bytes(model)
                data, layer = module.DataType, module.LayerType
                half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.initializer)
                typed = data.HALF if half else data.FLOAT
                self.network.layers = [
                    ILayer(layer.CAST, data.FLOAT),
                    ILayer(layer.SOFTMAX, data.FLOAT),
                    ILayer(layer.SOFTMAX, typed),
                    ILayer(layer.CONSTANT, data.FLOAT),
                ]
                return True

            @property
            def num_errors(self) -> int:
                return len(self.errors)

            def get_error(self, index: int) -> ParserError:
                return self.errors[index]

        class Runtime:
            def __init__(self, logger: Any) -> None:
                module._start(logger)
                self.logger = logger

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
                return module._deserialize(self.logger, bytes(serialized_engine), ICudaEngine)

        class ICudaEngine:
            def __init__(self, plan: _Plan) -> None:
                self.plan = plan

            @property
            def num_io_tensors(self) -> int:
                return len(self.plan.shapes)

            @property
            def device_memory_size(self) -> int:
                return 1 << 20

            @property
            def device_memory_size_v2(self) -> int:
                return 1 << 20

            def get_tensor_name(self, index: int) -> str:
                return self.plan.shapes[index].name

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return self.plan.shape(name).shape

            def get_tensor_dtype(self, name: str) -> Any:
                element = self.plan.shape(name).element
                return module.DataType.UINT8 if element == "uint8" else module.DataType.FLOAT

            def get_tensor_mode(self, name: str) -> Any:
                is_input = self.plan.shape(name).is_input
                return module.TensorIOMode.INPUT if is_input else module.TensorIOMode.OUTPUT

            def create_execution_context(self) -> Any:
                return None if module.faults.context else IExecutionContext(self.plan)

        class IExecutionContext:
            def __init__(self, plan: _Plan) -> None:
                self.plan = plan
                self.addresses: dict[str, int] = {}

            def set_tensor_address(self, name: str, memory: int) -> bool:
                if name not in {s.name for s in self.plan.shapes}:
                    return False
                self.addresses[name] = memory
                return True

            def is_stream_capturable(self, stream: int) -> bool:
                return module.faults.capturable

            def execute_async_v3(self, stream_handle: int) -> bool:
                stream = module.cuda.streams[stream_handle]
                if module.faults.execute:
                    return False
                if stream.capturing is not None and module.faults.capture_in_execute:
                    return False
                addresses = dict(self.addresses)
                stream.do(lambda: self.plan.run(module.cuda, addresses))
                return True

        for kind in list(locals().values()):
            if isinstance(kind, type):
                setattr(self, kind.__name__, kind)

    def _start(self, logger: Any) -> None:
        if self.faults.no_cuda:
            logger.log(
                self.ILogger.Severity.WARNING,
                "CUDA initialization failure with error: 35. Please check your CUDA installation",
            )
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def _build(self, logger: Any, network: Any, config: Any, memory: type) -> Any:
        severity = self.ILogger.Severity
        if self.faults.build_error:
            logger.log(severity.ERROR, self.faults.build_error)
            return None
        if not network.content:
            logger.log(severity.ERROR, "Network must have at least one output")
            return None
        if not self._tell(getattr(config, "progress_monitor", None)):
            return None
        strong = getattr(self.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        flags = {flag.name for flag in config.flags}
        if strong is not None and network.flags & (1 << int(strong)):
            half = any(layer.get_output(0).dtype == self.DataType.HALF for layer in network.layers)
        else:
            half = "FP16" in flags
        precision = "fp16" if half else "fp32"
        self.builds.append(
            {
                "precision": precision,
                "flags": flags,
                "network_flags": network.flags,
                "targets": [target.name for target in config.targets.values()],
                "layers": network.layers,
            }
        )
        offset = self.faults.score_offset
        if self.faults.only_precision not in ("", precision):
            offset = 0.0
        header = json.dumps(
            {
                "version": self.__version__,
                "offset": offset,
                "swapped": self.faults.swapped_candidates,
            }
        ).encode()
        return memory(PLAN_MAGIC + len(header).to_bytes(4, "little") + header + network.content)

    def _tell(self, monitor: Any) -> bool:
        """Report phases as TensorRT does, in the time the build shall take; False to stop."""
        steps = max(5, int(4 * self.faults.build_seconds))
        if monitor is None:
            time.sleep(self.faults.build_seconds)
            return True
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Timing tactics", "Building engine", steps)
        for step in range(steps):
            time.sleep(self.faults.build_seconds / steps)
            if not monitor.step_complete("Timing tactics", step):
                monitor.phase_finish("Timing tactics")
                monitor.phase_finish("Building engine")
                return False
        monitor.phase_finish("Timing tactics")
        monitor.step_complete("Building engine", 0)
        monitor.step_complete("Building engine", 1)
        monitor.phase_finish("Building engine")
        return True

    def _deserialize(self, logger: Any, plan: bytes, kind: type) -> Any:
        if not plan.startswith(PLAN_MAGIC):
            logger.log(self.ILogger.Severity.ERROR, "Serialization assertion magicTag failed.")
            return None
        length = int.from_bytes(plan[8:12], "little")
        header = json.loads(plan[12 : 12 + length])
        if header["version"] != self.__version__:
            logger.log(
                self.ILogger.Severity.ERROR,
                "The engine plan file is not compatible with this version of TensorRT",
            )
            return None
        return kind(_Plan(plan[12 + length :], header["offset"], header["swapped"]))


class _Plan:
    """What a fake engine computes, with ONNX Runtime."""

    def __init__(self, content: bytes, offset: float, swapped: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self.offset, self.swapped = offset, swapped
        self.shapes = [
            _Shape(
                port.name,
                {"tensor(uint8)": "uint8"}.get(port.type, "float32"),
                tuple(port.shape),
                i,
            )
            for i, ports in ((True, self.session.get_inputs()), (False, self.session.get_outputs()))
            for port in ports
        ]

    def shape(self, name: str) -> _Shape:
        return next(shape for shape in self.shapes if shape.name == name)

    def run(self, cuda: FakeCuda, addresses: dict[str, int]) -> None:
        inputs = {s.name: cuda.view(addresses[s.name], s) for s in self.shapes if s.is_input}
        outputs = [s for s in self.shapes if not s.is_input]
        for shape, value in zip(
            outputs, self.session.run([s.name for s in outputs], inputs), strict=True
        ):
            if shape.name == "kept_candidates":
                cuda.view(addresses[shape.name], shape)[...] = self._swap(value)
            else:
                cuda.view(addresses[shape.name], shape)[...] = value + np.float32(self.offset)

    def _swap(self, kept: Any) -> Any:
        flat = kept.copy().reshape(len(kept), -1)
        for item in flat:
            ones, zeros = np.flatnonzero(item > 0), np.flatnonzero(item == 0)
            item[ones[: self.swapped]], item[zeros[: self.swapped]] = 0, 1
        return flat.reshape(kept.shape)


class Stream:
    """Does at once what it is given, or notes it while it is being captured."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.capturing: list[Callable[[], None]] | None = None

    def __int__(self) -> int:
        return self.handle

    def do(self, work: Callable[[], None]) -> None:
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)


class FakeCuda:
    """Looks like `cuda.bindings.runtime`: tuples that start with an error code.

    `device` and `pinned` map addresses to live allocations, `handles` holds live streams, graphs
    and events: all empty means nothing leaked. `calls` counts calls by name.
    """

    cudaStreamNonBlocking = 1  # the binding's name

    def __init__(self, faults: Faults | None = None, devices: int = 1) -> None:
        self.faults = faults or Faults()
        self.devices = devices
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.handles: set[Any] = set()
        self.streams: dict[int, Stream] = {}
        self.calls: dict[str, int] = {}
        self.current = threading.local()
        table = RECORDED["cuda"]["cuda.bindings.runtime 13.5"]
        for owner in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaError_t"):
            members = {
                path.split(".")[1]: value
                for path, value in table.items()
                if path.startswith(f"{owner}.")
            }
            if owner == "cudaError_t":
                members["cudaSuccess"] = 0
            setattr(self, owner, enum.IntEnum(owner, members))

    @property
    def leaked(self) -> int:
        return len(self.device) + len(self.pinned) + len(self.handles)

    def view(self, address: int, shape: _Shape) -> Any:
        """Device memory as an array; KeyError for an address nobody allocated."""
        return np.frombuffer(self.device[address], dtype=shape.element).reshape(shape.shape)

    def _code(self, name: str) -> int:
        self.calls[name] = self.calls.get(name, 0) + 1
        return self.faults.cuda.get(name, 0)

    def _allocate(self, name: str, size: int, memory: dict[int, Any]) -> tuple[Any, ...]:
        if code := self._code(name):
            return code, None
        block = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(block)
        memory[address] = block
        return 0, address

    def _handle(self, name: str, value: Any) -> tuple[Any, ...]:
        if code := self._code(name):
            return code, None
        self.handles.add(value)
        return 0, value

    def _release(self, name: str, value: Any) -> tuple[int]:
        if code := self._code(name):
            return (code,)
        self.handles.remove(value)
        return (0,)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        code = self._code("cudaGetDeviceCount")
        return (code, None) if code else (0, self.devices)

    def cudaSetDevice(self, device: int) -> tuple[int]:
        self.current.device = device
        return (self._code("cudaSetDevice"),)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        class Properties:
            name = b"Fake GPU\0\0"
            major, minor = 8, 7
            multiProcessorCount = 8
            totalGlobalMem = 8 << 30

        return self._code("cudaGetDeviceProperties"), Properties()

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return self._code("cudaMemGetInfo"), 1 << 30, 8 << 30

    def cudaGetErrorString(self, error: Any) -> tuple[int, bytes]:
        return 0, f"words for {int(error)}".encode()

    def cudaGetLastError(self) -> tuple[int]:
        return (self._code("cudaGetLastError"),)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("cudaMalloc", size, self.device)

    def cudaFree(self, devPtr: int) -> tuple[int]:
        del self.device[devPtr]
        return (self._code("cudaFree"),)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return self._allocate("cudaHostAlloc", size, self.pinned)

    def cudaFreeHost(self, ptr: int) -> tuple[int]:
        del self.pinned[ptr]
        return (self._code("cudaFreeHost"),)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        stream = Stream(1000 + len(self.streams))
        self.streams[stream.handle] = stream
        return self._handle("cudaStreamCreateWithFlags", stream)

    def cudaStreamDestroy(self, stream: Stream) -> tuple[int]:
        return self._release("cudaStreamDestroy", stream)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[int]:
        return (self._code("cudaStreamSynchronize"),)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: Any, stream: Stream
    ) -> tuple[int]:
        up = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice  # type: ignore[attr-defined]
        target, source = (self.device, self.pinned) if up else (self.pinned, self.device)
        if ctypes.sizeof(target[dst]) < count or ctypes.sizeof(source[src]) < count:
            return (1,)
        stream.do(lambda: ctypes.memmove(dst, src, count) and None)
        return (self._code("cudaMemcpyAsync"),)

    def cudaStreamBeginCapture(self, stream: Stream, mode: Any) -> tuple[int]:
        code = self._code("cudaStreamBeginCapture")
        if not code:
            stream.capturing = []
        return (code,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Any, ...]:
        work, stream.capturing = stream.capturing, None
        if code := self._code("cudaStreamEndCapture"):
            return code, None
        graph = tuple(work or ())
        self.handles.add(graph)
        return 0, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        return self._handle("cudaGraphInstantiate", ("executable", graph))

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        return self._release("cudaGraphDestroy", graph)

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[int]:
        return self._release("cudaGraphExecDestroy", graphExec)

    def cudaGraphLaunch(self, graphExec: Any, stream: Stream) -> tuple[int]:
        if code := self._code("cudaGraphLaunch"):
            return (code,)
        for work in graphExec[1]:
            stream.do(work)
        return (0,)

    def cudaEventCreate(self) -> tuple[Any, ...]:
        return self._handle("cudaEventCreate", object())

    def cudaEventDestroy(self, event: Any) -> tuple[int]:
        return self._release("cudaEventDestroy", event)

    def cudaEventRecord(self, event: Any, stream: Stream) -> tuple[int]:
        return (self._code("cudaEventRecord"),)

    def cudaEventSynchronize(self, event: Any) -> tuple[int]:
        return (self._code("cudaEventSynchronize"),)

    def cudaEventElapsedTime(self, start: Any, end: Any) -> tuple[int, float]:
        return self._code("cudaEventElapsedTime"), 0.25
