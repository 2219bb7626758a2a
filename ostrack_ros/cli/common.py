"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ostrack_ros.cli.errors import UsageError

if TYPE_CHECKING:
    from ostrack_ros.engines.base import Engine
    from ostrack_ros.tracking.geometry import Box

DEFAULT_MODEL = "ostrack_small"
_BACKENDS = ("auto", "tensorrt", "openvino", "onnxruntime")
_PRECISIONS = ("fp32", "fp16", "bf16")


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a shipped name or the path of an .onnx file (default: %(default)s)",
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """What `open_engine` reads."""
    add_model_argument(parser)
    parser.add_argument(
        "--backend",
        choices=_BACKENDS,
        default="auto",
        help="auto takes TensorRT where it and a GPU are, else OpenVINO, else ONNX Runtime",
    )
    parser.add_argument(
        "--precision", choices=_PRECISIONS, help="of the computation (default: the backend's safe)"
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default: the backend's)")
    parser.add_argument("--device", type=int, default=0, help="index of the GPU (default: 0)")


@contextmanager
def open_engine(arguments: argparse.Namespace) -> Iterator[Engine]:
    """The engine that the arguments ask for, closed at the end. Raises EngineError."""
    from ostrack_ros.engines.models import resolve_model
    from ostrack_ros.engines.select import create_engine

    engine = create_engine(
        resolve_model(arguments.model),
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        device=arguments.device,
    )
    try:
        yield engine
    finally:
        engine.close()


def positive(text: str) -> int:
    """An argument type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def parse_box(text: str) -> Box:
    """The box of `x,y,w,h` in pixels. Raises UsageError when it is none."""
    from ostrack_ros.tracking.geometry import Box

    try:
        values = [float(field) for field in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 4:
        raise UsageError(f"--init is {text!r}, expected four numbers x,y,w,h in pixels")
    box = Box(*values)
    if not box.is_valid:
        raise UsageError(f"--init {text} is not a box: width and height must be positive")
    return box


def require_writable(path: Path) -> None:
    """Fail before hours of work, not after: the folder is made, a folder in place of a file is
    refused."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder, expected the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
