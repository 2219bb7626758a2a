#!/usr/bin/env python3
"""One frame from image to box: ours against OSTrack as published, in eager PyTorch.

    python benchmarks/pipeline.py --variant vitb_256_ce --threads 2

Both run the same weights (random ones with the published statistics unless --checkpoint is given)
on the same frames, in turn, so that changes in the machine's speed hit both alike. The boxes are
compared too: a faster pipeline that finds other boxes would be no gain.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from published_pipeline import PublishedPipeline, torch_threads

from ostrack_ros.engines.select import create_engine
from ostrack_ros.evaluation.bench import Timing, made_up_frames
from ostrack_ros.files import write_atomically
from ostrack_ros.machine import describe_machine
from ostrack_ros.network.checkpoint import load_network, read_weights
from ostrack_ros.network.export import export_network
from ostrack_ros.network.ostrack import OSTrack
from ostrack_ros.network.variants import get_variant
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box, iou
from ostrack_ros.tracking.tracker import Tracker, TrackerSettings

RESULTS = Path(__file__).resolve().parent / "results"
WARM_UP = 3


def load(variant: str, checkpoint: Path | None) -> OSTrack:
    network = OSTrack(get_variant(variant))
    if checkpoint:
        load_network(network, read_weights(checkpoint))
    else:
        seed_weights(network)
    return network.eval()


@torch.no_grad()
def seed_weights(network: OSTrack, seed: int = 7) -> None:
    """Random weights under which maps have peaks and boxes move, unlike with an initialisation."""
    for key, tensor in network.state_dict().items():
        noise = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(
            tuple(tensor.shape)
        )
        tensor.copy_(torch.from_numpy(np.asarray(_value(key, noise))))


def _value(key: str, noise: np.ndarray) -> np.ndarray:
    special = {
        "box_head.conv5_size.bias": np.full_like(noise, np.log(0.25 / 0.75)),
        "box_head.conv5_size.weight": 0.05 * noise,
        "box_head.conv5_ctr.weight": 0.08 * noise,
        "box_head.conv5_offset.weight": 0.08 * noise,
        "box_head.conv5_offset.bias": np.full_like(noise, 0.5),
        "box_head.conv5_ctr.bias": np.full_like(noise, -2.0),
    }
    if key.endswith("num_batches_tracked"):
        return np.zeros_like(noise)
    if key.endswith("running_var"):
        return 1 + 0.2 * np.tanh(noise)
    if key.endswith("running_mean"):
        return 0.1 * noise
    if "pos_embed" in key:
        return 0.3 * noise
    if key in special:
        return special[key]
    if noise.ndim == 1:
        return 1 + 0.1 * noise if key.endswith("weight") else 0.05 * noise
    return noise * 1.5 / np.sqrt(np.prod(noise.shape[1:]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="vitb_256_ce")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--threads", type=int, help="of both (default: each its own choice)")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    network = load(arguments.variant, arguments.checkpoint)
    images, box = made_up_frames(854, 480, WARM_UP + arguments.frames + 1)
    with tempfile.TemporaryDirectory() as folder:
        model = export_network(
            network,
            "fp32",
            Path(folder) / f"{arguments.variant}.onnx",
            source="benchmark",
            source_sha256="0" * 64,
        )
        engine = create_engine(model, backend=arguments.backend, threads=arguments.threads)
    ours = Tracker(engine, TrackerSettings(presence=None))
    published = PublishedPipeline(network)
    rgb = [np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)) for image in images]
    ours.init(Frame(rgb[0], PixelFormat.RGB, 0), box)
    published.init(rgb[0], box)
    seconds: dict[str, list[float]] = {"published": [], "ours": []}
    agreement: list[float] = []
    with torch_threads(arguments.threads):
        for index, image in enumerate(rgb[1:], start=1):
            start = time.perf_counter()
            reference: Box = published.update(image)
            middle = time.perf_counter()
            estimate = ours.update(Frame(image, PixelFormat.RGB, index * 33_333_333))
            seconds["ours"].append(time.perf_counter() - middle)
            seconds["published"].append(middle - start)
            assert estimate.box is not None
            agreement.append(iou(reference, estimate.box))
        torch_count = torch.get_num_threads()

    timings = {name: Timing.of(values[WARM_UP:]) for name, values in seconds.items()}
    ratio = timings["published"].median / timings["ours"].median
    print(f"{arguments.variant}, {arguments.frames} frames of 854x480 in turn")
    print(
        f"published (eager PyTorch {torch.__version__}, {torch_count} threads): "
        f"median {timings['published'].median:.1f} ms, p95 {timings['published'].p95:.1f} ms"
    )
    print(
        f"ours ({engine.description}): "
        f"median {timings['ours'].median:.1f} ms, p95 {timings['ours'].p95:.1f} ms"
    )
    print(f"ratio {ratio:.2f}; lowest overlap of the two boxes on any frame {min(agreement):.6f}")
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "variant": arguments.variant,
        "frames": arguments.frames,
        "engine": engine.description,
        "torch": f"{torch.__version__}, {torch_count} threads",
        "published_ms": timings["published"].median,
        "published_p95_ms": timings["published"].p95,
        "ours_ms": timings["ours"].median,
        "ours_p95_ms": timings["ours"].p95,
        "ratio": ratio,
        "lowest_overlap": min(agreement),
    }
    path = arguments.output / f"pipeline_{arguments.variant}.json"
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
