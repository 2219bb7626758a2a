"""The image encodings the node accepts, and how each becomes 8-bit pixels the tracker can read.

Plain NumPy and OpenCV. Encoding names and layouts are those of sensor_msgs/image_encodings.hpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ostrack_ros.tracking.frame import FrameError, PixelFormat

Pixels = NDArray[np.uint8]


class ConversionError(FrameError):
    """An image message cannot become a frame. The message names the property and its value."""


class Buffer(Protocol):
    """The part of sensor_msgs/Image that holds pixels."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


@dataclass(frozen=True, slots=True)
class Encoding:
    """Layout of one encoding and the way to 8-bit pixels.

    A row holds `width * channels` samples of `depth` bytes. Semi-planar YUV (`planar`) adds half
    as many rows of interleaved chroma below the luma. `convert` is None where the buffer can be
    used as it lies.
    """

    format: PixelFormat
    channels: int = 1
    depth: int = 1
    planar: bool = False
    even_width: bool = False
    convert: Callable[[NDArray[Any]], Pixels] | None = None

    def rows(self, height: int) -> int:
        return height * 3 // 2 if self.planar else height


def find_encoding(name: str) -> Encoding:
    """Raises ConversionError for a name that is not supported, listing those that are."""
    try:
        return ENCODINGS[name]
    except KeyError:
        raise ConversionError(
            f"encoding {name!r} is not supported; this node reads {', '.join(ENCODINGS)}"
        ) from None


def check_layout(image: Buffer) -> Encoding:
    """Check sizes against the encoding and the buffer, without touching a pixel.

    Raises ConversionError naming the value that is wrong.
    """
    encoding = find_encoding(image.encoding)
    width, height = image.width, image.height
    if width <= 0 or height <= 0:
        raise ConversionError(f"the image is {width}x{height} pixels; both must be positive")
    if (encoding.even_width and width % 2) or (encoding.planar and height % 2):
        raise ConversionError(
            f"the image is {width}x{height} pixels, but {image.encoding} shares colour between "
            "neighbours and needs even sizes"
        )
    row = width * encoding.channels * encoding.depth
    if image.step < row:
        raise ConversionError(
            f"step is {image.step} bytes, but a row of {width} {image.encoding} pixels has {row}"
        )
    # Some drivers leave the padding after the last row out.
    needed = image.step * (encoding.rows(height) - 1) + row
    if len(image.data) < needed:
        raise ConversionError(
            f"the buffer holds {len(image.data)} bytes, but {width}x{height} {image.encoding} "
            f"with a step of {image.step} needs {needed}"
        )
    return encoding


def pixels_of(image: Buffer) -> tuple[Pixels, PixelFormat]:
    """8-bit pixels [H, W] or [H, W, C]: a view of the buffer where the encoding allows it.

    Raises ConversionError as `check_layout` does.
    """
    encoding = check_layout(image)
    samples = _view(image, encoding)
    return (samples if encoding.convert is None else encoding.convert(samples)), encoding.format


def _view(image: Buffer, encoding: Encoding) -> NDArray[Any]:
    rows, depth, channels = encoding.rows(image.height), encoding.depth, encoding.channels
    dtype = np.dtype(np.uint8 if depth == 1 else (">u2" if image.is_bigendian else "<u2"))
    shape: tuple[int, ...] = (rows, image.width)
    strides: tuple[int, ...] = (image.step, channels * depth)
    if channels > 1:
        shape, strides = (*shape, channels), (*strides, depth)
    samples: NDArray[Any] = np.ndarray(shape, dtype, buffer=image.data, strides=strides)
    return samples


def _scaled_to_8_bits(samples: NDArray[Any]) -> Pixels:
    """16-bit [H, W] to 8-bit by the full range, as cv_bridge does it: v * 255 / 65535, rounded."""
    native = np.ascontiguousarray(samples, dtype=np.uint16)
    return np.asarray(cv2.convertScaleAbs(native, alpha=255.0 / 65535.0), dtype=np.uint8)


def _colour(code: int) -> Callable[[NDArray[Any]], Pixels]:
    def convert(samples: NDArray[Any]) -> Pixels:
        eight_bit = _scaled_to_8_bits(samples) if samples.dtype.itemsize == 2 else samples
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(eight_bit), code), dtype=np.uint8)

    return convert


def _bayer(code: int, depth: int) -> Encoding:
    return Encoding(PixelFormat.RGB, depth=depth, convert=_colour(code))


def _packed_yuv(code: int) -> Encoding:
    return Encoding(PixelFormat.RGB, channels=2, even_width=True, convert=_colour(code))


def _semi_planar(code: int) -> Encoding:
    return Encoding(PixelFormat.RGB, planar=True, even_width=True, convert=_colour(code))


# OpenCV names a Bayer pattern by the second row's second and third pixel, ROS by the first two of
# both rows: rggb here is BG there.
_BAYER_CODES = {
    "rggb": cv2.COLOR_BayerBG2RGB,
    "bggr": cv2.COLOR_BayerRG2RGB,
    "gbrg": cv2.COLOR_BayerGR2RGB,
    "grbg": cv2.COLOR_BayerGB2RGB,
}

ENCODINGS: dict[str, Encoding] = {
    "rgb8": Encoding(PixelFormat.RGB, channels=3),
    "bgr8": Encoding(PixelFormat.BGR, channels=3),
    "rgba8": Encoding(PixelFormat.RGBA, channels=4),
    "bgra8": Encoding(PixelFormat.BGRA, channels=4),
    "mono8": Encoding(PixelFormat.MONO),
    "8UC1": Encoding(PixelFormat.MONO),
    "8UC3": Encoding(PixelFormat.BGR, channels=3),
    "mono16": Encoding(PixelFormat.MONO, depth=2, convert=_scaled_to_8_bits),
    "yuv422": _packed_yuv(cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _packed_yuv(cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _packed_yuv(cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": _packed_yuv(cv2.COLOR_YUV2RGB_YUYV),
    "nv12": _semi_planar(cv2.COLOR_YUV2RGB_NV12),
    "nv21": _semi_planar(cv2.COLOR_YUV2RGB_NV21),
    **{f"bayer_{name}8": _bayer(code, 1) for name, code in _BAYER_CODES.items()},
    **{f"bayer_{name}16": _bayer(code, 2) for name, code in _BAYER_CODES.items()},
}
