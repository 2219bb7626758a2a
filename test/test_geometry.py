"""Boxes: clipping as OSTrack does it, overlap as the benchmarks do."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ostrack_ros.tracking.geometry import Box, intersection, iou

numbers = st.floats(-2000, 2000)
lengths = st.floats(0.01, 2000)
boxes = st.builds(Box, numbers, numbers, lengths, lengths)


@given(boxes)
def test_center_form_round_trips(box: Box) -> None:
    again = Box.from_center(box.cx, box.cy, box.width, box.height)
    assert list(again) == pytest.approx(list(box), abs=1e-9)


@given(boxes, st.integers(20, 4000), st.integers(20, 4000))
def test_clipped_keeps_the_margin_inside(box: Box, width: int, height: int) -> None:
    clipped = box.clipped(width, height, 10.0)
    assert clipped.is_valid
    inside = intersection(clipped, Box(0, 0, width, height))
    assert inside >= 10.0 * 10.0 * (1 - 1e-9)
    again = clipped.clipped(width, height, 10.0)
    assert list(again) == pytest.approx(list(clipped), abs=1e-9)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Box(5, 6, 20, 30), Box(5, 6, 20, 30)),
        (Box(-5, -6, 20, 30), Box(0, 0, 15, 24)),
        (Box(90, 70, 20, 30), Box(90, 70, 10, 10)),
        (Box(200, 300, 20, 30), Box(90, 70, 10, 10)),
        (Box(-200, -300, 20, 30), Box(0, 0, 10, 10)),
        (Box(20, 20, 3, 2), Box(20, 20, 10, 10)),
        (Box(-50, 20, 500, 40), Box(0, 20, 100, 40)),
    ],
)
def test_clipped_as_published(box: Box, expected: Box) -> None:
    """Values worked out from OSTrack's rule for a 100 x 80 image and margin 10."""
    assert box.clipped(100, 80, 10.0) == expected


@given(boxes, boxes)
@example(Box(0.0, 64.0, 1.0, 0.01), Box(0.0, 64.0, 1.0, 0.01))
def test_iou_is_symmetric_and_bounded(a: Box, b: Box) -> None:
    assert iou(a, b) == iou(b, a)
    assert 0.0 <= iou(a, b) <= 1.0
    assert iou(a, a) == pytest.approx(1.0)


def test_iou_value() -> None:
    assert iou(Box(0, 0, 2, 2), Box(1, 1, 2, 2)) == pytest.approx(1 / 7)
    assert iou(Box(0, 0, 2, 2), Box(2, 0, 2, 2)) == 0.0


@pytest.mark.parametrize(
    "box",
    [Box(math.nan, 0, 1, 1), Box(0, math.inf, 1, 1), Box(0, 0, 0, 1), Box(0, 0, 1, -1)],
)
def test_invalid_boxes(box: Box) -> None:
    assert not box.is_valid
    assert iou(box, Box(0, 0, 5, 5)) == 0.0
