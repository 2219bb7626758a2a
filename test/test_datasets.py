"""Published layouts are found and read; damaged ones are refused with the place of the damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sequences import lines, moving_boxes, write_images, write_otb

from ostrack_ros.evaluation.datasets import DatasetError, load_dataset, read_boxes
from ostrack_ros.tracking.geometry import Box


@pytest.mark.parametrize("separator", [",", "\t", " ", ", ", "  "])
def test_otb_layout_with_any_separator(tmp_path: Path, separator: str) -> None:
    truth = moving_boxes(3)
    write_otb(tmp_path / "Runner", truth, separator)
    (sequence,) = load_dataset(tmp_path)
    assert sequence.name == "Runner"
    np.testing.assert_array_equal(sequence.truth, truth)
    assert sequence.init_box == Box(10.0, 20.0, 16.0, 12.0)
    assert [path.name for path in sequence.frames] == ["0001.jpg", "0002.jpg", "0003.jpg"]
    assert sequence.image(1).shape == (64, 96, 3)


def test_two_targets_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "Jogging"
    write_images(folder / "img", 2)
    for target in (1, 2):
        (folder / f"groundtruth_rect.{target}.txt").write_text(lines(moving_boxes(2) + target))
    dataset = load_dataset(tmp_path)
    assert [s.name for s in dataset] == ["Jogging.1", "Jogging.2"]
    assert [s.truth[0, 0] for s in dataset] == [11.0, 12.0]


def test_otb_sequences_annotated_in_part(tmp_path: Path) -> None:
    folder = tmp_path / "Football1"
    write_images(folder / "img", 80)
    (folder / "groundtruth_rect.txt").write_text(lines(moving_boxes(74)))
    (sequence,) = load_dataset(tmp_path)
    assert len(sequence) == 74
    assert sequence.frames[-1].name == "0074.jpg"


def test_got10k_layout_with_absence(tmp_path: Path) -> None:
    folder = tmp_path / "val" / "GOT-10k_Val_000001"
    write_images(folder, 4, "{:08d}.jpg")
    (folder / "groundtruth.txt").write_text(lines(moving_boxes(4)))
    (folder / "absence.label").write_text("0\n1\n0\n0\n")
    (folder / "cover.label").write_text("8\n8\n8\n0\n")
    (sequence,) = load_dataset(tmp_path / "val")
    assert sequence.absent.tolist() == [False, True, False, True]
    assert np.isnan(sequence.truth[sequence.absent]).all()
    assert np.isfinite(sequence.truth[~sequence.absent]).all()


def test_lasot_layout_in_groups_with_label_lines(tmp_path: Path) -> None:
    folder = tmp_path / "cat" / "cat-1"
    write_images(folder / "img", 3, "{:08d}.jpg")
    (folder / "groundtruth.txt").write_text(lines(moving_boxes(3)))
    (folder / "full_occlusion.txt").write_text("0,0,1")
    (folder / "out_of_view.txt").write_text("0,1,0\n")
    (sequence,) = load_dataset(tmp_path)
    assert sequence.name == "cat-1"
    assert sequence.absent.tolist() == [False, True, True]


def test_nan_and_empty_boxes_are_absent(tmp_path: Path) -> None:
    path = tmp_path / "boxes.txt"
    path.write_text("1,2,3,4\nnan,nan,nan,nan\nNaN NaN NaN NaN\n5,6,0,7\n5,6,7,8\n")
    absent = np.isnan(read_boxes(path)).all(axis=1)
    assert absent.tolist() == [False, True, True, True, False]


def test_one_sequence_can_be_the_root_and_names_select(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_otb(tmp_path / name, moving_boxes(2))
    assert [s.name for s in load_dataset(tmp_path / "a")] == ["a"]
    assert [s.name for s in load_dataset(tmp_path, only=["b"])] == ["b"]
    with pytest.raises(DatasetError, match="no sequence named c"):
        load_dataset(tmp_path, only=["a", "c"])


def test_limited_cuts_everything_alike(tmp_path: Path) -> None:
    write_otb(tmp_path / "a", moving_boxes(5))
    dataset = load_dataset(tmp_path).limited(2)
    assert dataset.frame_count == len(dataset.sequences[0].truth) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3,4\n1,2,3\n", r"groundtruth_rect\.txt:2: 3 numbers"),
        ("1,2,3,4\n1,2,x,4\n", r"groundtruth_rect\.txt:2: .*'x'"),
        ("", "is empty"),
        ("1,2,3,4\n", "2 images but 1 lines"),
        ("nan,nan,nan,nan\n1,2,3,4\n", "first frame has no target"),
    ],
)
def test_damaged_ground_truth_is_located(tmp_path: Path, text: str, message: str) -> None:
    write_otb(tmp_path / "a", moving_boxes(2))
    (tmp_path / "a" / "groundtruth_rect.txt").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path)


def test_labels_must_fit_the_frames(tmp_path: Path) -> None:
    write_otb(tmp_path / "a", moving_boxes(2))
    (tmp_path / "a" / "absence.label").write_text("0\n0\n0\n")
    with pytest.raises(DatasetError, match="3 labels for 2 frames"):
        load_dataset(tmp_path)


def test_nothing_found_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="groundtruth_rect"):
        load_dataset(tmp_path)
    with pytest.raises(DatasetError, match="not a folder"):
        load_dataset(tmp_path / "nowhere")
