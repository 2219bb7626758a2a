"""RViz markers of the target: a ray to its centre and the frustum of its box."""

from __future__ import annotations

from collections.abc import Iterable

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from ostrack_ros.nodes.camera import Ray
from ostrack_ros.palette import state_colour
from ostrack_ros.tracking.presence import TargetState

LIFETIME = Duration(sec=1, nanosec=0)
"""RViz drops markers by itself when the node or the camera stops."""

_RAY, _FRUSTUM = 0, 1


def target_markers(
    header: Header, state: TargetState, ray: Ray, corners: Iterable[Ray], length: float
) -> MarkerArray:
    """Ray and frustum of `length` metres from the optical centre; bearings are unit vectors."""
    red, green, blue = state_colour(state)
    colour = ColorRGBA(r=red / 255.0, g=green / 255.0, b=blue / 255.0, a=0.9)
    centre = Point()
    tip = _point(ray, length)
    ends = [_point(corner, length) for corner in corners]
    edges = [point for end in ends for point in (centre, end)]
    for first, second in zip(ends, [*ends[1:], *ends[:1]], strict=True):
        edges += [first, second]
    return MarkerArray(
        markers=[
            _lines(header, _RAY, "ray", [centre, tip], colour, 0.01 * length),
            _lines(header, _FRUSTUM, "frustum", edges, colour, 0.004 * length),
        ]
    )


def no_markers(header: Header) -> MarkerArray:
    """Takes all markers of this topic away."""
    return MarkerArray(markers=[Marker(header=header, action=Marker.DELETEALL)])


def _lines(
    header: Header, ident: int, name: str, points: list[Point], colour: ColorRGBA, width: float
) -> Marker:
    marker = Marker(
        header=header,
        ns=name,
        id=ident,
        type=Marker.LINE_LIST,
        action=Marker.ADD,
        color=colour,
        lifetime=LIFETIME,
        points=points,
    )
    marker.pose.orientation.w = 1.0
    marker.scale.x = width
    return marker


def _point(ray: Ray, length: float) -> Point:
    return Point(x=float(ray[0] * length), y=float(ray[1] * length), z=float(ray[2] * length))
