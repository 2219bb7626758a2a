"""The command `ostrack`: everything that can be done without ROS."""

from ostrack_ros.cli.main import main

__all__ = ["main"]
