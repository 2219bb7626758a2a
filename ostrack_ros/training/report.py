"""Pictures of a training run: its curves, and contact sheets of its pairs."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ostrack_ros.files import produce_atomically
from ostrack_ros.training.synthesis import PairBatch

LOG_FILE = "log.csv"
VALIDATION_FILE = "validation.csv"
CURVES_FILE = "curves.png"

GREEN, RED = (60, 220, 60), (230, 60, 60)


def append_row(path: Path, columns: tuple[str, ...], values: list[str]) -> None:
    """Add a line to a CSV file, with a header line if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(columns)
        writer.writerow(values)


def plot_training(folder: Path) -> Path:
    """Draw `log.csv` and, if there is one, `validation.csv` of a run into `curves.png`."""
    log = _read_columns(folder / LOG_FILE)
    validated = (folder / VALIDATION_FILE).exists()
    count = 3 if validated else 2
    figure = Figure(figsize=(4 * count, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, hits, *others = figure.subplots(1, count)
    for name in ("total", "focal", "giou", "l1"):
        losses.semilogy(log["step"], log[name], label=name)
    losses.set_title("losses")
    for name in ("hit", "iou"):
        hits.plot(log["step"], log[name], label=name)
    hits.set_title("peak within one cell, IoU at the true cell")
    hits.set_ylim(0, 1)
    if validated:
        measured = _read_columns(folder / VALIDATION_FILE)
        others[0].plot(measured["step"], measured["auc"], "o-", label="AUC")
        others[0].set_title("tracking the validation sequences")
    for axes in (losses, hits, *others):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    path = folder / CURVES_FILE
    produce_atomically(path, lambda draft: figure.savefig(draft, dpi=110))
    return path


def write_pair_sheet(batch: PairBatch, path: Path, columns: int = 4) -> None:
    """Templates beside their search regions with the true box: green, or red where the target is
    absent (the box then shows where it would have been)."""
    tiles = [_pair_tile(batch, index) for index in range(len(batch.present))]
    while len(tiles) % columns:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    sheet = cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR)

    def write(draft: Path) -> None:
        if not cv2.imwrite(str(draft), sheet):
            raise OSError(f"cannot write {path}")

    produce_atomically(path, write)


def _pair_tile(batch: PairBatch, index: int) -> NDArray[np.uint8]:
    template, search = (
        np.ascontiguousarray(images[index].permute(1, 2, 0).cpu().numpy())
        for images in (batch.template, batch.search)
    )
    side = search.shape[0]
    cx, cy, width, height = (batch.box[index] * side).tolist()
    low = (round(cx - width / 2), round(cy - height / 2))
    high = (round(cx + width / 2), round(cy + height / 2))
    cv2.rectangle(search, low, high, GREEN if batch.present[index] else RED, 1)
    tall = np.zeros((side, template.shape[1], 3), np.uint8)
    tall[: template.shape[0]] = template
    return np.hstack([tall, search])


def _read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = rows[0].keys() if rows else ()
    return {name: np.array([float(row[name]) for row in rows]) for name in names}
