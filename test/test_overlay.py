"""Overlay and markers: what is drawn, and that nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest

from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.presence import TargetState

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from ostrack_ros.nodes.markers import LIFETIME, no_markers, target_markers
from ostrack_ros.nodes.overlay import Caption, draw_overlay
from ostrack_ros.palette import state_colour

BOX = Box(60, 50, 40, 30)


def frame(pixel_format: PixelFormat, value: int = 120) -> Frame:
    shape = (120, 160) if pixel_format is PixelFormat.MONO else (120, 160, pixel_format.channels)
    return Frame(np.full(shape, value, np.uint8), pixel_format, 0)


@pytest.mark.parametrize("pixel_format", PixelFormat)
def test_every_format_becomes_bgr_and_the_frame_is_left_alone(pixel_format: PixelFormat) -> None:
    given = frame(pixel_format)
    before = given.pixels.copy()
    image = draw_overlay(given, Caption(TargetState.TRACKING, BOX, 0.9, 3))
    assert image.shape == (120, 160, 3)
    np.testing.assert_array_equal(given.pixels, before)
    np.testing.assert_array_equal(image[65, 80], (120, 120, 120))
    blue, green, red = image[65, 60]
    assert green > red
    assert green > blue, "the box's left edge is green"


def test_colours_keep_their_order() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[..., 0] = 200
    image = draw_overlay(Frame(pixels, PixelFormat.RGB, 0), Caption(TargetState.IDLE))
    assert tuple(image[35, 35]) == (0, 0, 200)


def test_views_with_padded_rows_can_be_drawn() -> None:
    padded = np.zeros((120, 170, 3), np.uint8)[:, :160]
    assert draw_overlay(Frame(padded, PixelFormat.BGR, 0), Caption(TargetState.IDLE)).shape == (
        120,
        160,
        3,
    )


def test_a_coasting_box_is_dashed() -> None:
    def outline(state: TargetState) -> float:
        image = draw_overlay(frame(PixelFormat.BGR), Caption(state, BOX))
        return float((image[50, 64:96] != 120).any(axis=1).mean())

    assert outline(TargetState.TRACKING) == 1.0
    assert 0.2 < outline(TargetState.COASTING) < 0.9


@pytest.mark.parametrize(
    "box", [Box(-1e9, -1e9, 3e9, 2e9), Box(155, 115, 40, 40), Box(1e8, 0, 1, 1)]
)
def test_boxes_far_outside_do_no_harm(box: Box) -> None:
    for state in (TargetState.TRACKING, TargetState.COASTING):
        draw_overlay(frame(PixelFormat.BGR), Caption(state, box))


def test_the_caption_says_what_a_person_wants_to_know() -> None:
    assert Caption(TargetState.TRACKING, BOX, 0.873, 4).text == "#4 TRACKING 87 %"
    assert Caption(TargetState.IDLE).text == "IDLE"


def test_each_state_has_its_own_colour() -> None:
    assert len({state_colour(state) for state in TargetState}) == len(TargetState)


def test_markers_end_at_their_range_in_the_images_frame() -> None:
    header = Header(frame_id="optical")
    corners = [(-0.1, -0.1, 0.99), (0.1, -0.1, 0.99), (0.1, 0.1, 0.99), (-0.1, 0.1, 0.99)]
    array = target_markers(header, TargetState.TRACKING, (0.0, 0.6, 0.8), corners, 5.0)
    ray, frustum = array.markers
    assert (ray.points[0].x, ray.points[0].y, ray.points[0].z) == (0.0, 0.0, 0.0)
    assert (ray.points[1].x, ray.points[1].y, ray.points[1].z) == (0.0, 3.0, 4.0)
    assert len(frustum.points) == 16, "four edges and four sides"
    assert len({marker.id for marker in array.markers}) == 2
    for marker in array.markers:
        assert marker.header == header
        assert marker.type == Marker.LINE_LIST
        assert marker.lifetime == LIFETIME
        assert marker.pose.orientation.w == 1.0
        assert marker.color.a > 0


def test_markers_can_be_taken_away() -> None:
    (marker,) = no_markers(Header(frame_id="optical")).markers
    assert marker.action == Marker.DELETEALL
