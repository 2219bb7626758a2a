"""Two cameras, two targets, one engine, one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from ros_helpers import ros_session

# isort: split
# The import above skips this file where ROS is not installed; those below would fail.
from synthetic_model import write_red_blob_model
from two_cameras import CAMERAS, check_both_are_followed

pytest.importorskip("onnx", reason="the test's model is made with onnx")


def test_two_cameras_share_one_engine(tmp_path: Path) -> None:
    model = tmp_path / "red_blob.onnx"
    write_red_blob_model(model)
    with ros_session(tmp_path) as ros:
        process = ros.run(
            "multi_tracker_node",
            {"model": model},
            ["-r", "image:=image_raw", "--", *CAMERAS],
        )
        check_both_are_followed(ros)
        assert process.output.count(", shared\n") == 2
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("cameras", "words"), [((), "required: cameras"), (("a", "a"), "a was given twice")]
)
def test_wrong_cameras_are_explained(tmp_path: Path, cameras: tuple[str, ...], words: str) -> None:
    with ros_session(tmp_path) as ros:
        process = ros.run("multi_tracker_node", {}, ["--", *cameras])
        assert process.wait() == 2
        assert words in process.output
