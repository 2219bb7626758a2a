"""Two cameras, two targets, one engine, one process."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from ros_helpers import init_box, nanoseconds, ros_session, until

# isort: split
# The import above skips this file where ROS is not installed; those below would fail.
from camera_feed import SIDE, CameraFeed
from lifecycle_msgs.msg import State
from synthetic_model import write_red_blob_model

from ostrack_ros.msg import InitBox, Track

pytest.importorskip("onnx", reason="the test's model is made with onnx")


def test_two_cameras_share_one_engine(tmp_path: Path) -> None:
    model = tmp_path / "red_blob.onnx"
    write_red_blob_model(model)
    with ros_session(tmp_path) as ros:
        process = ros.run(
            "multi_tracker_node",
            {"model": model},
            ["-r", "image:=image_raw", "--", "left", "right"],
        )
        tracks = {}
        for camera in ("left", "right"):
            ros.wait_for_state(f"/{camera}/tracker", State.PRIMARY_STATE_ACTIVE)
            tracks[camera] = ros.subscribe(Track, f"/{camera}/tracker/track")
        with (
            CameraFeed(ros, topic="/left/image_raw") as left,
            CameraFeed(ros, topic="/right/image_raw") as right,
        ):
            for camera, feed in (("left", left), ("right", right)):
                until(lambda feed=feed: len(feed.stamps) > 5, "some images")
                stamp = feed.stamps[-2]
                publisher = ros.publisher(InitBox, f"/{camera}/init_box", 1)
                until(publisher.get_subscription_count, "the tracker's init_box")
                publisher.publish(init_box(stamp, *(feed.truth[stamp] or (0, 0)), SIDE, SIDE))
            for inbox in tracks.values():
                until(lambda inbox=inbox: len(inbox) > 15, "fifteen tracks")
        for camera, feed in (("left", left), ("right", right)):
            measured = [t for t in tracks[camera].messages if t.state == Track.TRACKING]
            assert len(measured) > 10
            for track in measured:
                truth = feed.truth[nanoseconds(track)]
                assert truth is not None
                assert math.dist((track.box.center_x, track.box.center_y), truth) < 10
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
