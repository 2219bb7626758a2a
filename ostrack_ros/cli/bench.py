"""Show where the time of an update goes, per stage, against the bare engine.

Stages run on a real or a made-up image and are timed one by one, in turn with whole updates and
with the bare engine on constant inputs, so that changes in the machine's speed hit all alike.
Decoding of images is not part of an update. --json prints all figures for machines to read.

example:
  ostrack bench --model ostrack_small --backend openvino --threads 2
"""

from __future__ import annotations

import argparse
import json

from ostrack_ros.cli.common import add_engine_arguments, open_engine, parse_box, positive
from ostrack_ros.cli.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("--iterations", type=positive, default=200, help="(default: %(default)s)")
    parser.add_argument("--size", default="1280x720", help="of the image (default: %(default)s)")
    parser.add_argument("--source", help="take the images from here instead of making one up")
    parser.add_argument("--init", metavar="X,Y,W,H", help="the target in the first of them")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    from itertools import islice

    from ostrack_ros.evaluation.bench import bench_table, made_up_frames, run_bench
    from ostrack_ros.sources import open_source

    if (arguments.source is None) != (arguments.init is None):
        raise UsageError("--source and --init go together")
    if arguments.source:
        box = parse_box(arguments.init)
        source = islice(open_source(arguments.source), 60)
        images = [frame.pixels for frame in source]
    else:
        images, box = made_up_frames(*_size(arguments.size))
    with open_engine(arguments) as engine:
        result = run_bench(engine, images, box, arguments.iterations)
    if arguments.json:
        print(json.dumps(result.to_dict(), indent=1, allow_nan=False))
    else:
        from rich.console import Console

        console = Console(width=100)
        console.print(bench_table(result))
        console.print(
            f"{result.engine}\nupdate / bare engine: {result.ratio:.3f} (medians)", highlight=False
        )
    return 0


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) >= 32 and int(height) >= 32):
        raise UsageError(f"--size is {text!r}, expected WIDTHxHEIGHT of at least 32x32")
    return int(width), int(height)
