"""One target, followed from frame to frame: OSTrack's arithmetic around an engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import Engine, EngineError, Prediction
from ostrack_ros.tracking.crop import crop_region
from ostrack_ros.tracking.frame import Frame, FrameError
from ostrack_ros.tracking.geometry import Box, BoxError, intersection
from ostrack_ros.tracking.motion import USUAL_INNOVATION, BoxMotion
from ostrack_ros.tracking.presence import (
    Evidence,
    PresenceMonitor,
    PresenceSettings,
    TargetState,
    check_calibration,
    confidence,
    score_statistics,
)

CLIP_MARGIN = 10.0
"""Pixels of the box that OSTrack keeps inside the image."""


class NoTargetError(RuntimeError):
    """`update` was called before a successful `init`."""


@dataclass(frozen=True, slots=True)
class TrackerSettings:
    """How the tracker behaves; replace `Tracker.settings` to change it while it runs.

    `presence=None` is the published OSTrack and nothing else: the box is always the prediction and
    the state is always TRACKING. `velocity_time` is the time constant of the velocity's smoothing
    in seconds.
    """

    presence: PresenceSettings | None = field(default_factory=PresenceSettings)
    velocity_time: float = 0.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.velocity_time) and self.velocity_time >= 0):
            raise ValueError(f"velocity_time is {self.velocity_time!r}, expected seconds >= 0")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one frame says about the target.

    `box` is in pixels of the frame, None while LOST; `measured` is True where it was found on this
    very frame and False where it was extrapolated or there is none. `confidence` is the calibrated
    probability that the network's best box on this frame is on the target and `score` its raw
    score: in COASTING and LOST they speak of the rejected best candidate. `velocity` is that of the
    box centre (vx, vy) in px/s, None until it is known.
    """

    box: Box | None
    measured: bool
    confidence: float
    score: float
    state: TargetState
    velocity: tuple[float, float] | None
    evidence: Evidence


class Tracker:
    """Follows one target at a time. Not thread-safe, except that `settings` may be replaced.

    The box is kept as floats and never rounded (the published code's results depend on it). Raises
    ValueError when the model's presence calibration is unknown to this release. Source: OSTrack,
    behaviour of lib/test/tracker/ostrack.py.
    """

    def __init__(self, engine: Engine, settings: TrackerSettings | None = None) -> None:
        check_calibration(engine.spec.presence)
        self.settings = settings or TrackerSettings()
        self._engine = engine
        self._monitor = PresenceMonitor()
        self._motion = BoxMotion()
        self._template: NDArray[np.uint8] | None = None
        self._box: Box | None = None
        self._candidate: Box | None = None
        self._size = (0, 0)
        self._lost_frames = 0

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def state(self) -> TargetState:
        return self._monitor.state

    @property
    def template(self) -> NDArray[np.uint8] | None:
        """The target as given at `init`: RGB uint8 [Z, Z, 3]; None while IDLE."""
        return self._template

    def init(self, frame: Frame, box: Box) -> None:
        """Start on what `box` encloses in `frame`, forgetting any target before.

        Raises BoxError (a ValueError) for a box that is not finite, has no area, or lies outside
        the image, and its subclass CropError for one that cannot be cropped; the target before is
        then still tracked.
        """
        spec = self._engine.spec
        if not box.is_valid:
            raise BoxError(f"{box} is not a box: it needs finite numbers and a positive size")
        if intersection(box, Box(0.0, 0.0, frame.width, frame.height)) <= 0.0:
            raise BoxError(f"{box} lies outside the {frame.width}x{frame.height} image")
        template = crop_region(frame, box, spec.template_factor, spec.template_size).pixels
        self._template = template
        self._box = box
        self._candidate = None
        self._size = (frame.width, frame.height)
        self._lost_frames = 0
        self._motion.start(box, frame.stamp)
        self._monitor.start(frame.stamp)

    def lose(self) -> None:
        """Treat the target as LOST, for instance because images stopped: it must prove itself."""
        self._candidate = None
        self._monitor.lose()

    def reset(self) -> None:
        """Forget the target; the state is IDLE."""
        self._template = None
        self._box = None
        self._candidate = None
        self._monitor.reset()

    def update(self, frame: Frame) -> Estimate:
        """Find the target in the next frame.

        Raises NoTargetError before `init`, FrameError when the image size changed since, and
        EngineError when the engine fails; the tracker's state is then as before the call.
        """
        if self._template is None or self._box is None:
            raise NoTargetError("there is no target: call init() first")
        if (frame.width, frame.height) != self._size:
            raise FrameError(
                f"the image is {frame.width}x{frame.height}, tracking started on "
                f"{self._size[0]}x{self._size[1]}; init again"
            )
        settings = self.settings
        if settings.presence is None:
            return self._update_plain(frame, self._template, self._box, settings)
        return self._update_guarded(frame, self._template, settings, settings.presence)

    def _update_plain(
        self, frame: Frame, template: NDArray[np.uint8], box: Box, settings: TrackerSettings
    ) -> Estimate:
        prediction, found = self._search(frame, template, box, 1.0)
        evidence = self._evidence(prediction, found, frame.stamp)
        probability = confidence(evidence, self._engine.spec.presence)
        self._box = found
        self._monitor.start(frame.stamp)
        self._motion.measure(found, frame.stamp, settings.velocity_time)
        return Estimate(
            found,
            True,
            probability,
            prediction.score,
            TargetState.TRACKING,
            self._motion.velocity,
            evidence,
        )

    def _update_guarded(
        self,
        frame: Frame,
        template: NDArray[np.uint8],
        settings: TrackerSettings,
        presence: PresenceSettings,
    ) -> Estimate:
        place, growth = self._where_to_look(frame, presence)
        prediction, found = self._search(frame, template, place, growth)
        evidence = self._evidence(prediction, found, frame.stamp)
        probability = confidence(evidence, self._engine.spec.presence)

        was_lost = self._monitor.state is TargetState.LOST
        self._monitor.settings = presence
        state = self._monitor.update(probability, frame.stamp)
        measured = state in (TargetState.TRACKING, TargetState.UNCERTAIN)
        if measured:
            self._box, self._candidate = found, None
            if was_lost:
                self._motion.start(found, frame.stamp)
            else:
                self._motion.measure(found, frame.stamp, settings.velocity_time)
            box: Box | None = found
        elif state is TargetState.COASTING:
            box = self._extrapolated(frame, presence)
        else:
            self._lost_frames = self._lost_frames + 1 if was_lost else 0
            self._candidate = found if self._monitor.frames_confirmed else None
            box = None
        velocity = None if state is TargetState.LOST else self._motion.velocity
        return Estimate(box, measured, probability, prediction.score, state, velocity, evidence)

    def _evidence(self, prediction: Prediction, found: Box, stamp: int) -> Evidence:
        scores = score_statistics(prediction)
        if self._monitor.state is TargetState.LOST:
            # It may come back anywhere: no place is less expected than another.
            return Evidence(scores, USUAL_INNOVATION)
        return Evidence(scores, self._motion.innovation(found, stamp))

    def _where_to_look(self, frame: Frame, presence: PresenceSettings) -> tuple[Box, float]:
        """Centre of the search and the factor by which its region is larger than usual."""
        assert self._box is not None
        state = self._monitor.state
        if state is TargetState.COASTING:
            return self._extrapolated(frame, presence), 1.0
        if state is not TargetState.LOST:
            return self._box, 1.0
        if self._candidate is not None:
            return self._candidate, 1.0
        place = self._extrapolated(frame, presence)
        # The usual region on every other frame: there the target has the size that the network
        # knows best, and coming back where it vanished is the common case.
        if self._lost_frames % 2 == 0:
            return place, 1.0
        lost = self._monitor.seconds_absent - presence.lost_after
        share = min(1.0, max(0.0, lost) / presence.growth_time) if presence.growth_time else 1.0
        return place, 1.0 + (presence.search_growth - 1.0) * share

    def _extrapolated(self, frame: Frame, presence: PresenceSettings) -> Box:
        moved = self._motion.extrapolate(frame.stamp, presence.coast_reach)
        return moved.clipped(frame.width, frame.height, CLIP_MARGIN)

    def _search(
        self, frame: Frame, template: NDArray[np.uint8], place: Box, growth: float
    ) -> tuple[Prediction, Box]:
        """Run the network around `place` and map its answer back to the image."""
        spec = self._engine.spec
        region = crop_region(frame, place, spec.search_factor * growth, spec.search_size)
        prediction = self._engine.infer(template, region.pixels)
        found = map_back(prediction, place, spec.search_size, region.scale)
        if not (all(map(math.isfinite, found)) and math.isfinite(prediction.score)):
            raise EngineError(
                f"{self._engine.description} returned {prediction.cx:g}, {prediction.cy:g}, "
                f"{prediction.width:g}, {prediction.height:g}, score {prediction.score:g}; "
                "a half precision overflow looks like this: try precision fp32"
            )
        return prediction, found.clipped(frame.width, frame.height, CLIP_MARGIN)


def map_back(prediction: Prediction, previous: Box, search_size: int, scale: float) -> Box:
    """From fractions of the search region to pixels of the image.

    The region is taken to lie around the unrounded centre of `previous`, although the crop's
    corner was rounded: so does the published tracker. `scale` is the crop's search_size / side.
    """
    side = search_size / scale
    cx = prediction.cx * side + (previous.cx - 0.5 * side)
    cy = prediction.cy * side + (previous.cy - 0.5 * side)
    return Box.from_center(cx, cy, prediction.width * side, prediction.height * side)
