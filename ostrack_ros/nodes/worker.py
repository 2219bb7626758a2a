"""The thread that owns tracker and engine: newest image first, init in the past, honest endings.

Nothing here knows ROS. Images come in with `submit`, results go out through a `Listener`, and all
calls return at once; the thread alone touches tracker and engine.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from ostrack_ros.engines.base import Engine, EngineError
from ostrack_ros.tracking.frame import Frame, FrameError
from ostrack_ros.tracking.geometry import Box, BoxError
from ostrack_ros.tracking.history import FrameHistory
from ostrack_ros.tracking.presence import TargetState
from ostrack_ros.tracking.tracker import Estimate, Tracker, TrackerSettings

SMALLEST_SIDE = 1.0
"""Pixels of the smallest init box; below it somebody made a mistake."""

_NANOSECONDS = 1_000_000_000
_LONGEST_INTERVAL = _NANOSECONDS  # more than a second later, a box is on something else
_LATE_SECONDS = 0.5


class Snapshot(Protocol):
    """An image that has arrived. `frame` may convert it and raises FrameError where it cannot."""

    @property
    def stamp(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def frame(self) -> Frame: ...


ImageT = TypeVar("ImageT", bound=Snapshot)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Times are seconds; see the parameters of the same names."""

    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    image_timeout: float = 1.0
    init_tolerance: float = 0.1
    init_wait: float = 1.0
    catch_up_time: float = 1.0


@dataclass(frozen=True, slots=True)
class Result(Generic[ImageT]):
    """What is known about the target on `image`.

    `frame` and `estimate` are None where nothing was measured: a target that was given (`box` is
    then the init box), that was stopped, or that images no longer show.
    """

    image: ImageT | None
    track_id: int
    state: TargetState
    box: Box | None = None
    frame: Frame | None = None
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A track was started on the image of `stamp` (ns), `behind` ns before the newest one."""

    track_id: int
    stamp: int
    behind: int
    message: str


class Refused(Exception):
    """An init box was not accepted. The message says why and what to do."""


class Listener(Protocol[ImageT]):
    """Receives what the worker has to say, on the worker's thread."""

    def on_result(self, result: Result[ImageT]) -> None: ...

    def on_idle_image(self, image: ImageT) -> None:
        """The newest image while there is no target."""

    def on_problem(self, kind: str, message: str) -> None: ...

    def on_failure(self, kind: str, error: Exception) -> None:
        """An error nobody foresaw; the worker goes on."""


@dataclass(slots=True)
class Counters:
    """Images since activation. `dropped` ones arrived while the tracker was busy with an older one;
    `skipped` ones were passed over in a replay."""

    received: int = 0
    processed: int = 0
    dropped: int = 0
    skipped: int = 0
    unusable: int = 0


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """For diagnostics. `update_seconds` are the durations of the tracker's last updates."""

    state: TargetState = TargetState.IDLE
    track_id: int = 0
    replaying: bool = False
    counters: Counters = field(default_factory=Counters)
    update_seconds: tuple[float, ...] = ()
    history_images: int = 0
    history_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _InitRequest:
    stamp: int
    box: Box
    deadline: float
    answer: Future[Started]


class TrackingWorker(Generic[ImageT]):
    """Runs one tracker on one thread.

    `make_engine` is called on that thread; `ready` resolves once it returned. `clock` gives the
    node's time in ns. Close it to free the engine.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        history: FrameHistory[ImageT],
        listener: Listener[ImageT],
        settings: WorkerSettings,
        clock: Callable[[], int] = time.time_ns,
        first_track_id: int = 1,
    ) -> None:
        self.ready: Future[Engine] = Future()
        self._make_engine = make_engine
        self._history = history
        self._listener = listener
        self._settings = settings
        self._clock = clock
        self._next_track_id = first_track_id

        self._wake = threading.Condition()
        self._closing = False
        self._active = False
        self._latest: ImageT | None = None
        self._newest_stamp: int | None = None
        self._arrived_at: int | None = None
        self._requests: deque[_InitRequest] = deque()
        self._stops: list[Future[int]] = []
        self._counters = Counters()

        self._tracker: Tracker | None = None
        self._track_id = 0
        self._last: ImageT | None = None
        self._size = (0, 0)
        self._silent = False
        self._catch_up_until: float | None = None
        self._update_seconds: deque[float] = deque(maxlen=100)

        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._thread.start()

    # Called from any thread.

    @property
    def next_track_id(self) -> int:
        return self._next_track_id

    @property
    def state(self) -> TargetState:
        tracker = self._tracker
        return TargetState.IDLE if tracker is None else tracker.state

    def status(self) -> WorkerStatus:
        with self._wake:
            counters = replace(self._counters)
        return WorkerStatus(
            state=self.state,
            track_id=self._track_id,
            replaying=self._catch_up_until is not None,
            counters=counters,
            update_seconds=tuple(self._update_seconds),
            history_images=len(self._history),
            history_bytes=self._history.nbytes,
        )

    def activate(self) -> None:
        with self._wake:
            self._active = True
            self._counters = Counters()

    def deactivate(self) -> None:
        """Forget target and images; refuse init boxes until activated again."""
        stopped = self.stop()
        with self._wake:
            self._active = False
        stopped.exception()
        with self._wake:
            self._latest = None
            self._newest_stamp = self._arrived_at = None
        self._history.clear()

    def close(self, timeout: float | None = None) -> bool:
        """Free the engine and end the thread; False if it is still busy after `timeout` seconds."""
        with self._wake:
            self._closing = True
            self._active = False
            self._wake.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def apply(self, settings: WorkerSettings) -> None:
        with self._wake:
            self._settings = settings
            self._wake.notify_all()

    def submit(self, image: ImageT) -> None:
        """Hand over an image that just arrived; the one still waiting is dropped and counted."""
        with self._wake:
            if not self._active:
                return
            self._counters.received += 1
            problem = self._accept(image)
            if problem is None or problem[0] == "image.time_jump":
                if self._latest is not None and self._is_live():
                    self._counters.dropped += 1
                self._history.append(image)
                self._latest = image
                self._newest_stamp = image.stamp
                self._arrived_at = self._clock()
                self._wake.notify_all()
            else:
                self._counters.unusable += 1
        if problem is not None:
            self._listener.on_problem(*problem)

    def count_unusable(self) -> None:
        """An image arrived that could not be submitted."""
        with self._wake:
            self._counters.received += 1
            self._counters.unusable += 1

    def init(self, stamp: int, box: Box) -> Future[Started]:
        """Start on `box` in the image of `stamp` (ns), or in the newest image if it is 0.

        The future raises Refused.
        """
        answer: Future[Started] = Future()
        with self._wake:
            if not self._active or self._closing:
                answer.set_exception(
                    Refused("the node is not active; run its lifecycle transition activate first")
                )
                return answer
            deadline = time.monotonic() + self._settings.init_wait
            self._requests.append(_InitRequest(stamp, box, deadline, answer))
            self._wake.notify_all()
        return answer

    def stop(self) -> Future[int]:
        """Forget the target. The future gives the id of the track that ended, 0 if none ran."""
        answer: Future[int] = Future()
        with self._wake:
            if self._closing or not self._thread.is_alive():
                answer.set_result(0)
            else:
                self._stops.append(answer)
                self._wake.notify_all()
        return answer

    # Called with the lock held.

    def _accept(self, image: ImageT) -> tuple[str, str] | None:
        """Judge an image's stamp against the one before."""
        newest = self._newest_stamp
        if newest is None or image.stamp > newest:
            return None
        back = (newest - image.stamp) / _NANOSECONDS
        if back == 0:
            return "image.repeated", (
                f"two images carry the stamp {_seconds(newest)}; the second one is ignored "
                "(is the topic published twice?)"
            )
        if back < _LATE_SECONDS:
            return "image.late", (
                f"an image arrived {back:.3f} s behind a newer one; it is ignored"
            )
        return "image.time_jump", (
            f"the images' stamps ran back by {back:.3f} s (a bag that starts over, or a clock that "
            "was set); images from before are no longer available for init boxes"
        )

    def _is_live(self) -> bool:
        return self.state is not TargetState.IDLE and self._catch_up_until is None

    # The thread.

    def _run(self) -> None:
        try:
            engine = self._make_engine()
        except Exception as error:
            self.ready.set_exception(error)
            return
        self._tracker = Tracker(engine, self._settings.tracker)
        self.ready.set_result(engine)
        try:
            while not self._closing:
                self._step_safely(self._tracker)
        finally:
            self._abandon()
            self._tracker = None
            self._history.clear()
            engine.close()

    def _step_safely(self, tracker: Tracker) -> None:
        try:
            self._step(tracker)
        except Exception as error:
            self._recover(tracker, error)

    def _recover(self, tracker: Tracker, error: Exception) -> None:
        """After an error nobody foresaw: no box may be believed any longer, but the node lives."""
        self._listener.on_failure("worker.failure", error)
        try:
            self._end_track(tracker, self._last)
        except Exception as second:
            self._listener.on_failure("worker.failure", second)

    def _step(self, tracker: Tracker) -> None:
        """Wait for something to do and do one thing."""
        with self._wake:
            if not self._has_work(tracker):
                self._wake.wait(self._patience(tracker))
            if self._closing:
                return
            settings = self._settings
            stops, self._stops = self._stops, []
            request = None if stops else self._next_request()
            latest = None
            if not stops and request is None and self._catch_up_until is None:
                latest, self._latest = self._latest, None
        tracker.settings = settings.tracker
        if stops:
            self._stop(tracker, stops)
        elif request is not None:
            self._begin(tracker, request, settings)
        elif self._catch_up_until is not None:
            self._replay(tracker)
        elif latest is not None:
            self._follow(tracker, latest)
        self._watch_for_silence(tracker, settings)

    def _has_work(self, tracker: Tracker) -> bool:
        if self._closing or self._stops or self._catch_up_until is not None:
            return True
        return self._latest is not None or any(self._can_answer(r) for r in self._requests)

    def _patience(self, tracker: Tracker) -> float | None:
        """Seconds to wait for news; None for ever."""
        waits = [max(0.0, request.deadline - time.monotonic()) for request in self._requests]
        if tracker.state is not TargetState.IDLE and not self._silent:
            # The node's clock may run at another speed than ours: look more than once.
            waits.append(self._settings.image_timeout / 4)
        return min(waits, default=None)

    def _can_answer(self, request: _InitRequest) -> bool:
        if time.monotonic() >= request.deadline:
            return True
        newest = self._newest_stamp
        if newest is None or request.stamp > newest:
            return False
        # One image alone does not tell how far apart images are.
        known = request.stamp == 0 or len(self._history) > 1
        return known or self._nearest(request.stamp, self._settings) is not None

    def _next_request(self) -> _InitRequest | None:
        for request in self._requests:
            if self._can_answer(request):
                self._requests.remove(request)
                return request
        return None

    def _stop(self, tracker: Tracker, answers: list[Future[int]]) -> None:
        ended = 0 if tracker.state is TargetState.IDLE else self._track_id
        was_idle = tracker.state is TargetState.IDLE
        self._forget(tracker)
        for request in self._take_requests():
            request.answer.set_exception(Refused("tracking was stopped before the image arrived"))
        if not was_idle:
            self._listener.on_result(Result(self._last, self._track_id, TargetState.IDLE))
        for answer in answers:
            answer.set_result(ended)

    def _take_requests(self) -> list[_InitRequest]:
        with self._wake:
            requests = list(self._requests)
            self._requests.clear()
        return requests

    def _forget(self, tracker: Tracker) -> None:
        tracker.reset()
        self._catch_up_until = None
        self._silent = False

    def _begin(self, tracker: Tracker, request: _InitRequest, settings: WorkerSettings) -> None:
        try:
            _check_size(request.box)
            image, note = self._find_image(request.stamp, settings)
            frame = image.frame()
            tracker.init(frame, request.box)
        except (Refused, BoxError, FrameError) as error:
            self._listener.on_problem("init.refused", f"init box refused: {error}")
            request.answer.set_exception(Refused(str(error)))
            return
        except Exception as error:
            request.answer.set_exception(Refused(f"unexpected error: {error}"))
            raise
        self._track_id = self._next_track_id
        self._next_track_id = self._track_id % (2**32 - 1) + 1
        self._size = (frame.width, frame.height)
        self._last = image
        self._silent = False
        with self._wake:
            newest = self._newest_stamp if self._newest_stamp is not None else image.stamp
            if self._latest is not None and self._latest.stamp <= image.stamp:
                self._latest = None
        behind = max(0, newest - image.stamp)
        self._catch_up_until = time.monotonic() + settings.catch_up_time if behind else None
        self._listener.on_result(
            Result(image, self._track_id, TargetState.TRACKING, request.box, frame)
        )
        request.answer.set_result(Started(self._track_id, image.stamp, behind, note))

    def _find_image(self, stamp: int, settings: WorkerSettings) -> tuple[ImageT, str]:
        """The image an init box was drawn on, and a sentence about it. Raises Refused."""
        newest, oldest = self._history.newest, self._history.oldest
        with self._wake:
            arrived_at = self._arrived_at
        if newest is None or oldest is None or arrived_at is None:
            raise Refused("no image has arrived yet; check the image topic and its QoS")
        silence = (self._clock() - arrived_at) / _NANOSECONDS
        if silence > settings.image_timeout:
            raise Refused(f"images stopped {silence:.2f} s ago; there is nothing to track on")
        if stamp == 0:
            return newest, f"tracking from the newest image, {_seconds(newest.stamp)}"
        age = (newest.stamp - stamp) / _NANOSECONDS
        reach = (newest.stamp - oldest.stamp) / _NANOSECONDS
        image = self._nearest(stamp, settings)
        if image is not None:
            miss = (image.stamp - stamp) / _NANOSECONDS
            note = f"tracking from image {_seconds(image.stamp)}, {max(age, 0.0):.3f} s in the past"
            if miss:
                note += f" (the one {abs(miss):.3f} s {'later' if miss > 0 else 'earlier'} is lost)"
            return image, note
        if age < 0:
            raise Refused(
                f"its stamp {_seconds(stamp)} is {-age:.3f} s ahead of the newest image, and no "
                f"such image came within {settings.init_wait:g} s; does the box carry the stamp "
                "of the image it was drawn on?"
            )
        if age > reach:
            raise Refused(
                f"its image is {age:.3f} s older than the newest one, and the history reaches back "
                f"only {reach:.3f} s; raise history_seconds or history_megabytes"
            )
        raise Refused(
            f"no image within {self._tolerance(settings) / _NANOSECONDS:g} s of its stamp "
            f"{_seconds(stamp)} ({age:.3f} s ago) has arrived here; raise init_tolerance or check "
            "for lost images"
        )

    def _nearest(self, stamp: int, settings: WorkerSettings) -> ImageT | None:
        return self._history.find(stamp, self._tolerance(settings))

    def _tolerance(self, settings: WorkerSettings) -> int:
        """How far, in ns, a box's stamp may be from an image. Where a slow camera's image was lost,
        the next one is a whole interval away."""
        tolerance = round(settings.init_tolerance * _NANOSECONDS)
        if tolerance == 0:
            return 0
        return max(tolerance, min(self._history.interval or 0, _LONGEST_INTERVAL))

    def _replay(self, tracker: Tracker) -> None:
        """One image further towards the live one, skipping what there is no time for."""
        last, deadline = self._last, self._catch_up_until
        assert last is not None
        assert deadline is not None
        pending = self._history.after(last.stamp)
        if not pending:
            self._catch_up_until = None
            with self._wake:
                if self._latest is not None and self._latest.stamp <= last.stamp:
                    self._latest = None
            return
        stride = replay_stride(len(pending), deadline - time.monotonic(), self._typical_update())
        with self._wake:
            self._counters.skipped += stride - 1
        self._process(tracker, pending[stride - 1])

    def _typical_update(self) -> float:
        recent = sorted(list(self._update_seconds)[-9:])
        return recent[len(recent) // 2] if recent else 0.0

    def _follow(self, tracker: Tracker, image: ImageT) -> None:
        if tracker.state is TargetState.IDLE:
            self._last = image
            self._listener.on_idle_image(image)
        else:
            self._process(tracker, image)

    def _process(self, tracker: Tracker, image: ImageT) -> None:
        try:
            frame = image.frame()
        except FrameError as error:
            # The next image must not be searched for again in a replay.
            self._last = image
            with self._wake:
                self._counters.unusable += 1
            self._listener.on_problem("image.unusable", f"image ignored: {error}")
            return
        self._last = image
        self._silent = False
        if (frame.width, frame.height) != self._size:
            self._listener.on_problem(
                "image.resized",
                f"the images changed from {self._size[0]}x{self._size[1]} to "
                f"{frame.width}x{frame.height}: the target is lost; send a new init box",
            )
            self._end_track(tracker, image)
            return
        started = time.perf_counter()
        try:
            estimate = tracker.update(frame)
        except (EngineError, BoxError) as error:
            self._listener.on_problem("engine.failure", f"the target is lost: {error}")
            self._end_track(tracker, image)
            return
        self._update_seconds.append(time.perf_counter() - started)
        with self._wake:
            self._counters.processed += 1
        self._listener.on_result(
            Result(image, self._track_id, estimate.state, estimate.box, frame, estimate)
        )

    def _end_track(self, tracker: Tracker, image: ImageT | None) -> None:
        """Report LOST once; nothing more is heard of this track."""
        had_target = tracker.state is not TargetState.IDLE
        self._forget(tracker)
        if had_target:
            self._listener.on_result(Result(image, self._track_id, TargetState.LOST))

    def _watch_for_silence(self, tracker: Tracker, settings: WorkerSettings) -> None:
        """Report LOST once when images stop; the target must be confirmed when they return."""
        if self._silent or tracker.state is TargetState.IDLE or self._catch_up_until is not None:
            return
        with self._wake:
            arrived_at, waiting = self._arrived_at, self._latest is not None
        if arrived_at is None or waiting:
            return
        silence = (self._clock() - arrived_at) / _NANOSECONDS
        if silence <= settings.image_timeout:
            return
        self._silent = True
        was_lost = tracker.state is TargetState.LOST
        tracker.lose()
        self._listener.on_problem(
            "image.timeout", f"no image for {silence:.2f} s: the target is reported LOST"
        )
        if not was_lost:
            self._listener.on_result(Result(self._last, self._track_id, TargetState.LOST))

    def _abandon(self) -> None:
        """Answer everybody who still waits."""
        with self._wake:
            stops, self._stops = self._stops, []
            self._closing = True
        for stop in stops:
            stop.set_result(0)
        for request in self._take_requests():
            request.answer.set_exception(Refused("the node is shutting down"))


def _check_size(box: Box) -> None:
    if box.is_valid and min(box.width, box.height) < SMALLEST_SIDE:
        raise Refused(
            f"{box} is smaller than a pixel (rclpy sends an int in a float field as almost zero: "
            "write 40.0, not 40)"
        )


def replay_stride(pending: int, seconds_left: float, update_seconds: float) -> int:
    """How many of `pending` images to go forward so that the last is reached in `seconds_left`.

    1 processes the next one, `pending` jumps to the newest. At a steady update time each image is
    skipped as evenly as can be: a target is easiest to follow in equal steps.
    """
    if update_seconds <= 0 or pending * update_seconds <= seconds_left:
        return 1
    updates = max(1, math.floor(seconds_left / update_seconds))
    return min(pending, math.ceil(pending / updates))


def _seconds(stamp: int) -> str:
    return f"{stamp / _NANOSECONDS:.3f}"
