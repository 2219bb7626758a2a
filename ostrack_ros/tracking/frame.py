"""Stamped camera frames as the tracker sees them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class FrameError(ValueError):
    """A frame cannot be used. The message says which property is wrong and its value."""


class PixelFormat(Enum):
    """Order of the 8-bit channels of a pixel; the values are ROS image encodings."""

    RGB = "rgb8"
    BGR = "bgr8"
    RGBA = "rgba8"
    BGRA = "bgra8"
    MONO = "mono8"

    @property
    def channels(self) -> int:
        if self is PixelFormat.MONO:
            return 1
        return 4 if self in (PixelFormat.RGBA, PixelFormat.BGRA) else 3


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image and the time it was taken.

    `pixels` is uint8 [H, W, C], or [H, W] for MONO, and may be a strided view of a buffer the
    frame does not own (a message's padded rows, say); nobody writes to it. `stamp` is nanoseconds
    on the clock of the camera's messages.

    Raises FrameError when the pixels do not fit the format.
    """

    pixels: NDArray[np.uint8]
    format: PixelFormat
    stamp: int

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.dtype != np.uint8:
            raise FrameError(
                f"pixels are {pixels.dtype}, expected uint8; scale them to 8 bits first"
            )
        fits = (
            pixels.ndim == 2
            if self.format is PixelFormat.MONO
            else pixels.ndim == 3 and pixels.shape[2] == self.format.channels
        )
        if not fits:
            expected = "[H, W]" if self.format is PixelFormat.MONO else "[H, W, C]"
            raise FrameError(
                f"pixels have shape {list(pixels.shape)}, expected {expected} with "
                f"{self.format.channels} channel(s) for {self.format.value}"
            )
        if 0 in pixels.shape:
            raise FrameError(f"the image is empty: {self.width}x{self.height} pixels")

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of memory the frame keeps alive, padding between rows included."""
        row = int(self.pixels.strides[0])
        return max(self.pixels.nbytes, abs(row) * self.height)
