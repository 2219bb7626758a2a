"""Start the tracker node: `ros2 launch ostrack_ros tracker.launch.py image:=/camera/image_raw`."""

from __future__ import annotations

import os
import sys

from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.conditions import IfCondition
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription

PACKAGE = "ostrack_ros"
SHARE = FindPackageShare(PACKAGE)
BOOLEANS = ["true", "false"]
# Fast DDS 3 (Kilted) renamed the variable that points to its settings.
PROFILE_VARIABLE = (
    "FASTRTPS_DEFAULT_PROFILES_FILE"
    if os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    else "FASTDDS_DEFAULT_PROFILES_FILE"
)

ARGUMENTS = (
    DeclareLaunchArgument(
        "image", default_value="image", description="Topic of the images to track in."
    ),
    DeclareLaunchArgument(
        "camera_info",
        default_value="camera_info",
        description="Topic of the camera's calibration; only bearing and markers need it.",
    ),
    DeclareLaunchArgument(
        "image_transport",
        default_value="raw",
        choices=["raw", "compressed"],
        description="compressed subscribes to <image>/compressed instead of <image>.",
    ),
    DeclareLaunchArgument(
        "model",
        default_value="",
        description="Shipped model or path of an .onnx file; empty takes the params file's.",
    ),
    DeclareLaunchArgument(
        "backend",
        default_value="",
        choices=["", "auto", "tensorrt", "openvino", "onnxruntime"],
        description="Runtime for the network; empty takes the params file's.",
    ),
    DeclareLaunchArgument(
        "params_file",
        default_value=PathJoinSubstitution([SHARE, "config", "tracker.yaml"]),
        description="YAML file with the tracker node's parameters.",
    ),
    DeclareLaunchArgument(
        "namespace", default_value="", description="Namespace of the node and its topics."
    ),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        choices=BOOLEANS,
        description="Take the time from /clock (simulation, bag).",
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="true",
        choices=BOOLEANS,
        description="Configure and activate at once; false waits for a lifecycle manager.",
    ),
    DeclareLaunchArgument(
        "build_only",
        default_value="false",
        choices=BOOLEANS,
        description="Build the model's TensorRT engine for this machine, then end.",
    ),
    DeclareLaunchArgument(
        "rviz", default_value="false", choices=BOOLEANS, description="Start RViz, too."
    ),
    DeclareLaunchArgument(
        "rviz_config",
        default_value=PathJoinSubstitution([SHARE, "config", "ostrack.rviz"]),
        description="What RViz shows.",
    ),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="Lowest severity that the tracker node logs.",
    ),
    DeclareLaunchArgument(
        "fastdds_profile",
        default_value=EnvironmentVariable(
            PROFILE_VARIABLE,
            default_value=PathJoinSubstitution([SHARE, "config", "fastdds_images.xml"]),
        ),
        description="Fast DDS settings: the default shared memory segment loses large images.",
    ),
)


def generate_launch_description() -> LaunchDescription:
    """The tracker node, and RViz on request."""
    return LaunchDescription(
        [
            *ARGUMENTS,
            SetEnvironmentVariable(PROFILE_VARIABLE, LaunchConfiguration("fastdds_profile")),
            OpaqueFunction(function=_tracker),
            Node(
                package="rviz2",
                executable="rviz2",
                namespace=LaunchConfiguration("namespace"),
                arguments=["-d", LaunchConfiguration("rviz_config")],
                parameters=[{"use_sim_time": LaunchConfiguration("use_sim_time")}],
                condition=IfCondition(LaunchConfiguration("rviz")),
            ),
        ]
    )


def _tracker(context: LaunchContext) -> list[Action]:
    """The node, or its engine's build.

    A function, because an argument left empty must not override the params file.
    """

    def value(name: str) -> str:
        return str(LaunchConfiguration(name).perform(context))

    if value("build_only") == "true":
        model = [value("model")] if value("model") else []
        command = [sys.executable, "-m", "ostrack_ros.cli", "build", *model]
        return [ExecuteProcess(cmd=command, output="screen", emulate_tty=True)]
    overrides: dict[str, str | bool] = {
        "use_sim_time": value("use_sim_time") == "true",
        "autostart": value("autostart") == "true",
        "image_transport": value("image_transport"),
    }
    overrides |= {name: value(name) for name in ("model", "backend") if value(name)}
    image = value("image")
    return [
        Node(
            package=PACKAGE,
            executable="tracker_node",
            name="tracker",
            namespace=value("namespace"),
            parameters=[value("params_file"), overrides],
            remappings=[
                ("image", image),
                ("image/compressed", f"{image}/compressed"),
                ("camera_info", value("camera_info")),
            ],
            ros_arguments=["--log-level", f"tracker:={value('log_level')}"],
            output="screen",
            emulate_tty=True,
        )
    ]
