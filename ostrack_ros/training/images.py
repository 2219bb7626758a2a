"""The image bank in memory: textures of one common size, ready to be sampled in batches.

Folder layout (all parts but one of `cutouts`, `photos` may be missing):

    cutouts/**/*.webp|png    one object each, with alpha
    photos/**/*.jpg|png      pictures; photos/boxes.csv: file,x,y,w,h of objects in them
    backgrounds/**/*.jpg     pictures without object boxes
    tracks/<name>/%05d.jpg   frames; tracks/<name>/boxes.csv: frame,x,y,w,h of one object

A folder without any of these is read as a published data set (`recordings.py`).
"""

from __future__ import annotations

import csv
import logging
import math
import os
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ostrack_ros.sources import natural_key
from ostrack_ros.training.errors import TrainingError
from ostrack_ros.training.recordings import find_recordings

PHOTO_SIDE = 448
CUTOUT_SIDE = 160
HULL_POINTS = 32
CANDIDATES = 16
LIKELY_OBJECTS = 2
MIN_PHOTO_SIDE = 96
MIN_CUTOUT_SIDE = 24
VIEWS_PER_RECORDING = 12
PARTS = ("cutouts", "photos", "backgrounds", "tracks")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ImageBank:
    """Textures and the objects in them.

    `photos` uint8 [P, 3, 448, 448] RGB, each scaled to fit and lying in the top left corner;
    `photo_sizes` float32 [P, 2], the used width and height. `cutouts` uint8 [C, 4, 160, 160] RGBA
    likewise, cropped to their alpha, with `cutout_sizes` [C, 2] and `cutout_hulls` [C, 32, 2],
    convex outlines in units of the used size. `object_photos` int64 [O] and `object_boxes`
    float32 [O, 4] (x, y, w, h in texels) are boxes in photos; objects of one track share their
    number in `object_tracks` int64 [O] (-1: a single photo) and are ordered in time.
    """

    photos: Tensor
    photo_sizes: Tensor
    cutouts: Tensor
    cutout_sizes: Tensor
    cutout_hulls: Tensor
    object_photos: Tensor
    object_boxes: Tensor
    object_tracks: Tensor

    def to(self, device: torch.device) -> ImageBank:
        return ImageBank(*(getattr(self, name).to(device) for name in self.__slots__))

    def split(self, every: int) -> tuple[ImageBank, ImageBank]:
        """The bank without every `every`-th picture and cut-out, and those: one part to train on
        and one to calibrate on. A track goes where its first picture goes.

        This uses the bank up: the large part takes over its memory, which may be most there is.
        """
        photo = torch.arange(len(self.photos)) % every == 0
        cutout = torch.arange(len(self.cutouts)) % every == 0
        for track in set(self.object_tracks.tolist()):
            if track >= 0:
                members = self.object_photos[self.object_tracks == track]
                photo[members] = photo[members[0]].clone()
        rest = self._select(photo, cutout, self.photos[photo])
        return self._select(~photo, ~cutout, _moved_together(self.photos, ~photo)), rest

    def _select(self, photo: Tensor, cutout: Tensor, photos: Tensor) -> ImageBank:
        number = photo.long().cumsum(0) - 1
        objects = photo[self.object_photos]
        return ImageBank(
            photos=photos,
            photo_sizes=self.photo_sizes[photo],
            cutouts=self.cutouts[cutout],
            cutout_sizes=self.cutout_sizes[cutout],
            cutout_hulls=self.cutout_hulls[cutout],
            object_photos=number[self.object_photos[objects]],
            object_boxes=self.object_boxes[objects],
            object_tracks=self.object_tracks[objects],
        )

    def describe(self) -> str:
        tracks = len(set(self.object_tracks[self.object_tracks >= 0].tolist()))
        return (
            f"{len(self.photos)} pictures, {len(self.object_boxes)} object boxes "
            f"({tracks} tracks), {len(self.cutouts)} cut-outs"
        )


def _moved_together(items: Tensor, chosen: Tensor) -> Tensor:
    """The `chosen` (bool [N]) of `items` [N, ...], moved to its front."""
    for place, index in enumerate(chosen.nonzero()[:, 0].tolist()):
        if place != index:
            items[place] = items[index]
    return items[: int(chosen.sum())]


@dataclass(frozen=True, slots=True)
class _Photo:
    pixels: NDArray[np.uint8]
    width: int
    height: int


class _Textures:
    """Empty textures uint8 [S, S, C], handed out one by one and stacked at the end.

    They lie in large blocks, since memory freed in small pieces would stay with the process: a bank
    would then need twice its size.
    """

    BLOCK = 128

    def __init__(self, side: int, channels: int) -> None:
        self._shape = (side, side, channels)
        self._blocks: list[NDArray[np.uint8]] = []
        self._count = 0

    def new(self) -> NDArray[np.uint8]:
        place = self._count % self.BLOCK
        if place == 0:
            self._blocks.append(np.zeros((self.BLOCK, *self._shape), np.uint8))
        self._count += 1
        return self._blocks[-1][place]

    def stack(self) -> Tensor:
        """uint8 [N, C, S, S]; nothing is left here."""
        side, _, channels = self._shape
        stacked = torch.empty(self._count, channels, side, side, dtype=torch.uint8)
        for start in range(0, self._count, self.BLOCK):
            part = stacked[start : start + self.BLOCK]
            part[:] = torch.from_numpy(self._blocks.pop(0)[: len(part)]).permute(0, 3, 1, 2)
        self._count = 0
        return stacked


class _Collector:
    """Gathers textures one by one and stacks them at the end, which empties it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._tracks = 0
        self._photo_textures = _Textures(PHOTO_SIDE, 3)
        self._cutout_textures = _Textures(CUTOUT_SIDE, 4)
        self.photos: list[_Photo] = []
        self.objects: list[tuple[int, NDArray[np.float32], int]] = []
        self.cutouts: list[tuple[int, int, NDArray[np.float32]]] = []

    def new_track(self) -> int:
        """A number that no track has yet."""
        self._tracks += 1
        return self._tracks

    def add_photo(
        self, image: NDArray[np.uint8], boxes: Iterable[NDArray[np.float32]] = (), track: int = -1
    ) -> None:
        height, width = image.shape[:2]
        if min(height, width) < MIN_PHOTO_SIDE:
            return
        scale = PHOTO_SIDE / max(height, width)
        fitted = _resize(image, scale)
        canvas = self._photo_textures.new()
        canvas[: fitted.shape[0], : fitted.shape[1]] = fitted
        scaled = [box * scale for box in boxes] or _likely_objects(fitted, self._rng)
        for box in scaled:
            self.objects.append((len(self.photos), box, track))
        self.photos.append(_Photo(canvas, fitted.shape[1], fitted.shape[0]))

    def add_cutout(self, image: NDArray[np.uint8]) -> None:
        """`image` uint8 [H, W, 4] RGBA; silently left out where hardly anything is opaque."""
        mask = image[..., 3] > 127
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows) < MIN_CUTOUT_SIDE or len(columns) < MIN_CUTOUT_SIDE:
            return
        image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        fitted = _resize(image, CUTOUT_SIDE / max(image.shape[:2]))
        height, width = fitted.shape[:2]
        if min(height, width) < 8:
            return
        points = np.argwhere(fitted[..., 3] > 127)[:, ::-1].astype(np.int32)
        if len(points) < 50:
            return
        hull = cv2.convexHull(points)[:, 0].astype(np.float32) + 0.5
        chosen = hull[np.linspace(0, len(hull) - 1, HULL_POINTS).round().astype(int)]
        self._cutout_textures.new()[:height, :width] = fitted
        self.cutouts.append((width, height, chosen / (width, height)))

    def stack(self) -> ImageBank:
        if not self.photos or not self.cutouts:
            raise TrainingError(
                f"the image bank has {len(self.photos)} pictures and {len(self.cutouts)} cut-outs; "
                "at least one of each is needed"
            )
        boxes = [box for _, box, _ in self.objects]
        photo_sizes = torch.tensor([(p.width, p.height) for p in self.photos]).float()
        self.photos.clear()  # they hold on to their textures
        return ImageBank(
            photos=self._photo_textures.stack(),
            photo_sizes=photo_sizes,
            cutouts=self._cutout_textures.stack(),
            cutout_sizes=torch.tensor([(w, h) for w, h, _ in self.cutouts]).float(),
            cutout_hulls=torch.from_numpy(np.stack([hull for *_, hull in self.cutouts])).float(),
            object_photos=torch.tensor([photo for photo, _, _ in self.objects]).long(),
            object_boxes=torch.from_numpy(np.stack(boxes)) if boxes else torch.zeros(0, 4),
            object_tracks=torch.tensor([track for *_, track in self.objects]).long(),
        )


def load_bank(
    roots: Iterable[Path], patches: int = 1000, seed: int = 0, max_pictures: int = 20_000
) -> ImageBank:
    """Read the folders (layout above) and cut `patches` extra cut-outs from the pictures.

    Of a published data set a random part is taken once there are `max_pictures`, which need 0.6 MB
    of memory each. Unreadable pictures are skipped with a warning. Raises TrainingError when a root
    does not exist or nothing usable is found.
    """
    rng = np.random.default_rng(seed)
    collector = _Collector(rng)
    for root in roots:
        if not root.is_dir():
            raise TrainingError(
                f"there is no image bank at {root}: name folders of pictures in `banks`, or build "
                "one with `python -m ostrack_ros.training.bank`"
            )
        if any((root / part).is_dir() for part in PARTS):
            _add_bank(collector, root)
        else:
            _add_recordings(collector, root, rng, max_pictures)
    _add_patches(collector, patches, rng)
    bank = collector.stack()
    logger.info("image bank: %s", bank.describe())
    return bank


def _add_bank(collector: _Collector, root: Path) -> None:
    for path in _pictures(root / "cutouts"):
        if (image := read_picture(path, alpha=True)) is not None:
            collector.add_cutout(image)
    for folder in ("photos", "backgrounds"):
        boxes = _read_boxes(root / folder / "boxes.csv")
        for path in _pictures(root / folder):
            if (image := read_picture(path)) is not None:
                collector.add_photo(image, boxes.get(path.name, ()))
    for table in sorted((root / "tracks").glob("*/boxes.csv")):
        _add_track(collector, table, collector.new_track())


def _add_recordings(
    collector: _Collector, root: Path, rng: np.random.Generator, max_pictures: int
) -> None:
    recordings = list(find_recordings(root, VIEWS_PER_RECORDING))
    for index in tqdm(rng.permutation(len(recordings)), desc=f"reading {root.name}", leave=False):
        if len(collector.photos) >= max_pictures:
            logger.info("%s: took a part only, %d pictures are the limit", root, max_pictures)
            break
        number = collector.new_track() if len(recordings[index]) > 1 else -1
        for view in recordings[index]:
            if (image := read_picture(view.path)) is not None:
                collector.add_photo(image, view.boxes, number)


def _add_track(collector: _Collector, table: Path, number: int) -> None:
    frames = {path.stem: path for path in picture_files(table.parent)}
    rows = _read_boxes(table)
    for name in sorted(rows, key=lambda name: natural_key(Path(name))):
        path = frames.get(Path(name).stem) or frames.get(f"{name:0>5}")
        if path is not None and (image := read_picture(path)) is not None:
            collector.add_photo(image, rows[name][:1], number)


def _add_patches(collector: _Collector, count: int, rng: np.random.Generator) -> None:
    """Blobs of real texture: most cut-outs are renderings and drawings, these are not."""
    for _ in range(count if collector.photos else 0):
        photo = collector.photos[int(rng.integers(len(collector.photos)))]
        side = np.exp(rng.uniform(math.log(48), math.log(200)))
        aspect = np.exp(rng.normal(0, 0.4))
        width = int(np.clip(side * math.sqrt(aspect), 32, photo.width))
        height = int(np.clip(side / math.sqrt(aspect), 32, photo.height))
        x = int(rng.integers(photo.width - width + 1))
        y = int(rng.integers(photo.height - height + 1))
        patch = photo.pixels[y : y + height, x : x + width]
        mask = _blob(width, height, rng)
        collector.add_cutout(np.dstack([patch, mask]))


def _blob(width: int, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A smooth random outline that touches, about, all four sides."""
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    radius = np.ones_like(angles)
    for order in range(2, 6):
        phase, amount = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.25 / order)
        radius += amount * np.cos(order * angles + phase)
    radius = np.clip(radius, 0.35, None)
    corner = rng.uniform(2, 6)  # exponent of a superellipse: 2 is an ellipse, 6 nearly a box
    cosine, sine = np.abs(np.cos(angles)), np.abs(np.sin(angles))
    radius /= (cosine**corner + sine**corner) ** (1 / corner)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * (radius / radius.max())[:, None]
    points = (points * 0.5 + 0.5) * (width - 1, height - 1)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [points.round().astype(np.int32)], 255)
    return mask


def _pictures(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    paths = picture_files(folder)
    yield from tqdm(paths, desc=f"reading {folder.name}", leave=False)


def picture_files(folder: Path) -> list[Path]:
    """Pictures below `folder`, through links too, in order."""
    return files_below(folder, PICTURES)


def files_below(folder: Path, suffixes: Container[str]) -> list[Path]:
    """Files with one of these (lower-case) suffixes below `folder`, through links too, in order."""
    found = (
        Path(root) / name for root, _, names in os.walk(folder, followlinks=True) for name in names
    )
    return sorted(path for path in found if path.suffix.lower() in suffixes)


def _likely_objects(
    image: NDArray[np.uint8], rng: np.random.Generator
) -> list[NDArray[np.float32]]:
    """Boxes that stand out by their texture, for a picture in which nobody marked any.

    Of random boxes those win that hold much more gradient than the ring around them; a box on
    plain sky would teach nothing.
    """
    height, width = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    energy = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    total = cv2.integral(energy)

    def mean_energy(x: int, y: int, right: int, bottom: int) -> float:
        x, y, right, bottom = max(x, 0), max(y, 0), min(right, width), min(bottom, height)
        area = max((right - x) * (bottom - y), 1)
        return float(total[bottom, right] - total[y, right] - total[bottom, x] + total[y, x]) / area

    scored = []
    for _ in range(CANDIDATES):
        side = min(height, width) * np.exp(rng.uniform(math.log(0.12), math.log(0.5)))
        root = np.exp(rng.normal(0, 0.2))
        w, h = int(min(side * root, 0.9 * width)), int(min(side / root, 0.9 * height))
        x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        inside = mean_energy(x, y, x + w, y + h)
        around = mean_energy(x - w // 2, y - h // 2, x + w + w // 2, y + h + h // 2)
        scored.append((inside / (around + 4), np.array([x, y, w, h], np.float32)))
    scored.sort(key=lambda item: -item[0])
    return [box for _, box in scored[:LIKELY_OBJECTS]]


def read_picture(path: Path, alpha: bool = False) -> NDArray[np.uint8] | None:
    """uint8 RGB [H, W, 3], or RGBA with `alpha`; None, with a warning, for anything else."""
    flag = cv2.IMREAD_UNCHANGED if alpha else cv2.IMREAD_COLOR
    image = cv2.imread(str(path), flag)
    if image is None or (alpha and (image.ndim != 3 or image.shape[2] != 4)):
        logger.warning("skipped %s: not a readable picture%s", path, " with alpha" * alpha)
        return None
    code = cv2.COLOR_BGRA2RGBA if alpha else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, code), np.uint8)


def _read_boxes(path: Path) -> dict[str, list[NDArray[np.float32]]]:
    """Rows `name,x,y,w,h` of a CSV file, by name; a header line is skipped."""
    boxes: dict[str, list[NDArray[np.float32]]] = {}
    if not path.is_file():
        return boxes
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            try:
                box = np.array([float(value) for value in row[1:5]], np.float32)
            except ValueError:
                continue
            if len(box) == 4 and np.isfinite(box).all() and (box[2:] > 0).all():
                boxes.setdefault(row[0], []).append(box)
    return boxes


def _resize(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)
