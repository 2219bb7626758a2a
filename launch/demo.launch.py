"""Follow the bundled clip's target: `ros2 launch ostrack_ros demo.launch.py rviz:=true`."""

from __future__ import annotations

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

PACKAGE = "ostrack_ros"
SHARE = FindPackageShare(PACKAGE)
PASSED_ON = ("model", "backend", "namespace", "rviz", "log_level")

ARGUMENTS = (
    DeclareLaunchArgument(
        "model",
        default_value="",
        description="Shipped model or path of an .onnx file; empty takes config/tracker.yaml's.",
    ),
    DeclareLaunchArgument(
        "backend",
        default_value="",
        choices=["", "auto", "tensorrt", "openvino", "onnxruntime"],
        description="Runtime for the network; empty takes config/tracker.yaml's.",
    ),
    DeclareLaunchArgument(
        "namespace", default_value="", description="Namespace of the nodes and their topics."
    ),
    DeclareLaunchArgument(
        "rate", default_value="25.0", description="Frames/s at which the clip is played."
    ),
    DeclareLaunchArgument(
        "output",
        default_value="demo_output",
        description="Folder for the overlay video, the contact sheet and the track.",
    ),
    DeclareLaunchArgument(
        "rviz", default_value="false", choices=["true", "false"], description="Start RViz, too."
    ),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="Lowest severity that the tracker node logs.",
    ),
)


def generate_launch_description() -> LaunchDescription:
    """The tracker, the clip as a camera, and the observer whose end ends everything."""
    tracker = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(PathJoinSubstitution([SHARE, "launch", "tracker.launch.py"])),
        launch_arguments={name: LaunchConfiguration(name) for name in PASSED_ON}.items(),
    )
    rate = ParameterValue(LaunchConfiguration("rate"), value_type=float)
    camera = Node(
        package=PACKAGE,
        executable="video_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            {
                "source": PathJoinSubstitution([SHARE, "demo", "clip.mp4"]),
                "rate": rate,
                "loop": False,
                # Tracker and observer: nobody misses the beginning.
                "wait_for_subscribers": 2,
            }
        ],
        output="screen",
    )
    observer = Node(
        package=PACKAGE,
        executable="demo_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            {
                "clip": PathJoinSubstitution([SHARE, "demo", "clip.json"]),
                "output": LaunchConfiguration("output"),
                "rate": rate,
            }
        ],
        output="screen",
        emulate_tty=True,
    )
    finish = RegisterEventHandler(
        OnProcessExit(
            target_action=observer, on_exit=[EmitEvent(event=Shutdown(reason="the demo is over"))]
        )
    )
    return LaunchDescription([*ARGUMENTS, tracker, camera, observer, finish])
