"""Where the time of one update goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ostrack_ros import __version__
from ostrack_ros.engines.base import Engine
from ostrack_ros.machine import describe_machine
from ostrack_ros.tracking.crop import crop_region
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.presence import Evidence, confidence, score_statistics
from ostrack_ros.tracking.tracker import CLIP_MARGIN, Tracker, TrackerSettings, map_back

if TYPE_CHECKING:
    from rich.table import Table

STAGES = ("crop", "inference", "decode", "presence")
WHOLE, BARE = "update", "bare engine"
DEVICE_STAGES = ("copy to GPU", "network on GPU", "copy from GPU")
_WARM_UP = 10
_FRAME_INTERVAL = 1_000_000_000 // 30


class DeviceTimings(Protocol):
    """GPU milliseconds of one run."""

    @property
    def to_device(self) -> float: ...
    @property
    def execute(self) -> float: ...
    @property
    def to_host(self) -> float: ...


@runtime_checkable
class DeviceEngine(Protocol):
    """An engine that can tell where its time on a GPU goes."""

    def measure(self) -> DeviceTimings:
        """Run the last inputs once more, timed."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one stage over all iterations."""

    median: float
    p95: float
    mean: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        values = 1e3 * np.asarray(seconds)
        return cls(float(np.median(values)), float(np.percentile(values, 95)), float(values.mean()))


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Timings by stage; `update` is a whole Tracker.update, `bare engine` one inference on
    constant inputs. `inference` includes the copies to and from a GPU; on a GPU, DEVICE_STAGES
    tell them apart by the GPU's own clock."""

    model: str
    engine: str
    image_size: tuple[int, int]
    iterations: int
    timings: dict[str, Timing]

    @property
    def ratio(self) -> float:
        """Median update over median bare engine."""
        return self.timings[WHOLE].median / self.timings[BARE].median

    def to_dict(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            "release": __version__,
            **asdict(self),
            "update_over_bare_engine": self.ratio,
            "machine": describe_machine(),
        }


def run_bench(
    engine: Engine, images: Sequence[NDArray[np.uint8]], box: Box, iterations: int
) -> BenchResult:
    """Time `iterations` updates on `images` (uint8 [H, W, 3] BGR, started on `box` in the first,
    repeated to and fro) after a short warm-up."""
    spec = engine.spec
    order = [*range(len(images)), *range(len(images) - 2, 0, -1)]
    frames = [
        Frame(images[order[i % len(order)]], PixelFormat.BGR, i * _FRAME_INTERVAL)
        for i in range(_WARM_UP + iterations)
    ]
    tracker = Tracker(engine, TrackerSettings(presence=None))
    tracker.init(frames[0], box)
    template = tracker.template
    assert template is not None
    constant = np.full((spec.search_size, spec.search_size, 3), 128, np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in (*STAGES, WHOLE, BARE)}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name].append(time.perf_counter() - start)

    device = engine if isinstance(engine, DeviceEngine) else None
    place = box
    for frame in frames:
        with timed(WHOLE):
            estimate = tracker.update(frame)
        with timed("crop"):
            region = crop_region(frame, place, spec.search_factor, spec.search_size)
        with timed("inference"):
            prediction = engine.infer(template, region.pixels)
        with timed("decode"):
            found = map_back(prediction, place, spec.search_size, region.scale)
            found = found.clipped(frame.width, frame.height, CLIP_MARGIN)
        with timed("presence"):
            confidence(Evidence(score_statistics(prediction)), spec.presence)
        with timed(BARE):
            engine.infer(template, constant)
        if device is not None:
            gpu = device.measure()
            for name, value in zip(
                DEVICE_STAGES, (gpu.to_device, gpu.execute, gpu.to_host), strict=True
            ):
                seconds.setdefault(name, []).append(1e-3 * value)
        place = estimate.box or found
    return BenchResult(
        spec.name,
        engine.description,
        (frames[0].width, frames[0].height),
        iterations,
        {name: Timing.of(values[_WARM_UP:]) for name, values in seconds.items()},
    )


def made_up_frames(width: int, height: int, count: int = 30) -> tuple[list[NDArray[np.uint8]], Box]:
    """Smooth coloured noise that shifts a little each frame, and a box in the middle of it."""
    import cv2

    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    scene = np.asarray(cv2.resize(coarse, (width, height)), dtype=np.uint8)
    images = [np.ascontiguousarray(np.roll(scene, 2 * i, axis=1)) for i in range(count)]
    return images, Box.from_center(width / 2, height / 2, width / 8, height / 6)


def bench_table(result: BenchResult) -> Table:
    """Median and p95 of each stage, and its share of the update."""
    from rich.table import Table

    width, height = result.image_size
    table = Table(
        title=f"{result.model}, {width}x{height}, {result.iterations} updates",
        title_justify="left",
    )
    table.add_column("stage")
    for heading in ("median ms", "p95 ms", "share"):
        table.add_column(heading, justify="right")
    whole = result.timings[WHOLE].median
    for name, timing in result.timings.items():
        table.add_row(
            name,
            f"{timing.median:.3f}",
            f"{timing.p95:.3f}",
            f"{100 * timing.median / whole:.1f} %",
            end_section=name in (STAGES[-1], BARE),
        )
    return table
