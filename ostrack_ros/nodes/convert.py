"""ROS messages to the tracker's types and back."""

from __future__ import annotations

import math
from array import array
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Duration, Time
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from ostrack_ros.msg import Box2D
from ostrack_ros.nodes.distro_bridge import CONVERTED_BY_BRIDGE, Convert, find_distro_bridge
from ostrack_ros.nodes.encodings import ConversionError, check_layout, pixels_of
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box

NANOSECONDS = 1_000_000_000


class ReceivedImage:
    """An image message as it arrived; pixels are converted when somebody asks for them.

    Frames that are dropped under load so cost nothing but the reference. `stamp` is nanoseconds:
    that of the header, or `fallback_stamp` where a driver leaves it zero.

    Raises ConversionError when the message cannot hold an image of its encoding.
    """

    __slots__ = ("_bridge", "header", "message", "stamp")

    def __init__(
        self,
        message: Image | CompressedImage,
        fallback_stamp: int = 0,
        bridge: Convert | None = None,
    ) -> None:
        if isinstance(message, CompressedImage):
            _check_compressed(message)
        else:
            check_layout(message)
        self.message = message
        self.header: Header = message.header
        self.stamp = stamp_to_nanoseconds(message.header.stamp) or fallback_stamp
        self._bridge = bridge

    @property
    def nbytes(self) -> int:
        """Bytes of memory the message keeps alive."""
        return len(self.message.data)

    def frame(self) -> Frame:
        """The pixels: a view for 8-bit colour and mono, converted at each call otherwise.

        Raises ConversionError when a compressed image cannot be decoded.
        """
        pixels, pixel_format = self._pixels()
        return Frame(pixels, pixel_format, self.stamp)

    def _pixels(self) -> tuple[NDArray[np.uint8], PixelFormat]:
        if isinstance(self.message, CompressedImage):
            return decode_compressed(self.message)
        if self._bridge is not None and self.message.encoding in CONVERTED_BY_BRIDGE:
            return self._bridge(self.message)
        return pixels_of(self.message)


class ImageReader:
    """Makes `ReceivedImage`s, with the distro's cv_bridge behind them where there is one."""

    def __init__(self) -> None:
        self._bridge = find_distro_bridge()

    @property
    def description(self) -> str:
        return "cv_bridge" if self._bridge else "OpenCV"

    def read(self, message: Image | CompressedImage, now: int) -> ReceivedImage:
        """Raises ConversionError. `now` (ns) stands in for a stamp that is zero."""
        return ReceivedImage(message, now, self._bridge)


def frame_from_image(message: Image) -> Frame:
    """An Image as a Frame, zero-copy where possible. Raises ConversionError."""
    return ReceivedImage(message).frame()


def decode_compressed(message: CompressedImage) -> tuple[NDArray[np.uint8], PixelFormat]:
    """Decode JPEG, PNG or whatever else OpenCV reads, to 8-bit BGR or mono.

    Raises ConversionError.
    """
    _check_compressed(message)
    data = np.frombuffer(message.data, np.uint8)
    # Orientation tags are about viewing: the camera's calibration is for the pixels as stored.
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        decoded: Any = cv2.imdecode(data, flags)
    except cv2.error as error:
        raise ConversionError(f"the compressed image cannot be decoded: {error}") from error
    if decoded is None:
        raise ConversionError(
            f"the compressed image ({len(message.data)} bytes, format {message.format!r}) "
            "cannot be decoded; it is damaged or of a kind OpenCV does not read"
        )
    pixels = np.asarray(decoded, dtype=np.uint8)
    return pixels, PixelFormat.MONO if pixels.ndim == 2 else PixelFormat.BGR


def image_message(pixels: NDArray[np.uint8], encoding: str, header: Header) -> Image:
    """An Image of contiguous copies of `pixels` uint8 [H, W] or [H, W, C]."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=width * channels,
        data=_byte_array(np.ascontiguousarray(pixels)),
    )


def jpeg_message(pixels: NDArray[np.uint8], header: Header, quality: int) -> CompressedImage:
    """A JPEG of `pixels` uint8 [H, W, 3] BGR, with the format string image_transport uses."""
    encoded, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise ConversionError(f"OpenCV cannot encode an image of shape {pixels.shape} as JPEG")
    return CompressedImage(
        header=header,
        format="bgr8; jpeg compressed bgr8",
        data=_byte_array(np.asarray(data, dtype=np.uint8)),
    )


def box_from_message(message: Box2D) -> Box:
    """The box as given, NaN and all: the tracker judges whether it can be tracked."""
    return Box.from_center(message.center_x, message.center_y, message.size_x, message.size_y)


def box_to_message(box: Box | None) -> Box2D:
    """The box, or NaN in every field for None."""
    if box is None:
        return Box2D(center_x=math.nan, center_y=math.nan, size_x=math.nan, size_y=math.nan)
    # rclpy stores an int in a float field as the float with the same bits.
    return Box2D(
        center_x=float(box.cx),
        center_y=float(box.cy),
        size_x=float(box.width),
        size_y=float(box.height),
    )


def stamp_to_nanoseconds(stamp: Time) -> int:
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def stamp_from_nanoseconds(nanoseconds: int) -> Time:
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return Time(sec=seconds, nanosec=rest)


def duration_message(nanoseconds: int) -> Duration:
    """A Duration clamped to the 32-bit seconds it can hold (a stamp of another epoch)."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    if not -(2**31) <= seconds < 2**31:
        seconds, rest = (2**31 - 1, 0) if seconds > 0 else (-(2**31), 0)
    return Duration(sec=seconds, nanosec=rest)


def _check_compressed(message: CompressedImage) -> None:
    if len(message.data) == 0:
        raise ConversionError("the compressed image is empty: its message holds 0 bytes")
    if "compressedDepth" in message.format:
        raise ConversionError(
            f"format {message.format!r} is a depth image; subscribe to the colour or mono image"
        )


def _byte_array(pixels: NDArray[np.uint8]) -> array[int]:
    # rclpy checks every element of any other sequence: 300 ms for a 1080p image.
    data = array("B")
    data.frombytes(pixels.data)
    return data
