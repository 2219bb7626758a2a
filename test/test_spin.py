"""How nodes end."""

from __future__ import annotations

from pathlib import Path

import pytest
from ros_helpers import ros_session

IDLE_NODE = """
import threading
import time

import rclpy
from rclpy.node import Node

from ostrack_ros.nodes.spin import run_node


def shut_down_unnoticed():
    time.sleep(0.5)
    context = rclpy.get_default_context()
    with context.handle:
        context.handle.shutdown()
    print("shut down", flush=True)


threading.Thread(target=shut_down_unnoticed, daemon=True).start()
raise SystemExit(run_node(lambda: Node("idle"), threads=THREADS))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_an_idle_node_ends_though_its_wake_up_was_lost(tmp_path: Path, threads: int) -> None:
    """After one Ctrl-C in 112 video_node waited for ever: rclpy wakes first, then shuts down."""
    script = tmp_path / "idle.py"
    script.write_text(IDLE_NODE.replace("THREADS", str(threads)))
    with ros_session(tmp_path) as ros:
        node = ros.run(str(script))
        assert node.wait() == 0
        assert "shut down" in node.output


STOPPED_NODE = """
import rclpy
from rclpy.node import Node

from ostrack_ros.nodes.spin import run_node


def make_node():
    rclpy.shutdown()
    return Node("late")


raise SystemExit(run_node(make_node))
"""


def test_a_node_stopped_while_it_starts_leaves_without_a_traceback(tmp_path: Path) -> None:
    """A signal shuts the context down at any moment; nodes cannot be made without one."""
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED_NODE)
    with ros_session(tmp_path) as ros:
        node = ros.run(str(script))
        assert node.wait() == 0
        assert "Traceback" not in node.output
