"""Publishes what the worker finds: track, overlay, markers."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from geometry_msgs.msg import Vector3
from std_msgs.msg import Header

from ostrack_ros.msg import Track
from ostrack_ros.nodes.camera import CameraModel, Ray
from ostrack_ros.nodes.convert import (
    NANOSECONDS,
    ReceivedImage,
    box_to_message,
    duration_message,
    image_message,
    stamp_from_nanoseconds,
)
from ostrack_ros.nodes.diagnostics import RateMeter
from ostrack_ros.nodes.markers import no_markers, target_markers
from ostrack_ros.nodes.overlay import Caption, draw_overlay
from ostrack_ros.nodes.worker import Result
from ostrack_ros.tracking.frame import Frame
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.presence import TargetState

_NO_BEARING = (math.nan, math.nan, math.nan)
_LATENCIES_KEPT = 200

Report = Callable[[str, str], None]


class Publisher(Protocol):
    """The part of rclpy.publisher.Publisher used here."""

    def publish(self, message: Any) -> None: ...

    def get_subscription_count(self) -> int: ...


class Outputs:
    """Turns results into messages on three topics.

    `clock` is the node's time in ns and `report` takes the kind and text of a problem. `camera`
    and `marker_range` may be replaced at any time. Call `close` to end the overlay's thread.
    """

    def __init__(
        self,
        track: Publisher,
        overlay: Publisher,
        markers: Publisher,
        clock: Callable[[], int],
        report: Report,
        marker_range: float,
    ) -> None:
        self.camera: CameraModel | None = None
        self.marker_range = marker_range
        self.rate = RateMeter()
        self._track = track
        self._markers = markers
        self._markers_shown = False
        self._clock = clock
        self._report = report
        self._latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._overlay = OverlayThread(overlay, report)

    @property
    def latencies(self) -> list[float]:
        """Seconds from image stamp to publishing, of the last results measured."""
        return list(self._latencies)

    def publish(self, result: Result[ReceivedImage]) -> None:
        header = self._header(result.image)
        stamp = self._clock() if result.image is None else result.image.stamp
        camera = self._fitting_camera(result)
        box = result.box
        ray = camera.bearing(box.cx, box.cy) if camera is not None and box is not None else None
        latency = self._clock() - stamp
        self._track.publish(track_message(result, header, ray, latency))
        if result.estimate is not None:
            self.rate.tick()
            self._latencies.append(latency / NANOSECONDS)
        self._publish_markers(result, header, camera, ray)
        if result.frame is not None:
            confidence = None if result.estimate is None else result.estimate.confidence
            self._overlay.offer(
                result.frame, Caption(result.state, box, confidence, result.track_id), header
            )

    def show_idle(self, image: ReceivedImage) -> None:
        """An image without a target goes to the overlay alone, if somebody looks at it."""
        if self._overlay.wanted:
            self._overlay.offer(image.frame(), Caption(TargetState.IDLE), image.header)

    def close(self) -> None:
        self._overlay.close()

    def _header(self, image: ReceivedImage | None) -> Header:
        if image is not None:
            return image.header
        return Header(stamp=stamp_from_nanoseconds(self._clock()))

    def _fitting_camera(self, result: Result[ReceivedImage]) -> CameraModel | None:
        camera, frame = self.camera, result.frame
        if camera is None or frame is None:
            return None
        if not camera.fits(frame.width, frame.height):
            self._report(
                "camera_info.size",
                f"camera_info is for {camera.width}x{camera.height} images, these are "
                f"{frame.width}x{frame.height}: no bearing is given",
            )
            return None
        return camera

    def _publish_markers(
        self,
        result: Result[ReceivedImage],
        header: Header,
        camera: CameraModel | None,
        ray: Ray | None,
    ) -> None:
        if not self._markers_shown and self._markers.get_subscription_count() == 0:
            return
        corners = _corners(camera, result.box) if ray is not None else None
        if ray is not None and corners is not None:
            self._markers.publish(
                target_markers(header, result.state, ray, corners, self.marker_range)
            )
            self._markers_shown = True
        elif self._markers_shown:
            self._markers.publish(no_markers(header))
            self._markers_shown = False


class OverlayThread:
    """Draws and publishes overlays beside the tracker, the newest only.

    Nothing is drawn while nobody subscribes.
    """

    def __init__(self, publisher: Publisher, report: Report) -> None:
        self._publisher = publisher
        self._report = report
        self._wake = threading.Condition()
        self._next: tuple[Frame, Caption, Header] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="overlay", daemon=True)
        self._thread.start()

    @property
    def wanted(self) -> bool:
        return self._publisher.get_subscription_count() > 0

    def offer(self, frame: Frame, caption: Caption, header: Header) -> None:
        if not self.wanted:
            return
        with self._wake:
            self._next = (frame, caption, header)
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._next = None
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._next is None and not self._closing:
                    self._wake.wait()
                if self._next is None:
                    return
                (frame, caption, header), self._next = self._next, None
            try:
                image = draw_overlay(frame, caption)
                self._publisher.publish(image_message(image, "bgr8", header))
            except Exception as error:  # Nothing that goes wrong here may reach the tracker.
                self._report("output.overlay", f"no overlay: {type(error).__name__}: {error}")
            del frame, header


def track_message(
    result: Result[ReceivedImage], header: Header, ray: Ray | None, latency: int
) -> Track:
    """The message for one result; `latency` in ns, `ray` None where there is no bearing."""
    estimate = result.estimate
    velocity = (math.nan, math.nan)
    if estimate is not None:
        confidence, score = estimate.confidence, estimate.score
        velocity = estimate.velocity or velocity
    elif result.box is not None:
        # The init box is the target: a person said so.
        confidence, score = 1.0, math.nan
    else:
        confidence, score = math.nan, math.nan
    x, y, z = ray or _NO_BEARING
    return Track(
        header=header,
        track_id=result.track_id,
        state=int(result.state),
        box=box_to_message(result.box),
        # rclpy stores anything but a Python float as the float with the same bits.
        confidence=float(confidence),
        score=float(score),
        bearing=Vector3(x=float(x), y=float(y), z=float(z)),
        velocity_x=float(velocity[0]),
        velocity_y=float(velocity[1]),
        latency=duration_message(latency),
    )


def _corners(camera: CameraModel | None, box: Box | None) -> list[Ray] | None:
    return None if camera is None or box is None else camera.corner_bearings(box)
