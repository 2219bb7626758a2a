"""The video node plays files, folders and loops with honest stamps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from ros_helpers import BEST_EFFORT, Ros, nanoseconds, ros_session, until

# isort: split
# The import above skips this file where ROS is not installed; those below would fail.
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from ostrack_ros.nodes.convert import frame_from_image
from ostrack_ros.nodes.spin import StartError
from ostrack_ros.nodes.video_node import (
    DESCRIPTIONS,
    VideoSettings,
    calibrated_camera_info,
    pinhole_camera_info,
)

COUNT = 12


@pytest.fixture
def ros(tmp_path: Path) -> Iterator[Ros]:
    with ros_session(tmp_path) as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose brightness is 20 times their number; natural order matters from 10 on."""
    made = tmp_path_factory.mktemp("images")
    for index in range(COUNT):
        cv2.imwrite(str(made / f"frame{index}.png"), np.full((48, 64, 3), 20 * index, np.uint8))
    return made


def test_plays_a_folder_in_order_with_real_stamps_and_ends(ros: Ros, folder: Path) -> None:
    deep = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
    images = ros.subscribe(Image, "image", deep)
    infos = ros.subscribe(CameraInfo, "camera_info", deep)
    before = ros.now()
    process = ros.run(
        "video_node",
        {
            "source": folder,
            "rate": 40.0,
            "frame_id": "eye",
            "horizontal_fov": 90.0,
            "wait_for_subscribers": 1,
        },
    )
    assert process.wait() == 0
    until(lambda: len(images) > COUNT // 2, "images")
    brightness = [int(frame_from_image(message).pixels[0, 0, 0]) for message in images.messages]
    # Best effort: a busy machine may lose some on the way, but none comes twice or out of order.
    assert brightness == sorted(set(brightness))
    assert set(brightness) <= {20 * index for index in range(COUNT)}
    stamps = [nanoseconds(message) for message in images.messages]
    assert before < stamps[0] < stamps[-1] < ros.now()
    steps = np.diff(brightness) / 20
    assert min(np.diff(stamps) / 1e9 - 0.5 * steps / 40) > 0, "paced by the rate"
    assert {message.header.frame_id for message in images.messages} == {"eye"}
    assert {nanoseconds(info) for info in infos.messages} <= set(stamps)
    assert infos.last.k[0] == pytest.approx(32.0), "90 degrees: f is half the width"
    assert "has ended after 12 images" in process.output
    assert "Traceback" not in process.output, process.output


def test_plays_a_video_file_compressed_in_a_loop(ros: Ros, tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 50.0, (64, 48))
    for index in range(COUNT):
        writer.write(np.full((48, 64, 3), 20 * index, np.uint8))
    writer.release()
    images = ros.subscribe(CompressedImage, "image/compressed", BEST_EFFORT)
    process = ros.run("video_node", {"source": path, "loop": True, "wait_for_subscribers": 1})
    until(lambda: len(images) > 2 * COUNT, "the second time around")
    assert process.exit_code is None
    assert process.stop() == 0
    assert "Traceback" not in process.output, process.output
    assert images.last.format.startswith("bgr8; jpeg")
    assert cv2.imdecode(np.frombuffer(images.last.data, np.uint8), 1).shape == (48, 64, 3)
    interval = np.median(np.diff([nanoseconds(message) for message in images.messages]))
    assert interval / 1e9 == pytest.approx(1 / 50, rel=0.5), "the file's own rate"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "source is empty"),
        ({"source": "/nowhere.mp4"}, "/nowhere.mp4"),
        ({"source": "FOLDER", "rate": -3.0}, "rate is -3"),
        ({"source": "FOLDER", "horizontal_fov": 200.0}, "horizontal_fov is 200"),
        ({"source": "FOLDER", "camera_info_file": "/nowhere.yaml"}, "/nowhere.yaml"),
    ],
)
def test_what_cannot_be_played_is_explained(
    ros: Ros, folder: Path, parameters: dict[str, object], words: str
) -> None:
    given = {k: folder if value == "FOLDER" else value for k, value in parameters.items()}
    process = ros.run("video_node", given)
    assert process.wait() == 2
    assert words in process.output
    assert "Traceback" not in process.output, process.output


def test_every_parameter_is_described() -> None:
    assert list(DESCRIPTIONS) == list(VideoSettings.__dataclass_fields__)


def test_pinhole_sees_its_field_of_view() -> None:
    info = pinhole_camera_info(60.0)(Header(), 640, 480)
    assert math.degrees(2 * math.atan(info.width / 2 / info.k[0])) == pytest.approx(60.0)
    assert (info.k[2], info.k[5]) == (320.0, 240.0)


def test_calibration_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(
        "image_width: 64\nimage_height: 48\ncamera_name: eye\n"
        "camera_matrix: {rows: 3, cols: 3, data: [50, 0, 32, 0, 51, 24, 0, 0, 1]}\n"
        "distortion_model: plumb_bob\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [0.1, 0, 0, 0, 0]}\n"
        "rectification_matrix: {rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}\n"
        "projection_matrix: {rows: 3, cols: 4, data: [50, 0, 32, 0, 0, 51, 24, 0, 0, 0, 1, 0]}\n"
    )
    info = calibrated_camera_info(path)(Header(frame_id="eye"), 64, 48)
    assert (info.width, info.k[4], info.d[0], info.header.frame_id) == (64, 51.0, 0.1, "eye")
    path.write_text("image_width: [")
    with pytest.raises(StartError, match="not a calibration"):
        calibrated_camera_info(path)
    path.write_text("image_width: 64")
    with pytest.raises(StartError, match="image_height"):
        calibrated_camera_info(path)
