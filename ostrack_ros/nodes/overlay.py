"""The track drawn onto its image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ostrack_ros.drawing import Colour, draw_box, draw_label
from ostrack_ros.palette import state_colour
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.presence import TargetState

_TO_BGR = {
    PixelFormat.RGB: cv2.COLOR_RGB2BGR,
    PixelFormat.RGBA: cv2.COLOR_RGBA2BGR,
    PixelFormat.BGRA: cv2.COLOR_BGRA2BGR,
    PixelFormat.MONO: cv2.COLOR_GRAY2BGR,
}
_FAR = 1e5
_MOST_DASHES = 1000


@dataclass(frozen=True, slots=True)
class Caption:
    """What the overlay shows besides the image; `box` in pixels, None where there is none."""

    state: TargetState
    box: Box | None = None
    confidence: float | None = None
    track_id: int = 0

    @property
    def text(self) -> str:
        words = [self.state.name]
        if self.track_id:
            words.insert(0, f"#{self.track_id}")
        if self.confidence is not None:
            words.append(f"{100 * self.confidence:.0f} %")
        return " ".join(words)


def draw_overlay(frame: Frame, caption: Caption) -> NDArray[np.uint8]:
    """A new BGR image uint8 [H, W, 3] with box and label.

    A box that was not measured on this image (COASTING) is dashed.
    """
    code = _TO_BGR.get(frame.format)
    pixels = np.ascontiguousarray(frame.pixels)
    copied = cv2.cvtColor(pixels, code) if code is not None else frame.pixels.copy()
    image = np.asarray(copied, dtype=np.uint8)
    red, green, blue = state_colour(caption.state)
    colour = (blue, green, red)
    thickness = max(1, round(min(frame.width, frame.height) / 240))
    if caption.box is not None:
        box = _drawable(caption.box)
        if caption.state is TargetState.COASTING:
            _draw_dashed(image, box, colour, thickness)
        else:
            draw_box(image, box, colour, thickness)
    draw_label(image, caption.text, colour)
    return image


def _drawable(box: Box) -> Box:
    """The box within what OpenCV's 32-bit coordinates can draw."""
    x1, y1 = max(box.x, -_FAR), max(box.y, -_FAR)
    return Box(x1, y1, min(box.right, _FAR) - x1, min(box.bottom, _FAR) - y1)


def _draw_dashed(image: NDArray[np.uint8], box: Box, colour: Colour, thickness: int) -> None:
    corners = [
        (box.x, box.y),
        (box.right, box.y),
        (box.right, box.bottom),
        (box.x, box.bottom),
    ]
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        # Line ends are round: a period must leave a gap between them.
        dashes = max(2, round(math.hypot(x2 - x1, y2 - y1) / max(16, 10 * thickness)))
        for dash in range(min(dashes, _MOST_DASHES)):
            start, end = (dash + 0.3) / dashes, (dash + 0.7) / dashes
            first = round(x1 + start * (x2 - x1)), round(y1 + start * (y2 - y1))
            last = round(x1 + end * (x2 - x1)), round(y1 + end * (y2 - y1))
            cv2.line(image, first, last, (0, 0, 0), thickness + 2, cv2.LINE_AA)
            cv2.line(image, first, last, colour, thickness, cv2.LINE_AA)
