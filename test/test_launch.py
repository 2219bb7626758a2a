"""The launch files, really launched; skipped where ROS launch is not installed (not on PyPI)."""

from __future__ import annotations

import csv
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="launch and launch_ros come with a ROS distro only")
launch_pytest = pytest.importorskip(
    "launch_pytest", reason="launch_pytest comes with a ROS distro only"
)

import rclpy  # noqa: E402
from launch.actions import (  # noqa: E402
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    SetEnvironmentVariable,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource  # noqa: E402
from lifecycle_msgs.msg import State  # noqa: E402
from lifecycle_msgs.srv import GetState  # noqa: E402
from rclpy.node import Node  # noqa: E402
from ros_helpers import ros_session  # noqa: E402
from synthetic_model import write_red_blob_model  # noqa: E402
from two_cameras import check_both_are_followed  # noqa: E402

from launch import LaunchDescription  # noqa: E402
from ostrack_ros.engines.models import ModelNotFoundError, resolve_model  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
DOMAIN = 1 + os.getpid() % 100
PRIVATE = [
    SetEnvironmentVariable("ROS_DOMAIN_ID", str(DOMAIN)),
    SetEnvironmentVariable("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST"),
]


@pytest.fixture(scope="module")
def observer() -> Iterator[Node]:
    """A node in the launched nodes' domain."""
    kept = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE")
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    node = Node("observer", context=context)
    yield node
    node.destroy_node()
    context.try_shutdown()
    if kept is None:
        del os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"]
    else:
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = kept


def include(name: str, **arguments: str) -> IncludeLaunchDescription:
    source = PythonLaunchDescriptionSource(str(ROOT / "launch" / name))
    return IncludeLaunchDescription(source, launch_arguments=arguments.items())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_argument_is_described(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("launch_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entities = module.generate_launch_description().entities
    arguments = [entity for entity in entities if isinstance(entity, DeclareLaunchArgument)]
    assert len(arguments) >= 5
    for argument in arguments:
        described = argument.description.split(" Valid choices are")[0]
        assert described.endswith("."), argument.name


@launch_pytest.fixture
def tracker_in_a_namespace(tmp_path_factory: pytest.TempPathFactory) -> LaunchDescription:
    model = tmp_path_factory.mktemp("model") / "red_blob.onnx"
    write_red_blob_model(model)
    arguments = {"namespace": "robot", "image": "/camera/image_raw", "model": str(model)}
    arguments |= {"backend": "onnxruntime", "log_level": "debug"}
    return LaunchDescription(
        [*PRIVATE, include("tracker.launch.py", **arguments), launch_pytest.actions.ReadyToTest()]
    )


@pytest.mark.launch(fixture=tracker_in_a_namespace)
def test_tracker_starts_itself_in_its_namespace(observer: Node) -> None:
    client = observer.create_client(GetState, "/robot/tracker/get_state")
    assert client.wait_for_service(60.0)
    executor = rclpy.executors.SingleThreadedExecutor(context=observer.context)
    deadline = time.monotonic() + 60.0
    state = None
    while state != State.PRIMARY_STATE_ACTIVE and time.monotonic() < deadline:
        future = client.call_async(GetState.Request())
        rclpy.spin_until_future_complete(observer, future, executor, timeout_sec=5.0)
        state = future.result().current_state.id if future.done() else None
        time.sleep(0.2)
    assert state == State.PRIMARY_STATE_ACTIVE
    topics = dict(observer.get_topic_names_and_types())
    assert topics["/robot/tracker/track"] == ["ostrack_ros/msg/Track"]
    assert "/camera/image_raw" in topics
    assert "/robot/image" not in topics


@launch_pytest.fixture
def two_cameras(tmp_path_factory: pytest.TempPathFactory) -> LaunchDescription:
    folder = tmp_path_factory.mktemp("two")
    model, params = folder / "red_blob.onnx", folder / "params.yaml"
    write_red_blob_model(model)
    values = f"{{model: {model}, backend: onnxruntime}}"
    params.write_text(f"/**: {{ros__parameters: {values}}}\n")
    return LaunchDescription(
        [
            *PRIVATE,
            include("two_cameras.launch.py", params_file=str(params)),
            launch_pytest.actions.ReadyToTest(),
        ]
    )


@pytest.mark.launch(fixture=two_cameras)
def test_two_cameras_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with ros_session(tmp_path, DOMAIN) as ros:
        check_both_are_followed(ros)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@launch_pytest.fixture
def demo(output: Path) -> LaunchDescription:
    try:
        resolve_model("ostrack_small")
    except ModelNotFoundError:
        pytest.skip("the weights of ostrack_small are not in models/")
    return LaunchDescription(
        [
            *PRIVATE,
            # Slower than real time: a busy machine must not fail a test of correctness.
            include("demo.launch.py", output=str(output), rate="5.0"),
            launch_pytest.actions.ReadyToTest(),
        ]
    )


@pytest.mark.launch(fixture=demo)
def test_demo_follows_the_clip(output: Path) -> None:
    track = output / "track.csv"
    deadline = time.monotonic() + 120.0
    while not track.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    with track.open(encoding="utf-8") as file:
        overlaps = [float(row["iou"]) for row in csv.DictReader(file)]
    assert len(overlaps) > 10
    assert sum(value > 0.5 for value in overlaps) > 0.8 * len(overlaps)
