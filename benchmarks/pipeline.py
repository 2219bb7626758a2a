#!/usr/bin/env python3
"""One frame from image to box: ours against OSTrack as published, in eager PyTorch.

    python benchmarks/pipeline.py --variant vitb_256_ce --threads 2

Both run the same weights (random ones with the published statistics unless --checkpoint is given)
on the same frames, in turn, so that changes in the machine's speed hit both alike. The boxes are
compared too: a faster pipeline that finds other boxes would be no gain. On a machine that others
use too, look at the CPU times as well, with --threads 1.

Beside them stands the shortest time that the processor allows in fp32: the network's operations at
the speed of a large matrix product.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "test"))

from published_pipeline import PublishedPipeline, torch_threads
from records import RESULTS, write_record
from seeded_weights import seeded_state

from ostrack_ros.engines.select import create_engine
from ostrack_ros.evaluation.bench import Timing, made_up_frames
from ostrack_ros.network.checkpoint import load_network, read_weights
from ostrack_ros.network.export import export_network
from ostrack_ros.network.ostrack import OSTrack
from ostrack_ros.network.variants import get_variant
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box, iou
from ostrack_ros.tracking.tracker import Tracker, TrackerSettings

WARM_UP = 3


def load(variant: str, checkpoint: Path | None) -> OSTrack:
    network = OSTrack(get_variant(variant))
    if checkpoint:
        load_network(network, read_weights(checkpoint))
    else:
        # Under these maps have peaks and boxes move, unlike with a fresh initialisation.
        network.load_state_dict(seeded_state(network, seed=7))
    return network.eval()


def matrix_speed() -> float:
    """The best of some large fp32 matrix products, in operations a second."""
    side, best = 1536, float("inf")
    matrix = torch.rand(side, side)
    for _ in range(12):
        start = time.perf_counter()
        torch.matmul(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def operations(network: OSTrack) -> int:
    """Of one update: multiplications and additions."""
    variant = network.variant
    sizes = (variant.template_size, variant.search_size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(*(torch.rand(1, 3, side, side) for side in sizes))
    return int(counter.get_total_flops())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="vitb_256_ce")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--model", type=Path, help="the same weights, already exported as ONNX")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of ours")
    parser.add_argument("--threads", type=int, help="of both (default: each its own choice)")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--name", help="of the file in results/ (default: pipeline_VARIANT)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    network = load(arguments.variant, arguments.checkpoint)
    images, box = made_up_frames(854, 480, WARM_UP + arguments.frames + 1)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or export_network(
            network,
            "fp32",
            Path(folder) / f"{arguments.variant}.onnx",
            source="benchmark",
            source_sha256="0" * 64,
        )
        engine = create_engine(
            model,
            backend=arguments.backend,
            precision=arguments.precision,
            threads=arguments.threads,
        )
    ours = Tracker(engine, TrackerSettings(presence=None))
    published = PublishedPipeline(network)
    rgb = [np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)) for image in images]
    ours.init(Frame(rgb[0], PixelFormat.RGB, 0), box)
    published.init(rgb[0], box)
    seconds: dict[str, list[float]] = {"published": [], "ours": []}
    cpu_seconds: dict[str, list[float]] = {"published": [], "ours": []}
    agreement: list[float] = []

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start, cpu_start = time.perf_counter(), time.process_time()
        yield
        seconds[name].append(time.perf_counter() - start)
        cpu_seconds[name].append(time.process_time() - cpu_start)

    with torch_threads(arguments.threads):
        for index, image in enumerate(rgb[1:], start=1):
            with timed("published"):
                reference: Box = published.update(image)
            with timed("ours"):
                estimate = ours.update(Frame(image, PixelFormat.RGB, index * 33_333_333))
            assert estimate.box is not None
            agreement.append(iou(reference, estimate.box))
        torch_count = torch.get_num_threads()
        speed = matrix_speed()

    timings = {name: Timing.of(values[WARM_UP:]) for name, values in seconds.items()}
    cpu = {name: Timing.of(values[WARM_UP:]) for name, values in cpu_seconds.items()}
    ratio = timings["published"].median / timings["ours"].median
    cpu_ratio = cpu["published"].median / cpu["ours"].median
    print(f"{arguments.variant}, {arguments.frames} frames of 854x480 in turn")
    for name, what in (
        ("published", f"eager PyTorch {torch.__version__}, {torch_count} threads"),
        ("ours", engine.description),
    ):
        print(
            f"{name} ({what}): median {timings[name].median:.1f} ms, "
            f"p95 {timings[name].p95:.1f} ms, CPU time {cpu[name].median:.1f} ms"
        )
    print(f"ratio of times {ratio:.2f}, of CPU times {cpu_ratio:.2f}")
    bound = 1e3 * operations(network) / speed
    print(
        f"the network at the speed of a large fp32 matrix product ({speed / 1e9:.0f} GFLOP/s): "
        f"{bound:.1f} ms, a ratio of {timings['published'].median / bound:.2f}"
    )
    print(f"lowest overlap of the two boxes on any frame: {min(agreement):.6f}")
    contents = {
        "variant": arguments.variant,
        "frames": arguments.frames,
        "engine": engine.description,
        "torch": f"{torch.__version__}, {torch_count} threads",
        "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
        "cpu_milliseconds": {name: asdict(timing) for name, timing in cpu.items()},
        "ratio": ratio,
        "cpu_ratio": cpu_ratio,
        "matrix_gflops": speed / 1e9,
        "bound_milliseconds": bound,
        "lowest_overlap": min(agreement),
    }
    path = write_record(
        arguments.output, arguments.name or "pipeline_" + arguments.variant, contents
    )
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
