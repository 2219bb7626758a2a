"""Start a node, run it until it is told to stop, and leave without a traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.exceptions import InvalidParameterTypeException, ParameterException
from rclpy.executors import (
    Executor,
    ExternalShutdownException,
    SingleThreadedExecutor,
)
from rclpy.node import Node

from ostrack_ros.nodes.executor import PromptExecutor
from ostrack_ros.nodes.logs import forward_logs, stop_forwarding

_LOOK_SECONDS = 1.0


class StartError(Exception):
    """The node cannot start. The message says why and what to do."""


def run_node(
    make_node: Callable[[], Node], args: Sequence[str] | None = None, threads: int = 1
) -> int:
    """Run the node until SIGINT, SIGTERM or shutdown; see `run_nodes`."""
    return run_nodes(lambda: [make_node()], args, threads)


def run_nodes(
    make_nodes: Callable[[], Sequence[Node]], args: Sequence[str] | None = None, threads: int = 1
) -> int:
    """Run nodes in one process until SIGINT, SIGTERM or shutdown.

    Returns the exit code: 0 then, 2 if they cannot start. `make_nodes` runs after rclpy.init.
    Errors in callbacks are logged and survived. The package's own log goes to the first node's
    logger. A node with a method `close` has it called before it is destroyed.
    """
    # rclpy's own handler ends the spinning. Python's, which runs after it, would raise an exception
    # anywhere, and could only interrupt the orderly end.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    rclpy.init(args=None if args is None else list(args))
    nodes: Sequence[Node] = ()

    def on_error(error: Exception) -> None:
        if rclpy.ok():
            nodes[0].get_logger().error(f"a callback failed: {type(error).__name__}: {error}")

    try:
        nodes = make_nodes()
        executor = SingleThreadedExecutor() if threads == 1 else PromptExecutor(threads, on_error)
        for node in nodes:
            executor.add_node(node)
        _look_up_now_and_then(nodes[0])
    except Exception as error:
        if not rclpy.ok():  # Told to stop while starting, so what was being made had no context.
            _leave(nodes)
            return 0
        if not isinstance(error, (ParameterException, StartError, ValueError)):
            raise
        print(f"cannot start: {_explain(error)}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    handler = forward_logs(nodes[0].get_logger())
    try:
        while rclpy.ok():
            _spin_until_trouble(executor, on_error)
    finally:
        stop_forwarding(handler)
        _leave(nodes)
    return 0


def _look_up_now_and_then(node: Node) -> None:
    """Have the executor see within a second that the context was shut down.

    rclpy's signal handler wakes the executor before it shuts the context down. One that is quick to
    look finds all well and waits again; without messages nothing would end that wait.
    """
    node.create_timer(
        _LOOK_SECONDS,
        lambda: None,
        callback_group=MutuallyExclusiveCallbackGroup(),
        clock=Clock(clock_type=ClockType.STEADY_TIME),
    )


def _spin_until_trouble(executor: Executor, on_error: Callable[[Exception], None]) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        return
    except Exception as error:
        on_error(error)


def _leave(nodes: Sequence[Node]) -> None:
    try:
        for node in nodes:
            close = getattr(node, "close", None)
            if close is not None:
                close()
        for node in nodes:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def _explain(error: Exception) -> str:
    text = str(error.args[0]) if error.args else str(error)
    if isinstance(error, InvalidParameterTypeException):
        return f"{text} (a double needs a decimal point: write 1.0, not 1)"
    return text
