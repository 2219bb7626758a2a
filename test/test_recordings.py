"""Published layouts as training material, each written out small."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ostrack_ros.evaluation.datasets import DatasetError
from ostrack_ros.training.recordings import Recording, find_recordings

FRAMES = 6
BOXES = [(20 + 5 * i, 30, 40, 50) for i in range(FRAMES)]


def write_frames(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.full((120, 160, 3), 128, np.uint8))


def write_boxes(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(map(str, box)) for box in BOXES))


def got10k(root: Path) -> None:
    folder = root / "GOT-10k_Train_000001"
    write_frames(folder, [f"{i:08d}.jpg" for i in range(1, FRAMES + 1)])
    write_boxes(folder / "groundtruth.txt")
    (folder / "absence.label").write_text("\n".join("000010"))


def lasot(root: Path) -> None:
    folder = root / "boat" / "boat-1"
    write_frames(folder / "img", [f"{i:08d}.jpg" for i in range(1, FRAMES + 1)])
    write_boxes(folder / "groundtruth.txt")


def trackingnet(root: Path) -> None:
    # Not padded: "10.jpg" must not come before "2.jpg".
    write_frames(root / "TRAIN_0" / "frames" / "abc", [f"{8 + i}.jpg" for i in range(FRAMES)])
    write_boxes(root / "TRAIN_0" / "anno" / "abc.txt")


def indices(recording: Recording) -> list[int]:
    boxes = [tuple(int(v) for v in view.boxes[0]) for view in recording]
    return [BOXES.index(box) for box in boxes]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "expected"),
    [(got10k, [0, 1, 2, 3, 5]), (lasot, [0, 1, 2, 3, 4, 5]), (trackingnet, [0, 1, 2, 3, 4, 5])],
)
def test_videos(tmp_path: Path, layout: object, expected: list[int]) -> None:
    layout(tmp_path)  # type: ignore[operator]
    (recording,) = find_recordings(tmp_path, views=12)
    assert indices(recording) == expected
    assert all(view.path.is_file() for view in recording)
    (thinned,) = find_recordings(tmp_path, views=3)
    assert len(thinned) == 3
    assert (indices(thinned)[0], indices(thinned)[-1]) == (expected[0], expected[-1])


def test_trackingnet_frames_are_in_numerical_order(tmp_path: Path) -> None:
    trackingnet(tmp_path)
    (recording,) = find_recordings(tmp_path, views=12)
    assert [int(view.path.stem) for view in recording] == list(range(8, 8 + FRAMES))


def test_coco_photos(tmp_path: Path) -> None:
    write_frames(tmp_path / "train2017", ["a.jpg", "b.jpg"])
    annotations = [
        {"image_id": 1, "bbox": [10, 20, 30, 40], "iscrowd": 0},
        {"image_id": 2, "bbox": [0, 0, 100, 100], "iscrowd": 1},
        {"image_id": 2, "bbox": [5, 5, 8, 8], "iscrowd": 0},
        {"image_id": 1, "bbox": [50, 60, 60, 50], "iscrowd": 0},
    ]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    (recording,) = find_recordings(tmp_path, views=12)
    (view,) = recording
    assert view.path == tmp_path / "train2017" / "a.jpg"
    assert [tuple(box) for box in view.boxes] == [(10, 20, 30, 40), (50, 60, 60, 50)]


@pytest.mark.parametrize("content", ["[]", "{", '{"images": []}'])
def test_damaged_coco_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "annotations" / "instances_x.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(DatasetError, match="not a COCO annotation file"):
        list(find_recordings(tmp_path, views=2))


def test_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no sequence"):
        list(find_recordings(tmp_path, views=2))
