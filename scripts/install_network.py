"""Install what exports the network and what compiles the exports, where that is cheap.

That is torch, and TensorRT-RTX, whose builder compiles our graphs without a GPU. On Linux x86-64
PyPI's torch depends on several GB of CUDA packages, which nobody wants for a test run. The mode
`auto` asks pip what it would fetch and declines such an installation, or any that the disk has no
room for; the tests that need torch then skip themselves with a reason.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements-network.txt"
COMPILER_REQUIREMENTS = ROOT / "requirements-tensorrt-ci.txt"
_CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")
ROOM_NEEDED = 3 * 10**9
"""Bytes. Installed it is 1.1 GB (measured with torch's CPU build), the test run afterwards has up
to 0.8 GB of files at once, and pip unpacks what it installs first."""


def planned_packages() -> list[str]:
    """Names of the packages that pip would install, from their metadata alone.

    Raises:
        subprocess.CalledProcessError: pip found no set of packages that fits.
    """
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-"]
    answer = subprocess.run(
        [*command, "-r", str(REQUIREMENTS)], check=True, stdout=subprocess.PIPE, text=True
    )
    plan = json.loads(answer.stdout)
    return [item["metadata"]["name"].lower() for item in plan["install"]]


def objection() -> str | None:
    """Why `auto` leaves torch out here; None where nothing speaks against it."""
    room = min(shutil.disk_usage(place).free for place in (sys.prefix, tempfile.gettempdir()))
    if room < ROOM_NEEDED:
        return (
            f"torch is not installed: the disk has {room / 1e9:.1f} GB left and it takes "
            f"{ROOM_NEEDED / 1e9:.0f}. Tests that need it will be skipped; free some, or "
            "`make test TORCH=yes` tries all the same."
        )
    try:
        planned = planned_packages()
    except subprocess.CalledProcessError:
        return "pip finds no torch for this Python; tests that need it will be skipped."
    large = [name for name in planned if name.startswith(_CUDA_PREFIXES)]
    if large:
        return (
            f"torch is not installed: PyPI's build would bring {len(large)} CUDA packages of "
            "several GB. Tests that need it will be skipped; `make test TORCH=yes` installs it."
        )
    return None


def main() -> int:
    """Install, or say why not. The exit status is pip's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["auto", "yes", "no"])
    mode = parser.parse_args().mode
    if mode == "no":
        print("torch is not installed (TORCH=no); tests that need it will be skipped.")
        return 0
    if mode == "auto" and (reason := objection()):
        print(reason)
        return 0
    command = [sys.executable, "-m", "pip", "install", "--quiet"]
    for requirements in (REQUIREMENTS, COMPILER_REQUIREMENTS):
        command += ["-r", str(requirements)]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
