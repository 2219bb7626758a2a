"""The benchmarks run, and the pipeline they compare with finds the boxes that ours finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sequences import moving_boxes, write_otb
from synthetic_model import write_red_blob_model

ROOT = Path(__file__).resolve().parents[1]


def test_compare_trackers_writes_its_table(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the test's model is written with onnx: pip install onnx")
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install matplotlib")
    write_otb(tmp_path / "data" / "a", moving_boxes(4))
    write_red_blob_model(tmp_path / "red_blob.onnx")
    command = [sys.executable, "benchmarks/compare_trackers.py", "--dataset", tmp_path / "data"]
    command += ["--model", tmp_path / "red_blob.onnx", "--output", tmp_path / "results"]
    # `make jazzy` keeps the sources off the path; a benchmark needs its own folder on it.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "red_blob" in done.stdout
    record = json.loads((tmp_path / "results" / "compare_trackers.json").read_text())
    assert "red_blob" in record["trackers"]
    assert "NanoTrack v2" in record["left_out"]
    assert (tmp_path / "results" / "compare_trackers.png").stat().st_size > 1000


def test_speeds_are_told_as_shares_of_nanotracks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from compare_trackers import shares_of_speed

    reports = {
        "ours": SimpleNamespace(median_seconds=0.020),
        "NanoTrack v2": SimpleNamespace(median_seconds=0.005),
    }
    assert shares_of_speed(reports) == "ours 0.25"


def test_published_pipeline_finds_our_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="runs the network eagerly: pip install torch")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from published_pipeline import PublishedPipeline, torch_threads
    from seeded_weights import seeded_state

    from ostrack_ros.engines.spec import EliminationSchedule
    from ostrack_ros.evaluation.bench import made_up_frames
    from ostrack_ros.network.ostrack import OSTrack
    from ostrack_ros.network.variants import Variant
    from ostrack_ros.tracking.frame import Frame, PixelFormat
    from ostrack_ros.tracking.tracker import Tracker, TrackerSettings
    from ostrack_ros.training.validation import TorchEngine

    variant = Variant(
        name="small",
        embed_dim=48,
        depth=3,
        heads=3,
        template_size=64,
        search_size=128,
        elimination=EliminationSchedule((1, 2), 0.7),
        head_channels=16,
    )
    network = OSTrack(variant)
    network.load_state_dict(seeded_state(network, 3))
    network.eval()

    images, box = made_up_frames(320, 240, 6)
    ours = Tracker(TorchEngine(network), TrackerSettings(presence=None))
    published = PublishedPipeline(network)
    ours.init(Frame(images[0], PixelFormat.RGB, 0), box)
    published.init(images[0], box)
    # One thread: on a busy machine PyTorch's threads wait for each other far longer than they work.
    with torch_threads(1):
        for index, image in enumerate(images[1:], start=1):
            found = ours.update(Frame(image, PixelFormat.RGB, index)).box
            np.testing.assert_allclose(tuple(found), tuple(published.update(image)), atol=0.02)
