"""Sequences are run once, from the first frame, and come back as figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sequences import HEIGHT, WIDTH, ScriptedTracker, moving_boxes, write_otb

from ostrack_ros.evaluation.datasets import load_dataset
from ostrack_ros.evaluation.metrics import Protocol
from ostrack_ros.evaluation.runner import evaluate_tracker, evaluate_trackers, run_sequence
from ostrack_ros.tracking.geometry import Box


def as_boxes(array: np.ndarray) -> list[Box | None]:
    return [Box(*(float(v) for v in row)) for row in array]


def test_run_starts_on_the_truth_and_times_every_frame(tmp_path: Path) -> None:
    truth = moving_boxes(5)
    write_otb(tmp_path / "a", truth)
    (sequence,) = load_dataset(tmp_path)
    tracker = ScriptedTracker(as_boxes(truth + 1))
    names: list[str] = []
    runs, size = run_sequence({"t": tracker}, sequence, names.append)
    assert tracker.init_box == sequence.init_box
    assert size == (WIDTH, HEIGHT)
    assert names == ["a"] * 5
    np.testing.assert_array_equal(runs["t"].boxes[0], truth[0])
    np.testing.assert_array_equal(runs["t"].boxes[1:], truth[1:] + 1)
    assert (runs["t"].seconds > 0).all()
    assert np.isnan(runs["t"].confidence[0])
    assert (runs["t"].confidence[1:] == 0.5).all()


def test_a_missing_box_repeats_the_last_and_is_marked(tmp_path: Path) -> None:
    truth = moving_boxes(4)
    write_otb(tmp_path / "a", truth)
    (sequence,) = load_dataset(tmp_path)
    answers = as_boxes(truth)
    answers[2] = None
    runs, _ = run_sequence({"t": ScriptedTracker(answers)}, sequence)
    np.testing.assert_array_equal(runs["t"].boxes[2], truth[1])
    assert runs["t"].reported.tolist() == [True, True, False, True]


def test_trackers_take_turns_on_every_frame(tmp_path: Path) -> None:
    write_otb(tmp_path / "a", moving_boxes(3))
    calls: list[str] = []

    class Spy(ScriptedTracker):
        def __init__(self, name: str) -> None:
            super().__init__(as_boxes(moving_boxes(3)))
            self.name = name

        def update(self, image: np.ndarray):
            calls.append(self.name)
            return super().update(image)

    evaluate_trackers({"x": lambda: Spy("x"), "y": lambda: Spy("y")}, load_dataset(tmp_path))
    assert calls == ["x", "y", "x", "y"]


@pytest.mark.parametrize("protocol", list(Protocol))
def test_a_perfect_and_a_useless_tracker(tmp_path: Path, protocol: Protocol) -> None:
    truth = moving_boxes(6)
    for name in ("a", "b"):
        write_otb(tmp_path / name, truth)
    dataset = load_dataset(tmp_path)
    perfect = evaluate_tracker(lambda: ScriptedTracker(as_boxes(truth)), dataset, protocol)
    assert perfect.overall.ao == pytest.approx(1.0)
    assert perfect.overall.sr75 == pytest.approx(1.0)
    far = [Box(80.0, 50.0, 4.0, 4.0)] * 6
    useless = evaluate_tracker(lambda: ScriptedTracker(far), dataset, protocol)
    expected = 1 / 6 if protocol is Protocol.OTB else 0.0
    assert useless.overall.ao == pytest.approx(expected)


def test_each_sequence_gets_a_fresh_tracker(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_otb(tmp_path / name, moving_boxes(2))
    made: list[ScriptedTracker] = []

    def factory() -> ScriptedTracker:
        made.append(ScriptedTracker(as_boxes(moving_boxes(2))))
        return made[-1]

    evaluate_tracker(factory, load_dataset(tmp_path))
    assert len(made) == 3
