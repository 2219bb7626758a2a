"""Boxes and their arithmetic. Units are pixels; x points right, y points down."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


class BoxError(ValueError):
    """A box cannot be used. The message names the box and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box: top left corner and size, in pixels, as floats.

    The corner-and-size form is that of OTB, LaSOT and GOT-10k ground truth. A box may lie partly
    or wholly outside the image; only `is_valid` boxes can be tracked.
    """

    x: float
    y: float
    width: float
    height: float

    @classmethod
    def from_center(cls, cx: float, cy: float, width: float, height: float) -> Box:
        return cls(cx - 0.5 * width, cy - 0.5 * height, width, height)

    @property
    def cx(self) -> float:
        return self.x + 0.5 * self.width

    @property
    def cy(self) -> float:
        return self.y + 0.5 * self.height

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def is_valid(self) -> bool:
        """Finite, with a positive width and height."""
        return all(map(math.isfinite, self)) and self.width > 0 and self.height > 0

    def __str__(self) -> str:
        return f"box (x {self.x:g}, y {self.y:g}, {self.width:g} x {self.height:g})"

    def __iter__(self) -> Iterator[float]:
        return iter((self.x, self.y, self.width, self.height))

    def clipped(self, image_width: int, image_height: int, margin: float = 0.0) -> Box:
        """The box pulled back so that at least `margin` pixels of it stay inside the image.

        This is OSTrack's `clip_box` (margin 10): each corner is clamped on its own, so a box far
        outside shrinks to `margin` pixels at the border instead of vanishing.
        """
        x1 = min(max(0.0, self.x), image_width - margin)
        x2 = min(max(margin, self.right), image_width)
        y1 = min(max(0.0, self.y), image_height - margin)
        y2 = min(max(margin, self.bottom), image_height)
        return Box(x1, y1, max(margin, x2 - x1), max(margin, y2 - y1))


def intersection(a: Box, b: Box) -> float:
    """Area of overlap in square pixels."""
    width = min(a.right, b.right) - max(a.x, b.x)
    height = min(a.bottom, b.bottom) - max(a.y, b.y)
    return max(0.0, width) * max(0.0, height)


def iou(a: Box, b: Box) -> float:
    """Intersection over union in [0, 1]; 0 where either box is not valid."""
    if not (a.is_valid and b.is_valid):
        return 0.0
    overlap = intersection(a, b)
    # A far corner is rounded, so that a thin box can overlap itself by more than its area.
    return min(1.0, overlap / (a.area + b.area - overlap))
