"""Boxes drawn onto images, for people to look at."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ostrack_ros.tracking.geometry import Box

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
GREEN: Colour = (80, 220, 60)
AMBER: Colour = (0, 190, 255)
RED: Colour = (50, 50, 240)


def draw_box(image: NDArray[np.uint8], box: Box, colour: Colour, thickness: int = 2) -> None:
    """Draw the outline of `box` into `image`, BGR uint8 [H, W, 3], in place."""
    corners = (round(box.x), round(box.y)), (round(box.right), round(box.bottom))
    # A dark seam keeps the box visible on a background of its own colour.
    cv2.rectangle(image, *corners, (0, 0, 0), thickness + 2, cv2.LINE_AA)
    cv2.rectangle(image, *corners, colour, thickness, cv2.LINE_AA)


def draw_label(
    image: NDArray[np.uint8], text: str, colour: Colour = WHITE, origin: tuple[int, int] = (8, 8)
) -> None:
    """Write a line of ASCII text with its top left corner at `origin`, in place."""
    scale = max(0.4, min(image.shape[0], 1080) / 900)
    weight = max(1, round(1.6 * scale))
    (_, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
    place = (origin[0], origin[1] + height)
    cv2.putText(
        image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), weight + 2, cv2.LINE_AA
    )
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, weight, cv2.LINE_AA)
