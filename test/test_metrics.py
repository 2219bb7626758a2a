"""The protocols' arithmetic, by hand, by properties, and against the GOT-10k toolkit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ostrack_ros.evaluation.metrics import (
    Protocol,
    center_distances,
    combine,
    frame_errors,
    overlaps,
    score,
)
from ostrack_ros.tracking.geometry import Box, iou

SIZE = (640, 480)


def boxes_of(count: int) -> st.SearchStrategy[np.ndarray]:
    corners = arrays(np.float64, (count, 2), elements=st.floats(-50, 700, width=32))
    sizes = arrays(np.float64, (count, 2), elements=st.floats(1, 300, width=32))
    return st.builds(lambda c, s: np.concatenate([c, s], axis=1), corners, sizes)


def random_boxes(seed: int, count: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    corners = generator.uniform((-40, -40), (600, 440), (count, 2))
    return np.concatenate([corners, generator.uniform(5, 200, (count, 2))], axis=1)


def near(boxes: np.ndarray, seed: int) -> np.ndarray:
    """Boxes a little off, so that all thresholds are exercised."""
    jitter = np.random.default_rng(seed).normal(0, 0.2, boxes.shape)
    moved = boxes + jitter * np.tile(boxes[:, 2:], 2)
    moved[:, 2:] = np.maximum(moved[:, 2:], 1.0)
    return moved


@given(boxes_of(4), boxes_of(4))
def test_overlaps_agree_with_the_scalar_iou(a: np.ndarray, b: np.ndarray) -> None:
    expected = [iou(Box(*x), Box(*y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(overlaps(a, b), expected, atol=1e-12)


@given(boxes_of(5), boxes_of(5))
@settings(max_examples=50)
def test_overlaps_are_symmetric_and_bounded(a: np.ndarray, b: np.ndarray) -> None:
    values = overlaps(a, b)
    np.testing.assert_allclose(values, overlaps(b, a), atol=1e-12)
    assert ((values >= 0) & (values <= 1 + 1e-12)).all()
    np.testing.assert_allclose(overlaps(a, a), 1.0)


def test_otb_by_hand() -> None:
    truth = np.array([[0, 0, 10, 10]] * 4, dtype=float)
    predicted = truth.copy()
    predicted[0] = (500, 500, 5, 5)  # frame 0 counts as perfect whatever was written there
    predicted[1, 0] = 5  # IoU 1/3, error 5 px
    predicted[2] = (0, 0, 20, 10)  # IoU 1/2, error 5 px
    predicted[3] = (100, 0, 10, 10)  # IoU 0, error 100 px
    scores = score(Protocol.OTB, frame_errors(Protocol.OTB, predicted, truth, SIZE))
    # Of 21 thresholds 0, 0.05 .. 1, an overlap passes those strictly below it.
    assert scores.auc == pytest.approx((20 + 7 + 10 + 0) / (4 * 21))
    assert scores.precision == pytest.approx(3 / 4)
    assert scores.normalised_precision == pytest.approx(1 / 4)
    assert scores.ao == pytest.approx((1 + 1 / 3 + 1 / 2) / 4)
    assert scores.sr50 == pytest.approx(1 / 4)  # strictly above


def test_absent_frames_fail_in_otb_and_do_not_count_in_got10k() -> None:
    truth = np.array([[0, 0, 10, 10]] * 4, dtype=float)
    predicted = truth.copy()
    truth[3] = np.nan
    otb = score(Protocol.OTB, frame_errors(Protocol.OTB, predicted, truth, SIZE))
    assert otb.precision == pytest.approx(3 / 4)
    assert otb.normalised_precision == pytest.approx(3 / 4)
    assert otb.ao == pytest.approx(3 / 4)
    got10k = score(Protocol.GOT10K, frame_errors(Protocol.GOT10K, predicted, truth, SIZE))
    assert got10k.ao == pytest.approx(1.0)


def test_got10k_leaves_out_the_first_frame() -> None:
    truth = np.array([[0, 0, 10, 10]] * 3, dtype=float)
    predicted = truth.copy()
    predicted[1] = (300, 300, 10, 10)
    scores = score(Protocol.GOT10K, frame_errors(Protocol.GOT10K, predicted, truth, SIZE))
    assert scores.ao == pytest.approx(1 / 2)


def test_otb_averages_sequences_and_got10k_pools_frames() -> None:
    def sequence(frames: int, perfect: bool, protocol: Protocol):
        truth = np.array([[0, 0, 10, 10]] * frames, dtype=float)
        predicted = truth if perfect else truth + np.array([300, 0, 0, 0])
        return frame_errors(protocol, predicted, truth, SIZE)

    pooled = combine(
        Protocol.GOT10K,
        [sequence(11, True, Protocol.GOT10K), sequence(31, False, Protocol.GOT10K)],
    )
    assert pooled.ao == pytest.approx(10 / 40)
    averaged = combine(
        Protocol.OTB, [sequence(10, True, Protocol.OTB), sequence(30, False, Protocol.OTB)]
    )
    assert averaged.ao == pytest.approx((1 + 1 / 30) / 2)
    assert averaged.auc == pytest.approx((20 / 21) * (1 + 1 / 30) / 2)


def test_a_single_frame_has_no_got10k_figures() -> None:
    truth = np.array([[0, 0, 10, 10]], dtype=float)
    scores = score(Protocol.GOT10K, frame_errors(Protocol.GOT10K, truth, truth, SIZE))
    assert (scores.ao, scores.auc, scores.precision) == (0.0, 0.0, 0.0)


def test_distances_of_missing_boxes_are_infinite() -> None:
    truth = np.array([[0, 0, 10, 20], [np.nan] * 4], dtype=float)
    predicted = np.array([[3, 8, 10, 20], [0, 0, 1, 1]], dtype=float)
    np.testing.assert_allclose(center_distances(predicted, truth), [np.hypot(3, 8), np.inf])
    np.testing.assert_allclose(
        center_distances(predicted, truth, normalised=True), [np.hypot(0.3, 0.4), np.inf]
    )


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(2, 4\)"):
        frame_errors(Protocol.OTB, np.ones((3, 4)), np.ones((2, 4)), SIZE)
    with pytest.raises(ValueError, match="no sequences"):
        combine(Protocol.OTB, [])


@pytest.mark.parametrize("seed", range(3))
def test_got10k_equals_its_toolkit(seed: int) -> None:
    toolkit = pytest.importorskip(
        "got10k.utils.metrics", reason="needs the GOT-10k toolkit: pip install got10k==0.1.3"
    )
    truth = random_boxes(seed, 300)
    predicted = near(truth, seed)
    visible = np.random.default_rng(seed).random(300) > 0.1
    visible[0] = True
    # What ExperimentGOT10k does with the frames of a sequence of its validation set.
    expected = toolkit.rect_iou(predicted[1:].copy(), truth[1:].copy(), bound=SIZE)[visible[1:]]
    marked = truth.copy()
    marked[~visible] = np.nan
    errors = frame_errors(Protocol.GOT10K, predicted, marked, SIZE)
    np.testing.assert_allclose(errors.overlap, expected, atol=1e-12)
    scores = score(Protocol.GOT10K, errors)
    curve = np.greater(expected[:, None], np.linspace(0, 1, 101)[None, :]).mean(axis=0)
    np.testing.assert_allclose(scores.success_curve, curve, atol=1e-12)
    assert scores.ao == pytest.approx(expected.mean())
    assert scores.sr50 == pytest.approx((expected > 0.5).mean())
    assert scores.sr75 == pytest.approx((expected > 0.75).mean())


@pytest.mark.parametrize("seed", range(3))
def test_otb_equals_the_toolkits_otb(seed: int) -> None:
    otb = pytest.importorskip(
        "got10k.experiments.otb", reason="needs the GOT-10k toolkit: pip install got10k==0.1.3"
    )
    truth = random_boxes(seed, 300)
    predicted = near(truth, seed)
    predicted[0] = truth[0]
    experiment = otb.ExperimentOTB.__new__(otb.ExperimentOTB)
    experiment.nbins_iou, experiment.nbins_ce = 21, 51
    success, precision = experiment._calc_curves(*experiment._calc_metrics(predicted, truth))
    scores = score(Protocol.OTB, frame_errors(Protocol.OTB, predicted, truth, SIZE))
    np.testing.assert_allclose(scores.success_curve, success, atol=1e-12)
    np.testing.assert_allclose(scores.precision_curve, precision, atol=1e-12)
