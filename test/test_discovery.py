"""Objects found without labels: the normalised cut and the refined outline."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from ostrack_ros.tracking.geometry import Box, iou  # noqa: E402
from ostrack_ros.training import discovery  # noqa: E402

SIDE = 12


def picture(center: tuple[int, int] = (130, 110), size: tuple[int, int] = (60, 40)) -> np.ndarray:
    """A red ellipse on noisy grey, 320x240."""
    rng = np.random.default_rng(3)
    image = rng.normal(120, 8, (240, 320, 3)).clip(0, 255).astype(np.uint8)
    cv2.ellipse(image, center, size, 0, 0, 360, (210, 30, 30), -1)
    return image


def coarse_mask(
    center: tuple[int, int] = (130, 110), size: tuple[int, int] = (60, 40)
) -> np.ndarray:
    """The patches that an ellipse of `picture` reaches into."""
    mask = cv2.ellipse(np.zeros((240, 320), np.uint8), center, size, 0, 0, 360, 255, -1)
    return cv2.resize(mask, (SIDE * 2, SIDE * 2), interpolation=cv2.INTER_AREA) > 64


def test_the_cut_parts_two_kinds_of_patches() -> None:
    rng = np.random.default_rng(0)
    object_cells = np.zeros((SIDE, SIDE), bool)
    object_cells[3:7, 4:8] = True
    features = np.where(object_cells.reshape(-1, 1), [1.0, 0.2], [-0.2, 1.0])
    features = torch.from_numpy(features + rng.normal(0, 0.05, features.shape)).float()
    cut = discovery.split(torch.nn.functional.normalize(features, dim=1))
    found = discovery.largest_part(cut, SIDE)
    assert found is not None
    np.testing.assert_array_equal(found, object_cells)


def test_of_two_objects_the_connected_part_is_taken() -> None:
    cut = torch.full((SIDE, SIDE), -1.0)
    cut[1:3, 1:3] = 0.5
    cut[6:9, 6:9] = 0.5
    cut[7, 7] = 0.9
    found = discovery.largest_part(cut.flatten(), SIDE)
    assert found is not None
    assert found[6:9, 6:9].all()
    assert found.sum() == 9


def test_the_outline_is_tighter_than_the_patches() -> None:
    truth = Box(70, 70, 121, 81)
    found = discovery.refine(picture(), coarse_mask())
    assert found is not None
    assert iou(found.box, truth) > 0.93
    assert found.has_good_box
    alone = discovery.cutout(picture(), found)
    assert alone.shape == (int(found.box.height), int(found.box.width), 4)
    assert alone[alone.shape[0] // 2, alone.shape[1] // 2, 3] == 255
    assert alone[0, 0, 3] == 0


def test_an_object_cut_by_the_border_gives_no_cutout() -> None:
    image = picture(center=(10, 120), size=(80, 60))
    found = discovery.refine(image, coarse_mask(center=(10, 120), size=(80, 60)))
    assert found is not None
    assert found.borders == 1
    assert not found.has_good_outline


@pytest.mark.parametrize("value", [False, True])
def test_nothing_to_part_is_nothing_found(value: bool) -> None:
    assert discovery.refine(picture(), np.full((SIDE, SIDE), value)) is None


def test_the_command_writes_a_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Known:
        def __init__(self, _: Path) -> None:
            pass

        def find(self, image: np.ndarray) -> discovery.Found | None:
            return discovery.refine(image, coarse_mask())

    monkeypatch.setattr(discovery, "Discoverer", Known)
    photos = tmp_path / "photos" / "mugs"
    photos.mkdir(parents=True)
    cv2.imwrite(str(photos / "one.png"), cv2.cvtColor(picture(), cv2.COLOR_RGB2BGR))
    (photos / "broken.jpg").write_bytes(b"no picture")
    output = tmp_path / "bank"
    arguments = [str(tmp_path / "photos"), str(output), "--backbone", "unused.npz"]
    assert discovery.main(arguments) == 0
    assert "1 boxes and 1 cut-outs from 2 photos" in capsys.readouterr().out
    assert (output / "photos" / "boxes.csv").read_text().startswith("mugs_one.jpg,")
    assert cv2.imread(str(output / "photos" / "mugs_one.jpg")).shape == (240, 320, 3)
    assert cv2.imread(str(output / "cutouts" / "mugs_one.png"), -1).shape[2] == 4


def test_an_empty_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path), str(tmp_path / "out"), "--backbone", "unused.npz"]
    assert discovery.main(arguments) == 1
    assert "no pictures" in capsys.readouterr().err
