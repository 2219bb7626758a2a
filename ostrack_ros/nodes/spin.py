"""Start a node, run it until it is told to stop, and leave without a traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, ParameterException
from rclpy.executors import (
    Executor,
    ExternalShutdownException,
    SingleThreadedExecutor,
)
from rclpy.node import Node

from ostrack_ros.nodes.executor import PromptExecutor


class StartError(Exception):
    """The node cannot start. The message says why and what to do."""


def run_node(
    make_node: Callable[[], Node], args: Sequence[str] | None = None, threads: int = 1
) -> int:
    """Run the node until SIGINT, SIGTERM or shutdown.

    Returns the exit code: 0 then, 2 if the node cannot start. `make_node` runs after rclpy.init.
    Errors in callbacks are logged and survived. A node with a method `close` has it called before
    it is destroyed.
    """
    # rclpy's own handler ends the spinning. Python's, which runs after it, would raise an exception
    # anywhere, and could only interrupt the orderly end.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    rclpy.init(args=None if args is None else list(args))
    try:
        node = make_node()
    except (ParameterException, StartError, ValueError) as error:
        print(f"cannot start: {_explain(error)}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2

    def on_error(error: Exception) -> None:
        if rclpy.ok():
            node.get_logger().error(f"a callback failed: {type(error).__name__}: {error}")

    executor = SingleThreadedExecutor() if threads == 1 else PromptExecutor(threads, on_error)
    executor.add_node(node)
    try:
        while rclpy.ok():
            _spin_until_trouble(executor, on_error)
    finally:
        _leave(node)
    return 0


def _spin_until_trouble(executor: Executor, on_error: Callable[[Exception], None]) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        return
    except Exception as error:
        on_error(error)


def _leave(node: Node) -> None:
    try:
        close = getattr(node, "close", None)
        if close is not None:
            close()
        node.destroy_node()
    finally:
        rclpy.try_shutdown()


def _explain(error: Exception) -> str:
    text = str(error.args[0]) if error.args else str(error)
    if isinstance(error, InvalidParameterTypeException):
        return f"{text} (a double needs a decimal point: write 1.0, not 1)"
    return text
