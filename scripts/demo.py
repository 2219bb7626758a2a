"""Follow a real target through real ROS 2 nodes on this machine: `make demo`.

Starts tracker_node, video_node and demo_node as processes of their own, which talk DDS over
loopback in a domain of their own, and ends them again. Leaves overlay.mp4, contact_sheet.png,
track.csv and the nodes' logs in the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "demo" / "clip.json"
PROFILE = ROOT / "config" / "fastdds_shm.xml"
_HIGHEST_DOMAIN = 101
_LOG_LINES_SHOWN = 25


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    model: str
    backend: str
    rate: float
    output: Path

    @classmethod
    def parse(cls) -> Options:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--model", default="", help="shipped name or .onnx file")
        parser.add_argument("--backend", default="auto", help="auto, openvino, onnxruntime, ...")
        parser.add_argument("--rate", type=float, default=25.0, help="frames/s of the camera")
        parser.add_argument("--output", type=Path, default=ROOT / "demo_output")
        values = parser.parse_args()
        if not 0.1 <= values.rate <= 1000:
            parser.error(f"--rate is {values.rate:g}, expected frames/s between 0.1 and 1000")
        return cls(values.model, values.backend, values.rate, values.output.resolve())


def free_domain() -> int:
    """A ROS domain that nobody on this machine uses, by its first participant's port."""
    domains = list(range(1, _HIGHEST_DOMAIN + 1))
    random.shuffle(domains)
    for domain in domains:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    raise SystemExit("demo: all ROS domains are in use on this machine")


def profile_variable() -> str:
    """Name of the variable that points Fast DDS to its settings; Fast DDS 3 (Kilted) renamed it."""
    try:
        is_old = metadata.version("ros-rclpy").startswith("7.")
    except metadata.PackageNotFoundError:
        is_old = os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    return f"{'FASTRTPS' if is_old else 'FASTDDS'}_DEFAULT_PROFILES_FILE"


def node_environment(logs: Path) -> dict[str, str]:
    """This process's environment, kept to this machine and a private ROS domain."""
    environment = dict(
        os.environ,
        ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
        ROS_DOMAIN_ID=str(free_domain()),
        ROS_LOG_DIR=str(logs),
        PYTHONUNBUFFERED="1",
    )
    environment[profile_variable()] = str(PROFILE)
    environment.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    return environment


class NodeProcess:
    """One node in a process of its own; ended with its context. Without a log file it prints."""

    def __init__(
        self,
        name: str,
        parameters: dict[str, str | int | float | bool],
        environment: dict[str, str],
        log: Path | None,
    ) -> None:
        self.name = name
        self._log = log
        # JSON is YAML: every value arrives with its type, whatever characters it has.
        assignments = [f"{key}:={json.dumps(value)}" for key, value in parameters.items()]
        arguments = [part for assignment in assignments for part in ("-p", assignment)]
        command = [sys.executable, "-m", f"ostrack_ros.nodes.{name}", "--ros-args", *arguments]
        output = None if log is None else log.open("wb")
        try:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()

    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def last_words(self) -> str:
        """The end of its log."""
        if self._log is None:
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-_LOG_LINES_SHOWN:])

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, patience in ((signal.SIGINT, 8.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3)):
            if self._process.poll() is not None:
                return
            self._process.send_signal(number)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue


def run(options: Options) -> int:
    """Run the demo to its end; the exit status is 0 if the target was followed."""
    logs = options.output / "log"
    logs.mkdir(parents=True, exist_ok=True)
    environment = node_environment(logs)
    video = CLIP.parent / json.loads(CLIP.read_text(encoding="utf-8"))["video"]
    tracker: dict[str, str | int | float | bool] = {"autostart": True, "backend": options.backend}
    if options.model:
        tracker["model"] = options.model
    camera: dict[str, str | int | float | bool] = {
        "source": str(video),
        "rate": options.rate,
        "loop": False,
        # Tracker and demo: nobody misses the beginning.
        "wait_for_subscribers": 2,
    }
    demo: dict[str, str | int | float | bool] = {
        "clip": str(CLIP),
        "output": str(options.output),
        "rate": options.rate,
    }
    print(f"starting the nodes in ROS domain {environment['ROS_DOMAIN_ID']} ...", flush=True)
    with ExitStack() as stack:

        def start(
            name: str, values: dict[str, str | int | float | bool], logged: bool = True
        ) -> NodeProcess:
            log = logs / f"{name}.log" if logged else None
            return stack.enter_context(NodeProcess(name, values, environment, log))

        others = [start("tracker_node", tracker), start("video_node", camera)]
        observer = start("demo_node", demo, logged=False)
        while (status := observer.exit_status()) is None:
            for node in others:
                ended = node.exit_status()
                if ended is not None and not (node.name == "video_node" and ended == 0):
                    print(
                        f"demo: {node.name} ended with status {ended}; its last lines:\n"
                        f"{node.last_words()}",
                        file=sys.stderr,
                    )
                    return 1
            time.sleep(0.1)
        if status != 0:
            for node in others:
                print(f"last lines of {node.name}:\n{node.last_words()}", file=sys.stderr)
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Exit status 0 if the target was followed, 130 when interrupted, else 1."""
    options = Options.parse()
    # The nodes are in sessions of their own: whoever ends the demo must let it end them.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        status = run(options)
    except KeyboardInterrupt:
        return 130
    if status == 0:
        for name in ("overlay.mp4", "contact_sheet.png", "track.csv"):
            print(f"  {os.path.relpath(options.output / name)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
