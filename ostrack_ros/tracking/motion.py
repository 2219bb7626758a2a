"""Velocity of the box centre, and where the box is a moment after it was last measured."""

from __future__ import annotations

import math

from ostrack_ros.tracking.geometry import Box

_NANOSECONDS = 1_000_000_000


class BoxMotion:
    """Smoothed velocity of a box centre, from measured boxes and their stamps (ns)."""

    def __init__(self) -> None:
        self._box: Box | None = None
        self._stamp = 0
        self._velocity: tuple[float, float] | None = None

    @property
    def velocity(self) -> tuple[float, float] | None:
        """(vx, vy) in px/s; None until two boxes with advancing stamps were measured."""
        return self._velocity

    def start(self, box: Box, stamp: int) -> None:
        self._box, self._stamp, self._velocity = box, stamp, None

    def measure(self, box: Box, stamp: int, time_constant: float) -> None:
        """Take a box measured at `stamp`; `time_constant` is that of the smoothing in seconds."""
        elapsed = (stamp - self._stamp) / _NANOSECONDS
        if self._box is not None and elapsed > 0:
            vx = (box.cx - self._box.cx) / elapsed
            vy = (box.cy - self._box.cy) / elapsed
            if self._velocity is not None:
                keep = math.exp(-elapsed / time_constant) if time_constant > 0 else 0.0
                vx += keep * (self._velocity[0] - vx)
                vy += keep * (self._velocity[1] - vy)
            self._velocity = (vx, vy)
        elif elapsed < 0:
            self._velocity = None
        self._box, self._stamp = box, stamp

    def extrapolate(self, stamp: int, reach: float) -> Box:
        """The last measured box, moved on to `stamp` by at most `reach` times sqrt(area) pixels.

        Raises RuntimeError before `start`.
        """
        if self._box is None:
            raise RuntimeError("there is no box to extrapolate: call start() first")
        elapsed = (stamp - self._stamp) / _NANOSECONDS
        if self._velocity is None or elapsed <= 0:
            return self._box
        dx, dy = self._velocity[0] * elapsed, self._velocity[1] * elapsed
        distance = math.hypot(dx, dy)
        limit = reach * math.sqrt(self._box.area)
        if distance > limit:
            dx, dy = dx * limit / distance, dy * limit / distance
        box = self._box
        return Box(box.x + dx, box.y + dy, box.width, box.height)
