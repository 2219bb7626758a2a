"""What an evaluation leaves behind: JSON, boxes, plots, sheets, and figures of presence."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sequences import ScriptedTracker, moving_boxes, write_otb

from ostrack_ros.evaluation.datasets import load_dataset
from ostrack_ros.evaluation.plots import plot_curves, plot_overlaps, plot_presence
from ostrack_ros.evaluation.presence import (
    PresenceSamples,
    auroc,
    presence_report,
    presence_samples,
    reliability_bins,
)
from ostrack_ros.evaluation.report import Report, comparison_table
from ostrack_ros.evaluation.runner import evaluate_tracker
from ostrack_ros.evaluation.sheets import write_contact_sheet
from ostrack_ros.files import produce_atomically, write_atomically
from ostrack_ros.tracking.geometry import Box

pytest.importorskip("rich", reason="tables need rich: pip install rich")
pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install matplotlib")


@pytest.fixture
def report(tmp_path: Path) -> Report:
    truth = moving_boxes(6)
    write_otb(tmp_path / "data" / "good", truth)
    truth[4] = np.nan
    write_otb(tmp_path / "data" / "gone", truth)
    boxes = [Box(*(float(v) for v in row)) for row in moving_boxes(6)]
    dataset = load_dataset(tmp_path / "data")
    return evaluate_tracker(lambda: ScriptedTracker(boxes, 0.9), dataset, name="scripted")


def test_json_is_complete_and_valid(report: Report, tmp_path: Path) -> None:
    path = report.write(tmp_path / "out")
    text = path.read_text()
    assert "NaN" not in text
    values = json.loads(text)
    assert values["protocol"] == "otb"
    assert values["overall"]["auc"] == pytest.approx(report.overall.auc)
    assert set(values["sequences"]) == {"good", "gone"}
    assert values["sequences"]["gone"]["absent"] == 1
    assert values["frames"] == 12
    assert len(values["overall"]["success_curve"]) == len(values["success_thresholds"]) == 21


def test_boxes_can_be_read_by_other_toolkits(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path / "out")
    boxes = np.loadtxt(tmp_path / "out" / "boxes" / "good.txt", delimiter=",")
    np.testing.assert_allclose(boxes, moving_boxes(6), atol=1e-4)
    first = (tmp_path / "out" / "boxes" / "good.txt").read_text().splitlines()[0]
    assert first == "10.0000,20.0000,16.0000,12.0000"


def test_tables_show_figures(report: Report) -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(report.table())
    console.print(comparison_table([report]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{report.overall.auc:.3f}" in text
    assert "good" in text
    assert "mean" in text
    assert "scripted" in text


def test_plots_and_sheets_are_images(report: Report, tmp_path: Path) -> None:
    plot_curves([report], tmp_path / "curves.png")
    plot_overlaps(report, tmp_path / "overlaps.png")
    samples = presence_samples(report)
    plot_presence(presence_report(samples), samples, tmp_path / "presence.png")
    write_contact_sheet(report.sequences[0], tmp_path / "sheet.jpg")
    for name in ("curves.png", "overlaps.png", "presence.png", "sheet.jpg"):
        image = cv2.imread(str(tmp_path / name))
        assert image is not None, name
        assert image.std() > 1, f"{name} is blank"


def test_presence_counts_absent_frames_as_off_target(report: Report) -> None:
    figures = presence_report(presence_samples(report))
    assert (figures.frames, figures.on_target) == (10, 9)
    # Confidence is 0.9 on all frames and 9 of 10 are on target: perfectly calibrated.
    assert figures.expected_calibration_error == pytest.approx(0.0, abs=1e-9)
    assert figures.auroc == pytest.approx(0.5)


def test_overconfidence_shows_in_the_calibration_error() -> None:
    generator = np.random.default_rng(0)
    on_target = generator.random(4000) < 0.6
    sure = np.full(4000, 0.95)
    figures = presence_report(PresenceSamples(on_target, sure, sure))
    assert figures.expected_calibration_error == pytest.approx(0.95 - on_target.mean())
    assert figures.brier > 0.24


def test_auroc_by_hand() -> None:
    values = np.array([0.9, 0.8, 0.7, 0.6])
    assert auroc(values, np.array([True, True, False, False])) == 1.0
    assert auroc(values, np.array([False, False, True, True])) == 0.0
    assert auroc(values, np.array([True, False, True, False])) == pytest.approx(0.75)
    assert auroc(values, np.array([True] * 4)) is None


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.booleans()), min_size=2).filter(
        lambda rows: len({hit for _, hit in rows}) == 2
    )
)
def test_auroc_is_the_chance_to_rank_a_pair_right(rows: list[tuple[float, bool]]) -> None:
    good = [value for value, hit in rows if hit]
    bad = [value for value, hit in rows if not hit]
    wins = sum(1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad)
    area = auroc(np.array([v for v, _ in rows]), np.array([h for _, h in rows]))
    assert area == pytest.approx(wins / (len(good) * len(bad)))


def test_every_frame_falls_into_one_bin() -> None:
    confidence = np.array([0.0, 0.1, 0.55, 0.999, 1.0])
    bins = reliability_bins(confidence, np.array([False, False, True, True, True]))
    assert [b.count for b in bins] == [1, 1, 0, 0, 0, 1, 0, 0, 0, 2]


def test_no_confidence_no_presence_report(report: Report) -> None:
    report.sequences[0].run.confidence[:] = np.nan
    with pytest.raises(ValueError, match="scripted gave no confidence"):
        presence_samples(report)


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "first")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce_atomically(path, fail)
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
