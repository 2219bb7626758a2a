"""What an evaluation found, and how it is written down: JSON, box files and a table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.evaluation.datasets import Sequence
from ostrack_ros.evaluation.metrics import FrameErrors, Protocol, Scores
from ostrack_ros.files import write_atomically
from ostrack_ros.tracking.geometry import Box

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class SequenceRun:
    """What one tracker did on one sequence of N frames.

    `boxes` float64 [N, 4] (x, y, w, h), row 0 the init box. Where the tracker gave no box its last
    one is repeated, as benchmarks want one per frame, and `reported` bool [N] is false.
    `confidence`, `score` (nan where the tracker has none) and `seconds` (of init or update) are
    float64 [N].
    """

    boxes: NDArray[np.float64]
    reported: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    score: NDArray[np.float64]
    seconds: NDArray[np.float64]

    @classmethod
    def empty(cls, frames: int) -> SequenceRun:
        """A run to be filled in."""
        return cls(
            np.full((frames, 4), np.nan),
            np.zeros(frames, dtype=np.bool_),
            np.full(frames, np.nan),
            np.full(frames, np.nan),
            np.full(frames, np.nan),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SequenceReport:
    """One tracker on one sequence; `image_size` is (width, height) in pixels."""

    sequence: Sequence
    run: SequenceRun
    image_size: tuple[int, int]
    errors: FrameErrors
    scores: Scores

    @property
    def median_seconds(self) -> float:
        """Of an update; nan for a sequence of one frame."""
        return float(np.median(self.run.seconds[1:])) if len(self.run.seconds) > 1 else np.nan


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """One tracker on one data set under one protocol."""

    tracker: str
    dataset: str
    protocol: Protocol
    sequences: tuple[SequenceReport, ...]
    overall: Scores

    @property
    def median_seconds(self) -> float:
        """Of an update, over all frames."""
        updates = [row.run.seconds[1:] for row in self.sequences]
        return float(np.median(np.concatenate(updates)))

    @property
    def frames_per_second(self) -> float:
        return 1.0 / self.median_seconds

    def to_dict(self) -> dict[str, Any]:
        """Everything but the boxes, ready for JSON."""
        return {
            "format_version": FORMAT_VERSION,
            "tracker": self.tracker,
            "dataset": self.dataset,
            "protocol": self.protocol.value,
            "frames": sum(len(row.sequence) for row in self.sequences),
            "median_ms": _finite(1e3 * self.median_seconds),
            "overall": asdict(self.overall),
            "success_thresholds": self.protocol.success_thresholds.round(6).tolist(),
            "sequences": {
                row.sequence.name: {
                    "frames": len(row.sequence),
                    "absent": int(row.sequence.absent.sum()),
                    "without_box": int((~row.run.reported).sum()),
                    "median_ms": _finite(1e3 * row.median_seconds),
                    **asdict(row.scores),
                }
                for row in self.sequences
            },
        }

    def write(self, folder: Path) -> Path:
        """Write `report.json` and `boxes/<sequence>.txt`; returns the path of the former."""
        for row in self.sequences:
            boxes = (Box(*(float(v) for v in values)) for values in row.run.boxes)
            write_atomically(folder / "boxes" / f"{row.sequence.name}.txt", format_boxes(boxes))
        path = folder / "report.json"
        write_atomically(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        return path

    def table(self) -> Table:
        """Figures per sequence, and of the whole in the last row."""
        table = _table(f"{self.tracker} on {self.dataset}", self.protocol, "sequence")
        for row in self.sequences:
            _add(table, row.sequence.name, row.scores, row.median_seconds)
        for last in table.rows[-1:]:  # rich 11 has no add_section.
            last.end_section = True
        whole = "all frames" if self.protocol is Protocol.GOT10K else "mean"
        _add(table, whole, self.overall, self.median_seconds)
        return table


def comparison_table(reports: SequenceOf[Report]) -> Table:
    """One row per tracker, best AUC first. The reports share a data set and a protocol."""
    table = _table(f"trackers on {reports[0].dataset}", reports[0].protocol, "tracker")
    for report in sorted(reports, key=lambda r: -r.overall.auc):
        _add(table, report.tracker, report.overall, report.median_seconds)
    return table


def format_boxes(boxes: Iterable[Box]) -> str:
    """One line x,y,w,h per box with 4 decimals: the format of OTB and GOT-10k results."""
    return "".join(",".join(f"{value:.4f}" for value in box) + "\n" for box in boxes)


def _table(title: str, protocol: Protocol, first: str) -> Table:
    from rich.table import Table

    table = Table(title=f"{title} (protocol {protocol.value})", title_justify="left")
    table.add_column(first)
    for heading in ("AUC", "P@20", "Pnorm", "AO", "SR0.5", "SR0.75", "ms", "fps"):
        table.add_column(heading, justify="right")
    return table


def _add(table: Table, name: str, scores: Scores, seconds: float) -> None:
    figures = (
        scores.auc,
        scores.precision,
        scores.normalised_precision,
        scores.ao,
        scores.sr50,
        scores.sr75,
    )
    table.add_row(
        name, *(f"{v:.3f}" for v in figures), f"{1e3 * seconds:.1f}", f"{1 / seconds:.0f}"
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
