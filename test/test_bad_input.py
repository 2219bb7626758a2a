"""Everything a robot may throw at the node. Each case ends in a log line and a diagnostics entry,
with the node alive, and with no box on anything but the images that showed the target.

One node lives through the whole table.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ros_helpers import (
    BEST_EFFORT,
    Inbox,
    NodeProcess,
    Ros,
    header,
    image,
    init_box,
    init_request,
    nanoseconds,
    ros_session,
    until,
)

# isort: split
# The import above skips this file where ROS is not installed; those below would fail.
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger
from synthetic_model import scene, write_red_blob_model

from ostrack_ros.msg import InitBox, Track
from ostrack_ros.srv import InitTarget

pytest.importorskip("onnx", reason="the test's model is made with onnx")

NODE = "/tracker"
SLOW_NODE = Path(__file__).parent / "slow_tracker_node.py"
SIDE = 40
CENTRE = (150.0, 110.0)
SECOND = 1_000_000_000
UPDATE_SECONDS = 0.02


class Stage:
    """The node, a camera under the test's hand, and a record of what was shown truthfully."""

    def __init__(self, ros: Ros, model: Path, transport: str = "raw") -> None:
        self.ros = ros
        self.compressed = transport == "compressed"
        topic = "/image/compressed" if self.compressed else "/image"
        self.process: NodeProcess = ros.run(
            str(SLOW_NODE),
            {
                "model": model,
                "image_transport": transport,
                "diagnostics_period": 0.1,
                "log_period": 0.0,
                "image_timeout": 60.0,
                "history_seconds": 2.0,
                "init_wait": 0.2,
                "catch_up_time": 30.0,
                # A newer image must not displace the bad one before the node has seen it.
                f"qos_overrides.{topic}.subscription.depth": 20,
                f"qos_overrides.{topic}.subscription.reliability": "reliable",
            },
            environment={
                "TEST_LOADING_SECONDS": "0",
                "TEST_UPDATE_SECONDS": str(UPDATE_SECONDS),
            },
        )
        ros.wait_for_state(NODE, State.PRIMARY_STATE_ACTIVE)
        kind = CompressedImage if self.compressed else Image
        self.camera = ros.publisher(kind, topic, QoSProfile(depth=20))
        self.infos = ros.publisher(CameraInfo, "camera_info", QoSProfile(depth=1))
        self.boxes = ros.publisher(InitBox, "init_box", QoSProfile(depth=1))
        self.tracks: Inbox[Track] = ros.subscribe(Track, f"{NODE}/track")
        self.diagnostics = ros.subscribe(DiagnosticArray, "/diagnostics", 10)
        self.truth: set[int] = set()
        self.wait_for_ends()

    def wait_for_ends(self) -> None:
        for end in (self.camera, self.infos, self.boxes):
            until(lambda: end.get_subscription_count() == 1, "the node to listen")  # noqa: B023
        until(lambda: self.ros.node.count_publishers(f"{NODE}/track") == 1, "the node to speak")

    def picture(self, stamp: int, width: int = 320, height: int = 240) -> Any:
        """A truthful image."""
        pixels = scene(width, height, CENTRE, SIDE)
        if self.compressed:
            import cv2

            _, data = cv2.imencode(".jpg", pixels[..., ::-1])
            return CompressedImage(header=header(stamp), format="jpeg", data=data.tobytes())
        return image(pixels, stamp)

    def show(self, stamp: int | None = None, **size: int) -> int:
        """Publish a truthful image; its stamp."""
        stamp = self.ros.now() if stamp is None else stamp
        self.truth.add(stamp)
        self.camera.publish(self.picture(stamp, **size))
        return stamp

    def show_tracked(self) -> Track:
        """Publish truthful images until one comes back as a track."""

        def answered() -> Track | None:
            stamp = self.show()
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline:
                for track in self.tracks.messages:
                    if nanoseconds(track) == stamp:
                        return track
                time.sleep(0.005)
            return None

        track = until(answered, "a track")
        assert isinstance(track, Track)
        return track

    def send_image(self, **changes: Any) -> int:
        """An image that is wrong in the given fields; its stamp."""
        message = self.picture(self.ros.now())
        for name, value in changes.items():
            setattr(message, name, value)
        self.camera.publish(message)
        return nanoseconds(message)

    def init(self, stamp: int, *values: float) -> InitTarget.Response:
        box = values or (*CENTRE, SIDE, SIDE)
        return self.ros.call(InitTarget, f"{NODE}/init_target", init_request(stamp, *box))

    def stop(self) -> Trigger.Response:
        return self.ros.call(Trigger, f"{NODE}/stop")

    def start(self) -> int:
        """Have the target tracked; the track's id."""
        self.stop()
        response = self.init(self.show())
        assert response.success, response.message
        assert self.show_tracked().state == Track.TRACKING
        return int(response.track_id)

    def restart_stream(self) -> None:
        """Forget the images so far, as the next case may use any stamps."""
        assert self.ros.change_state(NODE, Transition.TRANSITION_DEACTIVATE)
        assert self.ros.change_state(NODE, Transition.TRANSITION_ACTIVATE)
        self.wait_for_ends()


@dataclass(frozen=True)
class Case:
    """`kind` and `words` are those of the problem in diagnostics; `words` are also logged.

    `ends` is the state after the act; TRACKING is shown on images that follow it.
    """

    name: str
    act: Callable[[Stage], None]
    kind: str
    words: str
    ends: int = Track.TRACKING


def bad_image(name: str, words: str, **changes: Any) -> Case:
    def act(stage: Stage) -> None:
        stamp = stage.send_image(**changes)
        stage.show_tracked()
        assert all(nanoseconds(track) != stamp for track in stage.tracks.messages)

    return Case(name, act, "image.unusable", words)


def bad_box(name: str, words: str, *values: float) -> Case:
    """Refused by service and by topic; the target before is still tracked."""

    def act(stage: Stage) -> None:
        stamp = stage.show()
        response = stage.init(stamp, *values)
        assert not response.success
        assert response.track_id == 0
        assert words in response.message
        stage.boxes.publish(init_box(stamp, *values))

    return Case(name, act, "init.refused", words)


def repeated_stamp(stage: Stage) -> None:
    track = stage.show_tracked()
    stage.show(nanoseconds(track))
    stage.show_tracked()
    again = [t for t in stage.tracks.messages if nanoseconds(t) == nanoseconds(track)]
    assert len(again) == 1


def late_image(stage: Stage) -> None:
    late = nanoseconds(stage.show_tracked()) - SECOND // 5
    stage.send_image(header=header(late))
    stage.show_tracked()
    assert all(nanoseconds(track) != late for track in stage.tracks.messages)


def stamps_jump_back(stage: Stage) -> None:
    now = nanoseconds(stage.show_tracked())
    past = stage.show(now - 100 * SECOND)
    track = stage.tracks.wait_for(lambda t: nanoseconds(t) == past, "the image after the jump")
    assert track.state == Track.TRACKING, "the picture is what counts"
    refused = stage.init(now)
    assert not refused.success, "images from before the jump are gone"


def stamp_ahead(stage: Stage) -> None:
    ahead = stage.show(stage.ros.now() + 3600 * SECOND)
    track = stage.tracks.wait_for(lambda t: nanoseconds(t) == ahead, "its track")
    assert track.latency.sec < -3500, "the latency says that something is wrong"
    stage.restart_stream()
    stage.start()


def no_stamp(stage: Stage) -> None:
    stage.show(0)
    track = stage.tracks.wait_for(lambda t: nanoseconds(t) == 0, "its track")
    assert track.state == Track.TRACKING
    assert 0 <= track.latency.sec < 5


def other_size(stage: Stage) -> None:
    stamp = stage.show(width=480, height=360)
    lost = stage.tracks.wait_for(lambda t: nanoseconds(t) == stamp, "LOST")
    assert lost.state == Track.LOST


def camera_stops(stage: Stage) -> None:
    assert stage.ros.set_parameters(NODE, image_timeout=0.2)[0].successful
    stage.tracks.wait_for(lambda t: t.state == Track.LOST, "LOST")
    assert stage.ros.set_parameters(NODE, image_timeout=60.0)[0].successful


def camera_returns_with_another_size(stage: Stage) -> None:
    camera_stops(stage)
    stage.tracks.clear()
    for _ in range(5):
        stage.show(width=480, height=360)
        time.sleep(2 * UPDATE_SECONDS)
    assert all(t.state != Track.TRACKING for t in stage.tracks.messages)


def init_older_than_history(stage: Stage) -> None:
    response = stage.init(stage.show() - 30 * SECOND)
    assert not response.success
    assert "30.000 s older" in response.message


def init_from_the_future(stage: Stage) -> None:
    response = stage.init(stage.show() + 5 * SECOND)
    assert not response.success
    assert "ahead of the newest image" in response.message


def init_on_an_image_that_never_came(stage: Stage) -> None:
    first = stage.show()
    time.sleep(0.3)
    stage.show()
    response = stage.init(first + SECOND // 8)
    assert not response.success


def init_before_any_image(stage: Stage) -> None:
    stage.restart_stream()
    response = stage.init(0)
    assert not response.success
    stage.start()


def init_on_a_frozen_picture(stage: Stage) -> None:
    stage.stop()
    stage.show()
    assert stage.ros.set_parameters(NODE, image_timeout=0.2)[0].successful
    time.sleep(0.3)
    response = stage.init(0)
    assert stage.ros.set_parameters(NODE, image_timeout=60.0)[0].successful
    assert not response.success
    assert "images stopped" in response.message


def best_effort_init_box(stage: Stage) -> None:
    stage.ros.publisher(InitBox, "init_box", BEST_EFFORT)


def transient_local_reader(stage: Stage) -> None:
    durable = QoSProfile(
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )
    stage.ros.subscribe(Track, f"{NODE}/track", durable)


def camera_info(**fields: Any) -> Callable[[Stage], None]:
    def act(stage: Stage) -> None:
        message = CameraInfo(width=320, height=240)
        message.k = [200.0, 0.0, 160.0, 0.0, 200.0, 120.0, 0.0, 0.0, 1.0]
        for name, value in fields.items():
            setattr(message, name, value)
        stage.infos.publish(message)
        time.sleep(0.05)
        assert math.isnan(stage.show_tracked().bearing.x)

    return act


HUGE = 2**32 - 1

CASES = [
    bad_image("unknown encoding", "encoding '32FC1' is not supported", encoding="32FC1"),
    bad_image("empty encoding", "encoding '' is not supported", encoding=""),
    bad_image("16 bit colour", "encoding 'rgb16' is not supported", encoding="rgb16"),
    bad_image("zero width", "0x240 pixels", width=0),
    bad_image("zero height", "320x0 pixels", height=0),
    bad_image("short buffer", "the buffer holds 1000 bytes", data=array("B", bytes(1000))),
    bad_image("empty buffer", "the buffer holds 0 bytes", data=array("B")),
    bad_image("step of zero", "step is 0 bytes", step=0),
    bad_image("step shorter than a row", "step is 959 bytes", step=959),
    bad_image("step longer than the buffer", "step of 4000000000", step=4_000_000_000),
    bad_image("huge height", "320x4294967295", height=HUGE),
    bad_image("huge width", "a row of 4294967295", width=HUGE),
    bad_image("huge image", "4294967295 rgb8", width=HUGE, height=HUGE, step=HUGE),
    bad_image("odd width in 4:2:2", "needs even sizes", encoding="yuv422", width=319),
    bad_image("odd height in nv12", "needs even sizes", encoding="nv12", height=239),
    bad_image("nv21 without chroma", "320x480 nv21", encoding="nv21", step=480, height=480),
    bad_image("8 bit data called bayer 16", "needs 239640", encoding="bayer_rggb16", step=1000),
    bad_image("mono16 with the step of mono8", "step is 320", encoding="mono16", step=320),
    Case("repeated stamp", repeated_stamp, "image.repeated", "carry the stamp"),
    Case("late image", late_image, "image.late", "behind a newer one"),
    Case("stamps run back", stamps_jump_back, "image.time_jump", "ran back by 100."),
    Case("stamp in the future", stamp_ahead, "image.future", "ahead of this node's clock"),
    Case("no stamp", no_stamp, "image.unstamped", "carry no stamp"),
    Case("other size", other_size, "image.resized", "320x240 to 480x360", Track.LOST),
    Case("camera stops", camera_stops, "image.timeout", "reported LOST", Track.LOST),
    Case(
        "camera returns with another size",
        camera_returns_with_another_size,
        "image.resized",
        "320x240 to 480x360",
        Track.LOST,
    ),
    bad_box("NaN box", "finite numbers", math.nan, math.nan, math.nan, math.nan),
    bad_box("NaN height", "finite numbers", 150.0, 110.0, 40.0, math.nan),
    bad_box("infinite box", "finite numbers", 150.0, 110.0, math.inf, 40.0),
    bad_box("inverted box", "positive size", 150.0, 110.0, -40.0, 40.0),
    bad_box("empty box", "positive size", 150.0, 110.0, 0.0, 0.0),
    bad_box("box outside", "outside the 320x240 image", 5000.0, 110.0, 40.0, 40.0),
    bad_box("box above", "outside the 320x240 image", 150.0, -100.0, 40.0, 40.0),
    bad_box("box of ints called floats", "smaller than a pixel", 150.0, 110.0, 5e-324, 5e-324),
    bad_box("box of a planet", "limit is", 150.0, 110.0, 1e9, 1e9),
    Case("init older than history", init_older_than_history, "init.refused", "raise history"),
    Case("init from the future", init_from_the_future, "init.refused", "ahead of the newest"),
    Case(
        "init on an image that never came",
        init_on_an_image_that_never_came,
        "init.refused",
        "no image within",  # 0.1 s, or an interval between images where that is longer
    ),
    Case("init before any image", init_before_any_image, "init.refused", "no image has arrived"),
    Case(
        "init on a frozen picture",
        init_on_a_frozen_picture,
        "init.refused",
        "images stopped",
        Track.IDLE,
    ),
    Case("best effort init_box", best_effort_init_box, "init.qos", "RELIABILITY"),
    Case("transient local reader", transient_local_reader, "output.qos", "DURABILITY"),
    Case("uncalibrated camera", camera_info(k=[0.0] * 9), "camera_info.unusable", "calibrated"),
    Case(
        "unknown distortion",
        camera_info(distortion_model="fov", d=[0.1]),
        "camera_info.unusable",
        "distortion_model is 'fov'",
    ),
    Case(
        "camera_info of another size",
        camera_info(width=99),
        "camera_info.size",
        "for 99x240 images",
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "red_blob.onnx"
    write_red_blob_model(path)
    return path


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Stage]:
    with ros_session(tmp_path_factory.mktemp("ros")) as ros:
        yield Stage(ros, model)


def check_no_false_box(stage: Stage) -> None:
    """Boxes only on truthful images, where the target is; at most one for each image and track."""
    tracks = stage.tracks.messages
    for track in tracks:
        where = (track.box.center_x, track.box.center_y)
        if track.state in (Track.IDLE, Track.LOST):
            assert all(map(math.isnan, where))
            continue
        assert nanoseconds(track) in stage.truth
        assert math.dist(where, CENTRE) < 3.0
    named = [(t.track_id, nanoseconds(t)) for t in tracks if not math.isnan(t.box.center_x)]
    assert len(named) == len(set(named))


def check_told(stage: Stage, kind: str, words: str, log_from: int) -> None:
    until(lambda: words in stage.process.output[log_from:], f"{words!r} in the log")

    def told(message: DiagnosticArray) -> bool:
        pairs = [pair for status in message.status for pair in status.values]
        return any(pair.key == f"problem {kind}" and words in pair.value for pair in pairs)

    message = stage.diagnostics.wait_for(told, f"{kind}: {words!r} in the diagnostics")
    assert max(status.level for status in message.status) > b"\x00"


def check_alive(stage: Stage) -> None:
    assert stage.process.exit_code is None
    assert "Traceback" not in stage.process.output, stage.process.output
    stage.ros.wait_for_state(NODE, State.PRIMARY_STATE_ACTIVE)


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(stage: Stage, case: Case) -> None:
    stage.restart_stream()
    stage.tracks.clear()
    stage.truth.clear()
    stage.start()
    stage.diagnostics.clear()
    log_from = len(stage.process.output)

    case.act(stage)

    check_told(stage, case.kind, case.words, log_from)
    if case.ends == Track.TRACKING:
        assert stage.show_tracked().state == Track.TRACKING
    else:
        assert stage.tracks.last.state == case.ends
        stage.show()
        time.sleep(3 * UPDATE_SECONDS)
        assert all(t.state != Track.TRACKING for t in stage.tracks.messages[-1:])
    check_no_false_box(stage)
    check_alive(stage)


def test_two_inits_at_once(stage: Stage) -> None:
    stage.restart_stream()
    stage.tracks.clear()
    stage.truth.clear()
    first = stage.start()
    log_from = len(stage.process.output)
    stamp = stage.show()
    stage.boxes.publish(init_box(stamp, *CENTRE, SIDE, SIDE))
    until(lambda: f"track {first + 1}: tracking" in stage.process.output[log_from:], "the first")
    assert stage.init(stamp).track_id == first + 2
    assert stage.show_tracked().track_id == first + 2
    ids = [track.track_id for track in stage.tracks.messages]
    assert ids == sorted(ids), "no word of a track after its successor's"
    check_no_false_box(stage)
    check_alive(stage)


def test_stop_while_replaying(stage: Stage) -> None:
    stage.restart_stream()
    stage.tracks.clear()
    stage.truth.clear()
    stamps = []
    for _ in range(60):
        stamps.append(stage.show())
        time.sleep(0.015)
    response = stage.init(stamps[3])
    assert response.success, response.message
    stopped = stage.stop()
    assert stopped.success
    assert f"stopped track {response.track_id}" in stopped.message
    idle = stage.tracks.wait_for(lambda t: t.state == Track.IDLE, "IDLE")
    assert nanoseconds(idle) < stamps[-1], "it was in the midst of the replay"
    stage.show()
    time.sleep(0.2)
    assert stage.tracks.last.state == Track.IDLE
    assert f"stopped track {response.track_id}" in stage.process.output
    told = stage.diagnostics.last.status[2]
    assert "IDLE" in told.message
    check_no_false_box(stage)
    check_alive(stage)


COMPRESSED_CASES = [
    bad_image("no JPEG", "cannot be decoded", data=array("B", b"this is no image")),
    bad_image("empty message", "0 bytes", data=array("B")),
    bad_image("depth image", "is a depth image", format="16UC1; compressedDepth"),
    bad_image("half a header", "cannot be decoded", data=array("B", b"\xff\xd8\xff\xe0")),
]


@pytest.fixture(scope="module")
def compressed_stage(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Stage]:
    with ros_session(tmp_path_factory.mktemp("compressed")) as ros:
        yield Stage(ros, model, "compressed")


@pytest.mark.parametrize("case", COMPRESSED_CASES, ids=lambda case: case.name)
def test_bad_compressed_input(compressed_stage: Stage, case: Case) -> None:
    test_bad_input(compressed_stage, case)
