"""Tracking sequences with ground truth, in the layouts in which they are published.

========  ===================================  ===================================================
layout    frames                               ground truth
========  ===================================  ===================================================
OTB       ``img/*.jpg``                        ``groundtruth_rect.txt`` (``.1.txt``, ``.2.txt``
                                               where two targets share the images)
LaSOT     ``img/*.jpg``                        ``groundtruth.txt``, ``full_occlusion.txt`` and
                                               ``out_of_view.txt``
GOT-10k   ``*.jpg`` beside the ground truth    ``groundtruth.txt``, ``absence.label`` and
                                               ``cover.label``
========  ===================================  ===================================================

A line is x,y,w,h in pixels, separated by commas, tabs or spaces, and taken as it stands: no
offset is subtracted from OTB's 1-based files, as in pytracking. ``nan`` or a width or height that
is not positive means that the target is absent.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.sources import image_paths, read_image
from ostrack_ros.tracking.geometry import Box

# OTB-2015 annotates only these 1-based frames of some of its folders.
_OTB_FRAMES = {
    "BlurCar1": (247, 988),
    "BlurCar3": (3, 359),
    "BlurCar4": (18, 397),
    "David": (300, 770),
    "Diving": (1, 215),
    "Football1": (1, 74),
    "Freeman3": (1, 460),
    "Freeman4": (1, 283),
}
_OTB_TRUTH = re.compile(r"groundtruth_rect(?:\.(\d+))?\.txt")
_SEPARATORS = re.compile(r"[,;\s]+")


class DatasetError(ValueError):
    """A data set is missing or damaged. The message names the file and the line."""


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """One target in one video.

    `truth` is float64 [N, 4] (x, y, w, h in pixels, nan in rows where the target is absent) and
    `absent` bool [N]; `frames` are the paths of the N images.
    """

    name: str
    frames: tuple[Path, ...]
    truth: NDArray[np.float64]
    absent: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def init_box(self) -> Box:
        """The target in the first frame."""
        return Box(*(float(v) for v in self.truth[0]))

    def image(self, index: int) -> NDArray[np.uint8]:
        """Frame `index` as uint8 [H, W, 3] BGR. Raises SourceError when it cannot be decoded."""
        return read_image(self.frames[index])

    def limited(self, frames: int) -> Sequence:
        """The first `frames` frames only."""
        return replace(
            self,
            frames=self.frames[:frames],
            truth=self.truth[:frames],
            absent=self.absent[:frames],
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """Sequences in alphabetical order; `name` is the folder's."""

    name: str
    sequences: tuple[Sequence, ...]

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.sequences)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def frame_count(self) -> int:
        return sum(map(len, self.sequences))

    def limited(self, frames: int) -> Dataset:
        """Every sequence cut to its first `frames` frames, for quick looks."""
        return replace(self, sequences=tuple(s.limited(frames) for s in self.sequences))


def load_dataset(root: Path, only: Collection[str] | None = None) -> Dataset:
    """Find and read all sequences under `root` (a folder of them, of groups of them, or one).

    `only` keeps the sequences with these names. Frames are not decoded here.

    Raises DatasetError when nothing is found, a name in `only` is unknown or a file is damaged.
    """
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder")
    sequences = sorted(_find(root, only), key=lambda s: s.name)
    if only is not None and (unknown := set(only) - {s.name for s in sequences}):
        raise DatasetError(f"{root} has no sequence named {', '.join(sorted(unknown))}")
    if not sequences:
        raise DatasetError(
            f"{root} holds no sequence: expected folders with img/ and groundtruth_rect.txt (OTB), "
            "img/ and groundtruth.txt (LaSOT), or images and groundtruth.txt (GOT-10k)"
        )
    return Dataset(root.resolve().name, tuple(sequences))


def read_boxes(path: Path) -> NDArray[np.float64]:
    """Read a file of x,y,w,h lines as float64 [N, 4]; rows without a target become nan.

    Raises DatasetError naming the line that is not a box.
    """
    rows: list[list[float]] = []
    for number, line in enumerate(_lines(path), start=1):
        fields = [field for field in _SEPARATORS.split(line.strip()) if field]
        try:
            values = [float(field) for field in fields]
        except ValueError as error:
            raise DatasetError(f"{path}:{number}: {error}") from error
        if len(values) != 4:
            raise DatasetError(
                f"{path}:{number}: {len(values)} numbers, expected 4 (x,y,w,h): {line.strip()!r}"
            )
        rows.append(values)
    if not rows:
        raise DatasetError(f"{path} is empty")
    boxes = np.array(rows, dtype=np.float64)
    present = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    boxes[~present] = np.nan
    return boxes


def _find(root: Path, only: Collection[str] | None) -> Iterator[Sequence]:
    """Sequences in `root` itself, its folders, and the folders of folders that are none."""
    level = [root]
    for _ in range(3):
        deeper: list[Path] = []
        for folder in level:
            truths = _truth_files(folder)
            for name, truth in truths:
                if only is None or name in only:
                    yield _read_sequence(name, folder, truth)
            if not truths:
                deeper.extend(sorted(child for child in folder.iterdir() if child.is_dir()))
        level = deeper


def _truth_files(folder: Path) -> list[tuple[str, Path]]:
    """Names and ground truth files of the targets in a folder; empty if it is no sequence."""
    found = []
    for path in sorted(folder.glob("groundtruth*.txt")):
        if path.name == "groundtruth.txt":
            found.append((folder.name, path))
        elif match := _OTB_TRUTH.fullmatch(path.name):
            suffix = f".{match[1]}" if match[1] else ""
            found.append((folder.name + suffix, path))
    return found


def _read_sequence(name: str, folder: Path, truth_path: Path) -> Sequence:
    inner = folder / "img"
    frames = image_paths(inner if inner.is_dir() else folder)
    truth = read_boxes(truth_path)
    if len(frames) != len(truth) and folder.name in _OTB_FRAMES:
        first, last = _OTB_FRAMES[folder.name]
        frames = frames[first - 1 : last]
    if len(frames) != len(truth):
        raise DatasetError(f"{name}: {len(frames)} images but {len(truth)} lines in {truth_path}")
    absent = np.isnan(truth[:, 0])
    for name_of_labels in ("absence.label", "full_occlusion.txt", "out_of_view.txt"):
        if (path := folder / name_of_labels).is_file():
            absent |= _read_labels(path, len(truth)) > 0
    if (path := folder / "cover.label").is_file():
        absent |= _read_labels(path, len(truth)) == 0
    if absent[0]:
        raise DatasetError(f"{name}: the first frame has no target, so no tracker can start on it")
    truth[absent] = np.nan
    return Sequence(name, frames, truth, absent)


def _read_labels(path: Path, count: int) -> NDArray[np.int64]:
    fields = [field for line in _lines(path) for field in _SEPARATORS.split(line.strip()) if field]
    try:
        labels = np.array([int(float(field)) for field in fields], dtype=np.int64)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from error
    if len(labels) != count:
        raise DatasetError(f"{path}: {len(labels)} labels for {count} frames")
    return labels


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    return text.strip("\r\n \t").splitlines() if text.strip() else []
