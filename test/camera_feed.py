"""A camera made of paper: a red square that moves on a known path, published as real images."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ros_helpers import Ros, image
from sensor_msgs.msg import Image
from synthetic_model import scene

SIDE = 40
RATE = 30.0


def circle(index: int) -> tuple[float, float] | None:
    """Centre of the square on image `index`, in 320 x 240: 8 s around, at most 2.5 px a frame."""
    angle = 2 * math.pi * index / 240
    return 160 + 80 * math.cos(angle), 120 + 60 * math.sin(angle)


class CameraFeed:
    """Publishes images at a rate until closed, and remembers where the target was on each.

    `place` gives the target's centre by image index, None where it is hidden.
    """

    def __init__(
        self,
        ros: Ros,
        place: Callable[[int], tuple[float, float] | None] = circle,
        rate: float = RATE,
        topic: str = "image",
        make: Callable[[NDArray[np.uint8], int], Any] = image,
        kind: type = Image,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.truth: dict[int, tuple[float, float] | None] = {}
        self.stamps: list[int] = []
        self._ros = ros
        self._place = place
        self._interval = 1.0 / rate
        self._make = make
        self._clock = clock or ros.now
        self._publisher = ros.publisher(kind, topic)
        self._closing = threading.Event()
        self._paused = threading.Event()
        self._index = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._closing.is_set():
            if not self._paused.is_set():
                self.publish_next()
            due = max(due + self._interval, time.monotonic() - self._interval)
            self._closing.wait(max(0.0, due - time.monotonic()))

    def publish_next(self) -> int:
        place = self._place(self._index)
        pixels = scene(centre=place, side=SIDE)
        stamp = self._clock()
        self.truth[stamp] = place
        self.stamps.append(stamp)
        self._publisher.publish(self._make(pixels, stamp))
        self._index += 1
        return stamp

    def pause(self) -> None:
        self._paused.set()

    def resume(self) -> None:
        self._paused.clear()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._ros.node.destroy_publisher(self._publisher)

    def __enter__(self) -> CameraFeed:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
