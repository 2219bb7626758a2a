"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe_machine() -> dict[str, str | int]:
    """Processor, usable cores and system, for the records of benchmarks."""
    return {
        "processor": _jetson_model() or _cpu_model() or platform.machine(),
        "cores": _usable_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _jetson_model() -> str:
    return _read(Path("/proc/device-tree/model")).strip("\0\n ")


def _cpu_model() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
