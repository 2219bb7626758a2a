"""What a robot loads stays small: tracking and engines need neither ROS, nor torch, nor a runtime.

Each package is imported in a fresh interpreter that refuses what lies behind its wall.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

RUNTIMES = ("openvino", "onnxruntime", "onnx", "tensorrt", "tensorrt_rtx", "cuda")
ROBOT = ("rclpy", "torch", "ostrack_ros.nodes", "ostrack_ros.training", "ostrack_ros.network")

GUARD = """
import importlib, pkgutil, sys
blocked = set(sys.argv[2].split(","))
class Wall:
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + ".") for b in blocked):
            raise ImportError("behind the wall: " + name)
sys.meta_path.insert(0, Wall())
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
    print(module.name)
"""


def import_all(package: str, blocked: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", GUARD, package, ",".join(blocked)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("package", "blocked", "member"),
    [
        ("ostrack_ros.tracking", (*ROBOT, *RUNTIMES), "ostrack_ros.tracking.tracker"),
        ("ostrack_ros.engines", (*ROBOT, *RUNTIMES), "ostrack_ros.engines.openvino"),
    ],
)
def test_imports_without(package: str, blocked: tuple[str, ...], member: str) -> None:
    done = import_all(package, blocked)
    assert done.returncode == 0, done.stderr
    assert member in done.stdout.splitlines()


def test_tracking_imports_no_engine_but_the_interface() -> None:
    engines = ("models", "contract", "openvino", "onnxruntime", "tensorrt", "select", "runtime")
    done = import_all("ostrack_ros.tracking", tuple(f"ostrack_ros.engines.{e}" for e in engines))
    assert done.returncode == 0, done.stderr


def test_the_wall_stands() -> None:
    """The guard itself must be able to fail."""
    done = import_all("ostrack_ros.tracking", ("cv2",))
    assert done.returncode != 0
    assert "behind the wall: cv2" in done.stderr
