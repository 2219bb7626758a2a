"""One engine for several trackers in one process.

Each tracker gets a handle that looks like an engine of its own. A worker thread owns the real one,
serves requests first come, first served, and runs up to `spec.batch` of them at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import BatchEngine, Engine, EngineError, Prediction
from ostrack_ros.engines.contract import SEARCH, TEMPLATE, check_image
from ostrack_ros.engines.spec import ModelSpec

# A handle that asked within this many runs is expected to ask again soon.
_ACTIVE_RUNS = 3.0
_SMOOTHING = 0.2


@dataclass(frozen=True, slots=True)
class _Request:
    template: NDArray[np.uint8]
    search: NDArray[np.uint8]
    answer: Future[Prediction] = field(default_factory=Future)


class EngineHandle:
    """An Engine (see there) that shares another one. One thread at a time may call it.

    Closing it leaves the shared engine to the other handles.
    """

    def __init__(self, shared: SharedEngine) -> None:
        self._shared: SharedEngine | None = shared
        self._spec = shared.spec
        self._description = f"{shared.description}, shared"

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def description(self) -> str:
        return self._description

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        if self._shared is None:
            raise EngineError("this handle of a shared engine was closed; ask for a new one")
        # Checked here, so that a wrong image fails its own tracker and not those it would be
        # batched with.
        request = _Request(
            check_image(TEMPLATE, template, self._spec.template_size),
            check_image(SEARCH, search, self._spec.search_size),
        )
        self._shared._submit(self, request)
        return request.answer.result()

    def close(self) -> None:
        if self._shared is not None:
            self._shared._forget(self)
            self._shared = None


class SharedEngine:
    """Owns `engine` and lets several trackers, each in its own thread, use it.

    A handle has at most one request waiting, and requests are served in the order they came, so
    nobody waits for more than one turn of each other tracker. With an engine of batch N > 1, a run
    may wait for the other trackers that are busy, for at most `patience` times the duration of a
    run, so that they share it; with batch 1 nothing ever waits. Closing it closes the engine.

    Raises EngineError when the engine's model has a batch that the engine cannot run.
    """

    def __init__(self, engine: Engine, *, patience: float = 0.2) -> None:
        self._batch = engine.spec.batch
        self._batched: BatchEngine | None = None
        if self._batch > 1:
            if not isinstance(engine, BatchEngine):
                raise EngineError(
                    f"{engine.description} cannot run a batch of {self._batch} at once; "
                    "export the model with --batch 1"
                )
            self._batched = engine
        self._engine = engine
        self._patience = patience
        self._changed = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._last_asked: dict[EngineHandle, float] = {}
        self._run_seconds = 0.0
        self._closed = False
        self._worker = threading.Thread(target=self._serve, name="shared-engine", daemon=True)
        self._worker.start()

    @property
    def spec(self) -> ModelSpec:
        return self._engine.spec

    @property
    def description(self) -> str:
        return self._engine.description

    def handle(self) -> EngineHandle:
        """A new engine for one more tracker. Raises EngineError after `close`."""
        with self._changed:
            if self._closed:
                raise _closed()
            handle = EngineHandle(self)
            self._last_asked[handle] = float("-inf")
        return handle

    def close(self) -> None:
        """Finish the run in progress, refuse what is waiting, and free the engine."""
        with self._changed:
            self._closed = True
            refused = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for request in refused:
            request.answer.set_exception(_closed())
        self._worker.join()
        self._engine.close()

    def __enter__(self) -> SharedEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(self, handle: EngineHandle, request: _Request) -> None:
        with self._changed:
            if self._closed:
                raise _closed()
            self._last_asked[handle] = time.monotonic()
            self._waiting.append(request)
            self._changed.notify_all()

    def _forget(self, handle: EngineHandle) -> None:
        with self._changed:
            self._last_asked.pop(handle, None)
            self._changed.notify_all()

    def _serve(self) -> None:
        while requests := self._gather():
            started = time.monotonic()
            try:
                answers = self._run(requests)
            except Exception as error:  # it belongs to those who asked, not to this thread
                for request in requests:
                    request.answer.set_exception(error)
                continue
            for request, answer in zip(requests, answers, strict=True):
                request.answer.set_result(answer)
            self._measure(time.monotonic() - started)

    def _gather(self) -> list[_Request]:
        """The requests of the next run, oldest first; empty when closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            deadline = time.monotonic() + self._patience * self._run_seconds
            while not self._closed and len(self._waiting) < self._expected():
                remaining = deadline - time.monotonic()
                if remaining <= 0.0:
                    break
                self._changed.wait(remaining)
            count = min(self._batch, len(self._waiting))
            return [self._waiting.popleft() for _ in range(count)]

    def _expected(self) -> int:
        """How many requests are worth waiting for: one of each busy handle, up to a batch."""
        if self._batch == 1:
            return 1
        turns = -(-len(self._last_asked) // self._batch)
        since = time.monotonic() - _ACTIVE_RUNS * turns * self._run_seconds
        return min(self._batch, sum(asked >= since for asked in self._last_asked.values()))

    def _run(self, requests: Sequence[_Request]) -> list[Prediction]:
        if self._batched is None:
            return [self._engine.infer(request.template, request.search) for request in requests]
        return self._batched.infer_batch(
            [request.template for request in requests], [request.search for request in requests]
        )

    def _measure(self, seconds: float) -> None:
        with self._changed:
            known = self._run_seconds > 0.0
            share = _SMOOTHING if known else 1.0
            self._run_seconds += share * (seconds - self._run_seconds)


def _closed() -> EngineError:
    return EngineError("the shared engine was closed; make a new one")
