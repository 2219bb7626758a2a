"""The tracker node as its users meet it: a process, real messages, real inference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
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
from camera_feed import SIDE, CameraFeed
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, GetParameters
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger
from synthetic_model import scene, write_red_blob_model
from visualization_msgs.msg import Marker, MarkerArray

from ostrack_ros.msg import InitBox, Track
from ostrack_ros.nodes.parameters import PARAMETERS, Change
from ostrack_ros.nodes.video_node import pinhole_camera_info
from ostrack_ros.srv import InitTarget

pytest.importorskip("onnx", reason="the test's model is made with onnx")

NODE = "/tracker"
SLOW_NODE = Path(__file__).parent / "slow_tracker_node.py"
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "red_blob.onnx"
    write_red_blob_model(path)
    return path


@pytest.fixture(scope="module")
def ros(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ros]:
    with ros_session(tmp_path_factory.mktemp("ros")) as session:
        yield session


@pytest.fixture(scope="module")
def tracker(ros: Ros, model: Path) -> NodeProcess:
    """One node for most tests; each starts its own track."""
    process = ros.run(
        "tracker_node", {"model": model, "diagnostics_period": 0.1, "image_timeout": 0.5}
    )
    ros.wait_for_state(NODE, State.PRIMARY_STATE_ACTIVE)
    return process


@pytest.fixture
def tracks(ros: Ros, tracker: NodeProcess) -> Iterator[Inbox[Track]]:
    inbox = ros.subscribe(Track, f"{NODE}/track")
    until(lambda: ros.node.count_publishers(f"{NODE}/track"), "the tracker's topics")
    yield inbox
    ros.call(Trigger, f"{NODE}/stop")
    ros.unsubscribe(inbox)


def start_track(ros: Ros, feed: CameraFeed, node: str = NODE) -> InitTarget.Response:
    """Init by service on an image that was published a moment ago."""
    until(lambda: len(feed.stamps) > 5, "some images")
    stamp = feed.stamps[-2]
    x, y = feed.truth[stamp] or (0.0, 0.0)
    response = ros.call(InitTarget, f"{node}/init_target", init_request(stamp, x, y, SIDE, SIDE))
    assert response.success, response.message
    return response


def errors(tracks: list[Track], feed: CameraFeed) -> list[float]:
    """Distances in px of the boxes' centres from the truth of the very image they are about."""
    return [
        math.dist((t.box.center_x, t.box.center_y), feed.truth[nanoseconds(t)] or (0.0, 0.0))
        for t in tracks
        if t.state == Track.TRACKING
    ]


def test_follows_a_moving_target_with_the_images_own_headers(
    ros: Ros, tracks: Inbox[Track]
) -> None:
    with CameraFeed(ros) as feed:
        response = start_track(ros, feed)
        until(lambda: len(tracks) > 40, "forty tracks")
        received = tracks.messages
    assert {t.track_id for t in received} == {response.track_id}
    assert {t.header.frame_id for t in received} == {"camera_optical_frame"}
    assert all(nanoseconds(t) in feed.truth for t in received)
    stamps = [nanoseconds(t) for t in received]
    assert stamps == sorted(set(stamps)), "one track for each image, in order"
    assert all(t.state == Track.TRACKING for t in received)
    assert max(errors(received, feed)) < 2.5
    assert all(t.confidence > 0.9 for t in received)
    assert all(0 <= t.latency.sec < 5 for t in received)
    assert all(math.isnan(t.bearing.x) for t in received), "no camera_info, no bearing"
    fast = [math.hypot(t.velocity_x, t.velocity_y) for t in received[20:]]
    assert 40 < np.median(fast) < 90, "80 px radius (60 px vertical) in 8 s"


def test_init_by_topic_with_zero_stamp_takes_the_newest_image(
    ros: Ros, tracks: Inbox[Track]
) -> None:
    publisher = ros.publisher(InitBox, "init_box", RELIABLE)
    with CameraFeed(ros, place=lambda index: (100.0, 90.0)) as feed:
        until(lambda: publisher.get_subscription_count() == 1, "the tracker to listen")
        until(lambda: len(feed.stamps) > 3, "images")
        publisher.publish(init_box(0, 100, 90, SIDE, SIDE))
        until(lambda: len(tracks) > 5, "tracks")
        assert max(errors(tracks.messages, feed)) < 1.0


def test_init_in_the_past_starts_on_that_image_and_catches_up(
    ros: Ros, tracks: Inbox[Track]
) -> None:
    with CameraFeed(ros) as feed:
        until(lambda: len(feed.stamps) > 45, "a second and a half of images", timeout=10)
        stamp = feed.stamps[4]
        x, y = feed.truth[stamp] or (0.0, 0.0)
        gone = math.dist((x, y), feed.truth[feed.stamps[-1]] or (0.0, 0.0))
        assert gone > 1.5 * SIDE, "a tracker that started on the live image would miss the target"
        response = ros.call(
            InitTarget, f"{NODE}/init_target", init_request(stamp, x, y, SIDE, SIDE)
        )
        assert response.success
        assert "in the past" in response.message
        until(
            lambda: tracks.messages and nanoseconds(tracks.last) >= feed.stamps[-2],
            "the tracker to catch up",
        )
        received = tracks.messages
        assert nanoseconds(received[0]) == stamp
        assert max(errors(received, feed)) < 2.5
        first = received[0].latency
        assert first.sec + first.nanosec / 1e9 > 1.0, "replayed images carry their true age"


def test_stop_ends_in_idle_and_silence(ros: Ros, tracks: Inbox[Track]) -> None:
    with CameraFeed(ros) as feed:
        response = start_track(ros, feed)
        until(lambda: len(tracks) > 3, "tracks")
        stopped = ros.call(Trigger, f"{NODE}/stop")
        assert stopped.success
        assert str(response.track_id) in stopped.message
        idle = tracks.wait_for(lambda t: t.state == Track.IDLE, "the IDLE message")
        assert math.isnan(idle.box.center_x)
        assert idle.track_id == response.track_id
        seen = len(feed.stamps)
        until(lambda: len(feed.stamps) > seen + 10, "more images")
        assert tracks.last.state == Track.IDLE
        again = ros.call(Trigger, f"{NODE}/stop")
        assert again.success
        assert "nothing" in again.message


def test_hidden_target_coasts_is_lost_and_comes_back(ros: Ros, tracks: Inbox[Track]) -> None:
    def place(index: int) -> tuple[float, float] | None:
        return None if 30 <= index < 80 else (150.0, 110.0)

    with CameraFeed(ros, place) as feed:
        start_track(ros, feed)
        until(lambda: len(feed.stamps) > 110, "the target to come back", timeout=15)
        until(lambda: nanoseconds(tracks.last) >= feed.stamps[105], "the newest tracks")
    states = [t.state for t in tracks.messages]
    order = [state for at, state in enumerate(states) if at == 0 or states[at - 1] != state]
    assert order[:3] == [Track.TRACKING, Track.COASTING, Track.LOST]
    assert order[-1] == Track.TRACKING
    for t in tracks.messages:
        hidden = feed.truth[nanoseconds(t)] is None
        assert not (hidden and t.state == Track.TRACKING), "a box on nothing must not be trusted"
        assert math.isnan(t.box.center_x) == (t.state == Track.LOST)
        assert not math.isnan(t.confidence)


def test_camera_that_stops_is_reported_lost_once(ros: Ros, tracks: Inbox[Track]) -> None:
    with CameraFeed(ros, place=lambda index: (200.0, 100.0)) as feed:
        start_track(ros, feed)
        until(lambda: len(tracks) > 5, "tracks")
        feed.pause()
        lost = tracks.wait_for(lambda t: t.state == Track.LOST, "LOST")
        assert math.isnan(lost.box.size_x)
        assert math.isnan(lost.score)
        count = len(tracks)
        until(lambda: ros.now() - feed.stamps[-1] > 1.5e9, "a long pause")
        assert len(tracks) == count, "one message, not one a second"
        feed.resume()
        tracks.clear()
        tracks.wait_for(lambda t: t.state == Track.TRACKING, "the target, found again")
        assert tracks.messages[0].state == Track.LOST, "it must be confirmed first"


def test_overlay_is_drawn_while_somebody_looks(ros: Ros, tracks: Inbox[Track]) -> None:
    with CameraFeed(ros, place=lambda index: (160.0, 120.0)) as feed:
        start_track(ros, feed)
        overlays = ros.subscribe(Image, f"{NODE}/overlay", BEST_EFFORT)
        picture = overlays.wait_for(lambda message: True, "an overlay")
        ros.unsubscribe(overlays)
    assert (picture.encoding, picture.width, picture.height) == ("bgr8", 320, 240)
    assert nanoseconds(picture) in feed.truth
    pixels = np.frombuffer(picture.data, np.uint8).reshape(240, 320, 3)
    plain = scene(centre=(160.0, 120.0))[..., ::-1]
    changed = np.abs(pixels.astype(int) - plain).max(axis=2) > 60
    assert changed[100:142, 138:144].any(), "the box's left edge"
    assert not changed[112:128, 150:170].any(), "its inside is left alone"


def test_bearing_and_markers_with_camera_info(ros: Ros, tracks: Inbox[Track]) -> None:
    infos = ros.publisher(CameraInfo, "camera_info")
    until(lambda: infos.get_subscription_count() == 1, "the tracker to listen")
    markers = ros.subscribe(MarkerArray, f"{NODE}/markers", 10)
    make_info = pinhole_camera_info(90.0)

    def publish(pixels: Any, stamp: int) -> Image:
        infos.publish(make_info(header(stamp), 320, 240))
        return image(pixels, stamp)

    with CameraFeed(ros, place=lambda index: (240.0, 120.0), make=publish) as feed:
        start_track(ros, feed)
        track = tracks.wait_for(lambda t: not math.isnan(t.bearing.x), "a bearing")
        array = markers.wait_for(lambda message: len(message.markers) == 2, "markers")
        ros.call(Trigger, f"{NODE}/stop")
        markers.wait_for(
            lambda message: message.markers[0].action == Marker.DELETEALL, "their removal"
        )
    ros.unsubscribe(markers)
    # 90 degrees over 320 px: f = 160 px, and the target is 80 px right of the centre.
    expected = np.array([0.5, 0.0, 1.0]) / math.sqrt(1.25)
    found = np.array([track.bearing.x, track.bearing.y, track.bearing.z])
    assert np.allclose(found, expected, atol=0.01)
    tip = array.markers[0].points[1]
    assert np.allclose(np.array([tip.x, tip.y, tip.z]), 2.0 * expected, atol=0.02)
    assert array.markers[0].header.frame_id == "camera_optical_frame"


def test_diagnostics_tell_rates_engine_and_state(ros: Ros, tracks: Inbox[Track]) -> None:
    inbox = ros.subscribe(DiagnosticArray, "/diagnostics", 10)
    with CameraFeed(ros) as feed:
        start_track(ros, feed)
        until(lambda: len(tracks) > 30, "tracks")
        inbox.clear()
        array = inbox.wait_for(lambda message: True, "diagnostics")
    ros.unsubscribe(inbox)
    status = {entry.name: entry for entry in array.status}
    assert set(status) == {f"{NODE}: {part}" for part in ("engine", "input", "tracking")}
    values = {pair.key: pair.value for entry in array.status for pair in entry.values}
    assert values["state"] == "TRACKING"
    assert values["lifecycle"] == "active"
    assert values["model"] == "red_blob"
    assert values["precision"] == "fp32"
    assert 10 < float(values["rate Hz"]) < 60
    assert int(values["processed"]) > 20
    assert 0 < float(values["latency median ms"]) < 2000
    assert 0 < float(values["update median ms"]) < 2000


def test_thresholds_change_live_and_the_rest_is_refused_with_a_reason(
    ros: Ros, tracker: NodeProcess
) -> None:
    assert all(
        result.successful
        for result in ros.set_parameters(NODE, presence__trust_above=0.7, image_timeout=0.6)
    )
    assert all(
        r.successful for r in ros.set_parameters(NODE, presence__trust_above=0.6, image_timeout=0.5)
    )
    result = ros.set_parameters(NODE, model="another")[0]
    assert not result.successful
    assert "cleanup" in result.reason
    for name, value in {"autostart": False, "diagnostics_period": 2.0}.items():
        result = ros.set_parameters(NODE, **{name: value})[0]
        assert not result.successful
        assert result.reason
    out_of_order = ros.set_parameters(NODE, presence__absent_below=0.9)[0]
    assert not out_of_order.successful
    assert "absent_below <= present_above" in out_of_order.reason


def test_parameters_describe_themselves(ros: Ros, tracker: NodeProcess) -> None:
    names = [row.name for row in PARAMETERS]
    request = DescribeParameters.Request(names=names)
    described = ros.call(DescribeParameters, f"{NODE}/describe_parameters", request).descriptors
    for row, descriptor in zip(PARAMETERS, described, strict=True):
        assert descriptor.name == row.name
        assert descriptor.description == row.description
        assert descriptor.read_only == (row.change is Change.START)


def test_node_has_the_promised_interface(ros: Ros, tracker: NodeProcess) -> None:
    node = ros.node
    topics = dict(node.get_publisher_names_and_types_by_node("tracker", "/"))
    assert topics[f"{NODE}/track"] == ["ostrack_ros/msg/Track"]
    assert topics[f"{NODE}/overlay"] == ["sensor_msgs/msg/Image"]
    assert topics[f"{NODE}/markers"] == ["visualization_msgs/msg/MarkerArray"]
    assert topics["/diagnostics"] == ["diagnostic_msgs/msg/DiagnosticArray"]
    inputs = dict(node.get_subscriber_names_and_types_by_node("tracker", "/"))
    assert inputs["/image"] == ["sensor_msgs/msg/Image"]
    assert inputs["/camera_info"] == ["sensor_msgs/msg/CameraInfo"]
    assert inputs["/init_box"] == ["ostrack_ros/msg/InitBox"]
    services = dict(node.get_service_names_and_types_by_node("tracker", "/"))
    assert services[f"{NODE}/init_target"] == ["ostrack_ros/srv/InitTarget"]
    assert services[f"{NODE}/stop"] == ["std_srvs/srv/Trigger"]

    def qos(info: Any) -> ReliabilityPolicy:
        return info.qos_profile.reliability

    (image_end,) = node.get_subscriptions_info_by_topic("/image")
    (init_end,) = node.get_subscriptions_info_by_topic("/init_box")
    (track_end,) = node.get_publishers_info_by_topic(f"{NODE}/track")
    assert qos(image_end) == ReliabilityPolicy.BEST_EFFORT
    assert qos(init_end) == ReliabilityPolicy.RELIABLE
    assert qos(track_end) == ReliabilityPolicy.RELIABLE
    request = GetParameters.Request(names=["qos_overrides./image.subscription.depth"])
    (depth,) = ros.call(GetParameters, f"{NODE}/get_parameters", request).values
    assert depth.integer_value == 1


def test_answers_while_it_configures_and_walks_through_its_lifecycle(
    tmp_path: Path, model: Path
) -> None:
    with ros_session(tmp_path) as ros:
        process = ros.run(
            str(SLOW_NODE),
            {
                "model": model,
                "autostart": False,
                "diagnostics_period": 0.1,
                "qos_overrides./image.subscription.depth": 3,
            },
        )
        diagnostics = ros.subscribe(DiagnosticArray, "/diagnostics", 10)
        ros.wait_for_state(NODE, State.PRIMARY_STATE_UNCONFIGURED)
        refused = ros.call(InitTarget, f"{NODE}/init_target", init_request(0, 10, 10, 10, 10))
        assert not refused.success
        assert "configure" in refused.message
        assert ros.set_parameters(NODE, threads=1)[0].successful, "not configured yet: allowed"

        client = ros.node.create_client(ChangeState, f"{NODE}/change_state")
        configuring = client.call_async(
            ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        )
        loading = diagnostics.wait_for(
            lambda array: "loading" in array.status[0].message, "news of the loading"
        )
        assert {p.key: p.value for p in loading.status[0].values}["lifecycle"] == "configuring"
        request = GetParameters.Request(names=["model"])
        answer = ros.call(GetParameters, f"{NODE}/get_parameters", request)
        assert answer.values[0].string_value == str(model)
        state = ros.call(GetState, f"{NODE}/get_state").current_state
        assert state.id == State.TRANSITION_STATE_CONFIGURING
        assert not configuring.done(), "all of this happened while it was loading"
        until(configuring.done, "the transition")
        assert configuring.result().success

        ros.wait_for_state(NODE, State.PRIMARY_STATE_INACTIVE)
        assert ros.node.count_subscribers("/image") == 0
        for _ in range(2):
            assert ros.change_state(NODE, Transition.TRANSITION_ACTIVATE)
            until(lambda: ros.node.count_subscribers("/image") == 1, "the subscription")
            with CameraFeed(ros) as feed:
                tracks = ros.subscribe(Track, f"{NODE}/track")
                start_track(ros, feed)
                until(lambda: len(tracks) > 5, "tracks")  # noqa: B023
                assert ros.change_state(NODE, Transition.TRANSITION_DEACTIVATE)
            tracks.wait_for(lambda t: t.state == Track.IDLE, "IDLE")
            ros.unsubscribe(tracks)
            until(lambda: ros.node.count_subscribers("/image") == 0, "the subscription's end")
        ids = ros.call(InitTarget, f"{NODE}/init_target", init_request(0, 10, 10, 10, 10))
        assert not ids.success
        assert "activate" in ids.message
        assert ros.change_state(NODE, Transition.TRANSITION_CLEANUP)
        assert ros.set_parameters(NODE, model="no_such_model")[0].successful
        assert not ros.change_state(NODE, Transition.TRANSITION_CONFIGURE)
        ros.wait_for_state(NODE, State.PRIMARY_STATE_UNCONFIGURED)
        failed = diagnostics.wait_for(
            lambda array: "no_such_model" in array.status[0].message, "the reason"
        )
        assert failed.status[0].level == b"\x02"
        assert ros.change_state(NODE, Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
        assert process.exit_code is None
        assert process.stop() == 0
        assert "Traceback" not in process.output, process.output


def test_ctrl_c_while_loading_ends_at_once(tmp_path: Path, model: Path) -> None:
    with ros_session(tmp_path) as ros:
        process = ros.run(
            str(SLOW_NODE),
            {"model": model, "diagnostics_period": 0.1},
            environment={"TEST_LOADING_SECONDS": "20"},
        )
        diagnostics = ros.subscribe(DiagnosticArray, "/diagnostics", 10)
        diagnostics.wait_for(lambda array: "loading" in array.status[0].message, "the loading")
        assert process.stop() == 0
        assert "Traceback" not in process.output, process.output


def test_compressed_images_and_remapping(tmp_path: Path, model: Path) -> None:
    def jpeg(pixels: Any, stamp: int) -> CompressedImage:
        _, data = cv2.imencode(".jpg", pixels[..., ::-1])
        return CompressedImage(header=header(stamp), format="jpeg", data=data.tobytes())

    with ros_session(tmp_path) as ros:
        ros.run(
            "tracker_node",
            {"model": model, "image_transport": "compressed"},
            ["-r", "image:=/cam/image_raw", "-r", "__ns:=/robot"],
        )
        node = "/robot/tracker"
        ros.wait_for_state(node, State.PRIMARY_STATE_ACTIVE)
        tracks = ros.subscribe(Track, f"{node}/track")
        with CameraFeed(
            ros, make=jpeg, kind=CompressedImage, topic="/cam/image_raw/compressed"
        ) as feed:
            start_track(ros, feed, node)
            until(lambda: len(tracks) > 10, "tracks")
            assert max(errors(tracks.messages, feed)) < 3.0


def test_simulated_time_is_the_time_of_latency(tmp_path: Path, model: Path) -> None:
    """Images and /clock start at second 100; a wall clock would see latencies of decades."""
    with ros_session(tmp_path) as ros:
        ros.run("tracker_node", {"model": model, "use_sim_time": True})
        ros.wait_for_state(NODE, State.PRIMARY_STATE_ACTIVE)
        clock = ros.publisher(Clock, "/clock", 10)
        until(lambda: clock.get_subscription_count() == 1, "the node to listen to /clock")
        simulated = [100_000_000_000]

        def tick() -> int:
            simulated[0] += 33_000_000
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(simulated[0], 1_000_000_000)
            clock.publish(message)
            return simulated[0]

        tracks = ros.subscribe(Track, f"{NODE}/track")
        with CameraFeed(ros, clock=tick) as feed:
            start_track(ros, feed)
            until(lambda: len(tracks) > 10, "tracks")
        latencies = [t.latency.sec + t.latency.nanosec / 1e9 for t in tracks.messages]
        assert all(abs(latency) < 5.0 for latency in latencies)
        assert max(errors(tracks.messages, feed)) < 2.5


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"backend": "abacus"}, "backend is 'abacus', expected one of auto"),
        ({"image_timeout": -1.0}, "image_timeout"),
        ({"history_seconds": 3}, "write 1.0, not 1"),
        ({"presence.absent_below": 0.9}, "absent_below <= present_above"),
    ],
)
def test_wrong_start_parameters_are_explained(
    tmp_path: Path, parameters: dict[str, Any], words: str
) -> None:
    with ros_session(tmp_path) as ros:
        process = ros.run("tracker_node", parameters)
        assert process.wait() == 2
        assert words in process.output
        assert "Traceback" not in process.output, process.output
