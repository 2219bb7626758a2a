"""Real footage and photos with object boxes, in the layouts in which data sets are published.

===========  ==========================================  =====================================
layout       pictures                                    boxes
===========  ==========================================  =====================================
GOT-10k      ``<sequence>/*.jpg``                        ``<sequence>/groundtruth.txt``
LaSOT        ``<class>/<sequence>/img/*.jpg``            ``<sequence>/groundtruth.txt``
TrackingNet  ``TRAIN_<n>/frames/<sequence>/<n>.jpg``     ``TRAIN_<n>/anno/<sequence>.txt``
COCO         ``<split>/*.jpg``                           ``annotations/instances_<split>.json``
===========  ==========================================  =====================================

GOT-10k and LaSOT are read as `evaluation.datasets` does, absence labels included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.evaluation.datasets import DatasetError, load_dataset, read_boxes
from ostrack_ros.sources import image_paths

MIN_OBJECT_SIDE = 16.0


@dataclass(frozen=True, slots=True)
class View:
    """One picture; `boxes` are float32 [4], x, y, w, h in pixels: one in a video's frame."""

    path: Path
    boxes: tuple[NDArray[np.float32], ...]


Recording = tuple[View, ...]
"""The same object in the frames of a video, in order; or one photo with its objects."""


def find_recordings(root: Path, views: int) -> Iterator[Recording]:
    """Every recording below `root`, videos thinned to `views` evenly spaced frames with target.

    Raises DatasetError when the layout is none of the known, or a file is damaged.
    """
    annotations = sorted((root / "annotations").glob("instances_*.json"))
    if annotations:
        for path in annotations:
            yield from _coco(path, root)
        return
    trackingnet = sorted([*root.glob("anno/*.txt"), *root.glob("TRAIN_*/anno/*.txt")])
    if trackingnet:
        for path in trackingnet:
            frames = image_paths(path.parent.parent / "frames" / path.stem)
            boxes = read_boxes(path)
            if len(frames) != len(boxes):
                raise DatasetError(f"{path}: {len(boxes)} boxes for {len(frames)} frames")
            yield _thinned(frames, boxes, views)
        return
    for sequence in load_dataset(root):
        yield _thinned(sequence.frames, sequence.truth, views)


def _thinned(frames: tuple[Path, ...], boxes: NDArray[np.float64], views: int) -> Recording:
    present = np.flatnonzero(np.isfinite(boxes).all(1))
    if len(present) > views:
        present = present[np.linspace(0, len(present) - 1, views).round().astype(int)]
    return tuple(View(frames[i], (boxes[i].astype(np.float32),)) for i in present)


def _coco(path: Path, root: Path) -> Iterator[Recording]:
    """Photos with their objects; crowds and tiny objects are left out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        objects: dict[str, list[NDArray[np.float32]]] = {}
        for item in content["annotations"]:
            box = np.array(item["bbox"], np.float32)
            if not item.get("iscrowd") and box.shape == (4,) and min(box[2:]) >= MIN_OBJECT_SIDE:
                objects.setdefault(names[item["image_id"]], []).append(box)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not a COCO annotation file: {error!r}") from error
    folder = root / path.stem.removeprefix("instances_")
    for name, boxes in objects.items():
        yield (View(folder / name, tuple(boxes)),)
