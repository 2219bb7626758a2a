"""Objects in photos that nobody labelled: DINOv2 features split in two, the mask refined.

Run as `python -m ostrack_ros.training.discovery PHOTOS OUTPUT --backbone DINOV2.npz`: OUTPUT
becomes an image bank of the photos in which an object was found, with its box, and of its cut-out
where all of it is in the picture. For photos with one thing in them (Caltech-101, product
pictures); look at some results before training on them.

The split is TokenCut's (Wang et al., "Self-Supervised Transformers for Unsupervised Object
Discovery using Normalized Cut", CVPR 2022, section 3.2): patches are the nodes of a graph, similar
ones are linked, and the sign of the second smallest eigenvector of the normalised Laplacian parts
object and background. GrabCut (Rother et al. 2004) then follows the object's outline.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ostrack_ros.files import write_atomically
from ostrack_ros.network.ostrack import OSTrack
from ostrack_ros.network.variants import get_variant
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.training.data import normalise
from ostrack_ros.training.images import picture_files, read_picture
from ostrack_ros.training.initialise import initialise_from_dinov2

VARIANT = "vits_384"
SIMILAR = 0.5
UNLINKED = 1e-5
GRABCUT_ROUNDS = 4

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Found:
    """`mask` bool [H, W] and its bounding `box` in pixels; `agreement` is the IoU of the refined
    mask with the coarse one, `borders` the number of picture borders that the box touches."""

    mask: Mask
    box: Box
    agreement: float
    borders: int

    @property
    def share(self) -> float:
        """Share of the picture that the box covers."""
        height, width = self.mask.shape
        return self.box.area / (height * width)

    @property
    def has_good_box(self) -> bool:
        return self.agreement > 0.7 and self.borders <= 1 and 0.05 < self.share < 0.7

    @property
    def has_good_outline(self) -> bool:
        return self.has_good_box and self.agreement > 0.8 and self.borders == 0


class Discoverer:
    """Finds the one salient object of a picture, or None."""

    def __init__(self, backbone: Path) -> None:
        """`backbone`: DINOv2 ViT-S weights as `initialise_from_dinov2` reads them."""
        network = OSTrack(get_variant(VARIANT)).eval()
        initialise_from_dinov2(network, backbone)
        self._backbone = network.backbone
        self._side = network.variant.search_size
        self._cells = network.variant.score_size

    def find(self, image: Image) -> Found | None:
        """`image` uint8 RGB [H, W, 3]."""
        coarse = largest_part(split(self._features(image)), self._cells)
        return None if coarse is None else refine(image, coarse)

    @torch.inference_mode()
    def _features(self, image: Image) -> Tensor:
        """Unit vectors [N, C] of the patches."""
        resized = cv2.resize(image, (self._side, self._side), interpolation=cv2.INTER_AREA)
        pixels = torch.from_numpy(resized).permute(2, 0, 1)[None]
        tokens = self._backbone.patch_embed(normalise(pixels)) + self._backbone.pos_embed_x
        for block in self._backbone.blocks:
            tokens, _ = block(tokens, 0, None)
        return F.normalize(self._backbone.norm(tokens)[0], dim=1)


def split(features: Tensor) -> Tensor:
    """The normalised cut of patches with unit `features` [N, C]: float [N], positive for the
    part that holds the patch which stands out most."""
    similarity = (features @ features.T).double()
    weight = torch.where(similarity > SIMILAR, 1.0, UNLINKED)
    scale = weight.sum(1).rsqrt()
    laplacian = torch.eye(len(weight)) - scale[:, None] * weight * scale[None]
    _, vectors = torch.linalg.eigh(laplacian)
    cut = vectors[:, 1] * scale
    centred = cut - cut.mean()
    return centred if centred[cut.abs().argmax()] > 0 else -centred


def largest_part(cut: Tensor, side: int) -> Mask | None:
    """The connected patches [side, side] around the maximum of `cut` [side * side]."""
    grid = np.ascontiguousarray((cut > 0).reshape(side, side).numpy()).astype(np.uint8)
    _, labels = cv2.connectedComponents(grid, connectivity=4)
    label = labels.flat[int(cut.argmax())]
    return np.asarray(labels == label) if label else None


def refine(image: Image, coarse: Mask) -> Found | None:
    """Follow the outline of the `coarse` mask (of patches) in `image`; None where it dissolves."""
    height, width = image.shape[:2]
    soft = cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    core = cv2.erode((soft > 0.9).astype(np.uint8), np.ones((int(0.08 * width) | 1,) * 2))
    marks = np.full((height, width), cv2.GC_BGD, np.uint8)
    marks[soft > 0.05] = cv2.GC_PR_BGD
    marks[soft > 0.5] = cv2.GC_PR_FGD
    marks[core > 0] = cv2.GC_FGD
    if not (marks == cv2.GC_BGD).any() or not (soft > 0.5).any():
        return None
    inside, outside = np.zeros((1, 65)), np.zeros((1, 65))
    whole = (0, 0, width, height)  # unused, as a mask is given
    cv2.grabCut(image, marks, whole, outside, inside, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    kept = np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    kept = np.asarray(cv2.morphologyEx(kept, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(kept)
    if count < 2:
        return None
    label = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
    mask = np.asarray(labels == label)
    x, y, w, h = (int(value) for value in statistics[label][:4])
    union = (mask | (soft > 0.5)).sum()
    return Found(
        mask=mask,
        box=Box(x, y, w, h),
        agreement=float((mask & (soft > 0.5)).sum() / union),
        borders=(x <= 1) + (y <= 1) + (x + w >= width - 1) + (y + h >= height - 1),
    )


def cutout(image: Image, found: Found) -> Image:
    """The object alone, uint8 RGBA [h, w, 4], with a slightly feathered edge."""
    alpha = cv2.GaussianBlur(found.mask.astype(np.uint8) * 255, (3, 3), 0)
    x, y, w, h = (int(v) for v in (found.box.x, found.box.y, found.box.width, found.box.height))
    return np.dstack([image, alpha])[y : y + h, x : x + w]


def _save(path: Path, image: Image) -> None:
    code = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    _, data = cv2.imencode(path.suffix, cv2.cvtColor(image, code))
    write_atomically(path, data.tobytes())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ostrack_ros.training.discovery", description=__doc__
    )
    parser.add_argument("photos", type=Path, help="folder of pictures")
    parser.add_argument("output", type=Path, help="the bank to write")
    parser.add_argument("--backbone", type=Path, required=True, help="DINOv2 ViT-S as .npz")
    arguments = parser.parse_args(argv)
    paths = picture_files(arguments.photos)
    if not paths:
        print(f"there are no pictures in {arguments.photos}", file=sys.stderr)
        return 1
    discoverer = Discoverer(arguments.backbone)
    rows, outlines = [], 0
    for path in tqdm(paths, desc="looking for objects", unit="photo"):
        image = read_picture(path)
        if image is None:
            continue
        found = discoverer.find(image)
        if found is None or not found.has_good_box:
            continue
        box = found.box
        name = "_".join(path.relative_to(arguments.photos).with_suffix("").parts)
        rows.append(f"{name}.jpg,{box.x:g},{box.y:g},{box.width:g},{box.height:g}")
        _save(arguments.output / "photos" / f"{name}.jpg", image)
        if found.has_good_outline:
            outlines += 1
            _save(arguments.output / "cutouts" / f"{name}.png", cutout(image, found))
    write_atomically(arguments.output / "photos" / "boxes.csv", "\n".join(rows) + "\n")
    print(f"{arguments.output}: {len(rows)} boxes and {outlines} cut-outs from {len(paths)} photos")
    return 0


if __name__ == "__main__":
    sys.exit(main())
