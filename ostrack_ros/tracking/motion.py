"""Velocity of the box centre, where the box is a moment after it was last measured, and how far its
measurements lie from there."""

from __future__ import annotations

import math

from ostrack_ros.tracking.geometry import Box

_NANOSECONDS = 1_000_000_000

USUAL_INNOVATION = 0.05
"""What is assumed where nothing can be expected: after a start, and of a target that is lost. Right
boxes have a median of 0.06 to 0.08 at video rate (eval_dev, before smoothing)."""

_INNOVATION_SHARE = 1 / 3
"""Weight of the newest frame in the smoothed innovation."""

_LEAP = 1.0
"""Box sizes: nothing is expected to move on by more, and no box counts as further off than this."""


class BoxMotion:
    """Smoothed velocity and innovation of a box centre, from measured boxes and their stamps (ns).

    The innovation, as in a Kalman filter, is what a measurement has that was not expected: the
    distance of the box centre from where the smoothed velocity would have taken it, here in box
    sizes (sqrt of area).
    """

    def __init__(self) -> None:
        self._box: Box | None = None
        self._stamp = 0
        self._velocity: tuple[float, float] | None = None
        self._innovation = USUAL_INNOVATION

    @property
    def velocity(self) -> tuple[float, float] | None:
        """(vx, vy) in px/s; None until two boxes with advancing stamps were measured."""
        return self._velocity

    def start(self, box: Box, stamp: int) -> None:
        self._box, self._stamp, self._velocity = box, stamp, None
        self._innovation = USUAL_INNOVATION

    def measure(self, box: Box, stamp: int, time_constant: float) -> None:
        """Take a box measured at `stamp`; `time_constant` is that of the smoothing in seconds."""
        elapsed = (stamp - self._stamp) / _NANOSECONDS
        if self._box is not None:
            self._innovation = self.innovation(box, stamp)
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

    def innovation(self, box: Box, stamp: int) -> float:
        """The innovation smoothed over about three measurements, if `box` is the next one; box
        sizes, in [0, 1].

        Raises RuntimeError before `start`.
        """
        expected = self.extrapolate(stamp, _LEAP)
        distance = math.hypot(box.cx - expected.cx, box.cy - expected.cy)
        size = math.sqrt(expected.area)
        newest = _LEAP if distance >= _LEAP * size else distance / size
        return self._innovation + _INNOVATION_SHARE * (newest - self._innovation)

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
