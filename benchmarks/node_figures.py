"""The tracker node's figures, all in one run: latency, behaviour under overload, memory.

    python benchmarks/node_figures.py            # about three minutes
    python benchmarks/node_figures.py --quick    # a look, not a figure

1. Latency from image to track through DDS, less the tracker's own computing, against a bare rclpy
   node that answers the same image with its header (test/bare_echo_node.py). Both are asked in
   turn, so what else the machine does hits both.
2. A 60 Hz camera in front of a tracker slowed to 10 Hz: outputs may be two updates old at most,
   and each image must be processed, counted as dropped, or lost before it reached the node.
3. Resident memory over 5,000 images.

The nodes are real processes with real messages. The network is the red blob finder of the tests,
so that computing does not hide the node's cost; `--model` takes another.

On a machine with other work, run it as root under `chrt -f 10`: the figures are about the node, not
about its neighbours. The record says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

import numpy as np  # noqa: E402
from ros_helpers import Inbox, Ros, image, init_request, nanoseconds, ros_session, until  # noqa: E402

# isort: split
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from lifecycle_msgs.msg import State  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from synthetic_model import scene, write_red_blob_model  # noqa: E402

from ostrack_ros.files import write_atomically  # noqa: E402
from ostrack_ros.machine import describe_machine  # noqa: E402
from ostrack_ros.msg import Track  # noqa: E402
from ostrack_ros.srv import InitTarget  # noqa: E402

NODE = "/tracker"
SIZES = ((640, 480), (1920, 1080))
SIDE = 60
RESULTS = ROOT / "benchmarks" / "results" / "node_figures.json"


@dataclass(frozen=True, slots=True)
class LatencyFigure:
    """Medians in ms over `rounds` images of this size; `p95` of the tracker's."""

    width: int
    height: int
    rounds: int
    echo: float
    tracker: float
    tracker_p95: float
    computing: float

    @property
    def ratio(self) -> float:
        return (self.tracker - self.computing) / self.echo

    @property
    def passed(self) -> bool:
        return self.ratio <= 1.5

    def line(self) -> str:
        return (
            f"latency {self.width}x{self.height}: tracker {self.tracker:.2f} ms "
            f"(p95 {self.tracker_p95:.2f}) - computing {self.computing:.2f} ms = "
            f"{self.tracker - self.computing:.2f} ms, bare echo {self.echo:.2f} ms: "
            f"ratio {self.ratio:.2f} (limit 1.50)"
        )


@dataclass(frozen=True, slots=True)
class OverloadFigure:
    """Latencies of outputs in ms during `seconds` of a 60 Hz camera and 10 Hz updates.

    `longest_cycle` is the longest time between two outputs and `camera_late` the longest delay of
    the camera's own loop: where they are long the machine was busy with something else.
    """

    seconds: float
    published: int
    received: int
    processed: int
    dropped: int
    update: float
    longest_cycle: float
    camera_late: float
    latency_median: float
    latency_max: float

    @property
    def passed(self) -> bool:
        counted = self.processed + self.dropped
        # The last image may still be waiting or in work.
        return self.latency_max < 2 * self.update and abs(self.received - counted) <= 2

    def line(self) -> str:
        return (
            f"overload: {self.published} images in {self.seconds:.0f} s, {self.received} arrived, "
            f"{self.processed} processed, {self.dropped} dropped and counted; update "
            f"{self.update:.1f} ms (longest cycle {self.longest_cycle:.1f} ms), latency median "
            f"{self.latency_median:.1f} ms, max {self.latency_max:.1f} ms (limit "
            f"{2 * self.update:.1f} ms); the camera was late by {self.camera_late:.1f} ms at most"
        )


@dataclass(frozen=True, slots=True)
class MemoryFigure:
    """Resident memory in MB, sampled over `images` images after the history had filled."""

    images: int
    first: float
    smallest: float
    largest: float
    last: float

    @property
    def passed(self) -> bool:
        return self.largest <= 1.02 * self.first and self.smallest >= 0.98 * self.first

    def line(self) -> str:
        return (
            f"memory: {self.first:.1f} MB at the start of {self.images} images, "
            f"{self.smallest:.1f} to {self.largest:.1f} MB during them, {self.last:.1f} MB at the "
            "end (limit +-2 %)"
        )


class Runner:
    """One ROS domain with the nodes of one measurement in it."""

    def __init__(self, ros: Ros, model: Path) -> None:
        self.ros = ros
        self.model = model

    def start_tracker(self, update_seconds: float = 0.0) -> Any:
        process = self.ros.run(
            str(ROOT / "test" / "slow_tracker_node.py"),
            {
                "model": self.model,
                "threads": 1,
                "diagnostics_period": 0.5,
                "image_timeout": 10.0,
            },
            environment={
                "TEST_LOADING_SECONDS": "0",
                "TEST_UPDATE_SECONDS": str(update_seconds),
            },
        )
        self.ros.wait_for_state(NODE, State.PRIMARY_STATE_ACTIVE)
        return process

    def start_track(self, publish: Callable[[int], None], width: int, height: int) -> None:
        stamp = self.ros.now()
        publish(stamp)
        response = self.ros.call(
            InitTarget,
            f"{NODE}/init_target",
            init_request(stamp, width / 2, height / 2, SIDE, SIDE),
        )
        assert response.success, response.message

    def sensor(self, topic: str) -> Any:
        publisher = self.ros.publisher(Image, topic, qos_profile_sensor_data)
        until(lambda: publisher.get_subscription_count() == 1, f"a subscriber of {topic}")
        return publisher

    def answers(self, node: str) -> Inbox[Track]:
        inbox = self.ros.subscribe(Track, f"{node}/track", 10)
        until(lambda: self.ros.node.count_publishers(f"{node}/track"), f"answers of {node}")
        return inbox


def diagnostics(ros: Ros) -> dict[str, str]:
    """Key and value of everything in the next message."""
    inbox = ros.subscribe(DiagnosticArray, "/diagnostics", 10)
    message = inbox.wait_for(lambda message: True, "diagnostics")
    ros.unsubscribe(inbox)
    return {pair.key: pair.value for status in message.status for pair in status.values}


def target(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return scene(width, height, (width / 2, height / 2), SIDE)


class Asker:
    """Sends one image at a time to one node and times its answer."""

    def __init__(self, runner: Runner, topic: str, node: str, pixels: Any) -> None:
        self._now = runner.ros.now
        self._pixels = pixels
        self._publisher = runner.sensor(topic)
        self._answers = runner.answers(node)
        self.milliseconds: list[float] = []

    def publish(self, stamp: int) -> None:
        self._publisher.publish(image(self._pixels, stamp))

    def ask(self, record: bool) -> None:
        message = image(self._pixels, 0)
        self._answers.clear()
        stamp = self._now()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        started = time.perf_counter()
        self._publisher.publish(message)
        try:
            self._answers.wait_for(
                lambda answer: nanoseconds(answer) == stamp, "an answer", timeout=1.0
            )
        except AssertionError:
            return  # A best effort image may get lost; ask again.
        if record:
            self.milliseconds.append(1e3 * (time.perf_counter() - started))


def measure_latency(model: Path, folder: Path, size: tuple[int, int], rounds: int) -> LatencyFigure:
    width, height = size
    with ros_session(folder) as ros:
        runner = Runner(ros, model)
        ros.run(str(ROOT / "test" / "bare_echo_node.py"))
        runner.start_tracker()
        pixels = target(width, height)
        echo = Asker(runner, "echo/image", "/echo", pixels)
        tracker = Asker(runner, "image", NODE, pixels)
        runner.start_track(tracker.publish, width, height)
        for number in range(rounds + rounds // 5):
            for asker in (echo, tracker) if number % 2 else (tracker, echo):
                asker.ask(record=number >= rounds // 5)
                time.sleep(0.01)
        told = diagnostics(ros)
        assert told["state"] == "TRACKING", "the tracker must be at work while it is measured"
        return LatencyFigure(
            width=width,
            height=height,
            rounds=len(tracker.milliseconds),
            echo=statistics.median(echo.milliseconds),
            tracker=statistics.median(tracker.milliseconds),
            tracker_p95=float(np.quantile(tracker.milliseconds, 0.95)),
            computing=float(told["update median ms"]),
        )


def measure_overload(model: Path, folder: Path, seconds: float) -> OverloadFigure:
    width, height = SIZES[0]
    with ros_session(folder) as ros:
        runner = Runner(ros, model)
        runner.start_tracker(update_seconds=0.1)
        publisher = runner.sensor("image")
        tracks = runner.answers(NODE)
        pixels = target(width, height)
        runner.start_track(lambda stamp: publisher.publish(image(pixels, stamp)), width, height)
        published, late = 1, 0.0
        due = started = time.monotonic()
        while time.monotonic() - started < seconds:
            publisher.publish(image(pixels, ros.now()))
            published += 1
            due += 1 / 60
            time.sleep(max(0.0, due - time.monotonic()))
            late = max(late, time.monotonic() - due)
        time.sleep(0.5)
        told = diagnostics(ros)
        latencies = [
            1e3 * track.latency.sec + track.latency.nanosec / 1e6 for track in tracks.messages[2:]
        ]
        stamps = [nanoseconds(track) / 1e6 for track in tracks.messages[2:]]
        cycles = np.diff(np.add(stamps, latencies))
        return OverloadFigure(
            seconds=seconds,
            published=published,
            received=int(told["received"]) - 1,
            processed=int(told["processed"]),
            dropped=int(told["dropped"]),
            update=float(told["update median ms"]),
            camera_late=1e3 * late,
            longest_cycle=float(cycles.max()),
            latency_median=statistics.median(latencies),
            latency_max=max(latencies),
        )


def measure_memory(model: Path, folder: Path, images: int) -> MemoryFigure:
    width, height = SIZES[0]
    with ros_session(folder) as ros:
        runner = Runner(ros, model)
        process = runner.start_tracker()
        asker = Asker(runner, "image", NODE, target(width, height))
        runner.start_track(asker.publish, width, height)
        for _ in range(max(600, images // 5)):
            asker.ask(record=False)
        samples = []
        for number in range(images):
            asker.ask(record=False)
            if number % max(1, images // 100) == 0:
                samples.append(resident_megabytes(process.pid))
        samples.append(resident_megabytes(process.pid))
        assert diagnostics(ros)["state"] == "TRACKING"
        return MemoryFigure(images, samples[0], min(samples), max(samples), samples[-1])


def resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no VmRSS")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short runs, nothing is written")
    parser.add_argument("--model", type=Path, help="an .onnx file instead of the blob finder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args()
    rounds, seconds, images = (40, 5.0, 300) if options.quick else (300, 60.0, 5000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model
        if model is None:
            model = folder / "red_blob.onnx"
            write_red_blob_model(model)
        figures: list[LatencyFigure | OverloadFigure | MemoryFigure] = []
        for measure in (
            *(lambda size=size: measure_latency(model, folder, size, rounds) for size in SIZES),
            lambda: measure_overload(model, folder, seconds),
            lambda: measure_memory(model, folder, images),
        ):
            figure = measure()
            figures.append(figure)
            print(f"{'pass' if figure.passed else 'MISS'}  {figure.line()}", flush=True)
    if not options.quick:
        record = {
            "machine": describe_machine(),
            "load": os.getloadavg()[0],
            "real time priority": os.sched_getscheduler(0) != os.SCHED_OTHER,
            "model": str(options.model or "red blob finder of the tests"),
            "figures": [
                {"kind": type(figure).__name__, "passed": figure.passed, **asdict(figure)}
                for figure in figures
            ],
        }
        write_atomically(options.output, json.dumps(record, indent=2) + "\n")
    return 0 if all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
