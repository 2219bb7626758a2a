"""From pixels to directions: the camera model of a CameraInfo message."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo

from ostrack_ros.tracking.geometry import Box

Ray = tuple[float, float, float]

PINHOLE_MODELS = {"plumb_bob": 5, "rational_polynomial": 8, "thin_prism_fisheye": 14}
"""Distortion models OpenCV's pinhole functions undo, with the number of their coefficients."""
FISHEYE_MODEL = "equidistant"
_NO_DISTORTION = ("", "none")


class CameraError(ValueError):
    """A CameraInfo gives no directions. The message says which field is wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class CameraModel:
    """Intrinsics of the tracked image.

    `matrix` is float64 [3, 3]; `distortion` is empty where there is none. Pixels of the image are
    those of the sensor after `offset` (region of interest) and `binning`.
    """

    matrix: NDArray[np.float64]
    distortion: NDArray[np.float64]
    fisheye: bool
    width: int
    height: int
    offset: tuple[int, int] = (0, 0)
    binning: tuple[int, int] = (1, 1)

    @classmethod
    def from_message(cls, info: CameraInfo, rectified: bool = False) -> CameraModel:
        """K and D of the message, or P where the images are `rectified` already.

        Raises CameraError for an uncalibrated camera or an unknown distortion model.
        """
        if rectified:
            matrix = np.asarray(info.p, dtype=np.float64).reshape(3, 4)[:, :3]
        else:
            matrix = np.asarray(info.k, dtype=np.float64).reshape(3, 3)
        if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            raise CameraError(
                f"camera_info has no focal length ({'p' if rectified else 'k'} holds "
                f"{matrix[0, 0]:g}, {matrix[1, 1]:g}): the camera is not calibrated"
            )
        distortion = np.zeros(0) if rectified else _distortion(info)
        binning = (max(1, info.binning_x), max(1, info.binning_y))
        roi = info.roi
        width, height = (roi.width, roi.height) if roi.width else (info.width, info.height)
        return cls(
            matrix,
            distortion,
            info.distortion_model == FISHEYE_MODEL,
            width // binning[0],
            height // binning[1],
            (roi.x_offset, roi.y_offset),
            binning,
        )

    def fits(self, width: int, height: int) -> bool:
        """Whether the model is for images of this size; a message without a size fits any."""
        return (self.width, self.height) in ((width, height), (0, 0))

    def bearing(self, x: float, y: float) -> Ray | None:
        """Unit vector (right, down, forward) through a pixel, in the optical frame (REP 103).

        None where the distortion model has no direction for that pixel.
        """
        sensor_x = float(x * self.binning[0] + self.offset[0])
        sensor_y = float(y * self.binning[1] + self.offset[1])
        point = np.array([[[sensor_x, sensor_y]]])
        if self.distortion.size == 0 or not self.distortion.any():
            u = (sensor_x - self.matrix[0, 2]) / self.matrix[0, 0]
            v = (sensor_y - self.matrix[1, 2]) / self.matrix[1, 1]
            if self.fisheye:
                return _fisheye_ray(u, v)
        elif self.fisheye:
            # undistortPoints gives tan(theta): beyond 90 degrees there is none.
            u, v = cv2.fisheye.undistortPoints(point, self.matrix, self.distortion)[0, 0]
        else:
            u, v = cv2.undistortPoints(point, self.matrix, self.distortion)[0, 0]
        length = math.sqrt(u * u + v * v + 1.0)
        if not math.isfinite(length) or length > 1e3:
            return None
        return float(u) / length, float(v) / length, 1.0 / length

    def corner_bearings(self, box: Box) -> list[Ray] | None:
        """Bearings of the corners, clockwise from the top left; None if any has none."""
        corners = [
            self.bearing(x, y)
            for x, y in (
                (box.x, box.y),
                (box.right, box.y),
                (box.right, box.bottom),
                (box.x, box.bottom),
            )
        ]
        rays = [corner for corner in corners if corner is not None]
        return rays if len(rays) == len(corners) else None


def _distortion(info: CameraInfo) -> NDArray[np.float64]:
    model = info.distortion_model
    coefficients = np.asarray(info.d, dtype=np.float64)
    if not coefficients.any() and (model in _NO_DISTORTION or coefficients.size == 0):
        return np.zeros(0)
    known = {**PINHOLE_MODELS, FISHEYE_MODEL: 4}
    if model not in known:
        raise CameraError(
            f"camera_info's distortion_model is {model!r}, known are {', '.join(known)}; "
            "rectify the images and set the parameter rectified"
        )
    if not np.isfinite(coefficients).all() or not 4 <= coefficients.size <= 14:
        raise CameraError(
            f"camera_info's d holds {coefficients.size} values for {model!r}, "
            f"expected {known[model]} finite ones"
        )
    return coefficients[:4] if model == FISHEYE_MODEL else coefficients


def _fisheye_ray(u: float, v: float) -> Ray:
    """Equidistant projection without distortion: the radius is the angle."""
    angle = math.hypot(u, v)
    if angle == 0.0:
        return 0.0, 0.0, 1.0
    return (
        float(u / angle * math.sin(angle)),
        float(v / angle * math.sin(angle)),
        math.cos(angle),
    )
