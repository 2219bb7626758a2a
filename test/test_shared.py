"""One engine for several trackers: everyone gets his own answer, in turn, and nobody blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_graph import SPEC, expected, random_pair, write_tiny_graph

from ostrack_ros.engines.base import EngineError, Prediction
from ostrack_ros.engines.select import create_engine
from ostrack_ros.engines.shared import EngineHandle, SharedEngine
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.tracker import Tracker

PATIENT = 10.0
"""Seconds after which a test gives up waiting for what must happen at once."""

Images = list[NDArray[np.uint8]]


class GatedEngine:
    """Serves one run for each `release`, and records whose requests each run had.

    An asker signs its template: all pixels have its number, which is the answer's `cx`.
    """

    description = "gated engine"

    def __init__(self, batch: int = 1, open_gate: bool = False) -> None:
        self.spec = replace(SPEC, batch=batch)
        self.runs: list[list[int]] = []
        self.closed = 0
        self.error: Exception | None = None
        self._gate = threading.Semaphore(1_000_000 if open_gate else 0)

    def release(self, runs: int = 1) -> None:
        self._gate.release(runs)

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        return self._serve([template])[0]

    def _serve(self, templates: Images) -> list[Prediction]:
        self.runs.append([int(template[0, 0, 0]) for template in templates])
        assert self._gate.acquire(timeout=PATIENT)
        if self.error is not None:
            raise self.error
        scores = np.zeros((4, 4), np.float32)
        return [Prediction(t[0, 0, 0], 0.0, 0.1, 0.1, 0.5, 0.5, scores) for t in templates]

    def close(self) -> None:
        self.closed += 1


class GatedBatchEngine(GatedEngine):
    def infer_batch(self, templates: Images, searches: Images) -> list[Prediction]:
        assert len(templates) == len(searches)
        return self._serve(templates)


class Asker:
    """A tracker with one question, asked in a thread of its own."""

    def __init__(self, handle: EngineHandle, number: int) -> None:
        self.handle = handle
        self._template = np.full((8, 8, 3), number, np.uint8)
        self.answer: float | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            search = np.zeros((16, 16, 3), np.uint8)
            self.answer = self.handle.infer(self._template, search).cx
        except Exception as error:
            self.error = error

    def finish(self) -> Asker:
        self._thread.join(PATIENT)
        assert not self._thread.is_alive()
        return self


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < deadline, "what must happen at once did not"
        time.sleep(0.0005)


def queue_up(shared: SharedEngine, engine: GatedEngine, count: int) -> list[Asker]:
    """Askers 0, 1, ... in this order; the first is in the engine, the others wait."""
    askers = [Asker(shared.handle(), 0)]
    wait_until(lambda: len(engine.runs) == 1)
    for number in range(1, count):
        askers.append(Asker(shared.handle(), number))
        wait_until(lambda: len(shared._waiting) == len(askers) - 1)
    return askers


@pytest.fixture
def single() -> Iterator[tuple[SharedEngine, GatedEngine]]:
    engine = GatedEngine()
    shared = SharedEngine(engine)
    yield shared, engine
    engine.release(100)
    shared.close()


def test_first_come_first_served(single: tuple[SharedEngine, GatedEngine]) -> None:
    shared, engine = single
    askers = queue_up(shared, engine, 5)
    engine.release(5)
    assert [asker.finish().answer for asker in askers] == [0, 1, 2, 3, 4]
    assert engine.runs == [[0], [1], [2], [3], [4]]


def test_the_eager_waits_for_its_turn(single: tuple[SharedEngine, GatedEngine]) -> None:
    """A tracker that asks again at once comes after those who asked while it was served."""
    shared, engine = single
    first, second = queue_up(shared, engine, 2)
    engine.release()
    first.finish()
    again = Asker(first.handle, 9)
    wait_until(lambda: len(shared._waiting) == 1)
    engine.release(2)
    again.finish()
    second.finish()
    assert engine.runs == [[0], [1], [9]]


def test_runs_what_waits_as_one_batch() -> None:
    engine = GatedBatchEngine(batch=3)
    with SharedEngine(engine, patience=0.0) as shared:
        askers = queue_up(shared, engine, 6)
        engine.release(3)
        assert [asker.finish().answer for asker in askers] == [0, 1, 2, 3, 4, 5]
    assert engine.runs == [[0], [1, 2, 3], [4, 5]]


def test_busy_trackers_share_runs_and_a_lone_one_never_waits() -> None:
    engine = GatedBatchEngine(batch=2, open_gate=True)
    with SharedEngine(engine, patience=1.0) as shared:
        handles = [shared.handle(), shared.handle()]

        def ask(number: int, times: int) -> None:
            for _ in range(times):
                Asker(handles[number], number).finish()

        # Runs seem long, and both trackers were busy a moment ago: worth a wait for each other.
        shared._measure = lambda seconds: None  # type: ignore[method-assign]
        shared._run_seconds = PATIENT
        shared._last_asked = dict.fromkeys(handles, time.monotonic())
        threads = [threading.Thread(target=ask, args=(number, 10)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [sorted(run) for run in engine.runs] == [[0, 1]] * 10
        handles[1].close()
        shared._run_seconds = 1000 * PATIENT
        ask(0, 3)
        assert engine.runs[10:] == [[0], [0], [0]]


def test_an_error_is_its_askers_own(single: tuple[SharedEngine, GatedEngine]) -> None:
    shared, engine = single
    engine.release(100)
    engine.error = EngineError("the GPU fell off")
    failed = Asker(shared.handle(), 1).finish()
    assert isinstance(failed.error, EngineError)
    engine.error = ValueError("not even an EngineError")
    assert isinstance(Asker(shared.handle(), 2).finish().error, ValueError)
    engine.error = None
    assert Asker(shared.handle(), 3).finish().answer == 3


def test_a_wrong_image_never_reaches_the_engine(single: tuple[SharedEngine, GatedEngine]) -> None:
    shared, engine = single
    handle = shared.handle()
    with pytest.raises(EngineError, match=r"template is uint8 \[9, 8, 3\]"):
        handle.infer(np.zeros((9, 8, 3), np.uint8), np.zeros((16, 16, 3), np.uint8))
    assert engine.runs == []


def test_closing_a_handle_leaves_the_others(single: tuple[SharedEngine, GatedEngine]) -> None:
    shared, engine = single
    engine.release(100)
    gone, stays = shared.handle(), shared.handle()
    gone.close()
    gone.close()
    assert "handle of a shared engine was closed" in str(Asker(gone, 1).finish().error)
    assert Asker(stays, 2).finish().answer == 2
    assert engine.closed == 0


def test_closing_refuses_who_waits_and_closes_the_engine_once() -> None:
    engine = GatedEngine()
    shared = SharedEngine(engine)
    served, waiting = queue_up(shared, engine, 2)
    closer = threading.Thread(target=shared.close)
    closer.start()
    assert "shared engine was closed" in str(waiting.finish().error)
    engine.release()
    assert served.finish().answer == 0
    closer.join(PATIENT)
    assert engine.closed == 1
    assert "was closed" in str(Asker(served.handle, 1).finish().error)
    with pytest.raises(EngineError, match="was closed"):
        shared.handle()


def test_refuses_a_batch_that_the_engine_cannot_run() -> None:
    with pytest.raises(EngineError, match=r"cannot run a batch of 2.*--batch 1"):
        SharedEngine(GatedEngine(batch=2))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("batch", [1, 3])
def test_everyone_gets_his_own_answer(backend: str, batch: int, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    pytest.importorskip("onnx")
    path = tmp_path / "graph.onnx"
    write_tiny_graph(path, batch=batch)
    failures: list[BaseException] = []

    def ask(handle: EngineHandle, first_seed: int) -> None:
        try:
            for seed in range(first_seed, first_seed + 30):
                answer = handle.infer(*random_pair(seed))
                result, scores = expected(*random_pair(seed))
                assert answer.cx == pytest.approx(result[0], abs=1e-5)
                assert answer.cy == pytest.approx(result[1], abs=1e-5)
                np.testing.assert_allclose(answer.score_map, scores, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    with SharedEngine(create_engine(path, backend, threads=1)) as shared:
        threads = [threading.Thread(target=ask, args=(shared.handle(), 1000 * i)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_a_handle_drives_a_tracker(single: tuple[SharedEngine, GatedEngine]) -> None:
    shared, engine = single
    engine.release(100)
    tracker = Tracker(shared.handle())
    pixels = np.zeros((100, 100, 3), np.uint8)
    tracker.init(Frame(pixels, PixelFormat.RGB, 0), Box(40, 40, 20, 20))
    assert tracker.update(Frame(pixels, PixelFormat.RGB, 1)).box is not None
    assert tracker.engine.description == "gated engine, shared"
