"""Contact sheets: a few frames of a run with its boxes, to look at."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ostrack_ros.drawing import AMBER, GREEN, RED, WHITE, draw_box, draw_label
from ostrack_ros.evaluation.metrics import overlaps
from ostrack_ros.evaluation.report import SequenceReport
from ostrack_ros.files import write_atomically
from ostrack_ros.tracking.geometry import Box

_TILE_WIDTH = 400


def write_contact_sheet(row: SequenceReport, path: Path, tiles: int = 12, columns: int = 4) -> None:
    """Write `tiles` evenly spaced frames of a run as one image.

    White is the ground truth; the tracker's box is green where they overlap by more than half,
    red where they do not, amber where the target is absent.
    """
    indices = np.unique(np.linspace(0, len(row.sequence) - 1, tiles).round().astype(int))
    drawn = [_tile(row, int(index)) for index in indices]
    height = max(tile.shape[0] for tile in drawn)
    sheet = np.zeros((math.ceil(len(drawn) / columns) * height, columns * _TILE_WIDTH, 3), np.uint8)
    for position, tile in enumerate(drawn):
        top, left = (position // columns) * height, (position % columns) * _TILE_WIDTH
        sheet[top : top + tile.shape[0], left : left + _TILE_WIDTH] = tile
    encoded, data = cv2.imencode(path.suffix, sheet)
    if not encoded:
        raise ValueError(f"OpenCV cannot write images of type {path.suffix!r}")
    write_atomically(path, data.tobytes())


def _tile(row: SequenceReport, index: int) -> NDArray[np.uint8]:
    image = row.sequence.image(index)
    scale = _TILE_WIDTH / image.shape[1]
    size = (_TILE_WIDTH, max(1, round(image.shape[0] * scale)))
    tile = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    predicted, truth = row.run.boxes[index], row.sequence.truth[index]
    overlap = float(overlaps(predicted[None], truth[None])[0])
    absent = bool(row.sequence.absent[index])
    if not absent:
        draw_box(tile, _scaled(truth, scale), WHITE, 1)
    colour = AMBER if absent else GREEN if overlap > 0.5 else RED
    draw_box(tile, _scaled(predicted, scale), colour)
    what = "absent" if absent else f"IoU {overlap:.2f}"
    draw_label(tile, f"{row.sequence.name} {index}  {what}", colour)
    return tile


def _scaled(box: NDArray[np.float64], scale: float) -> Box:
    return Box(*(float(v) * scale for v in box))
