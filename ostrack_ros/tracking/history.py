"""A bounded, thread-safe memory of the newest frames, so that tracking can start in the past."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from itertools import pairwise
from typing import Generic, Protocol, TypeVar

_NANOSECONDS = 1_000_000_000


class Stamped(Protocol):
    """A frame, or anything that becomes one: with a stamp in ns and a constant size in bytes."""

    @property
    def stamp(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


StampedT = TypeVar("StampedT", bound=Stamped)


class FrameHistory(Generic[StampedT]):
    """Frames in the order of their stamps, bounded in age and in bytes.

    A frame is dropped when it is more than `max_seconds` older than the newest one, or when the
    frames together keep more than `max_bytes` alive; the newest frame is always kept. Frames are
    held by reference. All methods may be called from any thread.

    Raises ValueError for a negative bound.
    """

    def __init__(self, max_seconds: float, max_bytes: int) -> None:
        if not max_seconds >= 0 or max_bytes < 0:
            raise ValueError(
                f"history bounds must not be negative: {max_seconds} s, {max_bytes} bytes"
            )
        self._max_age = max_seconds * _NANOSECONDS
        self._max_bytes = max_bytes
        self._frames: deque[StampedT] = deque()
        self._nbytes = 0
        self._lock = threading.Lock()

    def append(self, frame: StampedT) -> bool:
        """Add the newest frame; return False if its stamp ran backwards and the rest was cleared.

        A frame with the newest stamp again replaces that one.
        """
        with self._lock:
            in_order = True
            if self._frames and frame.stamp < self._frames[-1].stamp:
                self._clear()
                in_order = False
            if self._frames and frame.stamp == self._frames[-1].stamp:
                self._nbytes -= self._frames.pop().nbytes
            self._frames.append(frame)
            self._nbytes += frame.nbytes
            while len(self._frames) > 1 and (
                self._nbytes > self._max_bytes
                or frame.stamp - self._frames[0].stamp > self._max_age
            ):
                self._nbytes -= self._frames.popleft().nbytes
            return in_order

    def find(self, stamp: int, tolerance: int = 0) -> StampedT | None:
        """The frame nearest to `stamp`, if no more than `tolerance` ns away from it."""
        with self._lock:
            stamps = [frame.stamp for frame in self._frames]
            at = bisect_left(stamps, stamp)
            near = [i for i in (at - 1, at) if 0 <= i < len(stamps)]
            if not near:
                return None
            best = min(near, key=lambda i: abs(stamps[i] - stamp))
            return self._frames[best] if abs(stamps[best] - stamp) <= tolerance else None

    def after(self, stamp: int) -> list[StampedT]:
        """All frames younger than `stamp`, oldest first."""
        with self._lock:
            frames = list(self._frames)
        return frames[bisect_right([frame.stamp for frame in frames], stamp) :]

    def clear(self) -> None:
        with self._lock:
            self._clear()

    @property
    def newest(self) -> StampedT | None:
        with self._lock:
            return self._frames[-1] if self._frames else None

    @property
    def oldest(self) -> StampedT | None:
        with self._lock:
            return self._frames[0] if self._frames else None

    @property
    def interval(self) -> int | None:
        """The usual (median) distance between two frames' stamps in ns, None for fewer than two
        frames."""
        with self._lock:
            gaps = sorted(b.stamp - a.stamp for a, b in pairwise(self._frames))
        return gaps[len(gaps) // 2] if gaps else None

    @property
    def nbytes(self) -> int:
        """Bytes of memory the frames keep alive."""
        with self._lock:
            return self._nbytes

    def __len__(self) -> int:
        with self._lock:
            return len(self._frames)

    def _clear(self) -> None:
        self._frames.clear()
        self._nbytes = 0
