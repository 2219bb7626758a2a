"""Write down what TensorRT's and CUDA's Python bindings offer of what this package uses.

    python test/record_tensorrt_api.py tensorrt            # adds this machine's TensorRT
    python test/record_tensorrt_api.py cuda.bindings.runtime

The result, test/tensorrt_api.json, is what the fake runtime of the tests is held to. The bindings'
wheels (`tensorrt-cu12-bindings` and such) can be recorded without the gigabyte of libraries: put
empty shared objects named libnvinfer.so.N, libnvonnxparser.so.N, libnvinfer_plugin.so.N (for 8.6
libnvparsers.so.8 too) on LD_LIBRARY_PATH that export the dozen functions `readelf --dyn-syms
tensorrt.so` lists as undefined. Importing then works, running does not.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("tensorrt_api.json")

TENSORRT: dict[str, tuple[str, ...]] = {
    "ILogger": ("__init__", "log"),
    "ILogger.Severity": ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO"),
    "Builder": ("__init__", "create_network", "create_builder_config", "build_serialized_network"),
    "OnnxParser": ("__init__", "parse", "num_errors", "get_error"),
    "ParserError": ("desc", "node"),
    "IBuilderConfig": (
        "set_flag",
        "clear_flag",
        "progress_monitor",
        "num_compute_capabilities",
        "set_compute_capability",
    ),
    "INetworkDefinition": ("num_layers", "get_layer"),
    "ILayer": ("type", "precision", "get_output", "set_output_type"),
    "ITensor": ("dtype",),
    "IHostMemory": ("nbytes",),
    "Runtime": ("__init__", "deserialize_cuda_engine"),
    "ICudaEngine": (
        "num_io_tensors",
        "get_tensor_name",
        "get_tensor_shape",
        "get_tensor_dtype",
        "get_tensor_mode",
        "create_execution_context",
        "device_memory_size",
        "device_memory_size_v2",
    ),
    "IExecutionContext": ("set_tensor_address", "execute_async_v3", "is_stream_capturable"),
    "IProgressMonitor": ("__init__", "phase_start", "step_complete", "phase_finish"),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED", "EXPLICIT_BATCH"),
    "BuilderFlag": ("FP16", "TF32", "PREFER_PRECISION_CONSTRAINTS"),
    "DataType": ("UINT8", "FLOAT", "HALF"),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "LayerType": ("CONSTANT", "SHAPE", "CAST", "IDENTITY", "SHUFFLE", "SLICE", "GATHER", "SOFTMAX"),
    "ComputeCapability": ("CURRENT", "SM86", "SM89"),
}

CUDA = (
    "cudaEventCreate",
    "cudaEventDestroy",
    "cudaEventElapsedTime",
    "cudaEventRecord",
    "cudaEventSynchronize",
    "cudaFree",
    "cudaFreeHost",
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaHostAlloc",
    "cudaMalloc",
    "cudaMemGetInfo",
    "cudaMemcpyAsync",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamCreateWithFlags",
    "cudaStreamDestroy",
    "cudaStreamEndCapture",
    "cudaStreamSynchronize",
)
CUDA_ENUMS = {
    "cudaMemcpyKind": ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"),
    "cudaStreamCaptureMode": ("cudaStreamCaptureModeThreadLocal",),
    "cudaError_t": ("cudaErrorMemoryAllocation", "cudaErrorInsufficientDriver"),
}
CUDA_PROPERTIES = ("name", "major", "minor", "multiProcessorCount", "totalGlobalMem")

ABSENT, PROPERTY = "absent", "property"


def parameters(docstring: str, name: str) -> list[list[str]]:
    """Names of the parameters without `self`, for each overload in a binding's docstring."""
    found = []
    for line in docstring.splitlines():
        match = re.match(rf"(?:\d+\. )?{re.escape(name)}\((.*)\)(?: -> .*)?$", line.strip())
        if match and "*args" not in match[1]:
            found.append([n for n in _names(match[1]) if n != "self"])
    return found


def _names(signature: str) -> list[str]:
    depth, parts = 0, [""]
    for character in signature:
        depth += character in "([{<"
        depth -= character in ")]}>"
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    # `model: Buffer`, `flags: int = 0`, and Cython's `size_t count`
    heads = [re.split(r"[:=]", part.strip())[0].split() for part in parts]
    return [head[-1] for head in heads if head]


def describe_tensorrt(module: Any) -> dict[str, Any]:
    """`Class.attribute` -> overloads, PROPERTY, the number of an enum member, or ABSENT."""
    table: dict[str, Any] = {}
    for path, attributes in TENSORRT.items():
        owner = module
        for part in path.split("."):
            owner = getattr(owner, part, None)
        for name in attributes:
            if owner is None or not hasattr(owner, name):
                table[f"{path}.{name}"] = ABSENT
                continue
            value = getattr(owner, name)
            if hasattr(owner, "__members__"):
                table[f"{path}.{name}"] = int(value)
            elif callable(value):
                table[f"{path}.{name}"] = parameters(value.__doc__ or "", name)
            else:
                table[f"{path}.{name}"] = PROPERTY
    return table


def describe_cuda(module: Any) -> dict[str, Any]:
    """The same for the CUDA runtime bindings, whose functions live in the module itself."""
    table: dict[str, Any] = {}
    for name in CUDA:
        function = getattr(module, name, None)
        table[name] = parameters(function.__doc__ or "", name)[:1] if function else ABSENT
    for path, attributes in CUDA_ENUMS.items():
        for name in attributes:
            member = getattr(getattr(module, path), name, None)
            table[f"{path}.{name}"] = ABSENT if member is None else int(member)
    properties = module.cudaDeviceProp()
    for name in CUDA_PROPERTIES:
        table[f"cudaDeviceProp.{name}"] = PROPERTY if hasattr(properties, name) else ABSENT
    table["cudaStreamNonBlocking"] = int(module.cudaStreamNonBlocking)
    return table


def main(name: str) -> None:
    module = importlib.import_module(name)
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {"tensorrt": {}, "cuda": {}}
    if name == "cuda.bindings.runtime":
        version = int(module.cudaRuntimeGetVersion()[1])
        short = f"{version // 1000}.{version % 1000 // 10}"
        recorded["cuda"][f"{name} {short}"] = describe_cuda(module)
    elif name == "cuda.cudart":
        short = ".".join(importlib.import_module("cuda").__version__.split(".")[:2])
        recorded["cuda"][f"{name} {short}"] = describe_cuda(module)
    else:
        family = "TensorRT-RTX" if "rtx" in name else "TensorRT"
        recorded["tensorrt"][f"{family} {module.__version__}"] = describe_tensorrt(module)
    FILE.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
