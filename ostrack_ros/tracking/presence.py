"""Is the box still on the target? Statistics of the score map, a calibrated confidence, states.

The network's score ranks places; it was never asked whether the target is there at all. So its
shape is measured, and how far the box is from where it was expected; a logistic model turns the
figures into a probability, and a state machine with hysteresis in confidence and in time turns
probabilities into something a controller can act on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import IntEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import Prediction
from ostrack_ros.engines.spec import PresenceCalibration
from ostrack_ros.tracking.motion import USUAL_INNOVATION

_NANOSECONDS = 1_000_000_000
_EPSILON = 1e-6
_STILL = 0.02
"""Innovation of a box that rests on its target: noise of the prediction, in box sizes."""

DEFAULT_CALIBRATION = PresenceCalibration(
    features=("score",),
    weights=(12.0,),
    intercept=-4.8,
    source="not calibrated: a rule of thumb that puts even odds at a raw score of 0.4",
)
"""Used for models whose sidecar has no calibration."""


@dataclass(frozen=True, slots=True)
class ScoreStatistics:
    """Shape of one raw score map (before the Hann window), S x S cells in [0, 1].

    `score` and `response` are the chosen cell's raw and windowed score (Prediction), `peak` is the
    map's maximum wherever it is, `second_peak` the maximum outside the 3 x 3 cells around it, and
    `mean` the map's mean. `apce` is the average peak-to-correlation energy, (max - min)^2 /
    mean((map - min)^2) (Wang et al., CVPR 2017); `psr` the peak-to-sidelobe ratio, (peak - mean of
    the sidelobe) / its standard deviation (Bolme et al., CVPR 2010), the sidelobe being what is
    outside the same 3 x 3 cells.
    """

    score: float
    response: float
    peak: float
    second_peak: float
    mean: float
    apce: float
    psr: float

    @property
    def peak_ratio(self) -> float:
        """Second peak over peak: 0 for a lone peak, 1 for two equal ones."""
        return self.second_peak / max(self.peak, _EPSILON)

    @property
    def logit_score(self) -> float:
        """Log odds of `score`, clamped to [1e-4, 1 - 1e-4] as the head does."""
        return _logit(self.score)

    @property
    def logit_second_peak(self) -> float:
        return _logit(self.second_peak)

    @property
    def log_apce(self) -> float:
        return math.log(max(self.apce, _EPSILON))

    @property
    def log_psr(self) -> float:
        return math.log(max(self.psr, _EPSILON))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one frame says about whether the box is on the target.

    `innovation` is how far the boxes of the last few frames lay from where they were expected, in
    box sizes (`BoxMotion.innovation`): a box that leaps about is not to be trusted.
    """

    scores: ScoreStatistics
    innovation: float = USUAL_INNOVATION

    @property
    def log_innovation(self) -> float:
        return math.log(max(self.innovation, 0.0) + _STILL)

    def feature(self, name: str) -> float:
        """The figure that a calibration calls `name`, one of FEATURES."""
        source = self if name in _MOTION_FEATURES else self.scores
        return float(getattr(source, name))


_MOTION_FEATURES = ("innovation", "log_innovation")

FEATURES: tuple[str, ...] = (
    *(field.name for field in fields(ScoreStatistics)),
    "peak_ratio",
    "logit_score",
    "logit_second_peak",
    "log_apce",
    "log_psr",
    *_MOTION_FEATURES,
)
"""Names that a PresenceCalibration may use."""


def score_statistics(prediction: Prediction) -> ScoreStatistics:
    """Measure the score map of one prediction; a few tens of microseconds for 16 x 16 cells."""
    scores = prediction.score_map
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    peak, lowest = float(scores[row, column]), float(scores.min())
    # Sums of what is above the lowest score: with the small differences of a flat map, sums of
    # the scores themselves would cancel.
    above = scores - np.float32(lowest)
    total, energy = float(above.sum()), float(np.vdot(above, above))
    height = peak - lowest
    apce = height * height * scores.size / energy if energy > 0.0 else 0.0

    lobe = above[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
    outside = scores.size - lobe.size
    second, psr = 0.0, 0.0
    if outside:
        second = _maximum_outside(scores, row, column)
        side_mean = (total - float(lobe.sum())) / outside
        side_energy = (energy - float(np.vdot(lobe, lobe))) / outside
        deviation = math.sqrt(max(side_energy - side_mean * side_mean, 0.0))
        psr = (height - side_mean) / max(deviation, _EPSILON)
    mean = lowest + total / scores.size
    return ScoreStatistics(prediction.score, prediction.response, peak, second, mean, apce, psr)


def check_calibration(calibration: PresenceCalibration | None) -> None:
    """Raise ValueError when a calibration names a feature that Evidence does not have."""
    for name in calibration.features if calibration else ():
        if name not in FEATURES:
            raise ValueError(
                f"the model's presence calibration uses the feature {name!r}, known are "
                f"{', '.join(FEATURES)}; export the model again with this release"
            )


def confidence(evidence: Evidence, calibration: PresenceCalibration | None = None) -> float:
    """Probability in [0, 1] that the box is on the target; DEFAULT_CALIBRATION if None is given.

    The calibration's features must have passed `check_calibration`.
    """
    calibration = calibration or DEFAULT_CALIBRATION
    logit = calibration.intercept
    for name, weight in zip(calibration.features, calibration.weights, strict=True):
        logit += weight * evidence.feature(name)
    if math.isnan(logit):
        return 0.0
    return 1.0 / (1.0 + math.exp(-min(max(logit, -60.0), 60.0)))


class TargetState(IntEnum):
    """State of the target; the values are those of the message Track."""

    IDLE = 0
    TRACKING = 1
    UNCERTAIN = 2
    COASTING = 3
    LOST = 4


@dataclass(frozen=True, slots=True)
class PresenceSettings:
    """Thresholds of the state machine. Confidences are probabilities, times are seconds.

    The four levels must not decrease in this order: below `absent_below` nothing was measured
    (COASTING); a coasting target is measured again from `present_above`; TRACKING ends after
    `doubt_after` seconds below `doubt_below` and returns after `trust_after` seconds at or above
    `trust_above`. After `lost_after` seconds of coasting the target is LOST, and comes back with
    `confirm_frames` consecutive frames at or above `trust_above`.

    While coasting the box moves on with its last velocity for a distance of at most `coast_reach`
    box sizes (sqrt of area). While LOST the search region grows to `search_growth` times its side
    within `growth_time` seconds, on every other frame.

    Raises ValueError naming the setting that is out of range.
    """

    absent_below: float = 0.3
    present_above: float = 0.4
    doubt_below: float = 0.4
    trust_above: float = 0.6
    doubt_after: float = 0.1
    trust_after: float = 0.1
    lost_after: float = 1.0
    confirm_frames: int = 3
    coast_reach: float = 1.0
    search_growth: float = 2.0
    growth_time: float = 2.0

    def __post_init__(self) -> None:
        levels = (self.absent_below, self.present_above, self.doubt_below, self.trust_above)
        if not all(0.0 <= level <= 1.0 for level in levels) or any(
            low > high for low, high in pairwise(levels)
        ):
            raise ValueError(
                "expected 0 <= absent_below <= present_above <= doubt_below <= trust_above <= 1, "
                f"got {', '.join(f'{level:g}' for level in levels)}"
            )
        for name in ("doubt_after", "trust_after", "lost_after", "coast_reach", "growth_time"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}, expected a finite number >= 0")
        if not (math.isfinite(self.search_growth) and 1.0 <= self.search_growth <= 4.0):
            raise ValueError(f"search_growth is {self.search_growth!r}, expected 1..4")
        if self.confirm_frames < 1:
            raise ValueError(f"confirm_frames is {self.confirm_frames!r}, expected at least 1")


class PresenceMonitor:
    """State machine over confidences with stamps.

    `settings` may be replaced from another thread at any time; each update reads it once. Time
    comes from the frames' stamps alone; a stamp that does not advance counts as no time passed.
    """

    def __init__(self, settings: PresenceSettings | None = None) -> None:
        self.settings = settings or PresenceSettings()
        self._state = TargetState.IDLE
        self._stamp = 0
        self._dwelt = 0
        self._absent = 0
        self._confirmed = 0

    @property
    def state(self) -> TargetState:
        return self._state

    @property
    def seconds_absent(self) -> float:
        """Seconds since the target was last measured, 0 while it is."""
        return self._absent / _NANOSECONDS

    @property
    def frames_confirmed(self) -> int:
        """Consecutive confident frames while LOST."""
        return self._confirmed

    def start(self, stamp: int) -> None:
        """A person pointed at the target on the frame of `stamp`: TRACKING."""
        self._enter(TargetState.TRACKING)
        self._stamp = stamp
        self._absent = 0

    def lose(self) -> None:
        """The target is out of sight for reasons no frame can tell (the camera stopped): LOST."""
        if self._state is not TargetState.IDLE:
            self._enter(TargetState.LOST)

    def reset(self) -> None:
        """No target: IDLE."""
        self._enter(TargetState.IDLE)
        self._absent = 0

    def update(self, probability: float, stamp: int) -> TargetState:
        """Take the confidence of the frame of `stamp` (ns) and return the new state.

        Raises RuntimeError before `start`.
        """
        if self._state is TargetState.IDLE:
            raise RuntimeError("there is no target: call start() first")
        settings = self.settings
        elapsed = max(0, stamp - self._stamp)
        lost_after = _to_nanoseconds(settings.lost_after)
        self._stamp = stamp
        if self._state is TargetState.LOST:
            self._absent += elapsed
            self._confirmed = self._confirmed + 1 if probability >= settings.trust_above else 0
            if self._confirmed >= settings.confirm_frames:
                self._measured(TargetState.TRACKING)
        elif self._state is TargetState.COASTING:
            self._absent += elapsed
            # A confident frame after a long gap must still prove itself: stale images, a paused
            # camera and a look-alike in the old place all look like this.
            if self._absent >= lost_after:
                self._enter(TargetState.LOST)
                self._confirmed = int(probability >= settings.trust_above)
                if self._confirmed >= settings.confirm_frames:
                    self._measured(TargetState.TRACKING)
            elif probability >= settings.present_above:
                self._measured(TargetState.UNCERTAIN)
        elif probability < settings.absent_below:
            self._enter(TargetState.COASTING)
            self._absent = elapsed
            if self._absent >= lost_after:
                self._enter(TargetState.LOST)
        elif self._state is TargetState.TRACKING:
            self._dwell(
                probability < settings.doubt_below,
                elapsed,
                settings.doubt_after,
                TargetState.UNCERTAIN,
            )
        else:
            self._dwell(
                probability >= settings.trust_above,
                elapsed,
                settings.trust_after,
                TargetState.TRACKING,
            )
        return self._state

    def _dwell(self, holds: bool, elapsed: int, seconds: float, target: TargetState) -> None:
        """Enter `target` once the condition has held for so many seconds of frames."""
        self._dwelt = self._dwelt + elapsed if holds else 0
        if holds and self._dwelt >= _to_nanoseconds(seconds):
            self._enter(target)

    def _measured(self, state: TargetState) -> None:
        self._enter(state)
        self._absent = 0

    def _enter(self, state: TargetState) -> None:
        self._state = state
        self._dwelt = 0
        self._confirmed = 0


def _to_nanoseconds(seconds: float) -> int:
    """Stamps are integers, so that twice 50 ms are 100 ms and not a little less."""
    return round(seconds * _NANOSECONDS)


def _logit(value: float) -> float:
    clamped = min(max(value, 1e-4), 1.0 - 1e-4)
    return math.log(clamped / (1.0 - clamped))


def _maximum_outside(scores: NDArray[np.float32], row: int, column: int) -> float:
    """Largest value outside the 3 x 3 cells around (row, column); at least one cell is outside."""
    parts = (
        scores[: max(0, row - 1)],
        scores[row + 2 :],
        scores[max(0, row - 1) : row + 2, : max(0, column - 1)],
        scores[max(0, row - 1) : row + 2, column + 2 :],
    )
    return max(float(part.max()) for part in parts if part.size)
