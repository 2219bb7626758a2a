"""How far a confidence can be trusted: reliability and separation of good from bad boxes.

The question asked on every frame after the first is "is the box on the target?", answered yes
where the overlap with the ground truth exceeds 0.5, and no where the target is absent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.evaluation.metrics import overlaps
from ostrack_ros.evaluation.report import Report

ON_TARGET_OVERLAP = 0.5
BINS = 10


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Frames whose confidence lies in one tenth of [0, 1]: their number, mean confidence and the
    share of them that were on the target."""

    count: int
    confidence: float
    on_target: float


@dataclass(frozen=True, slots=True)
class PresenceReport:
    """Calibration and separation on `frames` frames, `on_target` of them good.

    `expected_calibration_error` weighs |confidence - share on target| of ten equal bins by their
    counts; `brier` is the mean squared error. `auroc` is the chance that a good frame has the
    higher confidence than a bad one (ties count half), `auroc_score` the same for the raw score;
    None where all frames are good or all are bad.
    """

    frames: int
    on_target: int
    expected_calibration_error: float
    brier: float
    auroc: float | None
    auroc_score: float | None
    bins: tuple[ReliabilityBin, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class PresenceSamples:
    """Every judged frame: bool [N] `on_target`, float64 [N] `confidence` and `score`."""

    on_target: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    score: NDArray[np.float64]


def presence_samples(report: Report) -> PresenceSamples:
    """Collect the frames of a report. Raises ValueError when the tracker gave no confidences."""
    on_target, confidence, score = [], [], []
    for row in report.sequences:
        hit = overlaps(row.run.boxes, row.sequence.truth) > ON_TARGET_OVERLAP
        on_target.append(hit[1:])
        confidence.append(row.run.confidence[1:])
        score.append(row.run.score[1:])
    samples = PresenceSamples(
        np.concatenate(on_target), np.concatenate(confidence), np.concatenate(score)
    )
    if not len(samples.on_target) or np.isnan(samples.confidence).any():
        raise ValueError(f"{report.tracker} gave no confidence on some frames, nothing to judge")
    return samples


def presence_report(samples: PresenceSamples) -> PresenceReport:
    """Figures of the samples; see `PresenceReport`."""
    bins = reliability_bins(samples.confidence, samples.on_target)
    error = sum(b.count * abs(b.confidence - b.on_target) for b in bins) / len(samples.on_target)
    return PresenceReport(
        frames=len(samples.on_target),
        on_target=int(samples.on_target.sum()),
        expected_calibration_error=float(error),
        brier=float(np.mean((samples.confidence - samples.on_target) ** 2)),
        auroc=auroc(samples.confidence, samples.on_target),
        auroc_score=auroc(samples.score, samples.on_target),
        bins=bins,
    )


def reliability_bins(
    confidence: NDArray[np.float64], on_target: NDArray[np.bool_]
) -> tuple[ReliabilityBin, ...]:
    """Ten equal bins over [0, 1]; empty ones have count 0 and their middle as confidence."""
    which = np.clip((confidence * BINS).astype(np.intp), 0, BINS - 1)
    bins = []
    for index in range(BINS):
        inside = which == index
        count = int(inside.sum())
        bins.append(
            ReliabilityBin(
                count,
                float(confidence[inside].mean()) if count else (index + 0.5) / BINS,
                float(on_target[inside].mean()) if count else 0.0,
            )
        )
    return tuple(bins)


def roc_curve(
    values: NDArray[np.float64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates, from the strictest threshold to the loosest, starting at 0.

    Raises ValueError when there is only one class.
    """
    if positive.all() or not positive.any():
        raise ValueError("a ROC curve needs frames on the target and frames off it")
    order = np.argsort(-values, kind="stable")
    ranked, hits = values[order], positive[order]
    # Equal values pass a threshold together, so a curve has a point only at the last of them.
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    true_rate = np.cumsum(hits)[last] / hits.sum()
    false_rate = np.cumsum(~hits)[last] / (~hits).sum()
    return np.append(0.0, false_rate), np.append(0.0, true_rate)


def auroc(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve; None when there is only one class."""
    if positive.all() or not positive.any():
        return None
    false_rate, true_rate = roc_curve(values, positive)
    widths = np.diff(false_rate)
    return float(np.sum(widths * 0.5 * (true_rate[1:] + true_rate[:-1])))
