"""Training pairs made from an image bank, a whole batch at a time, on any device.

Three kinds of pair, all expressed through one geometry: the *unit square* of an object is mapped
onto the template and onto the search region by two homographies.

- pasted: a cut-out on two backgrounds (the unit square is the cut-out's extent);
- photo: one picture seen twice (the unit square is an annotated or a random box in it);
- track: two frames of a recorded track (each frame has its own box).

Onto the search region come distractors, some of them altered copies of the target, and occluders;
some search regions do not show the target at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ostrack_ros.training.images import HULL_POINTS, ImageBank
from ostrack_ros.training.sampling import apply_homographies, pixel_centers, sample

WARP_CONTROLS = 6
WARP_REACH = 0.5
"""A deformation is a lattice of so many by so many displacements over the object's unit square and
this much beyond each of its sides, where it has faded away."""


@dataclass(frozen=True, slots=True)
class SynthesisSettings:
    """What to make. Probabilities are in [0, 1]; sizes are pixels; jitters are OSTrack's
    (centre in units of sqrt(box area), scale as the standard deviation of its logarithm).
    `warp_strength` is how far parts of a deformed object move, in units of its box."""

    template_size: int = 128
    search_size: int = 256
    template_factor: float = 2.0
    search_factor: float = 4.0
    center_jitter: float = 3.0
    scale_jitter: float = 0.25
    pasted: float = 0.4
    track: float = 0.35
    absent: float = 0.08
    grey: float = 0.05
    same_background: float = 0.6
    distractors: float = 0.55
    max_distractors: int = 3
    copies: float = 0.4
    occlusion: float = 0.2
    rotation: float = 12.0
    aspect: float = 0.15
    perspective: float = 0.08
    warp: float = 0.3
    warp_strength: float = 0.06
    blur: float = 0.3
    low_resolution: float = 0.3
    noise: float = 0.3
    max_track_gap: int = 30


@dataclass(frozen=True, slots=True)
class PairBatch:
    """`template` uint8 [B, 3, Z, Z] and `search` uint8 [B, 3, X, X] RGB; `box` float32 [B, 4] as
    cx, cy, w, h in fractions of the search region; `present` bool [B]."""

    template: Tensor
    search: Tensor
    box: Tensor
    present: Tensor


@dataclass(frozen=True, slots=True)
class _Objects:
    """Objects of one batch, seen in pictures: `photos` [B], `boxes` [B, 4] in texels."""

    photos: Tensor
    boxes: Tensor


@dataclass(frozen=True, slots=True)
class _Layers:
    """Cut-outs to paste: `pixels` uint8 [R, 4, T, T] and the used `sizes` float32 [R, 2]."""

    pixels: Tensor
    sizes: Tensor


class PairSynthesizer:
    """Draws batches of training pairs from a bank.

    All randomness comes from `generator`, which must live on the bank's device.
    """

    def __init__(
        self, bank: ImageBank, settings: SynthesisSettings, generator: torch.Generator
    ) -> None:
        self.bank = bank
        self.settings = settings
        self._generator = generator
        self._device = bank.photos.device
        self._with_partner = _indices_with_partner(bank.object_tracks)
        angles = torch.linspace(0, 2 * math.pi, HULL_POINTS + 1)[:-1]
        self._ellipse = torch.stack([angles.cos(), angles.sin()], 1).to(self._device) * 0.5 + 0.5

    @torch.no_grad()
    def draw(self, count: int) -> PairBatch:
        """`count` independent pairs."""
        s = self.settings
        pasted = self._chance(count, s.pasted)
        first, second = self._draw_objects(count)
        absent = self._chance(count, s.absent)
        other = self._random_objects(count)
        shown = _Objects(
            torch.where(absent, other.photos, second.photos),
            torch.where(absent[:, None], other.boxes, second.boxes),
        )
        texture = self._index(count, len(self.bank.cutouts))
        hull = self._ellipse.expand(count, -1, -1).clone()
        hull[pasted] = self.bank.cutout_hulls[texture[pasted]]
        aspect = torch.where(
            pasted,
            _aspect(self.bank.cutout_sizes[texture]),
            _aspect(first.boxes[:, 2:]),
        )
        mirrored = self._chance(count, 0.5)
        turned = torch.where(pasted, self._normal(count) * 0.1, torch.zeros_like(aspect))

        template_map, _ = self._place(
            hull, aspect, mirrored, s.template_size, s.template_factor, turned, moving=False
        )
        aspect2 = torch.where(pasted, aspect, _aspect(second.boxes[:, 2:]))
        warp = self._warps(count)
        search_map, box = self._place(
            _warped_outline(warp, hull),
            aspect2,
            mirrored,
            s.search_size,
            s.search_factor,
            turned,
            moving=True,
        )

        background = self._index(count, self._pictures)
        template_scene = torch.where(
            self._chance(count, s.same_background), background, self._index(count, self._pictures)
        )
        template = self._background(
            pasted, template_scene, first, template_map, s.template_size, s.template_factor
        )
        search = self._background(
            pasted, background, shown, search_map, s.search_size, s.search_factor, warp
        )
        look = self._look(count)
        rows = pasted.nonzero()[:, 0]
        layers = self._cutouts(texture[rows])
        template = self._paste(template, layers, template_map, look, rows)
        own = self._cut_targets(search, box, texture, pasted)
        search = self._distract(search, own, box, behind=True)
        rows = (pasted & ~absent).nonzero()[:, 0]
        look2 = look + 0.06 * self._normal(count, 6)
        layers = self._cutouts(texture[rows])
        search = self._paste(search, layers, search_map, look2, rows, warp)
        search = self._distract(search, own, box, behind=False)
        search = self._occlude(search, box)

        grey = self._chance(count, s.grey)
        return PairBatch(
            template=self._finish(template, grey, 0.5),
            search=self._finish(search, grey, 1.0),
            box=box / s.search_size,
            present=~absent,
        )

    # --- what to show -----------------------------------------------------------------------

    @property
    def _pictures(self) -> int:
        return len(self.bank.photos)

    def _draw_objects(self, count: int) -> tuple[_Objects, _Objects]:
        """The same object twice: in two frames of a track, or twice the same picture."""
        first = self._random_objects(count)
        second = _Objects(first.photos.clone(), first.boxes.clone())
        if len(self._with_partner) == 0:
            return first, second
        chosen = self._chance(count, self.settings.track).nonzero()[:, 0]
        start = self._with_partner[self._index(len(chosen), len(self._with_partner))]
        gap = self._index(len(chosen), self.settings.max_track_gap) + 1
        gap = torch.where(self._chance(len(chosen), 0.5), gap, -gap)
        tracks = self.bank.object_tracks
        end = (start + gap).clamp(0, len(tracks) - 1)
        for _ in range(6):  # pull back what left its track; a step of zero is harmless
            outside = tracks[end] != tracks[start]
            end = torch.where(
                outside, start + torch.div(end - start, 2, rounding_mode="trunc"), end
            )
        first.photos[chosen] = self.bank.object_photos[start]
        first.boxes[chosen] = self.bank.object_boxes[start]
        second.photos[chosen] = self.bank.object_photos[end]
        second.boxes[chosen] = self.bank.object_boxes[end]
        return first, second

    def _random_objects(self, count: int) -> _Objects:
        pick = self._index(count, len(self.bank.object_boxes))
        return _Objects(self.bank.object_photos[pick], self.bank.object_boxes[pick])

    # --- geometry ---------------------------------------------------------------------------

    def _place(
        self,
        hull: Tensor,
        aspect: Tensor,
        mirrored: Tensor,
        size: int,
        factor: float,
        turned: Tensor,
        moving: bool,
    ) -> tuple[Tensor, Tensor]:
        """Where the unit square goes: homographies [B, 3, 3] to pixels, and the boxes [B, 4]
        (cx, cy, w, h in pixels) of the `hull` [B, P, 2] seen through them.

        The template shows the object upright and exactly centred, as a tracker crops it; the
        search region has it jittered, turned and tilted.
        """
        s = self.settings
        count = len(aspect)
        area_side = torch.full_like(aspect, size / factor)
        center = torch.full((count, 2), size / 2, device=self._device)
        angle = turned
        tilt = torch.zeros(count, 2, device=self._device)
        stretch = aspect
        if moving:
            area_side = area_side * torch.exp(-s.scale_jitter * self._normal(count))
            shift = (self._uniform(count, 2) - 0.5) * s.center_jitter / s.search_factor
            center = center + shift * size
            angle = angle + math.radians(s.rotation) * self._normal(count)
            tilt = s.perspective * self._normal(count, 2)
            stretch = stretch * torch.exp(s.aspect * self._normal(count))
        root = stretch.sqrt()
        to_center = _translation(torch.full((count, 2), -0.5, device=self._device))
        flip = torch.where(mirrored, -1.0, 1.0)
        scale = _scaling(torch.stack([root * flip, 1 / root], 1))
        shape = _projection(tilt) @ _rotation(angle) @ scale @ to_center
        points = apply_homographies(shape, hull)
        low, high = points.amin(1), points.amax(1)
        extent = (high - low).clamp_min(1e-3)
        zoom = area_side / extent.prod(1).sqrt()
        middle = 0.5 * (low + high)
        fit = _translation(center) @ _scaling(zoom[:, None].expand(-1, 2)) @ _translation(-middle)
        return fit @ shape, torch.cat([center, extent * zoom[:, None]], 1)

    def _background(
        self,
        pasted: Tensor,
        scenes: Tensor,
        objects: _Objects,
        placed: Tensor,
        size: int,
        factor: float,
        warp: Tensor | None = None,
    ) -> Tensor:
        """Pictures float32 [B, 3, size, size] in 0..255: a free view of a scene for pasted pairs,
        else the picture such that the object's box, deformed by `warp`, fills the placed unit
        square."""
        count = len(scenes)
        photos = torch.where(pasted, scenes, objects.photos)
        sizes = self.bank.photo_sizes[photos]
        box = objects.boxes
        to_texels = _translation(box[:, :2]) @ _scaling(box[:, 2:])
        object_view = to_texels @ torch.linalg.inv(placed)
        zoom = sizes.min(1).values / size * (0.35 + 0.65 * self._uniform(count))
        zoom = zoom * (factor * size / (self.settings.search_factor * self.settings.search_size))
        middle = sizes * (0.2 + 0.6 * self._uniform(count, 2))
        center = torch.full((count, 2), -size / 2, device=self._device)
        angle = math.radians(5) * self._normal(count)
        scene_view = (
            _translation(middle)
            @ _rotation(angle)
            @ _scaling(zoom[:, None].expand(-1, 2))
            @ _translation(center)
        )
        view = torch.where(pasted[:, None, None], scene_view, object_view)
        bend = None
        if warp is not None:  # a pasted object bends alone, without the scene behind it
            bend = _bend(warp * ~pasted[:, None, None, None], placed, box[:, 2:], size)
        # A tracker at the image border sees black. Only a scene may be mirrored there: the mirror
        # image of a target would be a second one.
        return sample(self.bank.photos, photos, view, size, sizes, pasted, bend)

    def _warps(self, count: int) -> Tensor:
        """How objects change their outline: [B, 2, K, K] displacements in units of the box, none
        for most."""
        inner = WARP_CONTROLS - 2
        strength = self.settings.warp_strength * self._chance(count, self.settings.warp)
        moved = self._normal(count, 2, inner, inner) * strength[:, None, None, None]
        return F.pad(moved, (1, 1, 1, 1))

    # --- layers -----------------------------------------------------------------------------

    def _cutouts(self, chosen: Tensor) -> _Layers:
        """Copies of the `chosen` cut-outs, free to be drawn on."""
        return _Layers(self.bank.cutouts[chosen], self.bank.cutout_sizes[chosen])

    def _cut_targets(
        self, search: Tensor, box: Tensor, textures: Tensor, pasted: Tensor
    ) -> _Layers:
        """One cut-out for each pair that looks like its target: the pasted one, or, where a picture
        shows the target, a rounded piece of it."""
        own = self._cutouts(textures)
        rows = (~pasted).nonzero()[:, 0]
        if len(rows) == 0:
            return own
        side = own.pixels.shape[-1]
        low, extent = box[rows, :2] - box[rows, 2:] / 2, box[rows, 2:].clamp_min(1)
        scale = extent.amax(1, keepdim=True) / side
        view = _translation(low) @ _scaling(scale.expand(-1, 2))
        whole = torch.full_like(extent, search.shape[-1])
        colour = sample(search.round().clamp(0, 255).to(torch.uint8), rows, view, side, whole)
        used = extent / scale
        steps = torch.arange(side, device=self._device) + 0.5
        x = (2 * steps[None, None, :] / used[:, 0, None, None] - 1) ** 4
        y = (2 * steps[None, :, None] / used[:, 1, None, None] - 1) ** 4
        alpha = 255 * (2 * (1 - x - y) + 0.5).clamp(0, 1)
        own.pixels[rows] = torch.cat([colour, alpha[:, None]], 1).round().to(torch.uint8)
        own.sizes[rows] = used
        return own

    def _paste(
        self,
        canvas: Tensor,
        layers: _Layers,
        placed: Tensor,
        look: Tensor,
        rows: Tensor,
        warp: Tensor | None = None,
    ) -> Tensor:
        """Lay cut-outs, one for each of the given `rows`, over `canvas` [B, 3, N, N], deformed by
        `warp` [B, 2, K, K]."""
        if len(rows) == 0:
            return canvas
        size = canvas.shape[-1]
        sizes = layers.sizes
        view = _scaling(sizes) @ torch.linalg.inv(placed[rows])
        bend = None if warp is None else _bend(warp[rows], placed[rows], sizes, size)
        every = torch.arange(len(rows), device=self._device)
        layer = sample(layers.pixels, every, view, size, sizes, None, bend)
        colour, alpha = _recolour(layer[:, :3], look[rows]), layer[:, 3:] / 255
        hardness = 1 + 2 * self._uniform(len(rows))
        alpha = ((alpha - 0.5) * hardness[:, None, None, None] + 0.5).clamp(0, 1)
        result = canvas.clone()
        result[rows] = canvas[rows] + (colour - canvas[rows]) * alpha
        return result

    def _distract(self, search: Tensor, own: _Layers, box: Tensor, behind: bool) -> Tensor:
        """Other objects near the target: `behind` it anywhere, else clear of it. Some are `own`,
        the target's likenesses, in other colours."""
        s = self.settings
        for _ in range(max(1, s.max_distractors // 2)):
            rows = self._chance(len(search), s.distractors).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            copies = self._chance(len(rows), s.copies)
            layers = self._cutouts(self._index(len(rows), len(self.bank.cutouts)))
            layers.pixels[copies] = own.pixels[rows[copies]]
            layers.sizes[copies] = own.sizes[rows[copies]]
            side = box[rows, 2:].prod(1).sqrt()
            side = side * torch.exp(0.35 * self._normal(len(rows)))
            root = _aspect(layers.sizes).sqrt()
            extent = torch.stack([side * root, side / root], 1)
            angle = 2 * math.pi * self._uniform(len(rows))
            direction = torch.stack([angle.cos(), angle.sin()], 1)
            # As near as two boxes can be: much farther away nobody would confuse them, and few
            # would be seen in the search region at all.
            touching = 0.5 * (box[rows, 2:] + extent) / direction.abs().clamp_min(1e-3)
            distance = (0.6 if behind else 1.0) * touching.amin(1)
            distance = distance + self._uniform(len(rows)) * 0.15 * s.search_size
            center = box[rows, :2] + distance[:, None] * direction
            search = self._paste_upright(search, layers, rows, center, side, 0.18)
        return search

    def _occlude(self, search: Tensor, box: Tensor) -> Tensor:
        """Something in front of up to about half of the target."""
        rows = self._chance(len(search), self.settings.occlusion).nonzero()[:, 0]
        if len(rows) == 0:
            return search
        layers = self._cutouts(self._index(len(rows), len(self.bank.cutouts)))
        side = box[rows, 2:].prod(1).sqrt() * (0.4 + 0.5 * self._uniform(len(rows)))
        angle = 2 * math.pi * self._uniform(len(rows))
        direction = torch.stack([angle.cos(), angle.sin()], 1)
        center = (
            box[rows, :2]
            + 0.5 * box[rows, 2:] * direction * (0.5 + 0.6 * self._uniform(len(rows)))[:, None]
        )
        return self._paste_upright(search, layers, rows, center, side, 0.15)

    def _paste_upright(
        self,
        canvas: Tensor,
        layers: _Layers,
        rows: Tensor,
        center: Tensor,
        side: Tensor,
        look: float,
    ) -> Tensor:
        """Paste with the given centres and sqrt areas, nearly upright, recoloured by `look`."""
        aspect = _aspect(layers.sizes)
        aspect = aspect * torch.exp(0.15 * self._normal(len(rows)))
        flip = torch.where(self._chance(len(rows), 0.5), -1.0, 1.0)
        extent = torch.stack([aspect.sqrt() * flip, 1 / aspect.sqrt()], 1) * side[:, None]
        placed = torch.eye(3, device=self._device).repeat(len(canvas), 1, 1)
        half = torch.full((len(rows), 2), -0.5, device=self._device)
        placed[rows] = (
            _translation(center)
            @ _rotation(0.3 * self._normal(len(rows)))
            @ _scaling(extent)
            @ _translation(half)
        )
        looks = self._look(len(canvas)) + look * self._normal(len(canvas), 6)
        return self._paste(canvas, layers, placed, looks, rows)

    # --- appearance -------------------------------------------------------------------------

    def _look(self, count: int) -> Tensor:
        """Random colour changes [B, 6]: log gains and offsets of R, G, B."""
        scale = torch.tensor([0.12, 0.12, 0.12, 0.05, 0.05, 0.05], device=self._device)
        return self._normal(count, 6) * scale

    def _finish(self, image: Tensor, grey: Tensor, strength: float) -> Tensor:
        """Camera effects over the whole picture, in 0..255, then rounding to uint8."""
        s = self.settings
        count, _, size, _ = image.shape
        exposure = torch.exp(0.15 * self._normal(count))[:, None, None, None]
        contrast = torch.exp(0.15 * self._normal(count))[:, None, None, None]
        tint = torch.exp(0.04 * self._normal(count, 3))[:, :, None, None]
        mean = image.mean((1, 2, 3), keepdim=True)
        image = ((image - mean) * contrast + mean) * exposure * tint
        if grey.any():
            image = torch.where(
                grey[:, None, None, None], image.mean(1, keepdim=True).expand_as(image), image
            )
        rows = self._chance(count, s.low_resolution * strength).nonzero()[:, 0]
        if len(rows):
            small = max(16, int(size * (0.2 + 0.6 * self._uniform(1).item())))
            shrunk = F.interpolate(image[rows], (small, small), mode="area")
            image[rows] = F.interpolate(shrunk, (size, size), mode="bilinear")
        rows = self._chance(count, s.blur * strength).nonzero()[:, 0]
        if len(rows):
            image[rows] = self._blurred(image[rows])
        rows = self._chance(count, s.noise).nonzero()[:, 0]
        if len(rows):
            amount = 10 * self._uniform(len(rows))[:, None, None, None]
            image[rows] += amount * self._normal(*image[rows].shape)
        return image.round().clamp(0, 255).to(torch.uint8)

    def _blurred(self, image: Tensor) -> Tensor:
        """Motion blur along a random line, alike for the whole of `image` [B, 3, N, N]."""
        side = 9
        length = 1 + (side - 1) * self._uniform(1)
        angle = math.pi * self._uniform(1)
        grid = torch.arange(side, device=self._device) - side // 2
        y, x = torch.meshgrid(grid, grid, indexing="ij")
        along = (x * angle.cos() + y * angle.sin()).abs()
        across = (y * angle.cos() - x * angle.sin()).abs()
        kernel = (1 - across).clamp(0, 1) * (0.5 * length - along + 0.5).clamp(0, 1)
        kernel = kernel / kernel.sum()
        flat = image.reshape(-1, 1, *image.shape[-2:])
        if flat.device.type == "cpu":  # where PyTorch's takes ten times as long
            planes = [cv2.filter2D(plane[0].numpy(), -1, kernel.numpy()) for plane in flat]
            return torch.from_numpy(np.stack(planes)).view_as(image)
        padded = F.pad(flat, (side // 2,) * 4, mode="reflect")
        return F.conv2d(padded, kernel.view(1, 1, side, side)).view_as(image)

    # --- randomness -------------------------------------------------------------------------

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, device=self._device, generator=self._generator)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self._device, generator=self._generator)

    def _index(self, count: int, limit: int) -> Tensor:
        return torch.randint(limit, (count,), device=self._device, generator=self._generator)

    def _chance(self, count: int, probability: float) -> Tensor:
        return self._uniform(count) < probability


def _indices_with_partner(tracks: Tensor) -> Tensor:
    """Objects whose track has at least one more frame."""
    if len(tracks) == 0:
        return torch.zeros(0, dtype=torch.long, device=tracks.device)
    neighbour = torch.zeros_like(tracks, dtype=torch.bool)
    same = (tracks[1:] == tracks[:-1]) & (tracks[1:] >= 0)
    neighbour[1:] |= same
    neighbour[:-1] |= same
    return neighbour.nonzero()[:, 0]


def _aspect(sizes: Tensor) -> Tensor:
    """Width over height of [B, 2], kept within 1:5."""
    return (sizes[:, 0] / sizes[:, 1].clamp_min(1e-3)).clamp(0.2, 5.0)


def _translation(shift: Tensor) -> Tensor:
    matrix = torch.eye(3, device=shift.device).repeat(len(shift), 1, 1)
    matrix[:, :2, 2] = shift
    return matrix


def _scaling(scale: Tensor) -> Tensor:
    ones = torch.ones(len(scale), 1, device=scale.device)
    return torch.diag_embed(torch.cat([scale, ones], 1))


def _rotation(angle: Tensor) -> Tensor:
    matrix = torch.eye(3, device=angle.device).repeat(len(angle), 1, 1)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 1, 0] = angle.sin()
    matrix[:, 0, 1] = -angle.sin()
    return matrix


def _projection(tilt: Tensor) -> Tensor:
    """Perspective foreshortening; |tilt| well below 1 keeps the unit square in front."""
    matrix = torch.eye(3, device=tilt.device).repeat(len(tilt), 1, 1)
    matrix[:, 2, :2] = tilt.clamp(-0.25, 0.25)
    return matrix


def _displacement(warp: Tensor, points: Tensor) -> Tensor:
    """By how much `warp` [B, 2, K, K] moves `points` [B, P, 2] of the unit square."""
    grid = ((points - 0.5) / (0.5 + WARP_REACH))[:, :, None]
    moved = F.grid_sample(warp, grid, mode="bicubic", padding_mode="zeros", align_corners=True)
    return moved[..., 0].transpose(1, 2)


def _bend(warp: Tensor, placed: Tensor, texels: Tensor, size: int) -> Tensor:
    """By how many texels each pixel looks elsewhere: [B, 2, size, size], for unit squares that are
    `placed` [B, 3, 3] in the picture and `texels` [B, 2] large in their textures."""
    bend = torch.zeros(len(warp), 2, size, size, device=warp.device)
    rows = warp.flatten(1).any(1).nonzero()[:, 0]
    if len(rows):
        pixels = pixel_centers(size, warp.device).expand(len(rows), -1, -1)
        points = apply_homographies(torch.linalg.inv(placed[rows]), pixels)
        moved = _displacement(warp[rows], points) * texels[rows, None, :]
        bend[rows] = moved.transpose(1, 2).reshape(-1, 2, size, size)
    return bend


def _warped_outline(warp: Tensor, hull: Tensor) -> Tensor:
    """Where the `hull` [B, P, 2] of an object lies once it is deformed: what the picture shows at a
    point is what was at that point plus its displacement."""
    points = hull
    for _ in range(5):
        points = hull - _displacement(warp, points)
    return points


def _recolour(colour: Tensor, look: Tensor) -> Tensor:
    gain = torch.exp(look[:, :3])[:, :, None, None]
    return colour * gain + 255 * look[:, 3:, None, None]
