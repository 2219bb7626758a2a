"""Tracks of rendered meshes: things that turn in depth before a moving camera.

Run as `python -m ostrack_ros.training.rendering MESHES BACKGROUNDS OUTPUT` (it needs
`pip install -r requirements-rendering.txt`): OUTPUT becomes an image bank of tracks. MESHES is
searched for .glb, .gltf and .obj files (skinned ones are shown at rest), BACKGROUNDS for pictures.
Photos and pasted cut-outs hardly change their outline between template and search region; these
tracks do, and their boxes are exact.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ostrack_ros.tracking.geometry import Box
from ostrack_ros.training.footage import write_track
from ostrack_ros.training.images import files_below, picture_files, read_picture

Image = NDArray[np.uint8]

_SUFFIXES = (".glb", ".gltf", ".obj")
_LEAST_FRAMES = 5


class MeshError(ValueError):
    """A mesh cannot be rendered. The message names the file."""


@dataclass(frozen=True, slots=True)
class RenderingSettings:
    """Sizes in pixels, angles in degrees; changes are standard deviations from one frame to the
    next. `extent` is the range of sqrt(box area), `render_side` that of the rendered square."""

    width: int = 480
    height: int = 360
    render_side: int = 320
    frames: int = 16
    extent: tuple[float, float] = (36.0, 150.0)
    azimuth_speed: float = 7.0
    elevation: tuple[float, float] = (-8.0, 40.0)
    elevation_speed: float = 1.5
    roll: float = 6.0
    zoom_speed: float = 0.03
    motion: float = 7.0
    camera_motion: float = 2.5
    min_opaque: float = 0.15
    """Share of its box that an object must fill: less is a rod or a wire."""


class Turntable:
    """One mesh before an off-screen camera that looks at its middle.

    Raises MeshError for what VTK cannot read, and for a mesh without extent.
    """

    def __init__(self, path: Path, side: int) -> None:
        self._vtk = vtk = _import_vtk()
        self._renderer = vtk.vtkRenderer()
        self._renderer.SetBackgroundAlpha(0.0)
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetAlphaBitPlanes(1)
        self._window.SetMultiSamples(8)
        self._window.SetSize(side, side)
        self._window.AddRenderer(self._renderer)
        self._import(path)
        self._mend_materials(culled=path.suffix.lower() == ".obj")
        bounds = np.array(self._renderer.ComputeVisiblePropBounds()).reshape(3, 2)
        self._middle = bounds.mean(1)
        self._radius = float(np.linalg.norm(bounds[:, 1] - bounds[:, 0]) / 2)
        if not 0 < self._radius < 1e6:
            self.close()
            raise MeshError(f"{path} has nothing to see (radius {self._radius:g})")

    def close(self) -> None:
        """Free the window."""
        self._window.Finalize()

    def light(self, azimuth: float, elevation: float, strength: float) -> None:
        """One lamp from there (degrees, towards the mesh) and one beside the camera."""
        vtk = self._vtk
        self._renderer.RemoveAllLights()
        lamp = vtk.vtkLight()
        lamp.SetLightTypeToSceneLight()
        lamp.SetPosition(*(self._middle + 10 * self._radius * _direction(azimuth, elevation)))
        lamp.SetFocalPoint(*self._middle)
        lamp.SetIntensity(strength)
        fill = vtk.vtkLight()
        fill.SetLightTypeToHeadlight()
        fill.SetIntensity(0.6)
        self._renderer.AddLight(lamp)
        self._renderer.AddLight(fill)

    def view(self, azimuth: float, elevation: float, roll: float) -> Image:
        """RGBA uint8 [side, side, 4] seen from there (degrees), colours multiplied by alpha."""
        camera = self._renderer.GetActiveCamera()
        camera.SetViewAngle(30.0)
        distance = 1.1 * self._radius / math.sin(math.radians(15.0))
        camera.SetPosition(*(self._middle + distance * _direction(azimuth, elevation)))
        camera.SetFocalPoint(*self._middle)
        camera.SetViewUp(0.0, 1.0, 0.0)
        camera.SetRoll(camera.GetRoll() + roll)
        self._renderer.ResetCameraClippingRange()
        self._window.Render()
        grabber = self._vtk.vtkWindowToImageFilter()
        grabber.SetInput(self._window)
        grabber.SetInputBufferTypeToRGBA()
        grabber.ReadFrontBufferOff()
        grabber.Update()
        picture = grabber.GetOutput()
        width, height, _ = picture.GetDimensions()
        from vtkmodules.util.numpy_support import vtk_to_numpy

        values = vtk_to_numpy(picture.GetPointData().GetScalars())
        return np.ascontiguousarray(values.reshape(height, width, 4)[::-1])

    def _import(self, path: Path) -> None:
        vtk = self._vtk
        with tempfile.TemporaryDirectory() as folder:
            if path.suffix.lower() == ".obj":
                importer = vtk.vtkOBJImporter()
                importer.SetTexturePath(str(path.parent))
                mesh, materials = _with_named_materials(path, Path(folder))
                importer.SetFileName(str(mesh))
                importer.SetFileNameMTL(str(materials))
            else:
                importer = vtk.vtkGLTFImporter()
                importer.SetFileName(str(path))
            importer.SetRenderWindow(self._window)
            importer.Update()
        if self._renderer.GetActors().GetNumberOfItems() == 0:
            self.close()
            raise MeshError(f"{path} is not a mesh that VTK can read")

    def _mend_materials(self, culled: bool) -> None:
        """Many files give materials an ambient light or a metal shine that make them all white, or
        all black where there is nothing around to be mirrored. Where .obj files show a face from
        both sides, it is in them twice."""
        actors = self._renderer.GetActors()
        actors.InitTraversal()
        for _ in range(actors.GetNumberOfItems()):
            material = actors.GetNextActor().GetProperty()
            material.SetBackfaceCulling(culled)
            material.SetAmbient(0.15)
            material.SetDiffuse(0.85)
            material.SetSpecular(0.1)
            material.SetMetallic(0.0)
            material.SetRoughness(0.7)


def _with_named_materials(path: Path, folder: Path) -> tuple[Path, Path]:
    """An .obj file and its materials, copied to `folder` if materials have numbers for names:
    VTK takes those for values and loses the textures."""
    materials = path.with_suffix(".mtl")
    if not materials.is_file():
        return path, materials
    text = materials.read_text(encoding="utf-8", errors="replace")
    numbered = re.compile(r"^(newmtl|usemtl)[ \t]+(?=\d)", re.MULTILINE)
    if not numbered.search(text):
        return path, materials
    copies = []
    for source in (path, materials):
        content = source.read_text(encoding="utf-8", errors="replace")
        copies.append(folder / source.name)
        copies[-1].write_text(numbered.sub(r"\1 material_", content), encoding="utf-8")
    return copies[0], copies[1]


class TrackRenderer:
    """Draws tracks of a mesh over pictures. All randomness comes from `random`."""

    def __init__(
        self,
        settings: RenderingSettings,
        random: np.random.Generator,
        table: Callable[[Path, int], Turntable] = Turntable,
    ) -> None:
        self._settings = settings
        self._random = random
        self._table = table

    def draw(self, mesh: Path, background: Image) -> Iterator[tuple[Image, Box]]:
        """Frames (uint8 RGB [height, width, 3]) and the target's box in pixels; a frame in which
        too little of it is seen ends the track. `background` is RGB. Raises MeshError."""
        s, random = self._settings, self._random
        table = self._table(mesh, s.render_side)
        try:
            azimuth, elevation = random.uniform(0, 360), random.uniform(*s.elevation)
            turning = s.azimuth_speed * random.normal()
            table.light(random.uniform(0, 360), random.uniform(20, 80), random.uniform(0.4, 1.0))
            extent = math.exp(random.uniform(*np.log(s.extent)))
            camera = _Camera(background.shape, s, random)
            center = np.array([s.width, s.height]) * random.uniform(0.25, 0.75, 2)
            velocity = s.motion * random.normal(size=2)
            exposure = np.exp(0.25 * random.normal() + 0.05 * random.normal(size=3))
            for _ in range(s.frames):
                layer = _cropped(table.view(azimuth, elevation, s.roll * random.normal()))
                if layer is None or (layer[..., 3] > 128).mean() < s.min_opaque:
                    return
                scale = extent / math.sqrt(layer.shape[0] * layer.shape[1])
                height, width = (scale * side for side in layer.shape[:2])
                box = Box.from_center(float(center[0]), float(center[1]), width, height)
                seen = box.clipped(s.width, s.height)
                if seen.area < 0.6 * box.area:
                    return
                yield _laid_over(camera.view(background), layer, box, exposure), seen
                azimuth += turning + 0.3 * s.azimuth_speed * random.normal()
                elevation = float(
                    np.clip(elevation + s.elevation_speed * random.normal(), *s.elevation)
                )
                extent *= math.exp(s.zoom_speed * random.normal())
                velocity = 0.9 * velocity + 0.3 * s.motion * random.normal(size=2)
                center = center + velocity
        finally:
            table.close()


class _Camera:
    """A window that wanders over a picture."""

    def __init__(
        self, shape: tuple[int, ...], settings: RenderingSettings, random: np.random.Generator
    ) -> None:
        self._size = (settings.width, settings.height)
        self._jolt = settings.camera_motion
        self._random = random
        fit = min(shape[1] / settings.width, shape[0] / settings.height)
        self._zoom = fit * random.uniform(0.5, 0.9)
        self._middle = np.array([shape[1], shape[0]]) * random.uniform(0.45, 0.55, 2)
        self._velocity = self._jolt * random.normal(size=2)

    def view(self, picture: Image) -> Image:
        """What it sees now; then it moves on."""
        width, height = self._size
        shift = self._middle - self._zoom * np.array([width, height]) / 2
        matrix = np.array([[self._zoom, 0, shift[0]], [0, self._zoom, shift[1]]])
        seen = cv2.warpAffine(
            picture,
            matrix,
            self._size,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        self._velocity = 0.9 * self._velocity + 0.4 * self._jolt * self._random.normal(size=2)
        self._middle = self._middle + self._zoom * self._velocity
        return np.asarray(seen, np.uint8)


def render_tracks(
    meshes: Sequence[Path],
    backgrounds: Sequence[Path],
    output: Path,
    count: int,
    settings: RenderingSettings,
    seed: int = 0,
) -> int:
    """Write `count` tracks, meshes in turn, as a bank below `output`; how many were written.

    Meshes that cannot be read, and tracks of fewer than five frames, are left out. Another process
    reads the meshes: some files crash VTK.
    """
    random = np.random.default_rng(seed)
    order = [meshes[i] for i in random.permutation(len(meshes))]
    written = 0
    broken: set[Path] = set()
    with _Worker() as worker:
        for number in tqdm(range(count), unit="track"):
            mesh = order[number % len(order)]
            background = backgrounds[int(random.integers(len(backgrounds)))]
            if mesh in broken:
                continue
            try:
                frames = worker.draw(mesh, background, settings, (seed, number))
            except MeshError as error:
                broken.add(mesh)
                tqdm.write(f"left out: {error}")
                continue
            if len(frames) >= _LEAST_FRAMES:
                write_track(
                    output / "tracks" / f"{mesh.stem}_{number:04d}",
                    (
                        (index, _encoded(image, random), box)
                        for index, (image, box) in enumerate(frames, 1)
                    ),
                )
                written += 1
    return written


class _Worker:
    """A process that draws tracks; another takes its place when a mesh kills it."""

    def __init__(self) -> None:
        self._pool = self._start()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def draw(
        self, mesh: Path, background: Path, settings: RenderingSettings, seed: tuple[int, int]
    ) -> list[tuple[Image, Box]]:
        """As `TrackRenderer.draw`; empty where `background` cannot be read. Raises MeshError."""
        try:
            return self._pool.submit(_draw_track, mesh, background, settings, seed).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = self._start()
            raise MeshError(f"{mesh} crashes VTK") from None

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        # Not forked: the new process must not inherit torch's threads.
        return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _draw_track(
    mesh: Path, background: Path, settings: RenderingSettings, seed: tuple[int, int]
) -> list[tuple[Image, Box]]:
    picture = read_picture(background)
    if picture is None:
        return []
    return list(TrackRenderer(settings, np.random.default_rng(seed)).draw(mesh, picture))


def _encoded(image: Image, random: np.random.Generator) -> bytes:
    """A JPEG file of RGB `image`, as good or bad as a camera's."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(60, 95))]
    return cv2.imencode(".jpg", image[..., ::-1], quality)[1].tobytes()


def _cropped(layer: Image) -> Image | None:
    """The part of RGBA `layer` that is not transparent."""
    rows, columns = (np.flatnonzero((layer[..., 3] > 64).any(axis)) for axis in (1, 0))
    if len(rows) == 0:
        return None
    return layer[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _laid_over(background: Image, layer: Image, box: Box, exposure: NDArray[np.float64]) -> Image:
    """RGB `background` with RGBA `layer`, premultiplied, where `box` is."""
    height, width = background.shape[:2]
    source = np.array([[0, 0], [layer.shape[1], 0], [0, layer.shape[0]]], np.float32) - 0.5
    corners = [[box.x, box.y], [box.x + box.width, box.y], [box.x, box.y + box.height]]
    target = np.array(corners, np.float32) - 0.5
    shrink = box.width / layer.shape[1]
    if shrink < 1:
        layer = np.asarray(cv2.GaussianBlur(layer, (0, 0), 0.4 / shrink), np.uint8)
    placed = cv2.warpAffine(layer, cv2.getAffineTransform(source, target), (width, height))
    alpha = placed[..., 3:].astype(np.float32) / 255
    colour = placed[..., :3] * exposure.astype(np.float32)
    mixed = background * (1 - alpha) + np.minimum(colour, 255 * alpha)
    return np.asarray(mixed.round().clip(0, 255), np.uint8)


def _direction(azimuth: float, elevation: float) -> NDArray[np.float64]:
    """Unit vector towards there; y is up, as in glTF."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])


def _import_vtk() -> Any:
    try:
        import vtk
    except ImportError as error:
        raise MeshError(
            f"rendering needs VTK ({error}): pip install -r requirements-rendering.txt"
        ) from error
    # Its complaints about single files would go to the terminal one by one.
    vtk.vtkObject.GlobalWarningDisplayOff()
    return vtk


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ostrack_ros.training.rendering", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("meshes", type=Path, help="folder with .glb, .gltf or .obj files")
    parser.add_argument("backgrounds", type=Path, help="folder with pictures")
    parser.add_argument("output", type=Path, help="bank to write")
    parser.add_argument("--tracks", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=16, help="of a track; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args(arguments)
    meshes = files_below(given.meshes, _SUFFIXES)
    backgrounds = picture_files(given.backgrounds)
    for found, folder, kind in (
        (meshes, given.meshes, "meshes (.glb, .gltf, .obj)"),
        (backgrounds, given.backgrounds, "pictures"),
    ):
        if not found:
            print(f"{folder} holds no {kind}", file=sys.stderr)
            return 1
    settings = RenderingSettings(frames=given.frames)
    try:
        _import_vtk()
        written = render_tracks(
            meshes, backgrounds, given.output, given.tracks, settings, given.seed
        )
    except MeshError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{written} tracks of {len(meshes)} meshes in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
