"""TensorRT 8.6, 10, 11 and TensorRT-RTX as an engine; docs/jetson.md says how to install it.

Nothing is imported from TensorRT or CUDA before an engine is made.
"""

from ostrack_ros.engines.cache import BuildCancelled
from ostrack_ros.engines.selftest import ParityError
from ostrack_ros.engines.tensorrt.engine import (
    FALLBACKS,
    BuildReport,
    Fallback,
    TensorRtEngine,
    Toolkit,
    build_engine,
    load_toolkit,
    tensorrt_available,
)
from ostrack_ros.engines.tensorrt.progress import Progress

__all__ = [
    "FALLBACKS",
    "BuildCancelled",
    "BuildReport",
    "Fallback",
    "ParityError",
    "Progress",
    "TensorRtEngine",
    "Toolkit",
    "build_engine",
    "load_toolkit",
    "tensorrt_available",
]
