"""cv_bridge, but only the one a ROS distro installs.

PyPI's `cv-bridge` 1.13 is a port of the ROS 1 package: it misreads padded rows and 16-bit images
without saying so, and breaks with recent OpenCV and NumPy. A distro's own cv_bridge is registered
in the ament index of the prefix it is installed in; the wheel is not.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ostrack_ros.nodes.encodings import ConversionError, Pixels, check_layout
from ostrack_ros.tracking.frame import PixelFormat

CONVERTED_BY_BRIDGE = frozenset(
    {"mono16", "yuv422", "yuv422_yuy2"}
    | {f"bayer_{order}{bits}" for order in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)}
)
"""What every supported distro's cv_bridge converts; nv12 and nv21 it does not."""

Convert = Callable[[Any], tuple[Pixels, PixelFormat]]


def find_distro_bridge() -> Convert | None:
    """A converter for image messages backed by the distro's cv_bridge, or None without one."""
    if not _installed_by_distro():
        return None
    try:
        bridge = importlib.import_module("cv_bridge").CvBridge()
    except (ImportError, AttributeError):  # Built for another NumPy: it fails while importing.
        return None

    def convert(image: Any) -> tuple[Pixels, PixelFormat]:
        pixel_format = check_layout(image).format
        try:
            pixels = bridge.imgmsg_to_cv2(image, desired_encoding=pixel_format.value)
        except (cv2.error, RuntimeError, ValueError, TypeError) as error:
            raise ConversionError(f"cv_bridge cannot convert {image.encoding}: {error}") from error
        return np.asarray(pixels, dtype=np.uint8), pixel_format

    return convert


def _installed_by_distro() -> bool:
    try:
        spec = importlib.util.find_spec("cv_bridge")
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:
        return False
    origin = Path(spec.origin).resolve()
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    return any(
        (Path(prefix) / "share/ament_index/resource_index/packages/cv_bridge").is_file()
        and origin.is_relative_to(Path(prefix).resolve())
        for prefix in prefixes
        if prefix
    )
