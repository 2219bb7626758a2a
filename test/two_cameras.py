"""What two trackers in one process must do, however they were started."""

from __future__ import annotations

import math

from camera_feed import SIDE, CameraFeed
from lifecycle_msgs.msg import State
from ros_helpers import Ros, init_box, nanoseconds, until

from ostrack_ros.msg import InitBox, Track

CAMERAS = ("left", "right")


def check_both_are_followed(ros: Ros) -> None:
    """Show each camera's tracker a target of its own; both must stay on theirs."""
    tracks = {}
    for camera in CAMERAS:
        ros.wait_for_state(f"/{camera}/tracker", State.PRIMARY_STATE_ACTIVE)
        tracks[camera] = ros.subscribe(Track, f"/{camera}/tracker/track")
    with (
        CameraFeed(ros, topic="/left/image_raw") as left,
        CameraFeed(ros, topic="/right/image_raw") as right,
    ):
        feeds = dict(zip(CAMERAS, (left, right), strict=True))
        for camera, feed in feeds.items():
            until(lambda feed=feed: len(feed.stamps) > 5, "some images")
            stamp = feed.stamps[-2]
            publisher = ros.publisher(InitBox, f"/{camera}/init_box", 1)
            until(publisher.get_subscription_count, "the tracker's init_box")
            publisher.publish(init_box(stamp, *(feed.truth[stamp] or (0, 0)), SIDE, SIDE))
        for inbox in tracks.values():
            until(lambda inbox=inbox: len(inbox) > 15, "fifteen tracks")
    for camera, feed in feeds.items():
        measured = [t for t in tracks[camera].messages if t.state == Track.TRACKING]
        assert len(measured) > 10
        for track in measured:
            truth = feed.truth[nanoseconds(track)]
            assert truth is not None
            assert math.dist((track.box.center_x, track.box.center_y), truth) < 10
