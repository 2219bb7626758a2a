"""Starts the tracker on the demo clip, says how it goes, and records what comes out.

It stands where an operator and a controller would: it sees the images, sends one init box, and
reads the tracks. `scripts/demo.py` and launch/demo.launch.py start it beside the real nodes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ostrack_ros.demo import (
    Clip,
    DemoError,
    OverlayRecorder,
    Summary,
    TrackRow,
    content_key,
    overlap,
    track_csv,
)
from ostrack_ros.files import write_atomically
from ostrack_ros.msg import Box2D, InitBox, Track
from ostrack_ros.nodes.memory import keep_image_buffers
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.presence import TargetState

_SILENCE_AT_END = 2.0
_REMINDER_PERIOD = 10.0
_ANSWER_TIME = 2.0
"""Seconds after which a box without any track is sent again, for the newest image."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """The node's parameters. `start_timeout` is in seconds, `rate` in frames/s of the video."""

    clip: Path
    output: Path
    rate: float
    start_timeout: float

    @classmethod
    def declare(cls, node: Node) -> DemoSettings:
        """Declare the parameters on `node` and read them."""

        def value(name: str, default: str | float) -> str | float:
            return node.declare_parameter(name, default).value

        return cls(
            clip=Path(str(value("clip", ""))),
            output=Path(str(value("output", "demo_output"))).expanduser(),
            rate=float(value("rate", 25.0)),
            start_timeout=float(value("start_timeout", 180.0)),
        )


class DemoNode(Node):
    """Sends the init box for the first image and collects tracks and overlays until the end.

    Images are best effort, so the tracker may have missed the first ones and refuse that box; until
    a track comes, the box is sent again for newer images.

    `finished` becomes true when images have stopped coming after the first; `finish` then writes
    the files. Raises DemoError from the callbacks when nothing comes in time, or when the tracker
    reports an error.
    """

    def __init__(self) -> None:
        super().__init__("demo")
        self._settings = DemoSettings.declare(self)
        self._clip = Clip.load(self._settings.clip)
        self._index = self._clip.index_by_content()
        self._frames: dict[int, int] = {}
        self._rows: list[TrackRow] = []
        self._rows_reported = 0
        self._waiting_tracks: list[Track] = []
        self._waiting_overlays: list[Image] = []
        self._overlay = OverlayRecorder(
            self._settings.output / "overlay.mp4", self._settings.rate, len(self._index)
        )
        self._candidate: Header | None = None
        self._initialised: float | None = None
        self._started = time.monotonic()
        self._last_image = self._started
        self._last_reminder = self._started
        self.finished = False

        # Deeper than a sensor's default: a recorder wants every image, not the newest.
        images = QoSProfile(
            depth=50, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT
        )
        self._init = self.create_publisher(InitBox, "init_box", 1)
        self.create_subscription(Image, "image", self._on_image, images)
        self.create_subscription(Image, "tracker/overlay", self._waiting_overlays.append, images)
        self.create_subscription(Track, "tracker/track", self._waiting_tracks.append, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.create_timer(0.02, self._advance)
        self.create_timer(1.0, self._report)

    def finish(self) -> Summary:
        """Write track, video and contact sheet, and say how the run went."""
        self._overlay.close()
        folder = self._settings.output
        write_atomically(folder / "track.csv", track_csv(self._rows))
        self._overlay.write_sheet(folder / "contact_sheet.png")
        return Summary.of(self._rows, len(self._index))

    def _on_image(self, message: Image) -> None:
        self._last_image = time.monotonic()
        frame = self._index.get(content_key(memoryview(message.data)))
        if frame is None:
            topic = self.resolve_topic_name("image")
            raise DemoError(
                f"an image ({message.width}x{message.height}, {message.encoding}) on {topic} is "
                f"not one of {self._clip.video}: does something else publish there?"
            )
        self._frames[_nanoseconds(message.header)] = frame
        # The box is for the first image and, once that was in vain, for the newest.
        if self._candidate is None or self._initialised is not None:
            self._candidate = message.header

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        tracker = self.resolve_topic_name("tracker")
        for status in message.status:
            if status.level == DiagnosticStatus.ERROR and status.name.startswith(f"{tracker}:"):
                raise DemoError(f"the tracker reports: {status.message}")

    def _advance(self) -> None:
        now = time.monotonic()
        overdue = self._initialised is not None and now - self._initialised > _ANSWER_TIME
        if self._initialised is None or (overdue and not self._rows):
            self._initialise(now)
        self._take_tracks()
        self._take_overlays()
        if self._initialised is not None and now - self._last_image > _SILENCE_AT_END:
            self.finished = True

    def _initialise(self, now: float) -> None:
        listening = self._init.get_subscription_count() > 0
        if self._candidate is not None and listening:
            frame = self._frames[_nanoseconds(self._candidate)]
            box = self._clip.init_box if frame == 0 else self._clip.truth[frame]
            message = InitBox(
                header=self._candidate,
                box=Box2D(center_x=box.cx, center_y=box.cy, size_x=box.width, size_y=box.height),
            )
            self._init.publish(message)
            self._initialised = now
            _say(f"target: {self._clip.target}, {box}, drawn on frame {frame}")
            return
        missing = "the tracker to load its model" if not listening else "the first image"
        if now - self._started > self._settings.start_timeout:
            raise DemoError(
                f"waited {self._settings.start_timeout:.0f} s for {missing}; see the logs of "
                "tracker_node and video_node"
            )
        if now - self._last_reminder > _REMINDER_PERIOD:
            self._last_reminder = now
            _say(f"waiting for {missing} ({now - self._started:.0f} s)")

    def _take_tracks(self) -> None:
        known, self._waiting_tracks[:] = _split(self._waiting_tracks, self._frames)
        for message in known:
            stamp = _nanoseconds(message.header)
            # One answer for each image: when images end, the last one is reported LOST later.
            answered = bool(self._rows) and self._rows[-1].stamp_ns >= stamp
            if message.state != Track.IDLE and not answered:
                self._rows.append(self._row(message))

    def _row(self, message: Track) -> TrackRow:
        stamp = _nanoseconds(message.header)
        frame = self._frames[stamp]
        box = Box.from_center(
            message.box.center_x, message.box.center_y, message.box.size_x, message.box.size_y
        )
        latency = message.latency.sec * 1e3 + message.latency.nanosec / 1e6
        return TrackRow(
            frame=frame,
            stamp_ns=stamp,
            state=TargetState(message.state).name,
            x=box.x,
            y=box.y,
            width=box.width,
            height=box.height,
            confidence=message.confidence,
            score=message.score,
            latency_ms=latency,
            iou=overlap(box, self._clip.truth[frame]),
        )

    def _take_overlays(self) -> None:
        known, self._waiting_overlays[:] = _split(self._waiting_overlays, self._frames)
        for message in known:
            if message.encoding != "bgr8":
                raise DemoError(f"the overlay's encoding is {message.encoding}, expected bgr8")
            rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
            pixels = rows[:, : message.width * 3].reshape(message.height, message.width, 3)
            self._overlay.add(self._frames[_nanoseconds(message.header)], pixels)

    def _report(self) -> None:
        if len(self._rows) > self._rows_reported:
            self._rows_reported = len(self._rows)
            _say(self._rows[-1].line())


def _split(
    messages: list[Track] | list[Image], frames: dict[int, int]
) -> tuple[list[Track | Image], list[Track | Image]]:
    """Messages whose image has been seen, and the rest (their image may still come)."""
    known = [message for message in messages if _nanoseconds(message.header) in frames]
    rest = [message for message in messages if _nanoseconds(message.header) not in frames]
    return known, rest[-50:]


def _nanoseconds(header: Header) -> int:
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def _say(text: str) -> None:
    print(text, flush=True)


def main(args: Sequence[str] | None = None) -> int:
    """Run to the clip's end. The exit status is 0 if the target was followed, else 1."""
    keep_image_buffers()
    rclpy.init(args=None if args is None else list(args))
    node: DemoNode | None = None
    try:
        node = DemoNode()
        while not node.finished:
            rclpy.spin_once(node)
        summary = node.finish()
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr, flush=True)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    _say(str(summary))
    if summary.failure is not None:
        print(f"demo: {summary.failure}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
