"""The bundled clip, what the demo writes, and the demo itself as a person runs it."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ostrack_ros.demo import (
    Clip,
    DemoError,
    OverlayRecorder,
    Summary,
    TrackRow,
    overlap,
    track_csv,
)
from ostrack_ros.engines.models import ModelNotFoundError, resolve_model
from ostrack_ros.tracking.geometry import Box

ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "demo" / "clip.json"
DEFAULT_MODEL = "ostrack_small"


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.load(CLIP)


def row(frame: int = 7, iou: float = 0.8, latency_ms: float = 20.0) -> TrackRow:
    x = math.nan if math.isnan(iou) else 10.0
    return TrackRow(frame, 10**9, "TRACKING", x, 20.0, 30.0, 40.0, 0.9, 0.7, latency_ms, iou)


class TestClip:
    def test_has_one_true_box_inside_each_frame(self, clip: Clip) -> None:
        shapes = [frame.shape for frame in clip.frames()]
        assert len(shapes) == len(clip.truth) >= 150
        for (height, width, channels), box in zip(shapes, clip.truth, strict=True):
            assert channels == 3
            assert box.is_valid
            assert box.x >= 0
            assert box.y >= 0
            assert box.right <= width
            assert box.bottom <= height

    def test_starts_on_the_true_box(self, clip: Clip) -> None:
        assert clip.init_box == clip.truth[0]

    def test_target_really_moves(self, clip: Clip) -> None:
        centres = [box.cx for box in clip.truth]
        areas = [box.area for box in clip.truth]
        assert max(centres) - min(centres) > 200
        assert max(areas) > 2 * min(areas)

    def test_truth_never_jumps(self, clip: Clip) -> None:
        for before, after in zip(clip.truth, clip.truth[1:], strict=False):
            assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 35

    def test_frames_are_told_apart_by_content(self, clip: Clip) -> None:
        assert sorted(clip.index_by_content().values()) == list(range(len(clip.truth)))

    def test_is_small_and_licensed(self, clip: Clip) -> None:
        assert clip.video.stat().st_size < 2_000_000
        licence = (ROOT / "demo" / "LICENSE.clip").read_text(encoding="utf-8")
        assert clip.video.name in licence
        assert "Apache-2.0" in licence

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"groundtruth": "missing.txt"}, "missing.txt"),
            ({"video": "missing.mp4"}, "missing.mp4"),
            ({"init_box": "here"}, "cannot read"),
            ({"init_box": [1, 2, 3]}, "cannot read"),
        ],
    )
    def test_says_what_is_wrong(self, tmp_path: Path, change: dict[str, object], text: str) -> None:
        (tmp_path / "truth.txt").write_text("1,2,3,4\n")
        values = {"video": str(CLIP.parent / "clip.mp4"), "target": "x", "init_box": [1, 2, 3, 4]}
        description = tmp_path / "clip.json"
        description.write_text(json.dumps(values | {"groundtruth": "truth.txt"} | change))
        with pytest.raises(DemoError, match=text):
            Clip.load(description)

    def test_integer_boxes_become_floats(self, clip: Clip) -> None:
        # A ROS message stores an int in a float64 field as garbage.
        assert all(isinstance(value, float) for value in clip.init_box)


class TestRows:
    def test_csv_reads_back(self) -> None:
        table = list(csv.DictReader(track_csv([row(), row(8, math.nan)]).splitlines()))
        assert [entry["frame"] for entry in table] == ["7", "8"]
        assert float(table[0]["iou"]) == pytest.approx(0.8)
        assert math.isnan(float(table[1]["x"]))

    def test_line_says_everything(self) -> None:
        line = row().line()
        for part in ("frame    7", "TRACKING", "30x40 at (10, 20)", "0.90", "0.70", "20 ms"):
            assert part in line
        assert "no box" in row(iou=math.nan).line()

    def test_no_box_overlaps_nothing(self) -> None:
        truth = Box(0.0, 0.0, 10.0, 10.0)
        assert math.isnan(overlap(Box(math.nan, 0.0, 1.0, 1.0), truth))
        assert overlap(Box(100.0, 0.0, 1.0, 1.0), truth) == 0
        assert overlap(truth, truth) == 1

    def test_summary_counts_a_missing_box_as_a_miss(self) -> None:
        summary = Summary.of([row(), row(8, math.nan)], frames=2)
        assert summary.followed == 1
        assert summary.mean_iou == pytest.approx(0.4)

    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            ([], "only 0 answers"),
            ([row()] * 9, "only 9 answers"),
            ([row()] * 10, None),
            ([row(iou=0.1)] * 50 + [row()] * 50, "not followed"),
            ([row(iou=math.nan)] * 49 + [row()] * 51, None),
        ],
    )
    def test_fails_unless_the_target_was_followed(
        self, rows: list[TrackRow], expected: str | None
    ) -> None:
        failure = Summary.of(rows, frames=100).failure
        assert failure is None if expected is None else expected in str(failure)


class TestOverlayRecorder:
    def test_writes_video_and_sheet(self, tmp_path: Path) -> None:
        recorder = OverlayRecorder(tmp_path / "v.mp4", 25.0, frames=40, tiles=6)
        for frame in range(0, 40, 2):
            recorder.add(frame, np.full((48, 64, 3), frame * 5, np.uint8))
        recorder.close()
        recorder.write_sheet(tmp_path / "s.png", columns=4)

        video = cv2.VideoCapture(str(tmp_path / "v.mp4"))
        count = 0
        while video.read()[0]:
            count += 1
        assert count == recorder.images == 20
        sheet = cv2.imread(str(tmp_path / "s.png"))
        assert sheet is not None
        assert sheet.shape == (2 * 300, 4 * 400, 3)
        brightness = sheet[150, 200::400].mean(axis=1)
        assert all(np.diff(brightness) > 0)

    def test_without_images_writes_no_sheet(self, tmp_path: Path) -> None:
        recorder = OverlayRecorder(tmp_path / "v.mp4", 25.0, frames=40)
        recorder.close()
        recorder.write_sheet(tmp_path / "s.png")
        assert list(tmp_path.iterdir()) == []


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_demo_follows_the_target(tmp_path: Path, clip: Clip) -> None:
    try:
        resolve_model(DEFAULT_MODEL)
    except ModelNotFoundError:
        pytest.skip(f"the weights of {DEFAULT_MODEL} are not in models/")
    # Slower than real time: a busy machine must not fail a test of correctness.
    ended = run_demo("--output", str(tmp_path), "--rate", "8")
    assert ended.returncode == 0, ended.stdout + ended.stderr

    with (tmp_path / "track.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    frames = [int(entry["frame"]) for entry in table]
    assert frames == sorted(set(frames))
    assert frames[0] == 0
    assert frames[-1] > 0.9 * len(clip.truth)
    assert np.mean([float(entry["iou"]) > 0.5 for entry in table]) > 0.8
    for entry in table:
        box = Box(*(float(entry[name]) for name in ("x", "y", "width", "height")))
        truth = clip.truth[int(entry["frame"])]
        stated = float(entry["iou"])
        assert math.isnan(stated) or stated == pytest.approx(overlap(box, truth), abs=1e-3)
    assert cv2.imread(str(tmp_path / "contact_sheet.png")) is not None
    assert cv2.VideoCapture(str(tmp_path / "overlay.mp4")).read()[0]
    assert ended.stdout.count("frame ") >= 5


def test_demo_says_which_model_is_missing(tmp_path: Path) -> None:
    ended = run_demo("--output", str(tmp_path), "--model", "no_such_model")
    assert ended.returncode == 1
    assert "no_such_model" in ended.stderr
    assert "Traceback" not in ended.stderr
