"""OSTrack as something that can be evaluated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import Engine
from ostrack_ros.evaluation.runner import Observation, TrackerFactory
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.tracker import Tracker, TrackerSettings

FRAME_INTERVAL = 1_000_000_000 // 30
"""Nanoseconds between the frames of a data set, which come without stamps."""

PLAIN = TrackerSettings(presence=None)
"""The published tracker: a box on every frame, never coasting, never lost."""


class OSTrackRun:
    """One `Tracker` fed with BGR images at a steady 30 frames per second."""

    def __init__(self, engine: Engine, settings: TrackerSettings) -> None:
        self._tracker = Tracker(engine, settings)
        self._stamp = 0

    def init(self, image: NDArray[np.uint8], box: Box) -> None:
        self._tracker.init(Frame(image, PixelFormat.BGR, self._stamp), box)

    def update(self, image: NDArray[np.uint8]) -> Observation:
        self._stamp += FRAME_INTERVAL
        estimate = self._tracker.update(Frame(image, PixelFormat.BGR, self._stamp))
        return Observation(estimate.box, estimate.confidence, estimate.score)


def ostrack_factory(engine: Engine, settings: TrackerSettings = PLAIN) -> TrackerFactory:
    """Trackers that share `engine`, by default without presence, as papers evaluate them."""
    return lambda: OSTrackRun(engine, settings)
