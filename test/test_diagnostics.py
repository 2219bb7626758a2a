"""Problems are counted and logged in moderation; diagnostics tell what a person must know."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from ostrack_ros.nodes.diagnostics import RateMeter, Report, diagnostic_array
from ostrack_ros.nodes.logs import forward_logs, stop_forwarding
from ostrack_ros.nodes.problems import Problem, ProblemLog
from ostrack_ros.nodes.worker import Counters, WorkerStatus
from ostrack_ros.tracking.presence import TargetState


class Watch:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def report(**values: object) -> Report:
    return Report(node="/t", lifecycle="active", topic="/image", **values)  # type: ignore[arg-type]


def statuses(given: Report) -> dict[str, DiagnosticStatus]:
    array = diagnostic_array(given, Time(sec=5))
    assert array.header.stamp.sec == 5
    return {status.name.split(": ")[1]: status for status in array.status}


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


def test_a_repeated_problem_is_logged_once_in_a_period() -> None:
    watch, lines = Watch(), []
    log = ProblemLog(lines.append, 5.0, watch)
    for _ in range(10):
        log.report("image.late", "late")
        watch.now += 0.4
    assert lines == ["late"]
    log.report("image.size", "size")
    assert lines == ["late", "size"], "another kind has its own period"
    watch.now += 5.0
    log.report("image.late", "late again")
    assert lines[-1] == "late again (9 more like it before)"
    late = next(problem for problem in log.all() if problem.kind == "image.late")
    assert (late.count, late.message, late.age) == (11, "late again", 0.0)


def test_problems_are_sorted_by_age() -> None:
    watch = Watch()
    log = ProblemLog(lambda line: None, 0.0, watch)
    log.report("a", "first")
    watch.now += 3.0
    log.report("b", "second")
    assert [problem.kind for problem in log.all()] == ["b", "a"]
    assert [problem.kind for problem in log.recent(1.0)] == ["b"]
    log.clear()
    assert log.all() == []


def test_a_rate_is_events_per_second_and_falls_when_they_stop() -> None:
    watch = Watch()
    meter = RateMeter(2.0, watch)
    assert meter.rate == 0.0
    for _ in range(100):
        watch.now += 0.05
        meter.tick()
    assert meter.rate == pytest.approx(20.0, rel=0.01)
    watch.now += 1.0
    assert 5.0 < meter.rate < 15.0
    watch.now += 2.0
    assert meter.rate == 0.0


def test_a_healthy_node_is_ok_throughout() -> None:
    worker = WorkerStatus(
        TargetState.TRACKING, 3, False, Counters(100, 90, 8, 2, 0), (0.01, 0.02, 0.03), 7, 7_000_000
    )
    told = statuses(
        report(
            engine="E 1.0",
            model="m",
            precision="fp16",
            worker=worker,
            input_rate=29.9,
            output_rate=27.0,
            latencies=[0.02] * 9 + [0.5],
        )
    )
    assert {status.level for status in told.values()} == {DiagnosticStatus.OK}
    tracking = values(told["tracking"])
    assert tracking["state"] == "TRACKING"
    assert tracking["dropped"] == "8"
    assert tracking["skipped in replay"] == "2"
    assert tracking["latency median ms"] == "20.00"
    assert tracking["latency p95 ms"] == "500.00"
    assert values(told["engine"])["update median ms"] == "20.00"
    assert values(told["input"])["history MB"] == "7.0"


def test_trouble_raises_the_level_where_it_belongs() -> None:
    fresh = Problem("image.unusable", "encoding 'x' is not supported", 12, 0.5)
    told = statuses(report(engine="E", input_rate=30.0, problems=[fresh]))
    assert told["input"].level == DiagnosticStatus.WARN
    assert "encoding 'x'" in told["input"].message
    assert "12 times" in values(told["input"])["problem image.unusable"]
    assert told["tracking"].level == DiagnosticStatus.OK
    old = Problem("image.unusable", "encoding 'x' is not supported", 12, 60.0)
    told = statuses(report(engine="E", input_rate=30.0, problems=[old]))
    assert told["input"].level == DiagnosticStatus.OK
    assert "60.0 s ago" in values(told["input"])["problem image.unusable"]


def test_loading_failing_and_silence_are_told() -> None:
    loading = statuses(report(loading_for=3.21, loading_step="building (40 %)"))["engine"]
    assert loading.level == DiagnosticStatus.WARN
    assert loading.message == "loading for 3.2 s building (40 %)"
    failed = statuses(report(load_error="no such model"))["engine"]
    assert failed.level == DiagnosticStatus.ERROR
    assert "no such model" in failed.message
    silent = statuses(report(engine="E"))["input"]
    assert silent.level == DiagnosticStatus.WARN
    assert silent.message == "no images on /image"
    lost = statuses(report(engine="E", worker=WorkerStatus(TargetState.LOST, 1)))["tracking"]
    assert lost.level == DiagnosticStatus.WARN


def test_the_cores_log_reaches_the_nodes_logger() -> None:
    class Logger:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def _add(self, level: str, message: str) -> None:
            self.lines.append(f"{level} {message}")

        def debug(self, message: str) -> None:
            self._add("debug", message)

        def info(self, message: str) -> None:
            self._add("info", message)

        def warning(self, message: str) -> None:
            self._add("warning", message)

        def error(self, message: str) -> None:
            self._add("error", message)

    logger = Logger()
    handler = forward_logs(logger)
    try:
        source = logging.getLogger("ostrack_ros.engines.select")
        source.info("using %s", "OpenVINO")
        source.warning("careful")
        source.error("broken")
    finally:
        stop_forwarding(handler)
    source.error("nobody listens")
    assert logger.lines == ["info using OpenVINO", "warning careful", "error broken"]
