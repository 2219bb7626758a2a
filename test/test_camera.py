"""Bearings against OpenCV's own projection, for every distortion model."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from sensor_msgs.msg import CameraInfo, RegionOfInterest

from ostrack_ros.nodes.camera import CameraError, CameraModel
from ostrack_ros.tracking.geometry import Box

K = [500.0, 0.0, 330.0, 0.0, 510.0, 235.0, 0.0, 0.0, 1.0]
P = [450.0, 0.0, 320.0, 0.0, 0.0, 460.0, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0]
DISTORTIONS = {
    "": [],
    "plumb_bob": [-0.28, 0.08, 0.001, -0.0007, -0.01],
    "rational_polynomial": [0.4, -0.3, 0.0005, 0.0002, 0.02, 0.7, -0.25, 0.05],
    "equidistant": [-0.01, 0.02, -0.015, 0.004],
}


def info(model: str, **changes: object) -> CameraInfo:
    message = CameraInfo(
        width=640, height=480, distortion_model=model, d=DISTORTIONS[model], k=K, p=P
    )
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def project(model: str, direction: tuple[float, float, float]) -> tuple[float, float]:
    point = np.array([[direction]])
    matrix, d = np.reshape(K, (3, 3)), np.array(DISTORTIONS[model])
    zero = np.zeros(3)
    if model == "equidistant":
        pixels, _ = cv2.fisheye.projectPoints(point, zero, zero, matrix, d)
    else:
        pixels, _ = cv2.projectPoints(point, zero, zero, matrix, d if d.size else None)
    x, y = pixels.reshape(2)
    return float(x), float(y)


@pytest.mark.parametrize("model", DISTORTIONS)
@given(x=st.floats(-0.5, 0.5), y=st.floats(-0.4, 0.4))
def test_bearing_undoes_projection(model: str, x: float, y: float) -> None:
    direction = np.array([x, y, 1.0]) / math.sqrt(x * x + y * y + 1.0)
    camera = CameraModel.from_message(info(model))
    found = camera.bearing(*project(model, tuple(direction)))
    assert found is not None
    assert math.isclose(math.hypot(*found), 1.0, abs_tol=1e-9)
    assert np.allclose(found, direction, atol=2e-4)


def test_axes_are_those_of_an_optical_frame() -> None:
    camera = CameraModel.from_message(info("plumb_bob"))
    right, below = camera.bearing(500, 235), camera.bearing(330, 400)
    assert right is not None
    assert below is not None
    assert right[0] > 0.2
    assert below[1] > 0.2
    assert right[2] > 0
    assert below[2] > 0


def test_rectified_images_use_p() -> None:
    camera = CameraModel.from_message(info("plumb_bob"), rectified=True)
    assert camera.bearing(320, 240) == (0.0, 0.0, 1.0)


def test_fisheye_without_distortion_is_equidistant() -> None:
    camera = CameraModel.from_message(info("equidistant", d=[0.0] * 4))
    found = camera.bearing(330 + 500 * math.pi / 2, 235)
    assert found is not None
    assert np.allclose(found, (1.0, 0.0, 0.0), atol=1e-9), "90 degrees to the right"


def test_region_of_interest_and_binning() -> None:
    whole = CameraModel.from_message(info("plumb_bob"))
    roi = RegionOfInterest(x_offset=100, y_offset=50, width=400, height=300)
    part = CameraModel.from_message(info("plumb_bob", roi=roi, binning_x=2, binning_y=2))
    assert part.fits(200, 150)
    assert not part.fits(640, 480)
    assert part.bearing(30, 40) == whole.bearing(160, 130)


def test_a_size_of_zero_fits_any_image() -> None:
    assert CameraModel.from_message(info("", width=0, height=0)).fits(123, 45)
    assert not CameraModel.from_message(info("")).fits(123, 45)


def test_corners_go_around_the_box() -> None:
    camera = CameraModel.from_message(info(""))
    corners = camera.corner_bearings(Box(300, 200, 60, 70))
    assert corners is not None
    signs = [(corner[0] > 0, corner[1] > 0) for corner in corners]
    assert signs == [(False, False), (True, False), (True, True), (False, True)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": [0.0] * 9}, "not calibrated"),
        ({"k": [math.nan] * 9}, "not calibrated"),
        ({"distortion_model": "fov"}, "distortion_model is 'fov'"),
        ({"d": [0.1]}, "holds 1 values"),
        ({"d": [math.inf] * 5}, "finite"),
    ],
)
def test_what_gives_no_direction_is_explained(changes: dict[str, object], words: str) -> None:
    with pytest.raises(CameraError, match=words):
        CameraModel.from_message(info("plumb_bob", **changes))


def test_pixels_far_outside_have_no_or_a_unit_bearing() -> None:
    for model in DISTORTIONS:
        found = CameraModel.from_message(info(model)).bearing(1e7, -1e7)
        assert found is None or math.isclose(math.hypot(*found), 1.0, abs_tol=1e-6)
