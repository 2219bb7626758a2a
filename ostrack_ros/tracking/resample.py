"""Shrink an image that lies somewhere in a much larger black square, without making the square.

`cv2.resize` needs all of the square in memory. Its bilinear filter on 8 bits is integer arithmetic
with 11-bit weights, so the few output pixels that see the image can be computed directly and equal
its answer to the bit. That is OpenCV's business, not its promise: `matches_opencv` compares the two
once, and where they differ the caller has to take the long way.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_ONE = 2048


@dataclass(frozen=True, slots=True)
class _Taps:
    """Along one axis: which outputs see the image, and from where with which weights.

    `outputs` is the range of outputs; `first` and `second` index the image, with weight zero where
    the tap lies outside of it.
    """

    outputs: slice
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight_first: NDArray[np.int32]
    weight_second: NDArray[np.int32]


def shrink_on_black(
    image: NDArray[np.uint8], left: int, top: int, side: int, size: int
) -> NDArray[np.uint8]:
    """`image` [h, w] or [h, w, C] at (left, top) of a black square, resized from side to size.

    `side` must be larger than `size`. Returns uint8 [size, size] or [size, size, C], equal to
    cv2.resize of the square (INTER_LINEAR) where `matches_opencv` holds.
    """
    rows = _taps(image.shape[0], top, side, size)
    columns = _taps(image.shape[1], left, side, size)
    across = (1, -1) + (1,) * (image.ndim - 2)
    upper = _horizontal(image[rows.first], columns, across)
    lower = _horizontal(image[rows.second], columns, across)
    down = (-1, 1) + (1,) * (image.ndim - 2)
    blended = (
        ((upper >> 4) * rows.weight_first.reshape(down) >> 16)
        + ((lower >> 4) * rows.weight_second.reshape(down) >> 16)
        + 2
    ) >> 2
    result = np.zeros((size, size, *image.shape[2:]), np.uint8)
    result[rows.outputs, columns.outputs] = blended
    return result


@functools.cache
def matches_opencv() -> bool:
    """Whether this build of OpenCV computes as `shrink_on_black` does."""
    random = np.random.default_rng(0)
    for side, size, channels in ((301, 96, 3), (667, 64, 1), (701, 32, 4)):
        image = random.integers(0, 256, (200, 280, channels), dtype=np.uint8)
        square = np.zeros((side, side, channels), np.uint8)
        square[7:207, 11:291] = image
        ours = shrink_on_black(image, 11, 7, side, size)
        if not np.array_equal(ours, cv2.resize(square, (size, size)).reshape(ours.shape)):
            return False
    return True


def _horizontal(rows: NDArray[np.uint8], taps: _Taps, shape: tuple[int, ...]) -> NDArray[np.int32]:
    first = np.take(rows, taps.first, axis=1).astype(np.int32)
    second = np.take(rows, taps.second, axis=1).astype(np.int32)
    first *= taps.weight_first.reshape(shape)
    second *= taps.weight_second.reshape(shape)
    first += second
    return first


def _taps(length: int, offset: int, side: int, size: int) -> _Taps:
    """Taps into an image of `length` pixels at `offset` along one axis of the square."""
    scale = 1.0 / (size / side)
    place = ((np.arange(size) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.intp)
    share = place - first.astype(np.float32)
    share[first < 0] = 0
    share[first >= side - 1] = 0
    first = first.clip(0, side - 1)
    second = np.minimum(first + 1, side - 1)
    sees = (second >= offset) & (first < offset + length)
    outputs = slice(int(sees.argmax()), size - int(sees[::-1].argmax())) if sees.any() else slice(0)
    first, second, share = first[outputs] - offset, second[outputs] - offset, share[outputs]
    weight_second = np.rint(share * np.float32(_ONE)).astype(np.int32)
    weight_first = np.rint((np.float32(1) - share) * np.float32(_ONE)).astype(np.int32)
    weight_first[(first < 0) | (first >= length)] = 0
    weight_second[(second < 0) | (second >= length)] = 0
    return _Taps(
        outputs,
        first.clip(0, length - 1),
        second.clip(0, length - 1),
        weight_first,
        weight_second,
    )
