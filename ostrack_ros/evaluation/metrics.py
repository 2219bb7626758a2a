"""From boxes to figures, by the protocols of OTB/LaSOT and of GOT-10k.

Which frames count, and how sequences are put together, differs by some AUC points between
toolkits, so every figure belongs to a protocol:

``otb`` (as pytracking computes OTB and LaSOT)
    Frame 0 is the ground truth itself and counts. Frames without a target stay in the
    denominator: they can only fail, in overlap and in distance (LaSOT's rule). The result is the
    mean over sequences.
``got10k`` (as the GOT-10k toolkit computes its validation set)
    Frame 0 and frames without a target are left out, boxes are clipped to the image, and all
    frames of all sequences are pooled.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

PRECISION_THRESHOLDS: FloatArray = np.arange(51, dtype=np.float64)
NORMALISED_THRESHOLDS: FloatArray = np.arange(51, dtype=np.float64) / 100
_PRECISION_AT = 20
_NORMALISED_AT = 20


class Protocol(Enum):
    """How figures are computed; see the module's text."""

    OTB = "otb"
    GOT10K = "got10k"

    @property
    def success_thresholds(self) -> FloatArray:
        """Overlap thresholds of the success curve: 21 for OTB, 101 for GOT-10k."""
        return np.linspace(0.0, 1.0, 21 if self is Protocol.OTB else 101, dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class FrameErrors:
    """What is measured on each counted frame of a sequence.

    `overlap` float64 [n] is IoU; `distance` [n] is between centres in pixels;
    `normalised_distance` [n] is the same with each axis divided by the target's size. Frames
    without a target have overlap 0 and infinite distance.
    """

    overlap: FloatArray
    distance: FloatArray
    normalised_distance: FloatArray


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures of one sequence or of a whole data set, all in [0, 1].

    `auc` is the mean of the success curve, `precision` the share of frames within 20 px,
    `normalised_precision` within 0.2 of the target's size, `ao` the mean overlap, `sr50` and
    `sr75` the shares of frames with an overlap above 0.5 and 0.75.
    """

    auc: float
    precision: float
    normalised_precision: float
    ao: float
    sr50: float
    sr75: float
    success_curve: tuple[float, ...]
    precision_curve: tuple[float, ...]
    normalised_precision_curve: tuple[float, ...]


def overlaps(predicted: FloatArray, truth: FloatArray) -> FloatArray:
    """IoU [N] of boxes [N, 4] (x, y, w, h); 0 where a box is nan or has no area."""
    with np.errstate(invalid="ignore"):
        top_left = np.maximum(predicted[:, :2], truth[:, :2])
        bottom_right = np.minimum(predicted[:, :2] + predicted[:, 2:], truth[:, :2] + truth[:, 2:])
        shared = np.clip(bottom_right - top_left, 0.0, None).prod(axis=1)
        union = predicted[:, 2:].prod(axis=1) + truth[:, 2:].prod(axis=1) - shared
        usable = (union > 0) & (predicted[:, 2:] > 0).all(axis=1) & (truth[:, 2:] > 0).all(axis=1)
    result = np.zeros(len(predicted))
    np.divide(shared, union, out=result, where=usable)
    # Rounding can lift equal boxes above 1, and so over the last threshold.
    return np.minimum(result, 1.0)


def center_distances(
    predicted: FloatArray, truth: FloatArray, *, normalised: bool = False
) -> FloatArray:
    """Distance [N] between the centres of boxes [N, 4]; infinite where a box is nan.

    In pixels or, `normalised`, with each axis in units of the true width and height.
    """
    # Each centre on its own first: so equal boxes are exactly 0 apart, within threshold 0.
    offsets = (predicted[:, :2] + 0.5 * predicted[:, 2:]) - (truth[:, :2] + 0.5 * truth[:, 2:])
    if normalised:
        offsets = offsets / truth[:, 2:]
    distances = np.hypot(offsets[:, 0], offsets[:, 1])
    return np.where(np.isfinite(distances), distances, np.inf)


def frame_errors(
    protocol: Protocol,
    predicted: FloatArray,
    truth: FloatArray,
    image_size: tuple[int, int],
) -> FrameErrors:
    """Measure one sequence.

    `predicted` and `truth` are [N, 4] (x, y, w, h; nan in `truth` where the target is absent);
    `image_size` is (width, height). Raises ValueError when they do not belong together.
    """
    if predicted.shape != truth.shape or truth.ndim != 2 or truth.shape[1] != 4:
        raise ValueError(
            f"predicted boxes have shape {predicted.shape} and ground truth {truth.shape}; "
            "both must be [N, 4]"
        )
    if protocol is Protocol.OTB:
        predicted = predicted.copy()
        predicted[0] = truth[0]
    else:
        counted = 1 + np.flatnonzero(~np.isnan(truth[1:, 0]))
        predicted = _clip_as_got10k(predicted[counted], image_size)
        truth = _clip_as_got10k(truth[counted], image_size)
    return FrameErrors(
        overlaps(predicted, truth),
        center_distances(predicted, truth),
        center_distances(predicted, truth, normalised=True),
    )


def score(protocol: Protocol, errors: FrameErrors) -> Scores:
    """Figures of the frames in `errors`; all 0 when there are none."""
    success = _share(errors.overlap, protocol.success_thresholds, above=True)
    precision = _share(errors.distance, PRECISION_THRESHOLDS, above=False)
    normalised = _share(errors.normalised_distance, NORMALISED_THRESHOLDS, above=False)
    ao, sr50, sr75 = _share_figures(errors.overlap)
    return _scores(success, precision, normalised, ao, sr50, sr75)


def combine(protocol: Protocol, sequences: SequenceOf[FrameErrors]) -> Scores:
    """Figures of a whole data set. Raises ValueError for an empty one."""
    if not sequences:
        raise ValueError("no sequences to combine")
    if protocol is Protocol.GOT10K:
        pooled = FrameErrors(
            np.concatenate([e.overlap for e in sequences]),
            np.concatenate([e.distance for e in sequences]),
            np.concatenate([e.normalised_distance for e in sequences]),
        )
        return score(protocol, pooled)
    each = [score(protocol, errors) for errors in sequences]
    return _scores(
        np.mean([s.success_curve for s in each], axis=0),
        np.mean([s.precision_curve for s in each], axis=0),
        np.mean([s.normalised_precision_curve for s in each], axis=0),
        *(float(np.mean([getattr(s, name) for s in each])) for name in ("ao", "sr50", "sr75")),
    )


def _scores(
    success: FloatArray,
    precision: FloatArray,
    normalised: FloatArray,
    ao: float,
    sr50: float,
    sr75: float,
) -> Scores:
    return Scores(
        auc=float(success.mean()),
        precision=float(precision[_PRECISION_AT]),
        normalised_precision=float(normalised[_NORMALISED_AT]),
        ao=ao,
        sr50=sr50,
        sr75=sr75,
        success_curve=tuple(float(v) for v in success),
        precision_curve=tuple(float(v) for v in precision),
        normalised_precision_curve=tuple(float(v) for v in normalised),
    )


def _share(values: FloatArray, thresholds: FloatArray, *, above: bool) -> FloatArray:
    """Share [T] of values strictly above, or at most at, each threshold."""
    if not len(values):
        return np.zeros(len(thresholds))
    column = values[:, None]
    hits = column > thresholds if above else column <= thresholds
    return np.asarray(hits.mean(axis=0), dtype=np.float64)


def _share_figures(overlap: FloatArray) -> tuple[float, float, float]:
    if not len(overlap):
        return 0.0, 0.0, 0.0
    return float(overlap.mean()), float((overlap > 0.5).mean()), float((overlap > 0.75).mean())


def _clip_as_got10k(boxes: FloatArray, image_size: tuple[int, int]) -> FloatArray:
    """Clip corners to the image, then sizes to what is left.

    A box that sticks out on the left or top keeps its size and is so moved, not cut. The toolkit
    does that, and published figures contain it.
    """
    limit = np.array(image_size, dtype=np.float64)
    corner = np.clip(boxes[:, :2], 0.0, limit)
    size = np.clip(boxes[:, 2:], 0.0, limit - corner)
    return np.concatenate([corner, size], axis=1)
