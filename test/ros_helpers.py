"""Real nodes in processes of their own, and a probe that talks to them over loopback.

Every session has a private ROS domain, so tests neither see each other nor anything else.
"""

from __future__ import annotations

import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
ROOT = Path(__file__).resolve().parent.parent
_PROFILE = str(ROOT / "config" / "fastdds_shm.xml")
for _name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
    os.environ.setdefault(_name, _PROFILE)

rclpy = pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
pytest.importorskip("ostrack_ros.msg", reason="the package's messages are not built")

import numpy as np  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from rcl_interfaces.srv import DescribeParameters, GetParameters  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

import ostrack_ros  # noqa: E402
from ostrack_ros.msg import Box2D, InitBox, Track  # noqa: E402
from ostrack_ros.srv import InitTarget  # noqa: E402

BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
PATIENCE = 20.0
"""Seconds after which something that should have happened counts as not happening."""

ASK_AGAIN = 3.0
"""Seconds after which a question nobody answered is asked again."""

_QUESTIONS = (GetState, GetParameters, DescribeParameters)
"""Services that change nothing, so that asking twice does no harm."""

_HIGHEST_DOMAIN = 101
_PACKAGE = Path(ostrack_ros.__file__).resolve().parent
MessageT = TypeVar("MessageT")


def free_domain() -> int:
    """A ROS domain nobody on this machine uses, by the port of its first participant."""
    domains = list(range(1, _HIGHEST_DOMAIN + 1))
    random.shuffle(domains)
    for domain in domains:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    raise RuntimeError("all ROS domains are in use on this machine")


def until(
    condition: Callable[[], Any], what: str, timeout: float = PATIENCE, pause: float = 0.01
) -> Any:
    """Wait for `condition` to be true and return its value; AssertionError after `timeout`."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s for {what}")
        time.sleep(pause)


class NodeProcess:
    """A node running in its own process; its output is kept for the tests to read."""

    def __init__(
        self,
        command: Sequence[str],
        domain: int,
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._log = log
        self._file = log.open("wb")
        variables = {
            **os.environ,
            "ROS_DOMAIN_ID": str(domain),
            "ROS_LOG_DIR": str(log.parent),
            "PYTHONUNBUFFERED": "1",
            "RCUTILS_LOGGING_BUFFERED_STREAM": "0",
            "PYTHONPATH": os.pathsep.join([str(_PACKAGE.parent), str(ROOT / "test")]),
            **(environment or {}),
        }
        self._process = subprocess.Popen(
            list(command),
            env=variables,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
        )

    @property
    def name(self) -> str:
        return self._log.stem

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout: float = PATIENCE) -> int:
        return self._process.wait(timeout)

    def stop(self) -> int:
        """End it as Ctrl-C does; the exit code."""
        for number, patience in ((signal.SIGINT, 15.0), (signal.SIGKILL, 5.0)):
            if self._process.poll() is None:
                self._process.send_signal(number)
                try:
                    self._process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        self._file.close()
        return self._process.wait()


class Inbox(Generic[MessageT]):
    """All messages of a topic since the subscription, in order of arrival."""

    def __init__(self) -> None:
        self._messages: list[MessageT] = []
        self._changed = threading.Condition()

    def add(self, message: MessageT) -> None:
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._messages.clear()

    @property
    def messages(self) -> list[MessageT]:
        with self._changed:
            return list(self._messages)

    @property
    def last(self) -> MessageT:
        return self.messages[-1]

    def __len__(self) -> int:
        return len(self.messages)

    def wait_for(
        self, condition: Callable[[MessageT], bool], what: str, timeout: float = PATIENCE
    ) -> MessageT:
        """The first message, old or new, that fulfils the condition."""
        seen = 0
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for message in self._messages[seen:]:
                    if condition(message):
                        return message
                seen = len(self._messages)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(
                        f"waited {timeout:g} s for {what}; {seen} other messages came, the last: "
                        f"{self._messages[-1:]}"
                    )
                self._changed.wait(left)


class Ros:
    """One private ROS domain: a probe node in this process, and node processes around it."""

    def __init__(self, folder: Path, domain: int | None = None) -> None:
        self.folder = folder
        self.domain = free_domain() if domain is None else domain
        self.processes: list[NodeProcess] = []
        self._context = Context()
        rclpy.init(context=self._context, domain_id=self.domain)
        self.node = Node("probe", context=self._context, use_global_arguments=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self) -> None:
        for process in reversed(self.processes):
            process.stop()
            # pytest shows this where the test failed.
            print(f"--- {process.name}\n{process.output}")
        rclpy.try_shutdown(context=self._context)
        self._thread.join(10.0)
        self.node.destroy_node()

    def run(
        self,
        target: str,
        parameters: dict[str, Any] | None = None,
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> NodeProcess:
        """Start a module of ostrack_ros.nodes, or a script, with ROS parameters."""
        script = Path(target)
        command = [sys.executable]
        command += (
            [str(script)] if script.suffix == ".py" else ["-m", f"ostrack_ros.nodes.{target}"]
        )
        command += ["--ros-args"]
        for key, value in (parameters or {}).items():
            command += ["-p", f"{key}:={_yaml(value)}"]
        command += arguments
        log = self.folder / f"{script.stem}_{len(self.processes)}.log"
        process = NodeProcess(command, self.domain, log, environment)
        self.processes.append(process)
        return process

    def subscribe(self, kind: type[MessageT], topic: str, qos: Any = 100) -> Inbox[MessageT]:
        inbox: Inbox[MessageT] = Inbox()
        inbox.subscription = self.node.create_subscription(  # type: ignore[attr-defined]
            kind, topic, inbox.add, qos
        )
        return inbox

    def unsubscribe(self, inbox: Inbox[Any]) -> None:
        self.node.destroy_subscription(inbox.subscription)  # type: ignore[attr-defined]

    def publisher(self, kind: type, topic: str, qos: Any = BEST_EFFORT) -> Any:
        return self.node.create_publisher(kind, topic, qos)

    def call(self, kind: Any, service: str, request: Any = None, timeout: float = PATIENCE) -> Any:
        """The response of a service; AssertionError when there is none.

        A server that has not yet met this new client drops its response after 0.1 s
        (rmw_fastrtps: "client will not receive response"), which happens while a node starts on a
        busy machine. So what only asks is asked again.
        """
        client = self.node.create_client(kind, service)
        pause = ASK_AGAIN if kind in _QUESTIONS else math.inf
        asked: list[Any] = []
        again = 0.0

        def answered() -> Any:
            nonlocal again
            if time.monotonic() >= again:
                asked.append(client.call_async(request or kind.Request()))
                again = time.monotonic() + pause
            return next((future for future in asked if future.done()), None)

        try:
            assert client.wait_for_service(timeout), f"there is no service {service}"
            return until(answered, f"an answer of {service}", timeout).result()
        finally:
            self.node.destroy_client(client)

    def set_parameters(self, node: str, **values: Any) -> list[Any]:
        """Set each on its own; the SetParametersResults in order. `__` stands for a dot."""
        from rcl_interfaces.srv import SetParameters

        request = SetParameters.Request(
            parameters=[
                Parameter(key.replace("__", "."), value=value).to_parameter_msg()
                for key, value in values.items()
            ]
        )
        return list(self.call(SetParameters, f"{node}/set_parameters", request).results)

    def wait_for_state(self, node: str, state: int) -> None:
        """Wait until a lifecycle node is in the state with this id."""

        def reached() -> bool:
            current = self.call(GetState, f"{node}/get_state").current_state
            return bool(current.id == state)

        until(reached, f"lifecycle state {state} of {node}", pause=0.1)

    def change_state(self, node: str, transition: int) -> bool:
        """Run a lifecycle transition; whether it succeeded."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self.call(ChangeState, f"{node}/change_state", request).success)

    def add(self, node: Node) -> None:
        """Let a node of this process run beside the probe; its context must be the probe's."""
        self._executor.add_node(node)

    def now(self) -> int:
        return int(self.node.get_clock().now().nanoseconds)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def ros_session(folder: Path, domain: int | None = None) -> Iterator[Ros]:
    session = Ros(folder, domain)
    try:
        yield session
    finally:
        session.close()


# Messages.


def header(stamp: int, frame: str = "camera_optical_frame") -> Header:
    message = Header(frame_id=frame)
    message.stamp.sec, message.stamp.nanosec = divmod(stamp, 1_000_000_000)
    return message


def nanoseconds(message: Any) -> int:
    """The stamp of a message with a header."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def image(pixels: NDArray[np.uint8], stamp: int, encoding: str = "rgb8") -> Image:
    height, width = pixels.shape[:2]
    data = array("B")
    data.frombytes(np.ascontiguousarray(pixels).data)
    return Image(
        header=header(stamp),
        height=height,
        width=width,
        encoding=encoding,
        step=width * (pixels.shape[2] if pixels.ndim == 3 else 1),
        data=data,
    )


def box(cx: float, cy: float, width: float, height: float) -> Box2D:
    return Box2D(center_x=float(cx), center_y=float(cy), size_x=float(width), size_y=float(height))


def init_box(stamp: int, *values: float) -> InitBox:
    return InitBox(header=header(stamp), box=box(*values))


def init_request(stamp: int, *values: float) -> InitTarget.Request:
    return InitTarget.Request(header=header(stamp), box=box(*values))


def track_text(track: Track) -> str:
    return f"id {track.track_id} state {track.state} at ({track.box.center_x:.1f}, ...)"
