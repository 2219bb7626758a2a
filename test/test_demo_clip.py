"""The bundled real clip, played by the video node, followed by the tracker with shipped weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ros_helpers import ROOT, Ros, init_box, nanoseconds, ros_session, until

# isort: split
# The import above skips this file where ROS is not installed; those below would fail.
from lifecycle_msgs.msg import State
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from ostrack_ros.demo import Clip, content_key
from ostrack_ros.engines.models import list_models
from ostrack_ros.msg import InitBox, Track
from ostrack_ros.nodes.convert import box_from_message
from ostrack_ros.tracking.geometry import iou

CLIP = ROOT / "demo" / "clip.json"
RATE = 12.0
"""Images per second: half speed, so that a busy two-core machine processes most of them."""


@pytest.fixture
def ros(tmp_path: Path) -> Iterator[Ros]:
    with ros_session(tmp_path) as session:
        yield session


def overlaps_with_truth(ros: Ros, model: str, clip: Clip, transport: str) -> list[float]:
    """IoU of each track after the first with the truth of its image."""
    compressed = transport == "compressed"
    tracker = ros.run("tracker_node", {"model": model, "image_transport": transport})
    ros.wait_for_state("/tracker", State.PRIMARY_STATE_ACTIVE)
    tracks = ros.subscribe(Track, "tracker/track")
    boxes = ros.publisher(InitBox, "init_box", QoSProfile(depth=1))
    until(lambda: boxes.get_subscription_count() == 1, "the tracker to listen")
    deep = QoSProfile(depth=300, reliability=ReliabilityPolicy.BEST_EFFORT)
    raw = ros.subscribe(Image, "image", deep)
    if compressed:
        ros.subscribe(CompressedImage, "image/compressed", deep)
    video = ros.run(
        "video_node",
        {
            "source": clip.video,
            "rate": RATE,
            "wait_for_subscribers": 3 if compressed else 2,
        },
    )
    raw.wait_for(lambda message: True, "the first image")
    index = clip.index_by_content()

    def tracking() -> bool:
        # As the demo does: the tracker may have missed the image this process saw.
        newest = raw.last
        box = clip.truth[index[content_key(memoryview(newest.data))]]
        boxes.publish(init_box(nanoseconds(newest), box.cx, box.cy, box.width, box.height))
        with suppress(AssertionError):
            tracks.wait_for(lambda track: True, "a track", timeout=2.0)
        return len(tracks) > 0

    until(tracking, "the tracker to take a box")
    assert video.wait(60.0) == 0
    frames = {nanoseconds(m): index[content_key(memoryview(m.data))] for m in raw.messages}
    tracks.wait_for(lambda track: nanoseconds(track) >= max(frames) - 1e9, "the last tracks")
    assert tracker.exit_code is None
    known = [track for track in tracks.messages[1:] if nanoseconds(track) in frames]
    assert len(known) > 20
    return [
        iou(box_from_message(track.box), clip.truth[frames[nanoseconds(track)]]) for track in known
    ]


MODELS = list_models()
RUNS = [(model, "raw") for model in MODELS] + [(model, "compressed") for model in MODELS[:1]]


LEAST = 0.5
"""Mean IoU at which a target counts as followed."""


@pytest.mark.skipif(not MODELS, reason="no model is shipped in models/")
@pytest.mark.parametrize(("model", "transport"), RUNS)
def test_the_real_target_is_followed_to_the_end(ros: Ros, model: str, transport: str) -> None:
    overlaps = overlaps_with_truth(ros, model, Clip.load(CLIP), transport)
    assert sum(overlaps) / len(overlaps) > LEAST, overlaps
    last = overlaps[-10:]
    assert sum(last) / len(last) > 0.8 * LEAST, f"it is not there any more at the end: {last}"


def test_the_demo_sends_its_box_again_until_a_track_comes(ros: Ros, tmp_path: Path) -> None:
    boxes = ros.subscribe(InitBox, "init_box")
    tracks = ros.publisher(Track, "tracker/track", 10)
    demo = ros.run("demo_node", {"clip": CLIP, "output": tmp_path / "output"})
    clip = Clip.load(CLIP)
    ros.run("video_node", {"source": clip.video, "rate": RATE, "wait_for_subscribers": 1})
    until(lambda: len(boxes) == 2, "the box a second time")
    refused, taken = boxes.messages
    assert nanoseconds(taken) > nanoseconds(refused), "for a newer image"
    tracks.publish(Track(header=taken.header, state=Track.TRACKING, box=taken.box, confidence=1.0))
    demo.wait(60.0)
    assert len(boxes) == 2, "not once there is a track"
    assert "Traceback" not in demo.output, demo.output
