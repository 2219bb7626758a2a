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
    image: NDArray[np.uint8], text: str, colour: Colour = WHITE, origin: tuple[int, int] = (0, 0)
) -> None:
    """Write a line of ASCII text on a dark plate with its top left corner at `origin`, in place."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    scale = max(0.4, min(image.shape[0], 1080) / 900)
    weight = max(1, round(1.6 * scale))
    margin = round(8 * scale)
    (width, height), below = cv2.getTextSize(text, font, scale, weight)
    x, y = origin
    # A plate and not an outline: OpenCV 5 sets bolder letters wider, so that the two drift apart.
    plate = image[y : y + height + below + 2 * margin, x : x + width + 2 * margin]
    plate //= 4
    place = (x + margin, y + margin + height)
    cv2.putText(image, text, place, font, scale, colour, weight, cv2.LINE_AA)
