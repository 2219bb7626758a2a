"""Subscriptions and publishers whose QoS can be overridden and whose mismatches are reported."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions

from ostrack_ros.nodes.compatibility import (
    PublisherEventCallbacks,
    SubscriptionEventCallbacks,
    UnsupportedEventTypeError,
)

Report = Callable[[str, str], None]


def best_effort(depth: int) -> QoSProfile:
    """As sensors publish: matches every publisher, and keeps the newest `depth` messages."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT
    )


def reliable(depth: int) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.RELIABLE
    )


def subscribe(
    node: Node,
    message_type: type,
    topic: str,
    callback: Callable[[Any], None],
    qos: QoSProfile,
    group: CallbackGroup,
    report: Report,
    kind: str,
) -> Any:
    """A subscription; publishers that cannot be connected are reported as a problem of `kind`."""
    told = partial(_incompatible, report, kind, f"a publisher on {topic}")

    def create(events: SubscriptionEventCallbacks) -> Any:
        return node.create_subscription(
            message_type,
            topic,
            callback,
            qos,
            callback_group=group,
            event_callbacks=events,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    try:
        return create(SubscriptionEventCallbacks(incompatible_qos=told))
    except UnsupportedEventTypeError:  # Not every middleware compares QoS.
        return create(SubscriptionEventCallbacks())


def advertise(
    node: Node, message_type: type, topic: str, qos: QoSProfile, report: Report, kind: str
) -> Any:
    """A publisher; subscribers that cannot be connected are reported as a problem of `kind`."""
    told = partial(_incompatible, report, kind, f"a subscriber of {topic}")

    def create(events: PublisherEventCallbacks) -> Any:
        return node.create_publisher(
            message_type,
            topic,
            qos,
            event_callbacks=events,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    try:
        return create(PublisherEventCallbacks(incompatible_qos=told))
    except UnsupportedEventTypeError:
        return create(PublisherEventCallbacks())


def _incompatible(report: Report, kind: str, peer: str, event: Any) -> None:
    policy = qos_policy_name_from_kind(event.last_policy_kind)
    report(
        kind,
        f"{peer} cannot be connected: its QoS and ours disagree about {policy}; change the peer or "
        "set qos_overrides of this node",
    )
