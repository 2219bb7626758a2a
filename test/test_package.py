"""What the package says about itself agrees with what is in it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

import ostrack_ros

ROOT = Path(__file__).resolve().parents[1]
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()

ROS_PACKAGES = {
    "ament_index_python",
    "builtin_interfaces",
    "cv_bridge",
    "diagnostic_msgs",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "lifecycle_msgs",
    "rcl_interfaces",
    "rclpy",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "visualization_msgs",
}
ROSDEP_KEYS = {
    "cv2": "python3-opencv",
    "matplotlib": "python3-matplotlib",
    "numpy": "python3-numpy",
    "onnxruntime": "python3-onnxruntime-pip",
    "rich": "python3-rich",
    "tqdm": "python3-tqdm",
    "yaml": "python3-yaml",
}
NO_ROSDEP_KEY = {"cuda", "onnx", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"}
TORCH_ONLY = {"onnxscript", "safetensors", "scipy", "torch", "vtk", "vtkmodules"}
"""For export and training, which happen off the robot."""


def declared(*tags: str) -> set[str]:
    return {str(entry.text) for tag in tags for entry in MANIFEST.findall(tag)}


def sources() -> Iterator[Path]:
    for folder in ("ostrack_ros", "launch"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not {"msg", "srv"} & set(path.relative_to(ROOT).parts):
                yield path


def imported() -> set[str]:
    """Top-level packages that our modules import, anywhere in them."""
    names: set[str] = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"ostrack_ros"}


def test_one_version_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([\d.]+)"', project, re.MULTILINE)
    assert found is not None
    version = found.group(1)
    assert MANIFEST.findtext("version") == version
    assert ostrack_ros.__version__ == version
    changelog = (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(version)} ", changelog, re.MULTILINE)


def test_licence_is_the_same_everywhere() -> None:
    assert MANIFEST.findtext("license") == "Apache-2.0"
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_manifest_declares_what_is_imported() -> None:
    names = imported()
    unknown = names - ROS_PACKAGES - set(ROSDEP_KEYS) - NO_ROSDEP_KEY - TORCH_ONLY
    assert not unknown, "say here and in package.xml where these come from"
    needed = (names & ROS_PACKAGES) | {ROSDEP_KEYS[name] for name in names & set(ROSDEP_KEYS)}
    assert needed <= declared("depend", "exec_depend")


def test_every_message_is_generated() -> None:
    listed = set(re.findall(r'"((?:msg|srv)/\w+\.(?:msg|srv))"', CMAKE))
    present = {f"{p.parent.name}/{p.name}" for p in [*ROOT.glob("msg/*"), *ROOT.glob("srv/*")]}
    assert listed == present


def test_message_packages_are_build_dependencies() -> None:
    used = set()
    for path in [*ROOT.glob("msg/*.msg"), *ROOT.glob("srv/*.srv")]:
        used |= set(re.findall(r"^(\w+)/\w+", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert used
    listed = re.search(r"DEPENDENCIES ([\w ]+)", CMAKE)
    assert listed is not None
    assert set(listed.group(1).split()) == used
    assert used <= declared("depend")


def executables() -> list[str]:
    listed = re.search(r"foreach\(EXECUTABLE ([\w ]+)\)", CMAKE)
    assert listed is not None
    return listed.group(1).split()


@pytest.mark.parametrize("name", executables())
def test_executable_has_a_main(name: str) -> None:
    tree = ast.parse((ROOT / "ostrack_ros" / "nodes" / f"{name}.py").read_text(encoding="utf-8"))
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_node_is_an_executable() -> None:
    nodes = {path.stem for path in (ROOT / "ostrack_ros" / "nodes").glob("*_node.py")}
    assert nodes == set(executables())


def test_data_folders_hold_what_is_installed() -> None:
    listed = re.search(r"foreach\(_data ([\w ]+)\)", CMAKE)
    assert listed is not None
    for name in listed.group(1).split():
        assert any((ROOT / name).iterdir()), f"{name}/ is empty"


def requirement_lines() -> list[tuple[str, str]]:
    return [
        (path.name, line)
        for path in sorted(ROOT.glob("requirements*.txt"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]


@pytest.mark.parametrize(("file", "line"), requirement_lines())
def test_requirement_is_pinned(file: str, line: str) -> None:
    if line.startswith("-r "):
        assert (ROOT / line.removeprefix("-r ")).is_file()
    else:
        assert re.match(r"[\w.-]+(\[\w+\])?==[\w.]+( *;|$)", line), file


def test_robot_needs_no_torch() -> None:
    for name in ("requirements.txt", "requirements-ros.txt", "requirements-build.txt"):
        assert "torch" not in (ROOT / name).read_text(encoding="utf-8").replace("and torch", "")


def test_command_tells_its_version() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ostrack_ros.cli", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ostrack_ros.__version__ in ended.stdout


def test_messages_survive_the_wire() -> None:
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    from rclpy.serialization import deserialize_message, serialize_message

    from ostrack_ros.msg import Box2D, Track
    from ostrack_ros.tracking.presence import TargetState

    sent = Track(track_id=7, state=Track.COASTING, confidence=0.25, velocity_x=-3.5)
    sent.box = Box2D(center_x=1.5, center_y=2.5, size_x=3.5, size_y=4.5)
    sent.header.frame_id = "camera"
    received = deserialize_message(serialize_message(sent), Track)
    assert received == sent
    constants = {state.name: getattr(Track, state.name) for state in TargetState}
    assert constants == {state.name: int(state) for state in TargetState}
