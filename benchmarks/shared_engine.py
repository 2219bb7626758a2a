#!/usr/bin/env python3
"""What several trackers that share one engine cost, against one tracker with the engine to itself.

    python benchmarks/shared_engine.py --model ostrack_tiny --trackers 2 --threads 2

Each round times the same number of updates per tracker, alone and together in turn, so that changes
in the machine's speed hit both alike; figures are medians over the rounds. The cost is the time for
all trackers' updates over the time for one tracker's. Processor time is given too: on a busy
machine it is the steadier figure. Repeat --model for the same network exported with --batch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from records import RESULTS, write_record

from ostrack_ros.engines.base import Engine
from ostrack_ros.engines.models import resolve_model
from ostrack_ros.engines.select import create_engine
from ostrack_ros.engines.shared import SharedEngine
from ostrack_ros.evaluation.bench import made_up_frames
from ostrack_ros.progress import progress_bar
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.tracker import Tracker

PERIOD = 33_333_333


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over the rounds; seconds are for one update of each tracker."""

    model: str
    engine: str
    batch: int
    trackers: int
    alone_seconds: float
    together_seconds: float
    ratio: float
    cpu_ratio: float
    slowest_to_fastest: float


class Camera:
    """One tracker and the images it goes through."""

    def __init__(self, engine: Engine, images: list[NDArray[np.uint8]], box: Box) -> None:
        self._tracker = Tracker(engine)
        self._images = images
        self._stamp = 0
        self._tracker.init(Frame(images[0], PixelFormat.BGR, 0), box)

    def update(self, frames: int) -> float:
        """Process so many frames as fast as possible; return the seconds it took."""
        started = time.perf_counter()
        for _ in range(frames):
            self._stamp += 1
            pixels = self._images[self._stamp % len(self._images)]
            self._tracker.update(Frame(pixels, PixelFormat.BGR, self._stamp * PERIOD))
        return time.perf_counter() - started


def together(cameras: list[Camera], frames: int) -> list[float]:
    """Seconds that each camera took, all running at once."""
    seconds = [0.0] * len(cameras)

    def run(index: int) -> None:
        seconds[index] = cameras[index].update(frames)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(cameras))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def timed(action: Callable[[], list[float]]) -> tuple[float, float, list[float]]:
    """Seconds of wall clock and of processor, and what the action returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def measure(model: str, arguments: argparse.Namespace, advance: Callable[[str], None]) -> Cost:
    images, box = made_up_frames(1280, 720)
    make = {"backend": arguments.backend, "threads": arguments.threads}
    own = create_engine(resolve_model(arguments.alone or model), **make)
    with SharedEngine(create_engine(resolve_model(model), **make)) as shared:
        alone = Camera(own, images, box)
        cameras = [Camera(shared.handle(), images, box) for _ in range(arguments.trackers)]
        alone.update(3)
        together(cameras, 3)
        walls, processors, spreads = [], [], []
        for _ in range(arguments.rounds):
            one = timed(lambda: [alone.update(arguments.frames)])
            all_of_them = timed(lambda: together(cameras, arguments.frames))
            walls.append((one[0], all_of_them[0]))
            processors.append((one[1], all_of_them[1]))
            spreads.append(max(all_of_them[2]) / min(all_of_them[2]))
            advance(shared.description)
        own.close()
        return Cost(
            model=model,
            engine=shared.description,
            batch=shared.spec.batch,
            trackers=arguments.trackers,
            alone_seconds=statistics.median(w[0] for w in walls) / arguments.frames,
            together_seconds=statistics.median(w[1] for w in walls) / arguments.frames,
            ratio=statistics.median(w[1] for w in walls) / statistics.median(w[0] for w in walls),
            cpu_ratio=statistics.median(p[1] for p in processors)
            / statistics.median(p[0] for p in processors),
            slowest_to_fastest=statistics.median(spreads),
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", required=True, help="repeat for several")
    parser.add_argument("--alone", help="model of the tracker alone (default: the same)")
    parser.add_argument("--trackers", type=int, default=2)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--frames", type=int, default=20, help="per tracker and round")
    parser.add_argument("--name", default="shared_engine", help="of the file in results/")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    with progress_bar(arguments.rounds * len(arguments.model), "rounds") as advance:
        costs = [measure(model, arguments, advance) for model in arguments.model]
    for cost in costs:
        print(
            f"{Path(cost.model).stem}, batch {cost.batch}, {cost.engine}\n"
            f"  one tracker alone {1e3 * cost.alone_seconds:.2f} ms per update, "
            f"{cost.trackers} sharing {1e3 * cost.together_seconds:.2f} ms for one update each: "
            f"{cost.ratio:.3f} times one (processor time {cost.cpu_ratio:.3f}), "
            f"slowest to fastest tracker {cost.slowest_to_fastest:.3f}"
        )
    contents = {
        "rounds": arguments.rounds,
        "frames": arguments.frames,
        "costs": [asdict(cost) for cost in costs],
    }
    path = write_record(arguments.output, arguments.name, contents)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
