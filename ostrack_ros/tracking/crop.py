"""Square crops around a box, bit-exact with OSTrack's `sample_target`.

The published function pads the crop and resizes it. The same pixels come out, cheaper, from a view
of the frame where the crop lies inside the image; where it does not, from a black canvas that gets
only the rows the interpolation will read; and where a crop is much larger than what it shows of
the image, without any canvas. Colours are converted on the small result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box, BoxError
from ostrack_ros.tracking.resample import matches_opencv, shrink_on_black

MAX_SIDE = 32_000
"""Largest crop in pixels: above it a box is a mistake, and the canvas would not fit in memory."""

_TO_RGB = {
    PixelFormat.BGR: cv2.COLOR_BGR2RGB,
    PixelFormat.RGBA: cv2.COLOR_RGBA2RGB,
    PixelFormat.BGRA: cv2.COLOR_BGRA2RGB,
    PixelFormat.MONO: cv2.COLOR_GRAY2RGB,
}


class CropError(BoxError):
    """No crop can be taken around this box: it is too small, too large, or misses the image."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A square cut-out at the network's input size.

    `pixels` is contiguous uint8 RGB [size, size, 3]; `side` is the length in image pixels of the
    square that was cut, `scale` is size / side (OSTrack's resize factor).
    """

    pixels: NDArray[np.uint8]
    side: int
    scale: float


def crop_side(box: Box, factor: float) -> int:
    """Side in pixels of the square around `box`: ceil(sqrt(area) * factor).

    Raises BoxError for a box that is not finite or has no area, CropError outside 1..MAX_SIDE.
    """
    if not (box.is_valid and math.isfinite(box.right) and math.isfinite(box.bottom)):
        raise BoxError(f"{box} is not a box: it needs finite numbers and a positive size")
    side = math.sqrt(box.area) * factor
    if not side <= MAX_SIDE:
        raise CropError(
            f"{box} needs a crop of {side:.0f} pixels a side, the limit is {MAX_SIDE}; "
            "is the box given in pixels of this image?"
        )
    if side <= 0:
        raise CropError(f"{box} is too small to crop: its area is zero in floating point")
    return math.ceil(side)


def crop_region(frame: Frame, box: Box, factor: float, size: int) -> Crop:
    """Cut the square of side ceil(sqrt(box area) * factor) around the box centre.

    Its corner is rounded half to even, what lies outside the image is black, and the result is
    resized bilinearly to `size`. Where the square reaches the right or bottom edge, the image's
    last column or row is black too: the networks were trained with that off-by-one.

    Raises BoxError for an invalid box, CropError (a BoxError) if the square is out of bounds or
    misses the image. Source: OSTrack, lib/train/data/processing_utils.py, behaviour of
    `sample_target`.
    """
    side = crop_side(box, factor)
    x1 = round(box.cx - 0.5 * side)
    y1 = round(box.cy - 0.5 * side)
    left, right = max(0, x1), min(x1 + side, frame.width - 1)
    top, bottom = max(0, y1), min(y1 + side, frame.height - 1)
    if left >= right or top >= bottom:
        raise CropError(
            f"the {side}-pixel square at ({x1}, {y1}) around {box} misses the "
            f"{frame.width}x{frame.height} image"
        )
    view = frame.pixels[top:bottom, left:right]
    if view.shape[:2] == (side, side) and _opencv_reads(view):
        resized = _resize(view, size)
    elif _mostly_black(view, side, size) and matches_opencv():
        resized = shrink_on_black(view, left - x1, top - y1, side, size)
    else:
        resized = _resize(_on_canvas(view, left - x1, top - y1, side, size), size)
    code = _TO_RGB.get(frame.format)
    pixels = resized if code is None else cv2.cvtColor(resized, code)
    return Crop(np.asarray(pixels, dtype=np.uint8), side, size / side)


def _opencv_reads(view: NDArray[np.uint8]) -> bool:
    """Whether OpenCV takes the view as it is: packed pixels in each row, rows in order."""
    packed = 1
    for length, stride in zip(view.shape[:0:-1], view.strides[:0:-1], strict=True):
        if stride != packed:
            return False
        packed *= length
    return view.strides[0] >= packed


def _mostly_black(view: NDArray[np.uint8], side: int, size: int) -> bool:
    """Whether computing the few pixels that see the image is cheaper than a canvas (measured)."""
    share = view.shape[0] * view.shape[1] / (side * side)
    return side > 8 * size or (side > 4 * size and share < 0.5)


def _resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (1, 1):  # OpenCV 4.5.4 (Ubuntu 22.04) refuses these if they have colours.
        return np.tile(image, (size, size, 1)[: image.ndim])
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def _on_canvas(
    view: NDArray[np.uint8], left: int, top: int, side: int, size: int
) -> NDArray[np.uint8]:
    """The view at (left, top) of a black square, complete only in the rows `cv2.resize` reads.

    Shrinking to `size` rows reads the two source rows around each sampled place, so of a crop much
    larger than that most rows need not be copied, and untouched pages of the canvas cost nothing.
    """
    canvas = np.zeros((side, side, *view.shape[2:]), dtype=np.uint8)
    height, width = view.shape[:2]
    if side <= 4 * size:
        canvas[top : top + height, left : left + width] = view
        return canvas
    sampled = np.rint((np.arange(size) + 0.5) * (side / size) - 0.5).astype(np.intp)
    # One row to either side covers floor and ceiling of the sampled place, however it is rounded.
    rows = (sampled[:, None] + np.array([-1, 0, 1])).ravel() - top
    rows = rows[(rows >= 0) & (rows < height)]
    canvas[rows + top, left : left + width] = view[rows]
    return canvas
