"""What went wrong lately: logged once in a while, kept for diagnostics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A kind of trouble, its newest wording, how often it came and how many seconds ago."""

    kind: str
    message: str
    count: int
    age: float


@dataclass(slots=True)
class _Record:
    message: str
    count: int
    seen: float
    logged: float
    unlogged: int


class ProblemLog:
    """Counts problems by kind and logs each kind at most once in `period` seconds.

    Safe to call from any thread. `log` receives the text of a warning.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        period: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.period = period
        self._log = log
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self._lock = threading.Lock()

    def report(self, kind: str, message: str) -> None:
        """`kind` is a fixed dotted name, `message` a sentence for people."""
        now = self._clock()
        with self._lock:
            record = self._records.get(kind)
            if record is None:
                record = self._records[kind] = _Record(message, 0, now, now - self.period, 0)
            record.message = message
            record.count += 1
            record.seen = now
            if now - record.logged < self.period:
                record.unlogged += 1
                return
            unlogged, record.unlogged = record.unlogged, 0
            record.logged = now
        self._log(f"{message} ({unlogged} more like it before)" if unlogged else message)

    def recent(self, seconds: float) -> list[Problem]:
        """Problems seen within the last `seconds`, newest first."""
        return [problem for problem in self.all() if problem.age <= seconds]

    def all(self) -> list[Problem]:
        """All problems so far, newest first."""
        now = self._clock()
        with self._lock:
            problems = [
                Problem(kind, record.message, record.count, now - record.seen)
                for kind, record in self._records.items()
            ]
        return sorted(problems, key=lambda problem: problem.age)

    def clear(self) -> None:
        with self._lock:
            self._records.clear()
