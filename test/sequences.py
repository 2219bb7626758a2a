"""Tiny sequences on disk, and a tracker whose answers are known, for tests of evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ostrack_ros.evaluation.runner import Observation
from ostrack_ros.tracking.geometry import Box

WIDTH, HEIGHT = 96, 64


def moving_boxes(count: int, step: float = 2.0) -> np.ndarray:
    """A 16 x 12 box that moves right."""
    boxes = np.tile(np.array([10.0, 20.0, 16.0, 12.0]), (count, 1))
    boxes[:, 0] += step * np.arange(count)
    return boxes


def write_images(folder: Path, count: int, pattern: str = "{:04d}.jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = np.full((HEIGHT, WIDTH, 3), 30 + index, np.uint8)
        assert cv2.imwrite(str(folder / pattern.format(index + 1)), image)


def write_photos(folder: Path, count: int = 3) -> None:
    """Smooth random pictures, as a picture bank holds them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{index}.jpg"), cv2.resize(small, (320, 240)))


def lines(boxes: np.ndarray, separator: str = ",") -> str:
    return "\n".join(separator.join(f"{v:g}" for v in box) for box in boxes) + "\n"


def write_otb(folder: Path, truth: np.ndarray, separator: str = ",") -> Path:
    write_images(folder / "img", len(truth))
    (folder / "groundtruth_rect.txt").write_text(lines(truth, separator))
    return folder


class ScriptedTracker:
    """Answers with given boxes (None: no box) and confidences."""

    def __init__(self, boxes: Sequence[Box | None], confidence: float = 0.5) -> None:
        self._boxes = list(boxes)
        self._confidence = confidence
        self._index = 0
        self.init_box: Box | None = None

    def init(self, image: np.ndarray, box: Box) -> None:
        assert image.shape == (HEIGHT, WIDTH, 3)
        self.init_box = box

    def update(self, image: np.ndarray) -> Observation:
        self._index += 1
        return Observation(self._boxes[self._index], self._confidence, 0.9)
