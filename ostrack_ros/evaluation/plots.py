"""Figures as PNG files, drawn without a screen."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ostrack_ros.evaluation.metrics import NORMALISED_THRESHOLDS, PRECISION_THRESHOLDS, overlaps
from ostrack_ros.evaluation.presence import PresenceReport, PresenceSamples, roc_curve
from ostrack_ros.evaluation.report import Report
from ostrack_ros.files import produce_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curves(reports: SequenceOf[Report], path: Path) -> None:
    """Success, precision and normalised precision curves side by side, best tracker first."""
    figure = _figure(15.0)
    panels = figure.subplots(1, 3)
    ranked = sorted(reports, key=lambda r: -r.overall.auc)
    for report in ranked:
        overall = report.overall
        for panel, thresholds, curve, figure_of_merit in (
            (panels[0], report.protocol.success_thresholds, overall.success_curve, overall.auc),
            (panels[1], PRECISION_THRESHOLDS, overall.precision_curve, overall.precision),
            (
                panels[2],
                NORMALISED_THRESHOLDS,
                overall.normalised_precision_curve,
                overall.normalised_precision,
            ),
        ):
            panel.plot(thresholds, curve, label=f"{report.tracker} [{figure_of_merit:.3f}]")
    for panel, title, x_label, y_label in (
        (panels[0], "Success [AUC]", "overlap threshold", "share above"),
        (panels[1], "Precision [at 20 px]", "centre error (px)", "share within"),
        (
            panels[2],
            "Normalised precision [at 0.2]",
            "centre error / size",
            "share within",
        ),
    ):
        panel.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0, 1), xlim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    figure.suptitle(f"{ranked[0].dataset}, protocol {ranked[0].protocol.value}")
    _save(figure, path)


def plot_overlaps(report: Report, path: Path) -> None:
    """Overlap, confidence and raw score over time, one strip per sequence."""
    rows = report.sequences
    figure = _figure(11.0, 1.6 * len(rows) + 0.8)
    panels = np.atleast_1d(figure.subplots(len(rows), 1))
    for panel, row in zip(panels, rows, strict=True):
        frames = np.arange(len(row.sequence))
        panel.fill_between(
            frames, overlaps(row.run.boxes, row.sequence.truth), color="0.8", label="overlap"
        )
        panel.plot(frames, row.run.confidence, label="confidence", linewidth=1)
        panel.plot(frames, row.run.score, label="score", linewidth=1, linestyle=":")
        for frame in np.flatnonzero(row.sequence.absent):
            panel.axvspan(frame - 0.5, frame + 0.5, color="mistyrose", zorder=0)
        panel.set(ylim=(0, 1.02), xlim=(0, max(1, len(frames) - 1)))
        panel.set_ylabel(row.sequence.name, rotation=0, ha="right", fontsize="small")
    panels[0].legend(fontsize="x-small", ncol=3, loc="lower left")
    panels[-1].set_xlabel("frame")
    _save(figure, path)


def plot_presence(report: PresenceReport, samples: PresenceSamples, path: Path) -> None:
    """Reliability diagram and, where both kinds of frames exist, ROC curves."""
    figure = _figure(11.0)
    reliability, roc = figure.subplots(1, 2)
    filled = [b for b in report.bins if b.count]
    reliability.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfect")
    reliability.plot(
        [b.confidence for b in filled], [b.on_target for b in filled], marker="o", label="measured"
    )
    for bin_ in filled:
        reliability.annotate(
            str(bin_.count),
            (bin_.confidence, bin_.on_target),
            fontsize="x-small",
            xytext=(4, -9),
            textcoords="offset points",
        )
    reliability.set(
        title=f"Reliability (ECE {report.expected_calibration_error:.3f}, {report.frames} frames)",
        xlabel="confidence",
        ylabel="share on target (overlap > 0.5)",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    for name, values, area in (
        ("confidence", samples.confidence, report.auroc),
        ("raw score", samples.score, report.auroc_score),
    ):
        if area is not None:
            roc.plot(*roc_curve(values, samples.on_target), label=f"{name} [{area:.3f}]")
    roc.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="chance")
    roc.set(
        title="Is the box on the target? [AUROC]",
        xlabel="false alarms",
        ylabel="hits",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    for panel in (reliability, roc):
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="lower right")
    _save(figure, path)


def _figure(width: float, height: float = 4.6) -> Figure:
    # Figure and not pyplot: no global state, no display, nothing to close.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    produce_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))
