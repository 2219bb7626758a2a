"""The node `select`: shows the live image and sends the box a person drags on it.

The box goes out with the stamp of the image that was shown when the drag began, so the tracker
starts on exactly what the person saw, however late the picture was.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from ostrack_ros.drawing import AMBER, draw_box, draw_label
from ostrack_ros.msg import InitBox, Track
from ostrack_ros.nodes.convert import (
    ImageReader,
    ReceivedImage,
    box_from_message,
    box_to_message,
    stamp_to_nanoseconds,
)
from ostrack_ros.nodes.encodings import ConversionError
from ostrack_ros.nodes.memory import keep_image_buffers
from ostrack_ros.nodes.overlay import Caption, draw_overlay
from ostrack_ros.nodes.spin import StartError, run_node
from ostrack_ros.tracking.frame import FrameError
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.presence import TargetState

TITLE = "drag a box around the target - c stops, q quits"
SMALLEST_SIDE = 4
"""Pixels; a shorter drag is a click that slipped."""

_REFRESH_SECONDS = 1 / 30


class Window(Protocol):
    """A window that shows images and reports the mouse."""

    def show(self, image: NDArray[np.uint8]) -> None:
        """Show BGR uint8 [H, W, 3]."""

    def read_key(self) -> str:
        """The key pressed since the last call, or an empty string; also handles the mouse."""

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...


class DragListener(Protocol):
    def press(self, x: int, y: int) -> None: ...

    def move(self, x: int, y: int) -> None: ...

    def release(self, x: int, y: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """A box in pixels of the image with this header."""

    header: Header
    box: Box


class DragSelector:
    """Turns mouse events into a selection on the image that was shown when the button went down."""

    def __init__(self) -> None:
        self.shown: Header | None = None
        self._header: Header | None = None
        self._start = (0, 0)
        self._end = (0, 0)
        self._selected: Selection | None = None

    @property
    def dragged(self) -> Box | None:
        """The box while it is being dragged."""
        return None if self._header is None else self._box()

    @property
    def dragging(self) -> bool:
        """The picture should stand still meanwhile."""
        return self._header is not None

    def press(self, x: int, y: int) -> None:
        self._header = self.shown
        self._start = self._end = (x, y)

    def move(self, x: int, y: int) -> None:
        self._end = (x, y)

    def release(self, x: int, y: int) -> None:
        self._end = (x, y)
        header, self._header = self._header, None
        box = self._box()
        if header is not None and min(box.width, box.height) >= SMALLEST_SIDE:
            self._selected = Selection(header, box)

    def take(self) -> Selection | None:
        """The selection made since the last call."""
        selected, self._selected = self._selected, None
        return selected

    def _box(self) -> Box:
        (x1, y1), (x2, y2) = self._start, self._end
        return Box(min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1))


class OpenCvWindow:
    """A window of OpenCV. Raises StartError where there is no screen or OpenCV has no windows."""

    def __init__(self, title: str, listener: DragListener) -> None:
        self._title = title
        self._listener = listener
        if sys.platform.startswith("linux") and not (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        ):
            raise StartError(
                "there is no screen (neither DISPLAY nor WAYLAND_DISPLAY is set); run this node "
                "on a machine with one, or send the box on init_box"
            )
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
            cv2.setMouseCallback(title, self._on_mouse)
        except cv2.error as error:
            raise StartError(
                "OpenCV cannot open a window; opencv-python-headless has none: install "
                f"python3-opencv or opencv-python instead ({error.err or error})"
            ) from error

    def show(self, image: NDArray[np.uint8]) -> None:
        cv2.imshow(self._title, image)

    def read_key(self) -> str:
        code = cv2.waitKey(1)
        return chr(code & 0xFF) if code >= 0 else ""

    @property
    def closed(self) -> bool:
        return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1

    def close(self) -> None:
        cv2.destroyAllWindows()

    def _on_mouse(self, event: int, x: int, y: int, flags: int, data: Any) -> None:
        if event == cv2.EVENT_LBUTTONDOWN:
            self._listener.press(x, y)
        elif event == cv2.EVENT_MOUSEMOVE:
            self._listener.move(x, y)
        elif event == cv2.EVENT_LBUTTONUP:
            self._listener.release(x, y)


class SelectNode(Node):
    """Subscribes to `image` and the tracker's track, publishes `init_box`.

    `make_window` opens the window; all of its work is done in this node's timer, so run the node
    on the main thread.
    """

    def __init__(self, make_window: Any = OpenCvWindow, **node_arguments: Any) -> None:
        super().__init__("select", **node_arguments)
        transport: Any = self.declare_parameter(
            "image_transport",
            "raw",
            ParameterDescriptor(
                description="raw subscribes to `image`, compressed to `image/compressed`.",
                additional_constraints="one of: raw, compressed",
                read_only=True,
            ),
        ).value
        if transport not in ("raw", "compressed"):
            raise StartError(f"image_transport is {transport!r}, expected raw or compressed")
        self.finished = threading.Event()
        self._selector = DragSelector()
        self._window: Window = make_window(TITLE, self._selector)
        self._reader = ImageReader()
        self._image: ReceivedImage | None = None
        self._track: Track | None = None
        self._still: NDArray[np.uint8] = np.zeros((1, 1, 3), np.uint8)

        compressed = transport == "compressed"
        topic = self.resolve_topic_name("image") + ("/compressed" if compressed else "")
        newest = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
        )
        self.create_subscription(
            CompressedImage if compressed else Image,
            topic,
            self._on_image,
            newest,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self.create_subscription(Track, "tracker/track", self._on_track, 10)
        reliable = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        self._init_box = self.create_publisher(InitBox, "init_box", reliable)
        self._stop: Any = self.create_client(Trigger, "tracker/stop")
        self.create_timer(_REFRESH_SECONDS, self._refresh)
        self.get_logger().info(f"waiting for images on {topic}; {TITLE}")

    def close(self) -> None:
        self._window.close()

    def _on_image(self, message: Image | CompressedImage) -> None:
        try:
            self._image = self._reader.read(message, self.get_clock().now().nanoseconds)
        except ConversionError as error:
            self.get_logger().warning(f"image ignored: {error}", throttle_duration_sec=5.0)

    def _on_track(self, message: Track) -> None:
        self._track = message

    def _refresh(self) -> None:
        key = self._window.read_key()
        if key == "q" or self._window.closed:
            self.finished.set()
            self.context.try_shutdown()
            return
        if key == "c":
            self._stop_tracking()
        selection = self._selector.take()
        if selection is not None:
            self._send(selection)
        if self._image is not None:
            self._show(self._image)

    def _send(self, selection: Selection) -> None:
        self._init_box.publish(InitBox(header=selection.header, box=box_to_message(selection.box)))
        self.get_logger().info(
            f"sent {selection.box} of image {stamp_to_nanoseconds(selection.header.stamp)}"
        )

    def _stop_tracking(self) -> None:
        if self._stop.service_is_ready():
            self._stop.call_async(Trigger.Request())
        else:
            self.get_logger().warning(f"nobody offers {self._stop.srv_name}")

    def _show(self, image: ReceivedImage) -> None:
        try:
            canvas = draw_overlay(image.frame(), self._caption(image))
        except FrameError as error:
            self.get_logger().warning(f"image ignored: {error}", throttle_duration_sec=5.0)
            return
        if not self._selector.dragging:
            self._selector.shown = image.header
            self._still = canvas
        canvas = self._still.copy()
        if (box := self._selector.dragged) is not None:
            draw_box(canvas, box, AMBER)
            draw_label(canvas, f"{box.width:.0f} x {box.height:.0f}", AMBER, (8, 40))
        self._window.show(canvas)

    def _caption(self, image: ReceivedImage) -> Caption:
        """The newest track, as it is; on a delayed picture the box is where it will be."""
        track = self._track
        if track is None:
            return Caption(TargetState.IDLE)
        box = box_from_message(track.box)
        return Caption(
            TargetState(track.state), box if box.is_valid else None, track_id=track.track_id
        )


def main(args: Sequence[str] | None = None) -> int:
    """Run the node; the exit code."""
    keep_image_buffers()
    return run_node(SelectNode, args)


if __name__ == "__main__":
    sys.exit(main())
