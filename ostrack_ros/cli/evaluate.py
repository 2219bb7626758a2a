"""Measure a model on sequences with ground truth.

Sequences in the layouts of OTB, LaSOT and GOT-10k are found below --dataset. Protocols: `otb`
counts all frames and averages sequences (as pytracking does for OTB and LaSOT; frames without a
target fail), `got10k` leaves out first frames and absences and pools the rest (as the GOT-10k
toolkit does). --report gets report.json, boxes/*.txt, curves.png and overlaps.png.

example:
  ostrack evaluate --model ostrack_small --dataset OTB100 --protocol otb --report runs/otb
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ostrack_ros.cli.common import add_engine_arguments, open_engine, positive
from ostrack_ros.cli.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from ostrack_ros.evaluation.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("--dataset", required=True, type=Path, help="folder with the sequences")
    parser.add_argument("--protocol", choices=("otb", "got10k"), default="otb")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write JSON, boxes and plots")
    parser.add_argument("--sequences", help="only these, comma separated")
    parser.add_argument("--max-frames", type=positive, help="only so many of each sequence")
    parser.add_argument(
        "--presence",
        action="store_true",
        help="evaluate the tracker of the node, which coasts and loses (then its last box counts), "
        "instead of the published one",
    )
    parser.add_argument(
        "--presence-report",
        action="store_true",
        help="how well does the confidence tell whether the box is on the target (IoU > 0.5)?",
    )
    parser.add_argument(
        "--contact-sheets", action="store_true", help="frames of each sequence as sheets/*.png"
    )


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from ostrack_ros.evaluation.datasets import load_dataset
    from ostrack_ros.evaluation.metrics import Protocol
    from ostrack_ros.evaluation.ostrack import PLAIN, ostrack_factory
    from ostrack_ros.evaluation.runner import evaluate_tracker
    from ostrack_ros.progress import progress_bar
    from ostrack_ros.tracking.tracker import TrackerSettings

    if arguments.contact_sheets and not arguments.report:
        raise UsageError("--contact-sheets needs --report DIR to write them to")
    only = arguments.sequences.split(",") if arguments.sequences else None
    dataset = load_dataset(arguments.dataset, only)
    if arguments.max_frames:
        dataset = dataset.limited(arguments.max_frames)
    settings = TrackerSettings() if arguments.presence else PLAIN
    with open_engine(arguments) as engine, progress_bar(dataset.frame_count) as advance:
        report = evaluate_tracker(
            ostrack_factory(engine, settings),
            dataset,
            Protocol(arguments.protocol),
            name=engine.spec.name,
            on_frame=advance,
        )
    console = Console(width=100)
    console.print(report.table())
    console.print(engine.description, highlight=False)
    if arguments.report:
        _write(report, arguments.report, sheets=arguments.contact_sheets)
        console.print(f"written: {arguments.report}", highlight=False)
    if arguments.presence_report:
        _judge_presence(report, arguments.report, console)
    return 0


def _write(report: Report, folder: Path, *, sheets: bool) -> None:
    from ostrack_ros.evaluation.plots import plot_curves, plot_overlaps
    from ostrack_ros.evaluation.sheets import write_contact_sheet

    report.write(folder)
    plot_curves([report], folder / "curves.png")
    plot_overlaps(report, folder / "overlaps.png")
    if sheets:
        for row in report.sequences:
            write_contact_sheet(row, folder / "sheets" / f"{row.sequence.name}.png")


def _judge_presence(report: Report, folder: Path | None, console: Console) -> None:
    import json

    from ostrack_ros.evaluation.plots import plot_presence
    from ostrack_ros.evaluation.presence import presence_report, presence_samples
    from ostrack_ros.files import write_atomically

    samples = presence_samples(report)
    judged = presence_report(samples)
    console.print(
        f"presence: {judged.on_target} of {judged.frames} frames on target, "
        f"ECE {judged.expected_calibration_error:.3f}, Brier {judged.brier:.3f}, "
        f"AUROC {_figure(judged.auroc)} (raw score {_figure(judged.auroc_score)})",
        highlight=False,
    )
    if folder is not None:
        write_atomically(folder / "presence.json", json.dumps(judged.to_dict(), indent=1) + "\n")
        plot_presence(judged, samples, folder / "presence.png")


def _figure(area: float | None) -> str:
    return "undefined" if area is None else f"{area:.3f}"
