"""Run trackers over sequences: one pass, started on the first frame, never re-initialised."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.evaluation.datasets import Dataset, Sequence
from ostrack_ros.evaluation.metrics import Protocol, combine, frame_errors, score
from ostrack_ros.evaluation.report import Report, SequenceReport, SequenceRun
from ostrack_ros.tracking.geometry import Box


@dataclass(frozen=True, slots=True)
class Observation:
    """What a tracker says about one frame; `confidence` and `score` are nan where it has none."""

    box: Box | None
    confidence: float = float("nan")
    score: float = float("nan")


class SequenceTracker(Interface):
    """Anything that can be evaluated. Images are uint8 [H, W, 3] BGR."""

    def init(self, image: NDArray[np.uint8], box: Box) -> None:
        """Start on `box`."""

    def update(self, image: NDArray[np.uint8]) -> Observation:
        """Find the target in the next image."""


OnFrame = Callable[[str], object]
TrackerFactory = Callable[[], SequenceTracker]
"""Makes a fresh tracker for each sequence; what is costly (an engine) may be shared."""


def _ignore(sequence_name: str) -> None:
    pass


def run_sequence(
    trackers: Mapping[str, SequenceTracker],
    sequence: Sequence,
    on_frame: OnFrame = _ignore,
) -> tuple[dict[str, SequenceRun], tuple[int, int]]:
    """Run `trackers` side by side over `sequence`; also returns the images' (width, height).

    All see a frame before any sees the next, so that changes in the machine's speed hit all alike.
    Only init and update are timed, not the decoding of images.
    """
    count = len(sequence)
    runs = {name: SequenceRun.empty(count) for name in trackers}
    size = (0, 0)
    for index in range(count):
        image = sequence.image(index)
        size = (image.shape[1], image.shape[0])
        for name, tracker in trackers.items():
            run = runs[name]
            start = time.perf_counter()
            if index == 0:
                tracker.init(image, sequence.init_box)
                seen = Observation(sequence.init_box)
            else:
                seen = tracker.update(image)
            run.seconds[index] = time.perf_counter() - start
            run.reported[index] = seen.box is not None
            run.boxes[index] = run.boxes[index - 1] if seen.box is None else tuple(seen.box)
            run.confidence[index] = seen.confidence
            run.score[index] = seen.score
        on_frame(sequence.name)
    return runs, size


def evaluate_tracker(
    factory: TrackerFactory,
    dataset: Dataset,
    protocol: Protocol = Protocol.OTB,
    *,
    name: str = "tracker",
    on_frame: OnFrame = _ignore,
) -> Report:
    """Run one tracker over a data set; see `evaluate_trackers`."""
    reports = evaluate_trackers({name: factory}, dataset, protocol, on_frame=on_frame)
    return reports[name]


def evaluate_trackers(
    factories: Mapping[str, TrackerFactory],
    dataset: Dataset,
    protocol: Protocol = Protocol.OTB,
    *,
    on_frame: OnFrame = _ignore,
) -> dict[str, Report]:
    """Run several trackers over a data set in one pass, frame by frame in turn.

    `on_frame` is called with the sequence's name after every frame, for progress bars. Raises
    SourceError when an image cannot be read.
    """
    parts: dict[str, list[SequenceReport]] = {name: [] for name in factories}
    for sequence in dataset:
        runs, size = run_sequence(
            {name: factory() for name, factory in factories.items()}, sequence, on_frame
        )
        for name, run in runs.items():
            errors = frame_errors(protocol, run.boxes, sequence.truth, size)
            parts[name].append(SequenceReport(sequence, run, size, errors, score(protocol, errors)))
    return {
        name: Report(
            tracker=name,
            dataset=dataset.name,
            protocol=protocol,
            sequences=tuple(rows),
            overall=combine(protocol, [row.errors for row in rows]),
        )
        for name, rows in parts.items()
    }
