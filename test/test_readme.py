"""README.md says what the code does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from rclpy.node import Node
from synthetic_model import write_red_blob_model

from ostrack_ros.msg import Track

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOMAIN = 101 - os.getpid() % 50
sys.path.insert(0, str(ROOT / "scripts"))


def section(start: str, end: str) -> str:
    return README.split(start, 1)[1].split(end, 1)[0]


def table_rows(text: str) -> list[list[str]]:
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_parameter_tables_are_those_of_the_code() -> None:
    from readme_tables import with_tables

    assert with_tables(README) == README, "run `python scripts/readme_tables.py`"


def test_track_table_has_every_field() -> None:
    rows = table_rows(section("### Track\n", "\n## "))
    fields = {row[0].strip("`"): row[1].strip("`") for row in rows}
    actual = {
        name: kind.replace("ostrack_ros/", "")
        .replace("double", "float64")
        .replace("float", "float32" if kind == "float" else "float")
        for name, kind in Track.get_fields_and_field_types().items()
    }
    assert fields == actual


def test_track_table_has_the_state_constants() -> None:
    stated = dict(re.findall(r"`([A-Z]+)` (\d)", section("### Track\n", "\n## ")))
    assert len(stated) == 5
    for name, value in stated.items():
        assert getattr(Track, name) == int(value)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^ostrack (\w+)", README, re.M))))
def test_options_of_the_command_exist(command: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ostrack_ros.cli", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    joined = README.replace("\\\n", " ")
    for line in re.findall(rf"^ostrack {command} .*", joined, re.M):
        for option in re.findall(r"--[a-z-]+", line):
            assert option in ended.stdout, f"ostrack {command} has no {option}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.fixture(scope="module")
def running_tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A tracker node in a process of its own, active; gives a node that looks at it."""
    folder = tmp_path_factory.mktemp("tracker")
    model = folder / "red_blob.onnx"
    write_red_blob_model(model)
    environment = dict(
        os.environ,
        ROS_DOMAIN_ID=str(DOMAIN),
        ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
        ROS_LOG_DIR=str(folder),
    )
    environment.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    arguments = ["--ros-args", "-p", f"model:={model}", "-p", "backend:=onnxruntime"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ostrack_ros.nodes.tracker_node", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    observer = Node("observer", context=context)
    try:
        yield observer
    finally:
        observer.destroy_node()
        context.try_shutdown()
        process.terminate()
        process.wait(20)


def test_interface_table_is_that_of_the_running_node(running_tracker: Node) -> None:
    rows = table_rows(section("<!-- interface -->\n", "<!-- end -->"))
    stated: dict[str, set[tuple[str, str]]] = {"in": set(), "out": set(), "service": set()}
    for direction, name, kind, note in rows:
        if "instead of" not in note:  # the other transport
            stated[direction].add(("/" + name.strip("`").lstrip("/"), kind.strip("`")))

    def flat(pairs: list[tuple[str, list[str]]]) -> set[tuple[str, str]]:
        return {(name, kind) for name, kinds in pairs for kind in kinds}

    every_node_has = re.compile(r"rcl_interfaces|lifecycle_msgs|/rosout|/clock|type_description")
    actual: dict[str, set[tuple[str, str]]] = {}
    deadline = time.monotonic() + 60.0
    while actual != stated and time.monotonic() < deadline:
        time.sleep(0.2)
        try:
            actual = {
                "in": flat(running_tracker.get_subscriber_names_and_types_by_node("tracker", "/")),
                "out": flat(running_tracker.get_publisher_names_and_types_by_node("tracker", "/")),
                "service": flat(
                    running_tracker.get_service_names_and_types_by_node("tracker", "/")
                ),
            }
        except rclpy._rclpy_pybind11.NodeNameNonExistentError:
            continue
        actual = {
            direction: {pair for pair in pairs if not every_node_has.search(" ".join(pair))}
            for direction, pairs in actual.items()
        }
    assert actual == stated
