"""Statistics against plain definitions; the state machine, in confidence and in time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ostrack_ros.engines.base import Prediction
from ostrack_ros.engines.spec import PresenceCalibration
from ostrack_ros.tracking.presence import (
    DEFAULT_CALIBRATION,
    FEATURES,
    Evidence,
    PresenceMonitor,
    PresenceSettings,
    ScoreStatistics,
    TargetState,
    check_calibration,
    confidence,
    score_statistics,
)

IDLE, TRACKING, UNCERTAIN, COASTING, LOST = TargetState
SETTINGS = PresenceSettings(
    absent_below=0.2,
    present_above=0.35,
    doubt_below=0.4,
    trust_above=0.6,
    doubt_after=0.1,
    trust_after=0.1,
    lost_after=1.0,
    confirm_frames=3,
)
GOOD, FAIR, POOR, NONE = 0.9, 0.5, 0.3, 0.05


def statistics_of(scores: NDArray[np.float32]) -> ScoreStatistics:
    return score_statistics(Prediction(0.5, 0.5, 0.1, 0.1, 0.5, 0.4, scores))


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(4, 24), st.integers(4, 24)).map(lambda s: (s[0], s[0])),
        elements=st.floats(2**-12, 1 - 2**-12, width=32),
    )
)
def test_statistics_follow_their_definitions(scores: NDArray[np.float32]) -> None:
    found = statistics_of(scores)
    exact = scores.astype(np.float64)
    row, column = np.unravel_index(exact.argmax(), exact.shape)
    outside = np.ones(exact.shape, bool)
    outside[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = False
    assert found.peak == exact.max()
    assert found.second_peak == exact[outside].max()
    assert found.mean == pytest.approx(exact.mean(), rel=1e-5)
    assert found.score == 0.5
    assert found.response == 0.4
    spread = ((exact - exact.min()) ** 2).mean()
    if spread > 1e-4:
        apce = (exact.max() - exact.min()) ** 2 / spread
        assert found.apce == pytest.approx(apce, rel=1e-2)
    deviation = exact[outside].std()
    if deviation > 1e-2:
        psr = (exact.max() - exact[outside].mean()) / deviation
        assert found.psr == pytest.approx(psr, rel=1e-2, abs=1e-2)
    assert all(math.isfinite(Evidence(found).feature(name)) for name in FEATURES)


@pytest.mark.parametrize("side", [1, 2, 3, 16])
def test_flat_maps_are_finite(side: int) -> None:
    found = statistics_of(np.full((side, side), 0.25, np.float32))
    assert all(math.isfinite(Evidence(found).feature(name)) for name in FEATURES)
    assert found.apce == 0.0


def test_statistics_tell_a_lone_peak_from_a_crowd() -> None:
    lone = np.full((16, 16), 0.01, np.float32)
    lone[5, 5] = 0.8
    crowd = lone.copy()
    crowd[12, 3] = 0.75
    assert statistics_of(lone).peak_ratio < 0.02
    assert statistics_of(crowd).peak_ratio > 0.9
    assert statistics_of(lone).apce > 1.5 * statistics_of(crowd).apce
    assert statistics_of(lone).psr > 2 * statistics_of(crowd).psr


def test_confidence_is_the_logistic_of_the_features() -> None:
    found = statistics_of(np.full((4, 4), 0.25, np.float32))
    features = ("score", "second_peak", "innovation")
    calibration = PresenceCalibration(features, (2.0, -4.0, -3.0), 0.5, "made up")
    assert confidence(Evidence(found, innovation=0.3), calibration) == pytest.approx(
        1 / (1 + math.exp(-(2.0 * 0.5 - 4.0 * 0.25 - 3.0 * 0.3 + 0.5)))
    )
    assert confidence(Evidence(replace(found, score=0.4))) == pytest.approx(0.5)
    assert confidence(Evidence(replace(found, score=math.nan))) == 0.0
    steep = PresenceCalibration(("score",), (1e9,), 0.0, "made up")
    assert confidence(Evidence(replace(found, score=1.0)), steep) == pytest.approx(1.0)
    assert confidence(Evidence(replace(found, score=-1.0)), steep) == pytest.approx(0.0, abs=1e-9)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_box_further_from_where_it_was_expected_is_trusted_less(near: float, far: float) -> None:
    near, far = sorted((near, far))
    scores = statistics_of(np.full((4, 4), 0.25, np.float32))
    figures = [Evidence(scores, leap).feature("log_innovation") for leap in (near, far)]
    assert all(map(math.isfinite, figures))
    assert figures[0] <= figures[1]


def test_calibrations_of_another_release_are_refused() -> None:
    check_calibration(None)
    check_calibration(DEFAULT_CALIBRATION)
    with pytest.raises(ValueError, match="'mood', known are score"):
        check_calibration(PresenceCalibration(("mood",), (1.0,), 0.0, "made up"))


class Clock:
    """A monitor fed at 20 Hz."""

    def __init__(self, settings: PresenceSettings = SETTINGS) -> None:
        self.monitor = PresenceMonitor(settings)
        self.now = 1_000_000_000
        self.monitor.start(self.now)

    def feed(self, probability: float, frames: int = 1, step: float = 0.05) -> list[TargetState]:
        states = []
        for _ in range(frames):
            self.now += round(step * 1e9)
            states.append(self.monitor.update(probability, self.now))
        return states


def test_starts_idle_and_needs_a_target() -> None:
    monitor = PresenceMonitor()
    assert monitor.state is IDLE
    with pytest.raises(RuntimeError, match="start"):
        monitor.update(0.9, 0)
    monitor.start(0)
    assert monitor.state is TRACKING
    monitor.reset()
    assert monitor.state is IDLE


def test_doubt_takes_time() -> None:
    clock = Clock()
    assert clock.feed(POOR) == [TRACKING]
    assert clock.feed(GOOD) == [TRACKING]
    assert clock.feed(POOR, 3) == [TRACKING, UNCERTAIN, UNCERTAIN]


def test_trust_takes_time_and_a_higher_level() -> None:
    clock = Clock()
    clock.feed(POOR, 2)
    assert clock.feed(FAIR, 20) == [UNCERTAIN] * 20
    assert clock.feed(GOOD) == [UNCERTAIN]
    assert clock.feed(FAIR) == [UNCERTAIN]
    assert clock.feed(GOOD, 2) == [UNCERTAIN, TRACKING]
    assert clock.feed(FAIR, 20) == [TRACKING] * 20


def test_hysteresis_is_in_seconds_not_frames() -> None:
    clock = Clock()
    assert clock.feed(POOR, 9, step=0.01) == [TRACKING] * 9
    assert clock.feed(POOR, 1, step=0.02) == [UNCERTAIN]


def test_absence_coasts_at_once_and_is_lost_later() -> None:
    clock = Clock()
    assert clock.feed(NONE, 19) == [COASTING] * 19
    assert clock.monitor.seconds_absent == pytest.approx(0.95)
    assert clock.feed(NONE) == [LOST]


def test_a_coasting_target_is_measured_again_above_a_higher_level() -> None:
    clock = Clock()
    clock.feed(NONE, 3)
    assert clock.feed(POOR) == [COASTING]
    assert clock.feed(FAIR) == [UNCERTAIN]
    assert clock.monitor.seconds_absent == 0.0
    assert clock.feed(GOOD, 2) == [UNCERTAIN, TRACKING]


def test_a_lost_target_returns_only_after_confident_frames_in_a_row() -> None:
    clock = Clock()
    clock.feed(NONE, 20)
    assert clock.feed(FAIR, 10) == [LOST] * 10
    assert clock.feed(GOOD, 2) == [LOST, LOST]
    assert clock.monitor.frames_confirmed == 2
    assert clock.feed(FAIR) == [LOST]
    assert clock.feed(GOOD, 3) == [LOST, LOST, TRACKING]
    assert clock.monitor.seconds_absent == 0.0


def test_a_confident_frame_after_a_long_gap_must_prove_itself() -> None:
    clock = Clock()
    clock.feed(NONE)
    assert clock.feed(GOOD, 1, step=30.0) == [LOST]
    assert clock.feed(GOOD, 2) == [LOST, TRACKING]


def test_absence_first_seen_after_a_long_gap_is_lost() -> None:
    assert Clock().feed(NONE, 1, step=5.0) == [LOST]


def test_zero_lost_after_never_coasts() -> None:
    assert Clock(replace(SETTINGS, lost_after=0.0)).feed(NONE) == [LOST]


def test_stamps_that_do_not_advance_add_no_time() -> None:
    clock = Clock()
    assert clock.feed(NONE, 100, step=0.0) == [COASTING] * 100
    assert clock.feed(NONE, 100, step=-0.01) == [COASTING] * 100


def test_settings_change_while_running() -> None:
    clock = Clock()
    assert clock.feed(FAIR, 5) == [TRACKING] * 5
    clock.monitor.settings = replace(SETTINGS, doubt_below=0.6)
    assert clock.feed(FAIR, 2) == [TRACKING, UNCERTAIN]
    clock.monitor.settings = replace(SETTINGS, absent_below=0.35)
    assert clock.feed(POOR) == [COASTING]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(-50, 400)), max_size=60))
def test_never_trusted_below_the_absence_level(steps: list[tuple[float, int]]) -> None:
    monitor = PresenceMonitor(SETTINGS)
    now = 0
    monitor.start(now)
    previous = TRACKING
    for probability, milliseconds in steps:
        now += milliseconds * 1_000_000
        state = monitor.update(probability, now)
        if probability < SETTINGS.absent_below:
            assert state in (COASTING, LOST)
        if state is TRACKING and previous is not TRACKING:
            assert probability >= SETTINGS.trust_above
        if previous is LOST:
            assert state in (LOST, TRACKING)
        previous = state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"absent_below": 0.5}, "absent_below <= present_above"),
        ({"trust_above": 1.2}, "<= 1"),
        ({"doubt_below": math.nan}, "doubt_below"),
        ({"lost_after": -1.0}, "lost_after is -1.0"),
        ({"trust_after": math.inf}, "trust_after is inf"),
        ({"coast_reach": math.nan}, "coast_reach is nan"),
        ({"search_growth": 0.5}, "search_growth is 0.5"),
        ({"confirm_frames": 0}, "confirm_frames is 0"),
    ],
)
def test_settings_refuse_nonsense(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)
