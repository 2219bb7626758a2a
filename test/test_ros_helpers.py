"""What the tests of the nodes lean on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ros_helpers import ros_session

# isort: split
# The import above skips this file where ROS is not installed; those below would fail.
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger


class Forgetful(Node):
    """Never answers the first request to each of its services."""

    def __init__(self, context: Any) -> None:
        super().__init__("forgetful", context=context, use_global_arguments=False)
        self.requests = {"get_state": 0, "stop": 0}
        # In the default group the unanswered request would keep all others waiting.
        group = ReentrantCallbackGroup()
        self.create_service(GetState, "~/get_state", self._get_state, callback_group=group)
        self.create_service(Trigger, "~/stop", self._stop, callback_group=group)

    async def _get_state(
        self, _request: GetState.Request, response: GetState.Response
    ) -> GetState.Response:
        response.current_state.id = State.PRIMARY_STATE_ACTIVE
        await self._count("get_state")
        return response

    async def _stop(
        self, _request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        await self._count("stop")
        return response

    async def _count(self, service: str) -> None:
        self.requests[service] += 1
        if self.requests[service] == 1:
            await Future()


def test_a_lost_answer_is_asked_for_again(tmp_path: Path) -> None:
    """CI lost a node's first response: Fast DDS had not met the client yet."""
    with ros_session(tmp_path) as ros:
        node = Forgetful(ros.node.context)
        ros.add(node)
        ros.wait_for_state("/forgetful", State.PRIMARY_STATE_ACTIVE)
        assert node.requests["get_state"] == 2


def test_what_changes_something_is_sent_once(tmp_path: Path) -> None:
    with ros_session(tmp_path) as ros:
        node = Forgetful(ros.node.context)
        ros.add(node)
        with pytest.raises(AssertionError, match="an answer of /forgetful/stop"):
            ros.call(Trigger, "/forgetful/stop", timeout=5.0)
        assert node.requests["stop"] == 1
