"""The frame history keeps its bounds and its order, from any thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostrack_ros.tracking.frame import Frame, FrameError, PixelFormat
from ostrack_ros.tracking.history import FrameHistory

SECOND = 1_000_000_000
PIXELS = np.zeros((10, 10), np.uint8)


def frame(stamp: float, rows: int = 10) -> Frame:
    return Frame(np.zeros((rows, 10), np.uint8), PixelFormat.MONO, int(stamp * SECOND))


def stamps(history: FrameHistory) -> list[float]:
    return [f.stamp / SECOND for f in history.after(-1)]


def test_starts_empty() -> None:
    history = FrameHistory(1.0, 1000)
    assert len(history) == 0
    assert history.newest is None
    assert history.oldest is None
    assert history.find(0) is None
    assert history.after(-5) == []


def test_find_and_after() -> None:
    history = FrameHistory(10.0, 10_000)
    frames = [frame(t) for t in (1, 2, 3, 4)]
    for f in frames:
        history.append(f)
    assert history.find(2 * SECOND) is frames[1]
    assert history.find(2 * SECOND + 1) is None
    assert history.find(2 * SECOND + 1, tolerance=1) is frames[1]
    assert history.find(3 * SECOND - 1, tolerance=SECOND) is frames[2]
    assert history.find(0, tolerance=SECOND) is frames[0]
    assert history.find(9 * SECOND, tolerance=SECOND) is None
    assert history.after(2 * SECOND) == frames[2:]
    assert history.after(4 * SECOND) == []
    assert history.oldest is frames[0]
    assert history.newest is frames[3]


def test_interval_is_the_usual_one() -> None:
    history = FrameHistory(100.0, 10_000)
    assert history.interval is None
    history.append(frame(0))
    assert history.interval is None
    for t in (1, 2, 12, 13):
        history.append(frame(t))
    assert history.interval == SECOND


def test_bounded_in_seconds() -> None:
    history = FrameHistory(1.0, 10_000)
    for t in (0.0, 0.5, 1.0, 1.5):
        history.append(frame(t))
    assert stamps(history) == [0.5, 1.0, 1.5]
    history.append(frame(60.0))
    assert stamps(history) == [60.0]


def test_bounded_in_bytes() -> None:
    history = FrameHistory(100.0, 250)
    for t in range(5):
        history.append(frame(t))
    assert stamps(history) == [3, 4]
    assert history.nbytes == 200
    history.append(frame(5, rows=1000))
    assert stamps(history) == [5], "the newest frame stays even where it alone is too large"


def test_counts_the_padding_of_rows() -> None:
    buffer = np.zeros((10, 64), np.uint8)
    history = FrameHistory(1.0, 1000)
    history.append(Frame(buffer[:, :10], PixelFormat.MONO, 0))
    assert history.nbytes == 640


def test_stamps_running_backwards_clear_it() -> None:
    history = FrameHistory(10.0, 10_000)
    assert history.append(frame(5))
    assert history.append(frame(6))
    assert not history.append(frame(2))
    assert stamps(history) == [2]
    assert history.nbytes == 100


def test_a_stamp_twice_replaces() -> None:
    history = FrameHistory(10.0, 10_000)
    history.append(frame(1))
    second = frame(1)
    assert history.append(second)
    assert history.after(-1) == [second]
    assert history.nbytes == 100


def test_clear() -> None:
    history = FrameHistory(10.0, 10_000)
    history.append(frame(1))
    history.clear()
    assert len(history) == 0
    assert history.nbytes == 0
    assert history.append(frame(0))


@pytest.mark.parametrize("bounds", [(-1.0, 5), (1.0, -5), (float("nan"), 5)])
def test_refuses_bad_bounds(bounds: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="history bounds"):
        FrameHistory(*bounds)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-3, 8), st.integers(1, 30)), max_size=40),
    st.integers(0, 12),
    st.integers(0, 2000),
)
def test_invariants(steps: list[tuple[int, int]], seconds: int, limit: int) -> None:
    history = FrameHistory(seconds, limit)
    now = 100
    for step, rows in steps:
        now += step
        history.append(frame(now, rows))
        kept = history.after(-1)
        assert kept[-1].stamp == now * SECOND
        assert history.nbytes == sum(f.nbytes for f in kept)
        assert [f.stamp for f in kept] == sorted({f.stamp for f in kept})
        assert len(kept) == 1 or history.nbytes <= limit
        assert kept[-1].stamp - kept[0].stamp <= seconds * SECOND


def test_threads_may_read_while_one_writes() -> None:
    history = FrameHistory(0.05, 100_000)
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                newest, oldest = history.newest, history.oldest
                assert (newest is None) == (oldest is None) or len(history) >= 0
                ordered = [f.stamp for f in history.after(-1)]
                assert ordered == sorted(ordered)
                history.find(ordered[0] if ordered else 0, tolerance=5)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(3000):
        history.append(Frame(PIXELS, PixelFormat.MONO, i * 1_000_000))
    done.set()
    for reader in readers:
        reader.join()
    assert not failures


@pytest.mark.parametrize(
    ("pixels", "pixel_format", "message"),
    [
        (np.zeros((4, 4), np.uint16), PixelFormat.MONO, "uint16"),
        (np.zeros((4, 4), np.uint8), PixelFormat.RGB, r"\[4, 4\].*3 channel"),
        (np.zeros((4, 4, 3), np.uint8), PixelFormat.BGRA, "bgra8"),
        (np.zeros((4, 4, 1), np.uint8), PixelFormat.MONO, r"\[H, W\]"),
        (np.zeros((0, 4), np.uint8), PixelFormat.MONO, "4x0"),
    ],
)
def test_frames_refuse_what_does_not_fit(
    pixels: np.ndarray, pixel_format: PixelFormat, message: str
) -> None:
    with pytest.raises(FrameError, match=message):
        Frame(pixels, pixel_format, 0)
