"""Two cameras, two targets, one engine: `ros2 launch ostrack_ros two_cameras.launch.py`."""

from __future__ import annotations

import os

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

PACKAGE = "ostrack_ros"
SHARE = FindPackageShare(PACKAGE)
# Fast DDS 3 (Kilted) renamed the variable that points to its settings.
PROFILE_VARIABLE = (
    "FASTRTPS_DEFAULT_PROFILES_FILE"
    if os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    else "FASTDDS_DEFAULT_PROFILES_FILE"
)

ARGUMENTS = (
    DeclareLaunchArgument(
        "left", default_value="left", description="Namespace of the first camera and its tracker."
    ),
    DeclareLaunchArgument(
        "right",
        default_value="right",
        description="Namespace of the second camera and its tracker.",
    ),
    DeclareLaunchArgument(
        "image",
        default_value="image_raw",
        description="Image topic of both cameras, relative to their namespaces.",
    ),
    DeclareLaunchArgument(
        "params_file",
        default_value=PathJoinSubstitution([SHARE, "config", "tracker.yaml"]),
        description="YAML file with the parameters of both trackers.",
    ),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        choices=["true", "false"],
        description="Take the time from /clock (simulation, bag).",
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
    """One process with both trackers; they share the engine because their parameters agree."""
    return LaunchDescription(
        [
            *ARGUMENTS,
            SetEnvironmentVariable(PROFILE_VARIABLE, LaunchConfiguration("fastdds_profile")),
            Node(
                package=PACKAGE,
                executable="multi_tracker_node",
                arguments=[LaunchConfiguration("left"), LaunchConfiguration("right")],
                parameters=[
                    LaunchConfiguration("params_file"),
                    {"use_sim_time": LaunchConfiguration("use_sim_time")},
                ],
                remappings=[("image", LaunchConfiguration("image"))],
                output="screen",
                emulate_tty=True,
            ),
        ]
    )
