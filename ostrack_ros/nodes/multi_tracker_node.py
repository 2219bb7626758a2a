"""Tracker nodes for several cameras in one process, sharing one engine.

    ros2 run ostrack_ros multi_tracker_node left right --ros-args -r image:=image_raw

starts `/left/tracker` and `/right/tracker`, which take `/left/image_raw` and `/right/image_raw`.
Each is a tracker node like any other, with its own parameters, topics and services. Remappings and
parameters apply to all of them, unless given with a node's name or namespace in front.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rclpy.utilities import remove_ros_args

from ostrack_ros.nodes.engine_pool import EnginePool
from ostrack_ros.nodes.memory import keep_image_buffers
from ostrack_ros.nodes.spin import run_nodes
from ostrack_ros.nodes.tracker_node import SWITCH_SECONDS, THREADS, TrackerNode


def main(args: Sequence[str] | None = None) -> int:
    """Run the nodes; the exit code."""
    given = list(sys.argv if args is None else ["multi_tracker_node", *args])
    parser = argparse.ArgumentParser(
        prog="multi_tracker_node",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cameras", nargs="+", help="namespaces of the cameras")
    cameras = parser.parse_args(remove_ros_args(given)[1:]).cameras
    if repeated := {camera for camera in cameras if cameras.count(camera) > 1}:
        parser.error(f"cameras must differ, {', '.join(sorted(repeated))} was given twice")
    keep_image_buffers()
    sys.setswitchinterval(SWITCH_SECONDS)
    pool = EnginePool()
    return run_nodes(
        lambda: [TrackerNode(pool.load, namespace=camera) for camera in cameras],
        None if args is None else list(args),
        THREADS * len(cameras),
    )


if __name__ == "__main__":
    sys.exit(main())
