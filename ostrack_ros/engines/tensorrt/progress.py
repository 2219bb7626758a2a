"""How far a build is: TensorRT's own phases where it reports them, else the clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from ostrack_ros.engines.cache import BuildCancelled

Progress: TypeAlias = Callable[[float | None, str], None]
"""Called with the fraction done in [0, 1], None where nobody knows, and one line of text."""

T = TypeVar("T")

POLL_SECONDS = 0.5
CANCEL_SECONDS = 20.0


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseTree:
    """The nested phases of one build and the fraction they make.

    TensorRT reports from several threads, so every method takes a lock. The fraction never falls:
    between the end of a phase and its parent's next step the plain sum would.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._fraction = 0.0
        self._current = ""

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(1, steps))
            self._current = name

    def step(self, name: str, step: int) -> None:
        with self._lock:
            if phase := self._phases.get(name):
                phase.done = min(max(phase.done, step + 1), phase.steps)
            self._update()

    def finish(self, name: str) -> None:
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase and phase.parent:
                self._current = phase.parent
            self._update()

    @property
    def fraction(self) -> float:
        with self._lock:
            return self._fraction

    @property
    def current(self) -> str:
        """The phase that was entered last and still runs."""
        with self._lock:
            return self._current

    def _update(self) -> None:
        roots = [n for n, phase in self._phases.items() if phase.parent not in self._phases]
        self._fraction = max(self._fraction, *map(self._value, roots), 0.0)

    def _value(self, name: str) -> float:
        phase = self._phases[name]
        children = [n for n, child in self._phases.items() if child.parent == name]
        inner = max(map(self._value, children), default=0.0)
        return min(1.0, (phase.done + inner) / phase.steps)


def make_monitor(module: Any, phases: PhaseTree, cancel: threading.Event) -> Any:
    """An `IProgressMonitor` of a TensorRT `module` that feeds `phases` and stops on `cancel`.

    Its methods are called from C++ and must not raise.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # a class of the runtime module
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase or None, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return not cancel.is_set()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


@dataclass(frozen=True, slots=True)
class Clock:
    """Elapsed time against `expected` seconds, which an earlier build took; None if unknown."""

    label: str
    expected: float | None
    phases: PhaseTree | None

    def report(self, elapsed: float) -> tuple[float | None, str]:
        text = f"{self.label}: {elapsed:.0f} s"
        if self.expected is not None:
            text += f" of about {self.expected:.0f} s (last build)"
        if self.phases is not None:
            if self.phases.current:
                text += f", {self.phases.current}"
            return self.phases.fraction, text
        if self.expected is None:
            return None, text
        return min(0.99, elapsed / max(self.expected, 1.0)), text


def run_reporting(
    work: Callable[[threading.Event], T],
    clock: Clock,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    *,
    poll: float = POLL_SECONDS,
) -> T:
    """Run `work(stop)` in a thread of its own while this thread reports and stays interruptible.

    A build is one long call into C++, during which Python delivers no Ctrl-C to its own thread.
    `work` should end soon after `stop` is set. Where it cannot (TensorRT 8.6 has no way to ask),
    its thread is left behind as a daemon and its result thrown away.

    Raises BuildCancelled when `cancel` is set meanwhile, and whatever `work` raises.
    """
    stop = threading.Event()
    finished = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work(stop))
        except BaseException as error:  # handed over to the caller's thread
            errors.append(error)
        finally:
            finished.set()

    begin = time.monotonic()
    thread = threading.Thread(target=target, name="tensorrt-build", daemon=True)
    thread.start()
    try:
        while not finished.wait(poll):
            if cancel is not None and cancel.is_set():
                raise BuildCancelled("the engine build was cancelled; nothing was written")
            if progress is not None:
                progress(*clock.report(time.monotonic() - begin))
    except BaseException:
        stop.set()
        if clock.phases is not None:
            thread.join(CANCEL_SECONDS)
        raise
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
