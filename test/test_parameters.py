"""The parameter table, and everything that repeats it."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.parameter import Parameter

from ostrack_ros.nodes.parameters import (
    BY_NAME,
    PARAMETERS,
    Change,
    ParameterStore,
    Row,
    Settings,
    Value,
)
from ostrack_ros.tracking.presence import PresenceSettings
from ostrack_ros.tracking.tracker import TrackerSettings

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "config" / "tracker.yaml"
README = ROOT / "README.md"
DEFAULTS: dict[str, Value] = {row.name: row.default for row in PARAMETERS}


def store(**changes: Value) -> ParameterStore:
    return ParameterStore({**DEFAULTS, **changes})


def change(target: ParameterStore, configured: bool = True, **values: Value) -> str:
    parameters = [Parameter(name.replace("__", "."), value=v) for name, v in values.items()]
    return target.change(parameters, configured).reason


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values


def test_config_file_holds_every_default_and_nothing_else() -> None:
    content = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    values = flat(content["/**"]["ros__parameters"])
    assert values == DEFAULTS
    assert list(values) == list(DEFAULTS), "in the table's order"
    for name, value in values.items():
        assert type(value) is type(DEFAULTS[name]), f"{name}: rcl would read another type"


@pytest.mark.parametrize("row", PARAMETERS, ids=lambda row: row.name)
def test_config_file_explains_each_parameter(row: Row) -> None:
    lines = CONFIG.read_text(encoding="utf-8").splitlines()
    key = row.name.rpartition(".")[2]
    (at,) = (n for n, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
    first = at
    while lines[first - 1].strip().startswith("#"):
        first -= 1
    comment = " ".join(line.strip().removeprefix("# ") for line in lines[first:at])
    assert row.description in comment
    assert row.change.value in comment
    for choice in row.choices:
        assert choice in comment
    for limit in row.limits or ():
        assert f"{limit:g}" in comment


def test_readme_lists_each_parameter_with_its_default() -> None:
    if not README.is_file() or "presence.absent_below" not in README.read_text(encoding="utf-8"):
        pytest.skip("README.md has no table of parameters yet")
    text = README.read_text(encoding="utf-8")
    for row in PARAMETERS:
        line = re.search(rf"^\|\s*`{re.escape(row.name)}`.*$", text, re.MULTILINE)
        assert line, f"README.md does not list {row.name}"
        default = str(row.default).lower() if isinstance(row.default, bool) else str(row.default)
        assert f"`{default}`" in line.group() or default == "", f"README.md: default of {row.name}"


def test_the_table_covers_the_cores_settings_with_their_defaults() -> None:
    presence = PresenceSettings()
    for field in fields(PresenceSettings):
        row = BY_NAME[f"presence.{field.name}"]
        assert row.default == getattr(presence, field.name)
        assert row.change is Change.LIVE
    assert Settings.from_values(DEFAULTS).tracker == TrackerSettings()


@pytest.mark.parametrize("row", PARAMETERS, ids=lambda row: row.name)
def test_rows_are_complete(row: Row) -> None:
    assert row.description.endswith(".")
    descriptor = row.descriptor()
    assert isinstance(descriptor, ParameterDescriptor)
    assert descriptor.read_only == (row.change is Change.START)
    if isinstance(row.default, (int, float)) and not isinstance(row.default, bool):
        assert row.limits is not None, "numbers have a range"
        assert row.limits[0] <= row.default <= row.limits[1]
        assert descriptor.floating_point_range or descriptor.integer_range
    if row.choices:
        assert row.default in row.choices


def test_zero_and_auto_mean_the_backends_choice() -> None:
    settings = Settings.from_values(DEFAULTS)
    assert settings.precision is None
    assert settings.threads is None
    assert settings.cache_directory is None
    assert store(precision="bf16", threads=3).settings.threads == 3


def test_thresholds_change_while_configured() -> None:
    target = store()
    assert change(target, presence__trust_above=0.8, log_period=1.0) == ""
    presence = target.settings.tracker.presence
    assert presence is not None
    assert presence.trust_above == 0.8
    assert target.settings.log_period == 1.0


@pytest.mark.parametrize(
    "row", [r for r in PARAMETERS if r.change is Change.CONFIGURE], ids=lambda r: r.name
)
def test_the_rest_is_refused_while_configured(row: Row) -> None:
    other: Value
    if row.choices:
        other = row.choices[-1]
    elif isinstance(row.default, bool):
        other = not row.default
    elif isinstance(row.default, str):
        other = "other"
    else:
        other = row.default + 1
    target = store()
    reason = change(target, **{row.name: other})
    assert row.name in reason
    assert "cleanup" in reason
    assert target.settings == store().settings
    assert change(target, configured=False, **{row.name: other}) == ""
    assert target.settings != store().settings
    assert change(target, **{row.name: other}) == "", "the value it has already is no change"


def test_start_parameters_are_refused_always() -> None:
    assert "start it again" in change(store(), configured=False, autostart=False)


def test_changes_are_all_or_none() -> None:
    target = store()
    assert "absent_below" in change(target, presence__absent_below=0.9, log_period=1.0)
    assert target.settings == store().settings
    assert (
        change(
            target,
            presence__absent_below=0.65,
            presence__present_above=0.7,
            presence__doubt_below=0.75,
            presence__trust_above=0.9,
        )
        == ""
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"backend": "abacus"}, "backend is 'abacus', expected one of auto"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"image_transport": "theora"}, "raw, compressed"),
        ({"model": " "}, "model is empty"),
        ({"velocity_time": math.nan}, "velocity_time"),
        ({"presence__lost_after": math.inf}, "lost_after"),
    ],
)
def test_values_out_of_range_are_explained(values: dict[str, Value], words: str) -> None:
    assert words in change(store(), configured=False, **values)


def test_rclpys_own_parameters_pass() -> None:
    assert change(store(), use_sim_time=True) == ""
