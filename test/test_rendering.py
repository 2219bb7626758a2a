"""Tracks of rendered meshes: where the boxes are, what ends a track, what is left out."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch: make TORCH=yes")

from ostrack_ros.training import rendering
from ostrack_ros.training.images import load_bank
from ostrack_ros.training.rendering import (
    MeshError,
    RenderingSettings,
    TrackRenderer,
    Turntable,
    render_tracks,
)

BLACK = np.zeros((300, 400, 3), np.uint8)

CORNERS = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
SIDES = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]


def write_cube(folder: Path, material: str = "red") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["mtllib cube.mtl", *(f"v {x} {y} {z}" for x, y, z in CORNERS), f"usemtl {material}"]
    lines += ["f " + " ".join(map(str, side)) for side in SIDES]
    (folder / "cube.mtl").write_text(f"newmtl {material}\nKa 1 1 1\nKd 1 0 0\n")
    path = folder / "cube.obj"
    path.write_text("\n".join(lines) + "\n")
    return path


class Signboard:
    """Stands in for a Turntable: a white rectangle that gets narrower as it turns."""

    def __init__(self, path: Path, side: int) -> None:
        self._side = side

    def light(self, azimuth: float, elevation: float, strength: float) -> None:
        pass

    def view(self, azimuth: float, elevation: float, roll: float) -> np.ndarray:
        half = self._side // 4
        width = round(half * (0.4 + 0.6 * abs(np.cos(np.radians(azimuth)))))
        layer = np.zeros((self._side, self._side, 4), np.uint8)
        middle = self._side // 2
        layer[middle - half : middle + half, middle - width : middle + width] = 255
        return layer

    def close(self) -> None:
        pass


def draw(settings: RenderingSettings, seed: int) -> list[tuple[np.ndarray, rendering.Box]]:
    renderer = TrackRenderer(settings, np.random.default_rng(seed), Signboard)
    return list(renderer.draw(Path("signboard"), BLACK))


@pytest.mark.parametrize("seed", range(4))
def test_the_box_is_the_outline(seed: int) -> None:
    frames = draw(RenderingSettings(azimuth_speed=15.0, motion=2.0), seed)
    assert len(frames) > 4
    for image, box in frames:
        rows, columns = (np.flatnonzero((image[..., 1] > 60).any(axis)) for axis in (1, 0))
        seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert seen == pytest.approx((box.x, box.y, box.right, box.bottom), abs=1.5)
    aspects = [box.width / box.height for _, box in frames]
    assert max(aspects) > 1.1 * min(aspects), "its outline changes"


@pytest.mark.parametrize("seed", range(6))
def test_a_track_ends_where_its_target_leaves_the_picture(seed: int) -> None:
    settings = RenderingSettings(motion=60.0, frames=100)
    frames = draw(settings, seed)
    assert len(frames) < 100
    for _, box in frames:
        assert min(box.x, box.y) >= 0
        assert box.right <= settings.width
        assert box.bottom <= settings.height


def test_what_is_hardly_there_makes_no_track() -> None:
    assert draw(RenderingSettings(min_opaque=1.1), 0) == []


def test_materials_named_by_numbers_are_renamed(tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    plain = write_cube(tmp_path / "plain")
    assert rendering._with_named_materials(plain, tmp_path / "copies")[0] == plain
    numbered = write_cube(tmp_path / "numbered", material="12")
    for copy in rendering._with_named_materials(numbered, tmp_path / "copies"):
        assert copy.parent == tmp_path / "copies"
        assert "mtl material_12\n" in copy.read_text()
    assert "usemtl 12" in numbered.read_text(), "the file itself stays"


@pytest.mark.parametrize("missing", ["meshes", "backgrounds"])
def test_an_empty_folder_is_named(
    tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cube(tmp_path / "meshes")
    (tmp_path / "backgrounds").mkdir()
    cv2.imwrite(str(tmp_path / "backgrounds" / "black.png"), BLACK)
    (tmp_path / "empty").mkdir()
    folders = {name: str(tmp_path / name) for name in ("meshes", "backgrounds")}
    folders[missing] = str(tmp_path / "empty")
    assert rendering.main([*folders.values(), str(tmp_path / "bank")]) == 1
    assert str(tmp_path / "empty") in capsys.readouterr().err


def test_without_vtk_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vtk", None)
    write_cube(tmp_path)
    cv2.imwrite(str(tmp_path / "black.png"), BLACK)
    assert rendering.main([str(tmp_path)] * 2 + [str(tmp_path / "bank")]) == 1
    assert "requirements-rendering.txt" in capsys.readouterr().err


class TestWithVtk:
    @pytest.fixture(autouse=True)
    def vtk(self) -> None:
        pytest.importorskip("vtk", reason="VTK is not installed: requirements-rendering.txt")

    def test_a_cube_is_wider_across_its_corner(self, tmp_path: Path) -> None:
        table = Turntable(write_cube(tmp_path, material="7"), 200)
        table.light(0.0, 40.0, 0.8)
        layers = [table.view(azimuth, 0.0, 0.0) for azimuth in (0.0, 45.0)]
        table.close()
        face, corner = (np.ptp(np.flatnonzero((v[..., 3] > 128).any(0))) for v in layers)
        assert corner / face == pytest.approx(1.22, abs=0.1), "sqrt(2), less as it is farther away"
        red, green, blue = layers[0][100, 100, :3]
        assert red > 100 > green == blue, "its material's colour, not white"

    def test_tracks_become_a_bank(self, tmp_path: Path) -> None:
        meshes = [write_cube(tmp_path / "meshes"), tmp_path / "broken.glb"]
        meshes[1].write_bytes(b"glTF, or not")
        meshes.append(write_cube(tmp_path / "crash"))
        # VTK 9.7.2 writes this value into the material before the first, which is none.
        meshes[2].with_suffix(".mtl").write_text("Ns 20\nnewmtl red\nKd 1 0 0\n")
        background = tmp_path / "grey.png"
        cv2.imwrite(str(background), np.full((300, 400, 3), 128, np.uint8))
        settings = RenderingSettings(frames=6, motion=2.0)
        assert render_tracks(meshes, [background], tmp_path / "bank", 9, settings) == 3
        bank = load_bank([tmp_path / "bank"], seed=0)
        assert len(bank.object_boxes) >= 3 * 5
        assert len(bank.object_tracks.unique()) == 3

    def test_a_file_without_a_mesh_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.obj"
        path.write_text("# nothing\n")
        with pytest.raises(MeshError, match=r"empty\.obj"):
            Turntable(path, 64)
