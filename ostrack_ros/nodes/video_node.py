"""The node `video`: a video file, a folder of images or a camera as image topics."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from numpy.typing import NDArray
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from ostrack_ros.nodes.convert import image_message, jpeg_message, stamp_from_nanoseconds
from ostrack_ros.nodes.memory import keep_image_buffers
from ostrack_ros.nodes.spin import StartError, run_node
from ostrack_ros.sources import FrameSource, SourceError, open_source

Value = bool | int | float | str

_MATCHING = 0.5
"""Seconds between the writer's knowing of a reader and the first image: the reader drops what comes
before it knows of the writer, and the middleware does not tell when that is."""


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """The node's parameters; the README explains them."""

    source: str = ""
    rate: float = 0.0
    loop: bool = False
    frame_id: str = "camera_optical_frame"
    camera_info_file: str = ""
    horizontal_fov: float = 0.0
    jpeg_quality: int = 90
    wait_for_subscribers: int = 0
    exit_at_end: bool = True


DESCRIPTIONS: dict[str, str] = {
    "source": "Video file, folder of images, camera (0, /dev/video0) or stream (rtsp://...).",
    "rate": "Images per second; 0 keeps the source's own (30 for a folder).",
    "loop": "Start over at the end of a file or folder.",
    "frame_id": "Optical frame in the headers.",
    "camera_info_file": "Calibration in camera_calibration's YAML format; empty: see "
    "horizontal_fov.",
    "horizontal_fov": "Degrees; publishes the CameraInfo of an ideal pinhole camera. "
    "0: no CameraInfo unless camera_info_file is given.",
    "jpeg_quality": "1..100, of image/compressed, which is made only while somebody subscribes.",
    "wait_for_subscribers": "Hold the first image back until so many subscribe to it.",
    "exit_at_end": "End the node with the source; false keeps it alive without images.",
}


class VideoNode(Node):
    """Publishes `image`, `image/compressed` and `camera_info`.

    Files are played at their rate with the time of publishing as stamp; images of a camera are
    stamped as they are handed over. `finished` is set at the end of the source.

    Raises StartError when the source or the calibration cannot be read.
    """

    def __init__(self, **node_arguments: Any) -> None:
        super().__init__("video", **node_arguments)
        settings = self._settings = _declare(self)
        self.finished = threading.Event()
        self._source = _open(settings)
        self._camera_info = _camera_info(settings)
        self._images = self._publisher(Image, "image")
        topic = f"{self.resolve_topic_name('image')}/compressed"
        self._compressed = self._publisher(CompressedImage, topic)
        self._infos = self._publisher(CameraInfo, "camera_info")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread that publishes."""
        self._closing.set()
        self._thread.join(5.0)

    def _publisher(self, message_type: type, topic: str) -> Any:
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.BEST_EFFORT
        )
        options = QoSOverridingOptions.with_default_policies()
        return self.create_publisher(message_type, topic, qos, qos_overriding_options=options)

    def _run(self) -> None:
        try:
            self._wait_for_subscribers()
            self._play()
        except SourceError as error:
            self._log("error", str(error))
        except Exception as error:
            # Publishing fails when the node is being torn down: that is no error.
            if not self._closing.is_set() and self.context.ok():
                self._log("error", f"{type(error).__name__}: {error}")
        finally:
            self.finished.set()
            if self._settings.exit_at_end and not self._closing.is_set():
                rclpy.try_shutdown(context=self.context)

    def _wait_for_subscribers(self) -> None:
        wanted = self._settings.wait_for_subscribers
        while not self._closing.is_set():
            found = self._images.get_subscription_count()
            if found + self._compressed.get_subscription_count() >= wanted:
                break
            self._closing.wait(0.02)
        if wanted:
            self._closing.wait(_MATCHING)

    def _play(self) -> None:
        source = self._source
        self._log("info", f"playing {source.name} at {source.rate:g} images/s")
        pace = _Pace(source.rate)
        count = 0
        while not self._closing.is_set():
            for frame in source:
                if not source.live:
                    self._closing.wait(pace.seconds_to_wait())
                if self._closing.is_set():
                    return
                self._publish(frame.pixels)
                count += 1
            if not self._settings.loop:
                break
        self._log("info", f"{source.name} has ended after {count} images")

    def _publish(self, pixels: NDArray[np.uint8]) -> None:
        stamp = stamp_from_nanoseconds(self.get_clock().now().nanoseconds)
        header = Header(stamp=stamp, frame_id=self._settings.frame_id)
        height, width = pixels.shape[:2]
        # The calibration first: whoever has the image then has it, too.
        if self._camera_info is not None:
            self._infos.publish(self._camera_info(header, width, height))
        if self._images.get_subscription_count():
            self._images.publish(image_message(pixels, "bgr8", header))
        if self._compressed.get_subscription_count():
            self._compressed.publish(jpeg_message(pixels, header, self._settings.jpeg_quality))

    def _log(self, level: str, message: str) -> None:
        if self.context.ok():
            getattr(self.get_logger(), level)(message)


class _Pace:
    """Even intervals by the wall clock, without catching up after a stall."""

    def __init__(self, rate: float) -> None:
        self._interval = 1.0 / rate
        self._next: float | None = None

    def seconds_to_wait(self) -> float:
        now = time.monotonic()
        due = now if self._next is None else self._next
        self._next = max(due, now - self._interval) + self._interval
        return max(0.0, due - now)


CameraInfoOf = Callable[[Header, int, int], CameraInfo]


def pinhole_camera_info(horizontal_fov: float) -> CameraInfoOf:
    """CameraInfo of an ideal camera that sees `horizontal_fov` degrees."""

    def make(header: Header, width: int, height: int) -> CameraInfo:
        focal = 0.5 * width / math.tan(math.radians(horizontal_fov) / 2)
        cx, cy = width / 2, height / 2
        return CameraInfo(
            header=header,
            width=width,
            height=height,
            distortion_model="plumb_bob",
            d=[0.0] * 5,
            k=[focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0],
            r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            p=[focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
        )

    return make


def calibrated_camera_info(path: Path) -> CameraInfoOf:
    """CameraInfo from a YAML file as camera_calibration writes it. Raises StartError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        known = CameraInfo(
            width=int(content["image_width"]),
            height=int(content["image_height"]),
            distortion_model=str(content["distortion_model"]),
            d=[float(v) for v in content["distortion_coefficients"]["data"]],
            k=[float(v) for v in content["camera_matrix"]["data"]],
            r=[float(v) for v in content["rectification_matrix"]["data"]],
            p=[float(v) for v in content["projection_matrix"]["data"]],
        )
    except OSError as error:
        raise StartError(f"cannot read camera_info_file {path}: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise StartError(
            f"camera_info_file {path} is not a calibration as camera_calibration writes it: "
            f"{type(error).__name__} {error}"
        ) from error

    def make(header: Header, width: int, height: int) -> CameraInfo:
        known.header = header
        return known

    return make


def _camera_info(settings: VideoSettings) -> CameraInfoOf | None:
    if settings.camera_info_file:
        return calibrated_camera_info(Path(settings.camera_info_file).expanduser())
    if settings.horizontal_fov == 0:
        return None
    if not 0 < settings.horizontal_fov < 180:
        raise StartError(
            f"horizontal_fov is {settings.horizontal_fov:g}, expected degrees between 0 and 180"
        )
    return pinhole_camera_info(settings.horizontal_fov)


def _open(settings: VideoSettings) -> FrameSource:
    if not settings.source:
        raise StartError("the parameter source is empty: name a video file, a folder or a camera")
    try:
        return open_source(settings.source, settings.rate or None)
    except SourceError as error:
        raise StartError(str(error)) from error


def _declare(node: Node) -> VideoSettings:
    values: dict[str, Value] = {}
    for field in fields(VideoSettings):
        descriptor = ParameterDescriptor(description=DESCRIPTIONS[field.name], read_only=True)
        default: Any = field.default
        values[field.name] = node.declare_parameter(field.name, default, descriptor).value
    return VideoSettings(**values)  # type: ignore[arg-type]


def main(args: Sequence[str] | None = None) -> int:
    """Run the node; the exit code."""
    keep_image_buffers()
    return run_node(VideoNode, args)


if __name__ == "__main__":
    sys.exit(main())
