"""Every parameter of the tracker node, in one table, and what they add up to.

config/tracker.yaml and the README's table are checked against this one by a test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.parameter import Parameter

from ostrack_ros.tracking.presence import PresenceSettings
from ostrack_ros.tracking.tracker import TrackerSettings

Value = bool | int | float | str

MEGABYTE = 1_000_000
_PRESENCE = PresenceSettings()
_TRACKER = TrackerSettings()


class Change(Enum):
    """When a parameter may be set after the node has started."""

    LIVE = "live"
    CONFIGURE = "while unconfigured"
    START = "at start only"


@dataclass(frozen=True, slots=True)
class Row:
    """One parameter. `limits` are inclusive; `choices` lists the allowed strings, if limited."""

    name: str
    default: Value
    change: Change
    description: str
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()

    @property
    def type_name(self) -> str:
        """As ROS tools print it."""
        names = {bool: "bool", int: "integer", float: "double", str: "string"}
        return names[type(self.default)]

    def descriptor(self) -> ParameterDescriptor:
        descriptor = ParameterDescriptor(
            description=self.description,
            read_only=self.change is Change.START,
            additional_constraints="one of: " + ", ".join(self.choices) if self.choices else "",
        )
        if self.limits is not None:
            low, high = self.limits
            if isinstance(self.default, float):
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=low, to_value=high)
                ]
            else:
                descriptor.integer_range = [
                    IntegerRange(from_value=int(low), to_value=int(high), step=1)
                ]
        return descriptor


def _presence(name: str, description: str, limits: tuple[float, float]) -> Row:
    default: Value = getattr(_PRESENCE, name)
    return Row(f"presence.{name}", default, Change.LIVE, description, limits)


PARAMETERS: tuple[Row, ...] = (
    Row(
        "autostart",
        True,
        Change.START,
        "Configure and activate by itself; false waits for a lifecycle manager.",
    ),
    Row(
        "model",
        "ostrack_small",
        Change.CONFIGURE,
        "Name of a shipped model or path of an .onnx file with its sidecar beside it.",
    ),
    Row(
        "backend",
        "auto",
        Change.CONFIGURE,
        "Runtime for the network; auto takes TensorRT where it and a GPU are, else OpenVINO, "
        "else ONNX Runtime.",
        choices=("auto", "tensorrt", "openvino", "onnxruntime"),
    ),
    Row(
        "precision",
        "auto",
        Change.CONFIGURE,
        "Arithmetic of the network; auto is the backend's safe choice.",
        choices=("auto", "fp32", "fp16", "bf16"),
    ),
    Row(
        "threads",
        0,
        Change.CONFIGURE,
        "CPU threads of the network; 0 leaves the choice to the backend.",
        (0, 256),
    ),
    Row(
        "device",
        0,
        Change.CONFIGURE,
        "Index of the GPU, for backends that use one.",
        (0, 63),
    ),
    Row(
        "cache_directory",
        "",
        Change.CONFIGURE,
        "Folder for engines built on this machine; empty means the user's cache.",
    ),
    Row(
        "fallback",
        "cpu",
        Change.CONFIGURE,
        "What follows a GPU engine that disagrees with its model: cpu is fp32 on the GPU, then a "
        "CPU backend; fp32 is that on the GPU only; none is an error.",
        choices=("cpu", "fp32", "none"),
    ),
    Row(
        "image_transport",
        "raw",
        Change.CONFIGURE,
        "raw subscribes to `image`, compressed to `image/compressed`.",
        choices=("raw", "compressed"),
    ),
    Row(
        "rectified",
        False,
        Change.CONFIGURE,
        "The images are rectified already: bearings use P of camera_info instead of K and D.",
    ),
    Row(
        "image_timeout",
        1.0,
        Change.LIVE,
        "Seconds without an image after which the target is reported LOST.",
        (0.05, 60.0),
    ),
    Row(
        "history_seconds",
        10.0,
        Change.CONFIGURE,
        "Age in seconds up to which images are kept for init boxes drawn on a delayed view; a "
        "person's drag alone takes seconds.",
        (0.0, 60.0),
    ),
    Row(
        "history_megabytes",
        512,
        Change.CONFIGURE,
        "Memory in MB up to which these images are kept; the oldest go first.",
        (0, 65536),
    ),
    Row(
        "init_tolerance",
        0.1,
        Change.LIVE,
        "Seconds by which an init box's stamp may miss an image, for images lost on the way; where "
        "images come more slowly, one interval between them (at most 1 s). 0: not at all.",
        (0.0, 1.0),
    ),
    Row(
        "init_wait",
        1.0,
        Change.LIVE,
        "Seconds an init box waits for its image if that has not arrived yet.",
        (0.0, 10.0),
    ),
    Row(
        "catch_up_time",
        2.0,
        Change.LIVE,
        "Seconds within which replay after an init in the past reaches the live image; images "
        "are skipped as needed.",
        (0.0, 30.0),
    ),
    _presence(
        "absent_below",
        "Confidence below which nothing was measured: the target coasts.",
        (0.0, 1.0),
    ),
    _presence(
        "present_above",
        "Confidence from which a coasting target is measured again.",
        (0.0, 1.0),
    ),
    _presence(
        "doubt_below",
        "Confidence below which a tracked target becomes UNCERTAIN.",
        (0.0, 1.0),
    ),
    _presence(
        "trust_above",
        "Confidence from which an uncertain target is TRACKING again.",
        (0.0, 1.0),
    ),
    _presence(
        "doubt_after",
        "Seconds of doubt before TRACKING becomes UNCERTAIN.",
        (0.0, 10.0),
    ),
    _presence(
        "trust_after",
        "Seconds of confidence before UNCERTAIN becomes TRACKING.",
        (0.0, 10.0),
    ),
    _presence(
        "lost_after",
        "Seconds of coasting before the target is LOST.",
        (0.0, 60.0),
    ),
    _presence(
        "confirm_frames",
        "Consecutive confident images that bring a LOST target back.",
        (1, 100),
    ),
    _presence(
        "coast_reach",
        "Distance a coasting box may move on, in units of sqrt(box area).",
        (0.0, 10.0),
    ),
    _presence(
        "search_growth",
        "Factor to which the side of the search region grows while LOST.",
        (1.0, 4.0),
    ),
    _presence(
        "growth_time",
        "Seconds in which it grows.",
        (0.0, 60.0),
    ),
    Row(
        "velocity_time",
        _TRACKER.velocity_time,
        Change.LIVE,
        "Time constant in seconds of the velocity's smoothing.",
        (0.0, 10.0),
    ),
    Row(
        "marker_range",
        2.0,
        Change.LIVE,
        "Length in metres at which the markers' ray and frustum end; the true range is unknown.",
        (0.01, 10000.0),
    ),
    Row(
        "diagnostics_period",
        1.0,
        Change.START,
        "Seconds between messages on /diagnostics.",
        (0.05, 60.0),
    ),
    Row(
        "log_period",
        5.0,
        Change.LIVE,
        "Seconds during which a problem that repeats is logged only once.",
        (0.0, 3600.0),
    ),
)
BY_NAME: dict[str, Row] = {row.name: row for row in PARAMETERS}


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters' values, checked, in the units the code uses."""

    autostart: bool
    model: str
    backend: str
    precision: str | None
    threads: int | None
    device: int
    cache_directory: Path | None
    fallback: str
    image_transport: str
    rectified: bool
    image_timeout: float
    history_seconds: float
    history_bytes: int
    init_tolerance: float
    init_wait: float
    catch_up_time: float
    tracker: TrackerSettings
    marker_range: float
    diagnostics_period: float
    log_period: float

    @classmethod
    def from_values(cls, values: Mapping[str, Value]) -> Settings:
        """Raises ValueError naming the parameter that is out of range."""
        for name, row in BY_NAME.items():
            if row.choices and values[name] not in row.choices:
                raise ValueError(
                    f"{name} is {values[name]!r}, expected one of {', '.join(row.choices)}"
                )
        if not str(values["model"]).strip():
            raise ValueError("model is empty, expected a shipped name or the path of an .onnx file")
        presence = PresenceSettings(
            **{
                name.removeprefix("presence."): value  # type: ignore[arg-type]
                for name, value in values.items()
                if name.startswith("presence.")
            }
        )
        precision, directory = str(values["precision"]), str(values["cache_directory"])
        return cls(
            autostart=bool(values["autostart"]),
            model=str(values["model"]),
            backend=str(values["backend"]),
            precision=None if precision == "auto" else precision,
            threads=int(values["threads"]) or None,
            device=int(values["device"]),
            cache_directory=Path(directory).expanduser() if directory else None,
            fallback=str(values["fallback"]),
            image_transport=str(values["image_transport"]),
            rectified=bool(values["rectified"]),
            image_timeout=float(values["image_timeout"]),
            history_seconds=float(values["history_seconds"]),
            history_bytes=int(values["history_megabytes"]) * MEGABYTE,
            init_tolerance=float(values["init_tolerance"]),
            init_wait=float(values["init_wait"]),
            catch_up_time=float(values["catch_up_time"]),
            tracker=TrackerSettings(presence, float(values["velocity_time"])),
            marker_range=float(values["marker_range"]),
            diagnostics_period=float(values["diagnostics_period"]),
            log_period=float(values["log_period"]),
        )


class ParameterNode(Protocol):
    """The part of rclpy.node.Node used here."""

    def declare_parameter(
        self, name: str, value: Value, descriptor: ParameterDescriptor
    ) -> Parameter[Any]: ...


def declare(node: ParameterNode) -> dict[str, Value]:
    """Declare the whole table and return the values, overrides included.

    Raises rclpy's InvalidParameterTypeException or InvalidParameterValueException for an override
    of another type or out of range.
    """
    values: dict[str, Value] = {}
    for row in PARAMETERS:
        parameter = node.declare_parameter(row.name, row.default, row.descriptor())
        values[row.name] = parameter.value
    return values


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a change was accepted, and the settings after it."""

    settings: Settings
    reason: str = ""

    def to_message(self) -> SetParametersResult:
        return SetParametersResult(successful=not self.reason, reason=self.reason)


class ParameterStore:
    """Current values, and the judge of changes to them.

    Names that are not in the table (use_sim_time, qos_overrides) are rclpy's own and pass.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)
        self.settings = Settings.from_values(self._values)

    def change(self, parameters: Sequence[Parameter[Any]], configured: bool) -> Verdict:
        """Accept all of the changes or none. `configured`: the node holds an engine."""
        ours = [parameter for parameter in parameters if parameter.name in BY_NAME]
        for parameter in ours:
            change = BY_NAME[parameter.name].change
            if parameter.value == self._values[parameter.name]:
                continue
            if change is Change.START:
                return Verdict(
                    self.settings,
                    f"{parameter.name} is fixed when the node starts; start it again with the "
                    "new value",
                )
            if change is Change.CONFIGURE and configured:
                return Verdict(
                    self.settings,
                    f"{parameter.name} takes effect at configure; run the lifecycle transitions "
                    "deactivate and cleanup first, set it, then configure and activate",
                )
        values = {**self._values, **{parameter.name: parameter.value for parameter in ours}}
        try:
            settings = Settings.from_values(values)
        except (ValueError, TypeError) as error:
            return Verdict(self.settings, str(error))
        self._values, self.settings = values, settings
        return Verdict(settings)
