"""The select node: a drag becomes an init box with the stamp of the image that was shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from ros_helpers import BEST_EFFORT, Ros, header, image, nanoseconds, ros_session, until

# isort: split
# The import above skips this file where ROS is not installed; those below would fail.
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from ostrack_ros.msg import InitBox
from ostrack_ros.nodes.select_node import DragListener, DragSelector, SelectNode


@given(*[st.integers(0, 1000) for _ in range(4)])
def test_a_drag_in_any_direction_gives_the_box_between(x1: int, y1: int, x2: int, y2: int) -> None:
    selector = DragSelector()
    selector.shown = header(5)
    selector.press(x1, y1)
    selector.move((x1 + x2) // 2, y2)
    assert selector.dragging
    selector.release(x2, y2)
    assert not selector.dragging
    selection = selector.take()
    if min(abs(x2 - x1), abs(y2 - y1)) < 4:
        assert selection is None, "a click that slipped"
        return
    assert selection is not None
    box = selection.box
    assert (box.x, box.y, box.right, box.bottom) == (
        min(x1, x2),
        min(y1, y2),
        max(x1, x2),
        max(y1, y2),
    )
    assert selector.take() is None, "each is sent once"


def test_the_box_belongs_to_the_image_shown_when_the_button_went_down() -> None:
    selector = DragSelector()
    selector.shown = header(5)
    selector.press(10, 10)
    selector.shown = header(6)
    selector.release(50, 50)
    selection = selector.take()
    assert selection is not None
    assert nanoseconds(selection) == 5


def test_nothing_is_selected_before_an_image() -> None:
    selector = DragSelector()
    selector.press(10, 10)
    selector.release(50, 50)
    assert selector.take() is None


class Paper:
    """A window nobody sees; the test moves the mouse."""

    def __init__(self, title: str, listener: DragListener) -> None:
        self.listener = listener
        self.key = ""
        self.closed = False
        self.shown: list[NDArray[np.uint8]] = []

    def show(self, picture: NDArray[np.uint8]) -> None:
        self.shown.append(picture)

    def read_key(self) -> str:
        key, self.key = self.key, ""
        return key

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def ros(tmp_path: Path) -> Iterator[Ros]:
    with ros_session(tmp_path) as session:
        yield session


def test_a_person_can_point_at_a_target(ros: Ros) -> None:
    windows: list[Paper] = []

    def open_window(title: str, listener: DragListener) -> Paper:
        windows.append(Paper(title, listener))
        return windows[-1]

    node = SelectNode(open_window, context=ros.node.context)
    ros.add(node)
    (window,) = windows
    boxes = ros.subscribe(InitBox, "init_box", 1)
    camera = ros.publisher(Image, "image", BEST_EFFORT)
    until(lambda: camera.get_subscription_count() == 1, "the node to listen")
    picture = np.full((240, 320, 3), 50, np.uint8)  # its corner beyond all that is written
    camera.publish(image(picture, 1_000))
    until(lambda: window.shown, "the picture")
    window.listener.press(10, 12)
    camera.publish(image(picture + np.uint8(100), 2_000))
    window.listener.move(30, 40)
    count = len(window.shown)
    until(lambda: len(window.shown) > count + 3, "more pictures")
    assert window.shown[-1][239, 319, 0] == 50, "the picture stands still during a drag"
    assert tuple(window.shown[-1][20, 10]) != (50, 50, 50), "and shows the box"
    window.listener.release(40, 44)
    sent: Any = boxes.wait_for(lambda message: True, "the init box")
    assert nanoseconds(sent) == 1_000
    assert (sent.box.center_x, sent.box.center_y) == (25.0, 28.0)
    assert (sent.box.size_x, sent.box.size_y) == (30.0, 32.0)
    until(lambda: window.shown[-1][239, 319, 0] == 150, "the live picture again")
    stops: list[bool] = []

    def on_stop(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        stops.append(True)
        return response

    ros.node.create_service(Trigger, "tracker/stop", on_stop)
    until(lambda: node.count_services("/tracker/stop"), "the service")

    def stopped() -> bool:
        window.key = "c"
        return bool(stops)

    until(stopped, "the call of tracker/stop", pause=0.1)
    window.key = "q"
    until(node.finished.is_set, "the end")


def test_without_a_screen_it_says_so_and_ends(ros: Ros, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    process = ros.run("select_node")
    assert process.wait() == 2
    assert "there is no screen" in process.output
    assert "Traceback" not in process.output, process.output
