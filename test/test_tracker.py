"""The tracker around a scripted engine: OSTrack's arithmetic, coasting, loss and return."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_graph import SPEC

from ostrack_ros.engines.base import EngineError, Prediction
from ostrack_ros.engines.spec import ModelSpec, PresenceCalibration
from ostrack_ros.tracking.crop import CropError, crop_region
from ostrack_ros.tracking.frame import Frame, FrameError, PixelFormat
from ostrack_ros.tracking.geometry import Box, BoxError
from ostrack_ros.tracking.motion import USUAL_INNOVATION, BoxMotion
from ostrack_ros.tracking.presence import PresenceSettings, TargetState
from ostrack_ros.tracking.tracker import (
    Estimate,
    NoTargetError,
    Tracker,
    TrackerSettings,
    map_back,
)

IDLE, TRACKING, UNCERTAIN, COASTING, LOST = TargetState
WIDTH, HEIGHT = 320, 240
PERIOD = 50_000_000
# Confidence is the score itself, as nearly as a logistic can be: 0.5 at 0.5, steep.
SPEC = replace(
    SPEC, presence=PresenceCalibration(("score",), (40.0,), -20.0, "the score, for this test")
)
NOISE = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
Answer = Callable[[NDArray[np.uint8]], Prediction]


def prediction(
    cx: float = 0.5, cy: float = 0.5, width: float = 0.25, height: float = 0.25, score: float = 0.9
) -> Prediction:
    scores = np.full((4, 4), 0.01, np.float32)
    scores[2, 2] = score
    return Prediction(cx, cy, width, height, score, 0.9 * score, scores)


class ScriptedEngine:
    """Answers what it is told and keeps what it was shown."""

    description = "scripted engine"

    def __init__(self, spec: ModelSpec = SPEC) -> None:
        self.spec = spec
        self.answer: Prediction | Exception = prediction()
        self.templates: list[NDArray[np.uint8]] = []
        self.searches: list[NDArray[np.uint8]] = []

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        self.templates.append(template.copy())
        self.searches.append(search.copy())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        pass


def frame(index: int, pixels: NDArray[np.uint8] = NOISE) -> Frame:
    return Frame(pixels, PixelFormat.BGR, index * PERIOD)


PLAIN = TrackerSettings(presence=None)
GUARDED = TrackerSettings(
    presence=PresenceSettings(lost_after=0.5, confirm_frames=2, trust_after=0.0, doubt_after=0.0),
    velocity_time=0.0,
)


def started(
    settings: TrackerSettings, box: Box, spec: ModelSpec = SPEC
) -> tuple[Tracker, ScriptedEngine]:
    engine = ScriptedEngine(spec)
    tracker = Tracker(engine, settings)
    tracker.init(frame(0), box)
    return tracker, engine


def published_step(state: list[float], answer: Prediction, factor: float, size: int) -> list[float]:
    """One update in the published tracker's own terms: state and answer to the next state."""
    x, y, w, h = state
    scale = size / math.ceil(math.sqrt(w * h) * factor)
    cx, cy, bw, bh = (v * size / scale for v in (answer.cx, answer.cy, answer.width, answer.height))
    half = 0.5 * size / scale
    real_x, real_y = cx + (x + 0.5 * w - half), cy + (y + 0.5 * h - half)
    x1, y1 = real_x - 0.5 * bw, real_y - 0.5 * bh
    x2, y2 = x1 + bw, y1 + bh
    x1, x2 = min(max(0, x1), WIDTH - 10), min(max(10, x2), WIDTH)
    y1, y2 = min(max(0, y1), HEIGHT - 10), min(max(10, y2), HEIGHT)
    return [x1, y1, max(10, x2 - x1), max(10, y2 - y1)]


fractions = st.floats(0.0, 1.0)


@given(
    st.builds(
        Box, st.floats(-50, 300), st.floats(-50, 220), st.floats(4, 300), st.floats(4, 200)
    ).map(lambda box: box.clipped(WIDTH, HEIGHT, 3.0)),
    st.lists(st.tuples(fractions, fractions, fractions, fractions, fractions), max_size=12),
)
@example(
    Box(0.0, 0.0, 4.0, 63.0),
    [(0.0, 0.0, 0.0, 0.875, 0.0), (0.9999999999999999, 0.0, 0.0, 0.0, 0.0), (0.0,) * 5],
)
def test_plain_mode_is_the_published_tracker(
    box: Box, answers: list[tuple[float, float, float, float, float]]
) -> None:
    tracker, engine = started(PLAIN, box)
    state = list(box)
    for i, values in enumerate(answers, start=1):
        shown = crop_region(frame(i), Box(*state), SPEC.search_factor, SPEC.search_size).pixels
        engine.answer = prediction(*values)
        estimate = tracker.update(frame(i))
        np.testing.assert_array_equal(engine.searches[-1], shown)
        state = published_step(state, engine.answer, SPEC.search_factor, SPEC.search_size)
        assert estimate.box is not None
        assert list(estimate.box) == pytest.approx(state, abs=1e-9)
        # A crop's corner is rounded, so at half a pixel the last bit decides: go on from the same.
        state = list(estimate.box)
        assert estimate.state is TRACKING
        assert estimate.measured
        assert estimate.score == values[4]
    template = crop_region(frame(0), box, SPEC.template_factor, SPEC.template_size).pixels
    for seen in engine.templates:
        np.testing.assert_array_equal(seen, template)


def test_map_back_uses_the_unrounded_centre() -> None:
    previous = Box(10.3, 20.7, 30.0, 40.0)
    found = map_back(prediction(0.5, 0.5, 0.25, 0.5), previous, 256, 256 / 139)
    assert found.cx == pytest.approx(previous.cx)
    assert found.cy == pytest.approx(previous.cy)
    assert found.width == pytest.approx(139 / 4)
    assert found.height == pytest.approx(139 / 2)


@pytest.mark.parametrize(
    ("box", "error", "message"),
    [
        (Box(math.nan, 0, 5, 5), BoxError, "is not a box"),
        (Box(10, 10, 0, 5), BoxError, "is not a box"),
        (Box(10, 10, -5, 5), BoxError, "is not a box"),
        (Box(400, 10, 20, 20), BoxError, "outside the 320x240 image"),
        (Box(-30, 10, 20, 20), BoxError, "outside the 320x240 image"),
        (Box(-1e6, -1e6, 4e6, 4e6), CropError, "limit is"),
        (Box(319.5, 100, 0.4, 0.4), CropError, "misses the 320x240 image"),
    ],
)
def test_init_refuses_bad_boxes_and_keeps_the_target(
    box: Box, error: type[Exception], message: str
) -> None:
    tracker, engine = started(PLAIN, Box(100, 100, 40, 40))
    with pytest.raises(error, match=message):
        tracker.init(frame(1), box)
    assert isinstance(error("x"), ValueError)
    assert tracker.update(frame(2)).box is not None
    expected = crop_region(
        frame(0), Box(100, 100, 40, 40), SPEC.template_factor, SPEC.template_size
    )
    np.testing.assert_array_equal(engine.templates[-1], expected.pixels)


def test_needs_a_target() -> None:
    tracker = Tracker(ScriptedEngine())
    assert tracker.state is IDLE
    with pytest.raises(NoTargetError, match="init"):
        tracker.update(frame(0))
    tracker.init(frame(0), Box(100, 100, 40, 40))
    assert tracker.state is TRACKING
    tracker.reset()
    assert tracker.state is IDLE
    assert tracker.template is None
    with pytest.raises(NoTargetError):
        tracker.update(frame(1))


def test_another_image_size_is_refused() -> None:
    tracker, _ = started(GUARDED, Box(100, 100, 40, 40))
    with pytest.raises(FrameError, match="160x240, tracking started on 320x240"):
        tracker.update(frame(1, NOISE[:, :160]))
    assert tracker.update(frame(2)).state is TRACKING


def test_a_failing_engine_changes_nothing() -> None:
    tracker, engine = started(GUARDED, Box(100, 100, 40, 40))
    before = tracker.update(frame(1))
    engine.answer = EngineError("the GPU fell off")
    with pytest.raises(EngineError, match="fell off"):
        tracker.update(frame(2))
    engine.answer = prediction()
    after = tracker.update(frame(3))
    assert before.box is not None
    assert after.box is not None
    assert (after.box.cx, after.box.cy) == pytest.approx((before.box.cx, before.box.cy))


@pytest.mark.parametrize("settings", [PLAIN, GUARDED])
def test_answers_that_are_no_numbers_are_refused(settings: TrackerSettings) -> None:
    tracker, engine = started(settings, Box(100, 100, 40, 40))
    engine.answer = prediction(cx=math.nan)
    with pytest.raises(EngineError, match=r"scripted engine returned nan.*precision fp32"):
        tracker.update(frame(1))
    engine.answer = prediction()
    assert tracker.update(frame(2)).measured


def test_a_calibration_of_another_release_is_refused() -> None:
    unknown = PresenceCalibration(("mood",), (1.0,), 0.0, "made up")
    with pytest.raises(ValueError, match="mood"):
        Tracker(ScriptedEngine(replace(SPEC, presence=unknown)))


def moving(tracker: Tracker, engine: ScriptedEngine, frames: int, start: int = 1) -> Estimate:
    """Let the target move right by a tenth of the region a frame."""
    engine.answer = prediction(cx=0.6)
    for i in range(start, start + frames):
        estimate = tracker.update(frame(i))
    return estimate


def test_velocity_is_in_pixels_per_second() -> None:
    tracker, engine = started(GUARDED, Box(100, 100, 40, 40))
    first = tracker.update(frame(0))
    assert first.velocity is None
    # The region is 160 px, so 16 px in 50 ms.
    estimate = moving(tracker, engine, 3)
    assert estimate.velocity == pytest.approx((320.0, 0.0))


def test_coasting_extrapolates_within_reach_and_then_is_lost() -> None:
    tracker, engine = started(GUARDED, Box(60, 100, 40, 40))
    last = moving(tracker, engine, 3)
    assert last.box is not None
    engine.answer = prediction(cx=0.1, cy=0.1, score=0.05)
    offsets = []
    for i in range(4, 13):
        estimate = tracker.update(frame(i))
        assert estimate.state is COASTING
        assert not estimate.measured
        assert estimate.confidence < 0.01
        assert estimate.box is not None
        assert (estimate.box.width, estimate.box.height) == (last.box.width, last.box.height)
        offsets.append(estimate.box.cx - last.box.cx)
        assert estimate.box.cy == pytest.approx(last.box.cy)
    assert offsets == pytest.approx([16.0, 32.0, *[40.0] * 7])
    estimate = tracker.update(frame(13))
    assert estimate.state is LOST
    assert estimate.box is None
    assert estimate.velocity is None
    assert tracker.state is LOST


def test_coasting_looks_where_the_box_is_extrapolated_to() -> None:
    tracker, engine = started(GUARDED, Box(60, 100, 40, 40))
    moving(tracker, engine, 3)
    engine.answer = prediction(score=0.05)
    coasting = tracker.update(frame(4))
    assert coasting.box is not None
    tracker.update(frame(5))
    ahead = replace(coasting.box, x=coasting.box.x + 16.0)
    shown = crop_region(frame(5), ahead, SPEC.search_factor, SPEC.search_size).pixels
    np.testing.assert_array_equal(engine.searches[-1], shown)
    engine.answer = prediction(score=0.9)
    back = tracker.update(frame(6))
    assert back.state is UNCERTAIN
    assert back.measured
    assert back.box is not None
    assert back.box.cx == pytest.approx(coasting.box.cx + 24.0)
    assert tracker.update(frame(7)).state is TRACKING


def lost(settings: TrackerSettings = GUARDED) -> tuple[Tracker, ScriptedEngine]:
    tracker, engine = started(settings, Box(140, 100, 40, 40))
    engine.answer = prediction(score=0.05)
    for i in range(1, 11):
        estimate = tracker.update(frame(i))
    assert estimate.state is LOST
    return tracker, engine


def test_search_grows_on_every_other_frame_while_lost() -> None:
    tracker, engine = lost()
    place = Box(140, 100, 40, 40)
    usual = crop_region(frame(0), place, SPEC.search_factor, SPEC.search_size).pixels
    widest = crop_region(frame(0), place, 2 * SPEC.search_factor, SPEC.search_size).pixels
    for i in range(11, 80):
        assert tracker.update(frame(i)).box is None
    assert np.array_equal(engine.searches[-1], usual) != np.array_equal(engine.searches[-2], usual)
    assert np.array_equal(engine.searches[-1], widest) != np.array_equal(
        engine.searches[-2], widest
    )


def test_return_needs_confident_frames_around_one_place() -> None:
    tracker, engine = lost()
    engine.answer = prediction(cx=0.75, score=0.9)
    first = tracker.update(frame(11))
    assert (first.state, first.box, first.measured) == (LOST, None, False)
    engine.answer = prediction(cx=0.5, score=0.9)
    second = tracker.update(frame(12))
    assert second.state is TRACKING
    assert second.measured
    assert second.box is not None
    # The second look was centred on what the first one found: a quarter of the 160 px region on.
    assert second.box.cx == pytest.approx(160 + 40)
    assert second.velocity is None, "the jump from where it vanished is no velocity"


def test_a_single_confident_frame_while_lost_is_forgotten() -> None:
    tracker, engine = lost()
    engine.answer = prediction(cx=0.75, score=0.9)
    tracker.update(frame(11))
    engine.answer = prediction(score=0.05)
    assert tracker.update(frame(12)).state is LOST
    tracker.update(frame(13))
    tracker.update(frame(14))
    place = Box(140, 100, 40, 40)
    usual = crop_region(frame(0), place, SPEC.search_factor, SPEC.search_size).pixels
    assert any(np.array_equal(shown, usual) for shown in engine.searches[-2:])


def test_plain_mode_never_loses() -> None:
    tracker, engine = started(PLAIN, Box(140, 100, 40, 40))
    engine.answer = prediction(score=0.01)
    for i in range(1, 60):
        estimate = tracker.update(frame(i))
        assert estimate.box is not None
        assert estimate.measured
        assert estimate.state is TRACKING


def test_settings_change_between_frames() -> None:
    tracker, engine = started(PLAIN, Box(140, 100, 40, 40))
    engine.answer = prediction(score=0.01)
    for i in range(1, 60):
        tracker.update(frame(i))
    tracker.settings = GUARDED
    assert tracker.update(frame(60)).state is COASTING
    tracker.settings = PLAIN
    assert tracker.update(frame(61)).state is TRACKING


def test_init_again_starts_afresh() -> None:
    tracker, engine = lost()
    tracker.init(frame(11), Box(20, 30, 50, 20))
    engine.answer = prediction()
    estimate = tracker.update(frame(12))
    assert estimate.state is TRACKING
    assert estimate.box is not None
    assert (estimate.box.cx, estimate.box.cy) == pytest.approx((45, 40))


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.integers(-(10**9), 10**11), st.floats(0, 5))
def test_extrapolation_is_bounded(dx: float, dy: float, ahead: int, reach: float) -> None:
    motion = BoxMotion()
    motion.start(Box(0, 0, 30, 20), 0)
    moved = Box(dx, dy, 30, 20)
    motion.measure(moved, 100_000_000, 0.2)
    box = motion.extrapolate(100_000_000 + ahead, reach)
    assert math.hypot(box.x - dx, box.y - dy) <= reach * math.sqrt(600) + 1e-6
    assert (box.width, box.height) == (30, 20)


def test_velocity_is_smoothed_and_forgets_when_time_runs_backwards() -> None:
    motion = BoxMotion()
    assert motion.velocity is None
    with pytest.raises(RuntimeError, match="start"):
        motion.extrapolate(0, 1.0)
    motion.start(Box(0, 0, 10, 10), 0)
    motion.measure(Box(10, 0, 10, 10), 100_000_000, 0.1)
    assert motion.velocity == pytest.approx((100.0, 0.0))
    motion.measure(Box(10, 0, 10, 10), 200_000_000, 0.1)
    assert motion.velocity == pytest.approx((100.0 * math.exp(-1), 0.0))
    motion.measure(Box(90, 0, 10, 10), 200_000_000, 0.1)
    assert motion.velocity == pytest.approx((100.0 * math.exp(-1), 0.0))
    motion.measure(Box(0, 0, 10, 10), 0, 0.1)
    assert motion.velocity is None


def test_innovation_is_what_the_motion_does_not_explain() -> None:
    motion = BoxMotion()
    motion.start(Box(0, 0, 20, 20), 0)
    steady = []
    for index in range(1, 30):
        box, stamp = Box(12.0 * index, 0, 20, 20), 50_000_000 * index
        steady.append(motion.innovation(box, stamp))
        motion.measure(box, stamp, 0.2)
    assert steady[0] > 0.2
    assert steady[-1] < 0.01
    leap, stamp = Box(12.0 * 30, 10, 20, 20), 50_000_000 * 30
    assert motion.innovation(leap, stamp) == pytest.approx(0.5 / 3, abs=0.01)
    motion.measure(leap, stamp, 0.2)
    motion.start(leap, stamp)
    assert motion.innovation(leap, stamp) == pytest.approx(2 / 3 * USUAL_INNOVATION)


@given(
    st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9)), min_size=1, max_size=8),
    st.integers(-(10**9), 10**9),
)
def test_innovation_stays_within_one_box(places: list[tuple[float, float]], period: int) -> None:
    motion = BoxMotion()
    motion.start(Box(0, 0, 1, 1), 0)
    for index, (x, size) in enumerate(places):
        box = Box(x, 0, size, size)
        assert 0 <= motion.innovation(box, index * period) <= 1
        motion.measure(box, index * period, 0.2)


# Confidence falls with the innovation alone: 0.5 at 0.15.
WARY = replace(
    SPEC, presence=PresenceCalibration(("innovation",), (-100.0,), 15.0, "the innovation alone")
)


def test_a_leaping_box_is_trusted_less_than_a_moving_one() -> None:
    confidences = []
    for steps in ([0.04] * 8, [0.04, -0.04] * 4):
        tracker, engine = started(PLAIN, Box(140, 100, 40, 40), WARY)
        for index, step in enumerate(steps, start=1):
            engine.answer = prediction(cx=0.5 + step)
            estimate = tracker.update(frame(index))
        confidences.append(estimate.confidence)
    assert confidences[0] > 0.9
    assert confidences[1] < 0.5


def test_a_lost_target_may_come_back_anywhere() -> None:
    tracker, engine = started(GUARDED, Box(140, 100, 40, 40), WARY)
    tracker.lose()
    engine.answer = prediction(cx=0.9, cy=0.9)
    estimate = tracker.update(frame(1))
    assert estimate.state is LOST
    assert estimate.evidence.innovation == USUAL_INNOVATION
    assert estimate.confidence > 0.9
