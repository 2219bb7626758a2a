"""Build the TensorRT engine of a model for this machine's GPU, and check it.

The engine goes to the cache where tracker and node look for it, so that their next start takes
seconds. It is compared with the model on the CPU before it is kept.

example:
  ostrack build models/vitb_256_ce_fp16.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ostrack_ros.cli.common import DEFAULT_MODEL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help="a shipped name or the path of an .onnx file (default: %(default)s)",
    )
    parser.add_argument(
        "--precision", choices=("fp32", "fp16"), help="(default: that of the model)"
    )
    parser.add_argument("--device", type=int, default=0, help="index of the GPU (default: 0)")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="(default: ostrack_ros in the user's cache)"
    )
    parser.add_argument("--force", action="store_true", help="build even if it was built before")


def run(arguments: argparse.Namespace) -> int:
    from ostrack_ros.engines.models import resolve_model
    from ostrack_ros.engines.tensorrt import build_engine
    from ostrack_ros.progress import fraction_bar

    model = resolve_model(arguments.model)
    with fraction_bar() as progress:
        report = build_engine(
            model,
            precision=arguments.precision,
            device=arguments.device,
            cache_directory=arguments.cache,
            force=arguments.force,
            progress=progress,
        )
    print(report.summary())
    return 0
