"""The few CUDA runtime calls an engine needs, through NVIDIA's own Python bindings.

`cuda-python` / `cuda-bindings` keep the C API: each function returns a tuple that starts with an
error code. This module turns codes into messages that say what to do, and hands out memory that is
easy to give back.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ostrack_ros.engines.base import EngineError

Handle = Any
"""A stream, event, graph or executable graph of the bindings; opaque, but `int()` works on it."""

MODULES = ("cuda.bindings.runtime", "cuda.cudart")
"""Import paths, newest first: cuda-bindings 12.8 and later, and cuda-python up to 12.6."""

INSTALL = (
    "install NVIDIA's Python bindings, not newer than the driver: `pip install "
    "'cuda-python==12.6.*'` on JetPack 6.1 and 6.2 (12.2.* on 6.0, 13.0.* on 7); on a PC not "
    "above the CUDA version that `nvidia-smi` shows"
)
NO_DRIVER = (
    "no usable NVIDIA driver was found. On a PC install the driver and check `nvidia-smi`; on a "
    "Jetson it comes with JetPack (`dpkg -l nvidia-l4t-cuda`); in a container start it with "
    "`--gpus all` (PC) or `--runtime nvidia` (Jetson)"
)

OUT_OF_MEMORY = 2
_ADVICE = {
    35: "the driver is older than the Python bindings of CUDA, or missing. If there is one, "
    + INSTALL
    + ". Otherwise "
    + NO_DRIVER,
    46: "the GPU is busy or in exclusive mode; end the other GPU process (`nvidia-smi`) or choose "
    "another device",
    100: "the driver sees no GPU; check `nvidia-smi` and the variable CUDA_VISIBLE_DEVICES"
    " ({visible})",
    101: "there is no such device; device indices start at 0",
    222: "the driver is too old for this CUDA version; update the driver or install older bindings",
    700: "a kernel read outside its memory; restart this process, and if it happens again delete "
    "the engine cache and report the model",
    719: "a kernel failed; restart this process and check `dmesg` for Xid messages of the GPU",
    803: "driver and driver library do not match, usually after an update: reboot",
    999: "the driver is in an unknown state, usually after suspend or an update: reboot",
}


class CudaError(EngineError):
    """A CUDA call failed. The message has the call, CUDA's own words and what to do."""


class GpuMemoryError(CudaError):
    """The GPU has too little free memory."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU: index as CUDA counts it, marketing name, compute capability, number of streaming
    multiprocessors, memory in bytes."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory: int

    @property
    def sm(self) -> str:
        """NVIDIA's short form of the compute capability, such as SM87 for Jetson Orin."""
        return "SM{}{}".format(*self.compute_capability)

    def __str__(self) -> str:
        return f"{self.name}, {self.sm}"


class DeviceBuffer:
    """`size` bytes of GPU memory at `address`."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self.size = size
        self.address = int(cuda.call("cudaMalloc", size))

    def free(self) -> None:
        if self.address:
            address, self.address = self.address, 0
            self._cuda.call("cudaFree", address)


class PinnedArray:
    """A page-locked host array: the GPU copies it without staging, so copies can be captured.

    `array` must not be used after `free`.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._cuda = cuda
        kind = np.dtype(dtype)
        self.size = math.prod(shape) * kind.itemsize
        self.address = int(cuda.call("cudaHostAlloc", self.size, 0))
        memory = (ctypes.c_uint8 * self.size).from_address(self.address)
        self.array: NDArray[Any] = np.frombuffer(memoryview(memory), dtype=kind).reshape(shape)

    def free(self) -> None:
        if self.address:
            address, self.address = self.address, 0
            self.array = np.empty(0, self.array.dtype)
            self._cuda.call("cudaFreeHost", address)


class Cuda:
    """CUDA runtime calls on one device.

    `runtime` is the bindings module (see `load_cuda`). CUDA's current device belongs to a thread,
    so every thread that uses this object calls `activate` first.
    """

    def __init__(self, runtime: Any, index: int = 0) -> None:
        self._runtime = runtime
        count = self.call("cudaGetDeviceCount")
        if not 0 <= index < count:
            found = f"this machine has {count} (0..{count - 1})" if count else "there is no GPU"
            raise CudaError(f"GPU device {index} does not exist: {found}; set the device parameter")
        self.device = self._describe(index)
        self.activate()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the bindings.

        Returns its value, without the error code; None where it has none. Raises CudaError, or
        GpuMemoryError where memory ran out.
        """
        try:
            code, *values = getattr(self._runtime, name)(*arguments)
        except RuntimeError as error:  # cuda-python up to 12.6 loads the driver on its first call
            raise CudaError(f"{name} failed ({error}): {NO_DRIVER}") from error
        if int(code):
            raise self._error(name, int(code))
        if not values:
            return None
        return values[0] if len(values) == 1 else tuple(values)

    def activate(self) -> None:
        """Make this device the calling thread's current one."""
        self.call("cudaSetDevice", self.device.index)

    def free_memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)

    def new_stream(self) -> Handle:
        return self.call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def free_stream(self, stream: Handle) -> None:
        self.call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Handle) -> None:
        self.call("cudaStreamSynchronize", stream)

    def to_device(self, target: DeviceBuffer, source: PinnedArray, stream: Handle) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", target.address, source.address, source.size, kind, stream)

    def to_host(self, target: PinnedArray, source: DeviceBuffer, stream: Handle) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", target.address, source.address, target.size, kind, stream)

    def capture(self, stream: Handle, enqueue: Callable[[], None]) -> Handle:
        """Record what `enqueue` puts on `stream` and return it as an executable graph.

        The mode is thread-local: other threads may allocate meanwhile. Whatever goes wrong, the
        stream is usable afterwards; the error is raised.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:
            self._abandon_capture(stream)
            raise
        graph = self.call("cudaStreamEndCapture", stream)
        try:
            return self.call("cudaGraphInstantiate", graph, 0)
        finally:
            self.call("cudaGraphDestroy", graph)

    def launch(self, graph: Handle, stream: Handle) -> None:
        self.call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: Handle) -> None:
        self.call("cudaGraphExecDestroy", graph)

    def new_event(self) -> Handle:
        return self.call("cudaEventCreate")

    def record(self, event: Handle, stream: Handle) -> None:
        self.call("cudaEventRecord", event, stream)

    def milliseconds(self, start: Handle, end: Handle) -> float:
        """GPU time between two recorded events; waits for the second."""
        self.call("cudaEventSynchronize", end)
        return float(self.call("cudaEventElapsedTime", start, end))

    def free_event(self, event: Handle) -> None:
        self.call("cudaEventDestroy", event)

    def _abandon_capture(self, stream: Handle) -> None:
        code, *graph = self._runtime.cudaStreamEndCapture(stream)
        if not int(code) and graph and graph[0] is not None:
            self._runtime.cudaGraphDestroy(graph[0])
        self._runtime.cudaGetLastError()  # clears it, so that the next call does not report it

    def _describe(self, index: int) -> Device:
        properties = self.call("cudaGetDeviceProperties", index)
        name = properties.name
        if isinstance(name, bytes):
            name = name.split(b"\0", 1)[0].decode(errors="replace")
        return Device(
            index,
            str(name).strip(),
            (int(properties.major), int(properties.minor)),
            int(properties.multiProcessorCount),
            int(properties.totalGlobalMem),
        )

    def _error(self, name: str, code: int) -> CudaError:
        if code == OUT_OF_MEMORY:
            # Allocation failures are not sticky, but the code stays until it is read.
            self._runtime.cudaGetLastError()
            return GpuMemoryError(f"{name}: {self._out_of_memory()}")
        words = f"CUDA error {code}"
        try:
            text = self._runtime.cudaGetErrorString(self._runtime.cudaError_t(code))[1]
            words += f" ({text.decode() if isinstance(text, bytes) else text})"
        except (ValueError, RuntimeError):  # a code newer than the bindings, or no driver at all
            pass
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        advice = _ADVICE.get(code, "see docs/jetson.md, section Troubleshooting")
        advice = advice.replace("{visible}", "not set" if visible is None else f"is {visible!r}")
        return CudaError(f"{name} failed with {words}: {advice}")

    def _out_of_memory(self) -> str:
        code, *memory = self._runtime.cudaMemGetInfo()
        state = "the GPU is out of memory"
        if not int(code):
            free, total = (int(value) >> 20 for value in memory)
            state += f" ({free} of {total} MiB free)"
        return (
            f"{state}; close other programs that use the GPU, choose a smaller model such as "
            "ostrack_tiny, or the fp16 export of this one"
        )


def load_cuda(index: int = 0, importer: Callable[[str], Any] = importlib.import_module) -> Cuda:
    """The CUDA runtime on device `index`.

    Raises CudaError when the bindings, the driver or the device are missing.
    """
    reasons = []
    for name in MODULES:
        try:
            runtime = importer(name)
        except ImportError as error:  # noqa: PERF203  # two names, once
            reasons.append(f"{name}: {error}")
        else:
            return Cuda(runtime, index)
    raise CudaError(f"cannot import CUDA bindings ({'; '.join(reasons)}); {INSTALL}")
