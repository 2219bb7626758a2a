"""The worker thread without ROS: newest first, replay, refusals, silence, survival."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from synthetic_model import SPEC, scene

from ostrack_ros.engines.base import EngineError, Prediction
from ostrack_ros.nodes.worker import (
    Refused,
    Result,
    TrackingWorker,
    WorkerSettings,
    replay_stride,
)
from ostrack_ros.tracking.frame import Frame, FrameError, PixelFormat
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.history import FrameHistory
from ostrack_ros.tracking.presence import TargetState

MS = 1_000_000
STEP = 33 * MS
START = 1_000_000 * MS
BOX = Box.from_center(160, 120, 40, 40)
PATIENCE = 10.0


class StandIn:
    """An engine that always finds the target in the middle; `gate` holds it back."""

    spec = SPEC
    description = "stand-in"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.calls = 0
        self.entered = threading.Semaphore(0)
        self.error: Exception | None = None
        self.seconds = 0.0
        self.score = 0.9
        self.closed = False

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        self.calls += 1
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        score_map = np.full((16, 16), 0.01, np.float32)
        score_map[8, 8] = self.score
        return Prediction(0.5, 0.5, 0.25, 0.25, self.score, self.score, score_map)

    def close(self) -> None:
        self.closed = True


@dataclass(eq=False)
class Snap:
    """An image; `broken` cannot be converted."""

    stamp: int
    size: tuple[int, int] = (320, 240)
    broken: bool = False
    nbytes: int = 320 * 240 * 3

    def frame(self) -> Frame:
        if self.broken:
            raise FrameError("broken on purpose")
        return Frame(scene(*self.size), PixelFormat.RGB, self.stamp)


@dataclass
class Ear:
    """Keeps what the worker says."""

    results: list[Result[Snap]] = field(default_factory=list)
    idle: list[Snap] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    fail: Exception | None = None

    def on_result(self, result: Result[Snap]) -> None:
        self.results.append(result)
        if self.fail is not None:
            raise self.fail

    def on_idle_image(self, image: Snap) -> None:
        self.idle.append(image)

    def on_problem(self, kind: str, message: str) -> None:
        self.problems.append((kind, message))

    def on_failure(self, kind: str, error: Exception) -> None:
        self.failures.append(error)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.problems]

    @property
    def stamps(self) -> list[int]:
        return [r.image.stamp for r in self.results if r.image is not None]

    @property
    def states(self) -> list[TargetState]:
        return [r.state for r in self.results]


class Bench:
    """A worker with everything around it; `clock` is the node's time in ns."""

    def __init__(self, settings: WorkerSettings | None = None) -> None:
        self.engine = StandIn()
        self.ear = Ear()
        self.clock = START
        self.history: FrameHistory[Snap] = FrameHistory(10.0, 10**9)
        self.worker: TrackingWorker[Snap] = TrackingWorker(
            lambda: self.engine,
            self.history,
            self.ear,
            settings or WorkerSettings(init_wait=0.1, image_timeout=60.0),
            lambda: self.clock,
        )
        self.worker.ready.result(PATIENCE)
        self.worker.activate()

    def show(self, index: int, **kind: Any) -> Snap:
        """Image `index` arrives, at its time."""
        snap = Snap(START + index * STEP, **kind)
        self.clock = max(self.clock, snap.stamp)
        self.worker.submit(snap)
        return snap

    def start(self, index: int | None = None, box: Box = BOX) -> int:
        stamp = 0 if index is None else START + index * STEP
        return self.worker.init(stamp, box).result(PATIENCE).track_id

    def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}; {self.ear}"
            time.sleep(0.002)

    def settle(self) -> None:
        """Until the worker has nothing left to do."""
        self.until(
            lambda: self.worker._latest is None and not self.worker.status().replaying, "rest"
        )
        calls = -1
        while calls != self.engine.calls:
            calls = self.engine.calls
            time.sleep(0.03)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.engine.gate.set()
    assert made.worker.close(PATIENCE)


def test_each_image_gives_one_result_in_order(bench: Bench) -> None:
    bench.show(0)
    assert bench.start() == 1
    for index in range(1, 6):
        bench.show(index)
        bench.settle()
    assert bench.ear.stamps == [START + index * STEP for index in range(6)]
    first, *rest = bench.ear.results
    assert (first.box, first.estimate, first.state) == (BOX, None, TargetState.TRACKING)
    assert all(r.estimate is not None and r.frame is not None for r in rest)
    assert bench.worker.status().counters.processed == 5


def test_under_load_the_newest_image_wins_and_the_rest_is_counted(bench: Bench) -> None:
    bench.show(0)
    bench.start()
    bench.settle()
    bench.engine.gate.clear()
    bench.show(1)
    assert bench.engine.entered.acquire(timeout=PATIENCE)
    for index in range(2, 12):
        bench.show(index)
    bench.engine.gate.set()
    bench.settle()
    assert bench.ear.stamps == [START + index * STEP for index in (0, 1, 11)]
    counters = bench.worker.status().counters
    assert (counters.received, counters.processed, counters.dropped) == (12, 2, 9)


def test_images_without_a_target_are_not_processed_and_not_counted_as_dropped(
    bench: Bench,
) -> None:
    for index in range(5):
        bench.show(index)
    bench.settle()
    assert bench.engine.calls == 0
    assert bench.ear.results == []
    assert bench.ear.idle
    assert bench.worker.status().counters.dropped == 0


def test_an_init_in_the_past_replays_every_image_if_there_is_time(bench: Bench) -> None:
    for index in range(20):
        bench.show(index)
    bench.start(5)
    bench.settle()
    assert bench.ear.stamps == [START + index * STEP for index in range(5, 20)]
    assert bench.worker.status().counters.skipped == 0
    bench.show(20)
    bench.settle()
    assert bench.ear.stamps[-1] == START + 20 * STEP


def test_a_slow_replay_skips_evenly_and_reaches_the_live_image() -> None:
    bench = Bench(WorkerSettings(catch_up_time=0.2, image_timeout=60.0))
    bench.engine.seconds = 0.03
    for index in range(60):
        bench.show(index)
    bench.start(0)
    bench.until(lambda: not bench.worker.status().replaying, "the end of the replay")
    bench.settle()
    stamps = bench.ear.stamps
    assert stamps[0] == START
    assert stamps[-1] == START + 59 * STEP
    assert len(stamps) < 20, "60 images at 30 ms each do not fit into 0.2 s"
    counters = bench.worker.status().counters
    assert counters.skipped + counters.processed == 59
    bench.worker.close(PATIENCE)


@given(st.integers(1, 500), st.floats(-1.0, 10.0), st.just(0.0) | st.floats(1e-6, 2.0))
def test_the_stride_stays_within_what_is_pending(pending: int, left: float, update: float) -> None:
    stride = replay_stride(pending, left, update)
    assert 1 <= stride <= pending
    if update > 0:
        updates = max(1, math.floor(left / update))
        assert stride * updates >= pending, "steps of this size arrive in time"
        assert (stride - 1) * updates < pending, "and smaller ones would not"


def test_stop_while_replaying(bench: Bench) -> None:
    for index in range(30):
        bench.show(index)
    bench.engine.gate.clear()
    bench.start(0)
    assert bench.engine.entered.acquire(timeout=PATIENCE)
    stopped = bench.worker.stop()
    bench.engine.gate.set()
    assert stopped.result(PATIENCE) == 1
    bench.settle()
    assert bench.ear.states[-1] is TargetState.IDLE
    assert bench.ear.results[-1].box is None
    assert bench.engine.calls == 1
    bench.show(30)
    bench.settle()
    assert bench.ear.states[-1] is TargetState.IDLE
    assert bench.worker.stop().result(PATIENCE) == 0


def test_a_second_init_replaces_the_first(bench: Bench) -> None:
    for index in range(30):
        bench.show(index)
    first, second = bench.worker.init(START, BOX), bench.worker.init(START + 5 * STEP, BOX)
    assert first.result(PATIENCE).track_id == 1
    assert second.result(PATIENCE).track_id == 2
    bench.settle()
    assert bench.ear.results[-1].track_id == 2
    ids = [r.track_id for r in bench.ear.results]
    assert ids == sorted(ids)


def test_a_refused_init_leaves_the_target_alone(bench: Bench) -> None:
    bench.show(0)
    bench.start()
    with pytest.raises(Refused, match="outside"):
        bench.worker.init(0, Box(5000, 5000, 40, 40)).result(PATIENCE)
    bench.show(1)
    bench.settle()
    assert bench.ear.results[-1].track_id == 1
    assert bench.ear.states[-1] is TargetState.TRACKING


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (Box(math.nan, 0, 10, 10), "finite"),
        (Box(0, 0, math.inf, 10), "finite"),
        (Box(50, 50, -20, 20), "positive size"),
        (Box(50, 50, 20, 0), "positive size"),
        (Box(400, 300, 20, 20), "outside"),
    ],
)
def test_boxes_that_are_none_are_refused(bench: Bench, box: Box, words: str) -> None:
    bench.show(0)
    with pytest.raises(Refused, match=words):
        bench.worker.init(0, box).result(PATIENCE)
    assert bench.ear.kinds == ["init.refused"]
    assert bench.ear.results == []


def test_an_init_waits_for_its_image() -> None:
    bench = Bench(WorkerSettings(init_wait=PATIENCE, image_timeout=60.0))
    bench.show(0)
    answer = bench.worker.init(START + 2 * STEP, BOX)
    bench.show(1)
    time.sleep(0.05)
    assert not answer.done()
    bench.show(2)
    assert answer.result(PATIENCE).stamp == START + 2 * STEP
    bench.worker.close(PATIENCE)


def test_images_keep_flowing_while_an_init_waits() -> None:
    bench = Bench(WorkerSettings(init_wait=PATIENCE, image_timeout=60.0))
    bench.show(0)
    bench.start()
    answer = bench.worker.init(START + 1000 * STEP, BOX)
    for index in range(1, 5):
        bench.show(index)
        bench.settle()
    assert len(bench.ear.results) == 5
    assert not answer.done()
    assert bench.worker.close(PATIENCE)
    with pytest.raises(Refused, match="shutting down"):
        answer.result(PATIENCE)


def test_refusals_name_the_ages(bench: Bench) -> None:
    with pytest.raises(Refused, match="no image has arrived"):
        bench.worker.init(0, BOX).result(PATIENCE)
    for index in range(100, 131):
        bench.show(index)
    with pytest.raises(Refused, match=r"3\.300 s older .* reaches back only 0\.990 s"):
        bench.worker.init(START + 30 * STEP, BOX).result(PATIENCE)
    with pytest.raises(Refused, match=r"0\.330 s ahead of the newest image"):
        bench.worker.init(START + 140 * STEP, BOX).result(PATIENCE)
    bench.show(150)
    with pytest.raises(Refused, match=r"within 0\.1 s of its stamp"):
        bench.worker.init(START + 140 * STEP, BOX).result(PATIENCE)


def test_a_lost_image_is_replaced_by_its_neighbour(bench: Bench) -> None:
    for index in (0, 1, 3, 4):
        bench.show(index)
    started = bench.worker.init(START + 2 * STEP + MS, BOX).result(PATIENCE)
    assert started.stamp == START + 3 * STEP
    assert "later" in started.message


def test_the_first_image_of_a_slow_camera_may_be_lost(bench: Bench) -> None:
    """At 10 Hz too, the next image does; the box was refused when nothing before it had come."""
    for index in (3, 6):
        bench.show(index)
    started = bench.worker.init(START, BOX).result(PATIENCE)
    assert started.stamp == START + 3 * STEP


def test_one_interval_of_a_slow_camera_may_be_missed() -> None:
    """At 3 Hz the next image is 0.33 s away; the box was refused, as older than all there was."""
    bench = Bench(WorkerSettings(init_wait=PATIENCE, image_timeout=60.0))
    bench.show(10)
    answer = bench.worker.init(START, BOX)
    time.sleep(0.05)
    assert not answer.done()
    bench.show(20)
    assert answer.result(PATIENCE).stamp == START + 10 * STEP
    strict = WorkerSettings(init_wait=0.1, image_timeout=60.0, init_tolerance=0.0)
    bench.worker.apply(strict)
    with pytest.raises(Refused, match="older than the newest"):
        bench.worker.init(START, BOX).result(PATIENCE)
    bench.worker.close(PATIENCE)


def test_no_init_on_a_picture_that_stopped(bench: Bench) -> None:
    bench.show(0)
    bench.clock += 100_000 * MS
    with pytest.raises(Refused, match=r"images stopped 100\.00 s ago"):
        bench.worker.init(0, BOX).result(PATIENCE)


def test_silence_is_reported_once_and_the_target_must_prove_itself() -> None:
    bench = Bench(WorkerSettings(image_timeout=0.05))
    bench.show(0)
    bench.start()
    bench.show(1)
    bench.settle()
    bench.clock += 1000 * MS
    bench.until(lambda: bench.ear.states[-1] is TargetState.LOST, "LOST")
    time.sleep(0.1)
    assert bench.ear.states.count(TargetState.LOST) == 1
    assert bench.ear.results[-1].box is None
    assert bench.ear.results[-1].image is not None
    assert bench.ear.kinds == ["image.timeout"]
    bench.worker.apply(WorkerSettings(image_timeout=60.0))
    for index in range(40, 44):
        bench.show(index)
        bench.settle()
    assert bench.ear.states[-4:] == [
        TargetState.LOST,
        TargetState.LOST,
        TargetState.TRACKING,
        TargetState.TRACKING,
    ]
    bench.worker.close(PATIENCE)


def test_repeated_and_late_images_are_ignored(bench: Bench) -> None:
    bench.show(5)
    bench.start()
    bench.show(5)
    bench.show(3)
    bench.show(6)
    bench.settle()
    assert bench.ear.kinds == ["image.repeated", "image.late"]
    assert bench.ear.stamps == [START + 5 * STEP, START + 6 * STEP]
    assert bench.worker.status().counters.unusable == 2


def test_a_jump_back_in_time_clears_the_history_and_tracking_goes_on(bench: Bench) -> None:
    for index in range(100, 110):
        bench.show(index)
    bench.start()
    bench.show(0)
    bench.settle()
    assert bench.ear.kinds == ["image.time_jump"]
    assert bench.ear.stamps[-1] == START
    assert bench.ear.states[-1] is TargetState.TRACKING
    assert len(bench.history) == 1


def test_another_image_size_ends_the_track(bench: Bench) -> None:
    bench.show(0)
    bench.start()
    bench.show(1, size=(640, 480))
    bench.settle()
    assert bench.ear.states[-1] is TargetState.LOST
    assert bench.ear.problems[-1][0] == "image.resized"
    assert "320x240 to 640x480" in bench.ear.problems[-1][1]
    bench.show(2, size=(640, 480))
    bench.settle()
    assert bench.ear.states.count(TargetState.LOST) == 1
    assert bench.start() == 2


def test_images_that_cannot_be_converted_are_passed_over(bench: Bench) -> None:
    bench.show(0)
    bench.start()
    bench.show(1, broken=True)
    bench.settle()
    bench.show(2)
    bench.settle()
    assert bench.ear.stamps == [START, START + 2 * STEP]
    assert ("image.unusable", "image ignored: broken on purpose") in bench.ear.problems


def test_broken_images_do_not_hold_a_replay_up(bench: Bench) -> None:
    for index in range(10):
        bench.show(index, broken=index == 4)
    bench.start(2)
    bench.settle()
    assert bench.ear.stamps == [START + index * STEP for index in (2, 3, 5, 6, 7, 8, 9)]


@pytest.mark.parametrize("error", [EngineError("no memory left"), RuntimeError("surprise")])
def test_a_failing_engine_ends_the_track_and_nothing_else(bench: Bench, error: Exception) -> None:
    bench.show(0)
    bench.start()
    bench.engine.error = error
    bench.show(1)
    bench.until(lambda: bench.ear.states[-1] is TargetState.LOST, "LOST")
    assert bench.ear.kinds == ["engine.failure"] or bench.ear.failures == [error]
    bench.engine.error = None
    bench.show(2)
    bench.settle()
    assert bench.start() == 2
    bench.show(3)
    bench.settle()
    assert bench.ear.states[-1] is TargetState.TRACKING


def test_a_listener_that_fails_does_not_end_the_thread(bench: Bench) -> None:
    bench.show(0)
    bench.start()
    bench.ear.fail = RuntimeError("cannot publish")
    bench.show(1)
    bench.until(lambda: len(bench.ear.failures) == 2, "both failures")
    bench.ear.fail = None
    bench.settle()
    assert bench.start() == 2


def test_deactivation_forgets_everything_and_refuses(bench: Bench) -> None:
    bench.show(0)
    bench.start()
    bench.worker.deactivate()
    assert bench.ear.states[-1] is TargetState.IDLE
    assert len(bench.history) == 0
    bench.show(1)
    with pytest.raises(Refused, match="not active"):
        bench.worker.init(0, BOX).result(PATIENCE)
    assert len(bench.history) == 0
    bench.worker.activate()
    bench.show(2)
    assert bench.start() == 2


def test_close_frees_the_engine() -> None:
    bench = Bench()
    bench.show(0)
    assert bench.worker.close(PATIENCE)
    assert bench.engine.closed
    assert bench.worker.stop().result(PATIENCE) == 0
    assert bench.worker.close(PATIENCE)


def test_an_engine_that_cannot_be_made_is_reported_through_ready() -> None:
    def fail() -> StandIn:
        raise EngineError("no such model")

    worker: TrackingWorker[Snap] = TrackingWorker(
        fail, FrameHistory(1.0, 10**6), Ear(), WorkerSettings()
    )
    with pytest.raises(EngineError, match="no such model"):
        worker.ready.result(PATIENCE)
    assert worker.close(PATIENCE)
