"""Turn an official OSTrack checkpoint into an ONNX model with its sidecar.

Tensors are the only thing read from the checkpoint; code pickled into it is never run. The result
runs on every backend, and needs torch no more.

example:
  ostrack export --checkpoint OSTrack_ep0300.pth.tar --variant vitb_256_mae_ce_32x4_ep300 \\
      --precision fp16 --output models
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ostrack_ros.cli.common import positive
from ostrack_ros.cli.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument(
        "--variant",
        required=True,
        help="configuration of the network: as published (vitb_256_mae_ce_32x4_ep300), in short "
        "(vitb_256_ce), or one of this package (ostrack_small); a wrong one lists them all",
    )
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--name", help="of the files (default: variant and precision)")
    parser.add_argument("--licence", help="of the weights, for the sidecar")
    parser.add_argument("--batch", type=positive, default=1, help="targets per run (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    from ostrack_ros.network.variants import get_variant

    try:
        get_variant(arguments.variant)
    except ValueError as error:
        raise UsageError(str(error)) from error
    from ostrack_ros.network.export import UNKNOWN_LICENCE, export_checkpoint

    model = export_checkpoint(
        arguments.checkpoint,
        arguments.variant,
        arguments.precision,
        arguments.output,
        name=arguments.name,
        licence=arguments.licence or UNKNOWN_LICENCE,
        batch=arguments.batch,
    )
    print(
        f"written: {model} ({model.stat().st_size / 1e6:.1f} MB) and {model.with_suffix('.json')}"
    )
    return 0
