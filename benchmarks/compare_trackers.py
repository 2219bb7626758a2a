#!/usr/bin/env python3
"""Our models beside the trackers people use on a CPU today: one run, one table.

    python benchmarks/compare_trackers.py --dataset ../shared/eval_dev \
        --model ostrack_small --model ostrack_tiny --nanotrack ../shared/peers/nanotrack_v2

All trackers see each frame in turn, so that changes in the machine's speed hit all alike. Figures
follow the OTB protocol; speed is the median over all updates. CSRT and KCF need OpenCV 4 with
contrib (`pip install "opencv-contrib-python-headless<5"`); what is missing is left out and said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from records import RESULTS, write_record

from ostrack_ros.evaluation.datasets import load_dataset
from ostrack_ros.evaluation.metrics import Protocol
from ostrack_ros.evaluation.plots import plot_curves
from ostrack_ros.evaluation.report import Report, comparison_table
from ostrack_ros.evaluation.runner import Observation, TrackerFactory, evaluate_trackers
from ostrack_ros.progress import progress_bar
from ostrack_ros.tracking.geometry import Box

NANOTRACK = "NanoTrack v2"


class OpenCVTracker:
    """One of cv2's trackers. They take integer boxes; a failed update keeps the box."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def init(self, image: NDArray[np.uint8], box: Box) -> None:
        self._tracker = self._make()
        self._tracker.init(image, tuple(round(v) for v in box))

    def update(self, image: NDArray[np.uint8]) -> Observation:
        found, box = self._tracker.update(image)
        return Observation(Box(*(float(v) for v in box)) if found else None)


def opencv_peers(nanotrack: Path | None) -> tuple[dict[str, TrackerFactory], dict[str, str]]:
    """Factories by name, and why others are left out."""
    peers: dict[str, TrackerFactory] = {}
    skipped: dict[str, str] = {}
    for name in ("CSRT", "KCF"):
        creator = getattr(cv2, f"Tracker{name}", None)
        if creator is None:
            skipped[name] = f"OpenCV {cv2.__version__} has no Tracker{name} (4.x contrib has it)"
            continue
        peers[name] = lambda creator=creator: OpenCVTracker(creator.create)
    if not hasattr(cv2, "TrackerNano"):
        skipped[NANOTRACK] = f"OpenCV {cv2.__version__} has no TrackerNano"
    elif nanotrack is None or not nanotrack.is_dir():
        skipped[NANOTRACK] = "no folder with its ONNX files (--nanotrack)"
    else:
        parameters = cv2.TrackerNano_Params()
        parameters.backbone = str(nanotrack / "nanotrack_backbone_sim.onnx")
        parameters.neckhead = str(nanotrack / "nanotrack_head_sim.onnx")
        peers[NANOTRACK] = lambda: OpenCVTracker(lambda: cv2.TrackerNano.create(parameters))
    return peers, skipped


def own_models(
    names: list[str], backend: str, threads: int | None, stack: ExitStack
) -> dict[str, TrackerFactory]:
    """The plain published tracker around each model."""
    if not names:
        return {}
    from ostrack_ros.engines.models import resolve_model
    from ostrack_ros.engines.select import create_engine
    from ostrack_ros.evaluation.ostrack import ostrack_factory

    factories = {}
    for name in names:
        engine = create_engine(resolve_model(name), backend=backend, threads=threads)
        stack.callback(engine.close)
        print(f"{name}: {engine.description}", file=sys.stderr)
        factories[Path(name).stem] = ostrack_factory(engine)
    return factories


def shares_of_speed(reports: Mapping[str, Report]) -> str:
    """Every tracker's speed over NanoTrack's in the same run, from the medians of their updates."""
    reference = reports[NANOTRACK].median_seconds
    shares = {name: reference / report.median_seconds for name, report in reports.items()}
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items() if name != NANOTRACK)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], help="repeat for several")
    parser.add_argument("--nanotrack", type=Path, help="folder with NanoTrack v2's ONNX files")
    parser.add_argument("--skip", action="append", default=[], help="a peer to leave out")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=None, help="of our engines and of OpenCV")
    parser.add_argument("--max-frames", type=int, help="of each sequence")
    parser.add_argument("--name", default="compare_trackers", help="of the files in results/")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    cv2.setNumThreads(arguments.threads or 1)
    dataset = load_dataset(arguments.dataset)
    if arguments.max_frames:
        dataset = dataset.limited(arguments.max_frames)
    peers, skipped = opencv_peers(arguments.nanotrack)
    for name in arguments.skip:
        if peers.pop(name, None):
            skipped[name] = "left out by --skip"
    with ExitStack() as stack:
        factories = own_models(arguments.model, arguments.backend, arguments.threads, stack)
        factories |= peers
        if not factories:
            parser.error("nothing to compare: give --model or install OpenCV's trackers")
        with progress_bar(dataset.frame_count) as advance:
            reports = evaluate_trackers(factories, dataset, Protocol.OTB, on_frame=advance)

    from rich.console import Console

    Console(width=100).print(comparison_table(list(reports.values())))
    if NANOTRACK in reports:
        print(f"updates a second, as a share of {NANOTRACK}'s: {shares_of_speed(reports)}")
    for name, reason in skipped.items():
        print(f"left out: {name}: {reason}")
    contents = {
        "opencv": cv2.__version__,
        "threads": arguments.threads,
        "left_out": skipped,
        "trackers": {name: report.to_dict() for name, report in reports.items()},
    }
    path = write_record(arguments.output, arguments.name, contents)
    plot_curves(list(reports.values()), path.with_suffix(".png"))
    print(f"written: {path} and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
