"""What /diagnostics says about the node."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from ostrack_ros.nodes.problems import Problem
from ostrack_ros.nodes.worker import WorkerStatus
from ostrack_ros.tracking.presence import TargetState

RECENT_SECONDS = 5.0
"""Problems older than this are counted, but no longer raise the level."""


class RateMeter:
    """Events per second over a sliding window. Safe to call from any thread."""

    def __init__(self, window: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window = window
        self._clock = clock
        self._times: deque[float] = deque()
        self._lock = threading.Lock()

    def tick(self) -> None:
        now = self._clock()
        with self._lock:
            self._times.append(now)
            self._forget(now)

    @property
    def rate(self) -> float:
        now = self._clock()
        with self._lock:
            self._forget(now)
            if len(self._times) < 2:
                return len(self._times) / self._window
            # Time since the last event counts as soon as it exceeds the usual interval.
            span = self._times[-1] - self._times[0]
            usual = span / (len(self._times) - 1)
            return (len(self._times) - 1) / max(
                span + max(0.0, now - self._times[-1] - usual), 1e-9
            )

    def _forget(self, now: float) -> None:
        while self._times and now - self._times[0] > self._window:
            self._times.popleft()


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the diagnostics are made from. Times are seconds."""

    node: str
    lifecycle: str
    topic: str
    engine: str = ""
    backend: str = ""
    model: str = ""
    precision: str = ""
    loading_for: float | None = None
    loading_step: str = ""
    load_error: str = ""
    worker: WorkerStatus | None = None
    input_rate: float = 0.0
    output_rate: float = 0.0
    latencies: Sequence[float] = ()
    converter: str = ""
    problems: Sequence[Problem] = ()


def diagnostic_array(report: Report, stamp: Time) -> DiagnosticArray:
    array = DiagnosticArray(status=[_engine(report), _input(report), _tracking(report)])
    array.header.stamp = stamp
    return array


def _engine(report: Report) -> DiagnosticStatus:
    if report.load_error:
        level, message = DiagnosticStatus.ERROR, f"loading failed: {report.load_error}"
    elif report.loading_for is not None:
        level = DiagnosticStatus.WARN
        message = f"loading for {report.loading_for:.1f} s {report.loading_step}".rstrip()
    elif report.engine:
        level, message = DiagnosticStatus.OK, report.engine
    else:
        level, message = DiagnosticStatus.OK, "not loaded"
    updates = report.worker.update_seconds if report.worker else ()
    values = {
        "lifecycle": report.lifecycle,
        "model": report.model,
        "backend": report.backend,
        "engine": report.engine,
        "precision": report.precision,
        "gpu": gpu_in_use(report.engine),
        "update median ms": _milliseconds(updates, 0.5),
        "update p95 ms": _milliseconds(updates, 0.95),
    }
    return _status(report, "engine", level, message, values, ("engine.", "worker."))


def _input(report: Report) -> DiagnosticStatus:
    worker = report.worker or WorkerStatus()
    counters = worker.counters
    level, message = DiagnosticStatus.OK, f"{report.input_rate:.1f} images/s"
    if report.lifecycle == "active" and report.input_rate == 0:
        level, message = DiagnosticStatus.WARN, f"no images on {report.topic}"
    values = {
        "topic": report.topic,
        "rate Hz": f"{report.input_rate:.2f}",
        "received": str(counters.received),
        "unusable": str(counters.unusable),
        "history images": str(worker.history_images),
        "history MB": f"{worker.history_bytes / 1e6:.1f}",
        "converter": report.converter,
    }
    return _status(report, "input", level, message, values, ("image.", "camera_info."))


def _tracking(report: Report) -> DiagnosticStatus:
    worker = report.worker or WorkerStatus()
    counters, state = worker.counters, worker.state
    level = DiagnosticStatus.OK
    if state in (TargetState.UNCERTAIN, TargetState.COASTING, TargetState.LOST):
        level = DiagnosticStatus.WARN
    message = state.name + (" (replaying)" if worker.replaying else "")
    values = {
        "state": state.name,
        "track id": str(worker.track_id),
        "replaying": str(worker.replaying).lower(),
        "rate Hz": f"{report.output_rate:.2f}",
        "latency median ms": _milliseconds(report.latencies, 0.5),
        "latency p95 ms": _milliseconds(report.latencies, 0.95),
        "processed": str(counters.processed),
        "dropped": str(counters.dropped),
        "skipped in replay": str(counters.skipped),
    }
    return _status(report, "tracking", level, message, values, ("init.", "output."))


def gpu_in_use(engine: str) -> str:
    """The GPU an engine's description names, if it runs on one."""
    return engine if "tensorrt" in engine.lower() else "none"


def _status(
    report: Report,
    part: str,
    level: bytes,
    message: str,
    values: dict[str, str],
    kinds: tuple[str, ...],
) -> DiagnosticStatus:
    problems = [problem for problem in report.problems if problem.kind.startswith(kinds)]
    recent = [problem for problem in problems if problem.age <= RECENT_SECONDS]
    if recent:
        level = max(level, DiagnosticStatus.WARN)
        message = f"{message}; {recent[0].message}"
    pairs = {
        **values,
        **{
            f"problem {problem.kind}": (
                f"{problem.message} ({problem.count} times, last {problem.age:.1f} s ago)"
            )
            for problem in problems
        },
    }
    return DiagnosticStatus(
        level=level,
        name=f"{report.node}: {part}",
        message=message,
        hardware_id="ostrack_ros",
        values=[KeyValue(key=key, value=value) for key, value in pairs.items()],
    )


def _milliseconds(seconds: Sequence[float], quantile: float) -> str:
    if not seconds:
        return "nan"
    ordered = sorted(seconds)
    return f"{1e3 * ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]:.2f}"
