"""Short clips with known boxes: real tracks of a bank, and cut-outs sent across its pictures.

Training pairs show a target twice; a clip shows it frame by frame, so that a tracker can be run on
it and its own errors carry over from one frame to the next (`training.following`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ostrack_ros.training.images import ImageBank

_EDGE = 0.08
"""Where targets turn back, as a share of the frame's side."""

_INERTIA = 0.85
"""Share of its velocity that something keeps from frame to frame."""


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """What a drawn clip is like. Probabilities are in [0, 1].

    Frames are `side` x `side` pixels; the target's size, sqrt(box area), starts as a share of that
    between `smallest` and `largest`. `speed` is the usual shift between frames in target sizes,
    `growth` and `stretch` the deviations of the logarithms of size and aspect per frame, `turn`
    that of the angle in degrees; `camera` is the background's shift in shares of the side.
    `lookalike`, `stranger` and `occluder` are the chances of the target's double, of something else
    and of something in front of it; `absence` that of its being gone for a few frames.
    """

    frames: int = 16
    side: int = 320
    smallest: float = 0.1
    largest: float = 0.3
    speed: float = 0.12
    growth: float = 0.03
    stretch: float = 0.05
    turn: float = 3.0
    camera: float = 0.01
    lookalike: float = 0.5
    stranger: float = 0.7
    occluder: float = 0.3
    absence: float = 0.2

    def every(self, frames: float) -> ClipSettings:
        """The same scenes as a camera sees them that takes one of `frames` frames (below 1: it is
        faster): what moves on goes so much further, what wanders at random by the root of that."""
        root = math.sqrt(frames)
        return replace(
            self,
            speed=self.speed * frames,
            camera=self.camera * frames,
            growth=self.growth * root,
            stretch=self.stretch * root,
            turn=self.turn * root,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """`frames`, each uint8 RGB [H, W, 3], and `boxes` float64 [T, 4]: x, y, w, h in pixels, NaN
    where the target is absent. It is always there in the first frame."""

    frames: list[NDArray[np.uint8]]
    boxes: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Actor:
    """A cut-out on its way: per frame its centre [T, 2] in pixels, size (sqrt of its area) [T],
    aspect [T] and angle [T] in radians. `pixels` uint8 RGBA [h, w, 4], its outline `hull` [P, 2] in
    them; `gain` [3] multiplies its colours."""

    pixels: NDArray[np.uint8]
    hull: NDArray[np.float64]
    centers: NDArray[np.float64]
    sizes: NDArray[np.float64]
    aspects: NDArray[np.float64]
    angles: NDArray[np.float64]
    gain: NDArray[np.float64]

    def view(self, frame: int) -> NDArray[np.float64]:
        """Affine map [2, 3] from the cut-out's pixels to the frame's."""
        height, width = self.pixels.shape[:2]
        root = math.sqrt(self.aspects[frame])
        across, down = self.sizes[frame] * root / width, self.sizes[frame] / root / height
        cosine, sine = math.cos(self.angles[frame]), math.sin(self.angles[frame])
        turned = np.array([[cosine * across, -sine * down], [sine * across, cosine * down]])
        shift = self.centers[frame] - turned @ np.array([width / 2, height / 2])
        return np.column_stack([turned, shift])

    def box(self, frame: int) -> NDArray[np.float64]:
        view = self.view(frame)
        points = self.hull @ view[:, :2].T + view[:, 2]
        low, high = points.min(0), points.max(0)
        return np.concatenate([low, high - low])

    def draw(self, canvas: NDArray[np.float32], frame: int) -> None:
        side = canvas.shape[:2][::-1]
        layer = cv2.warpAffine(self.pixels, self.view(frame), side, flags=cv2.INTER_AREA)
        alpha = layer[..., 3:].astype(np.float32) / 255
        canvas += (layer[..., :3] * self.gain.astype(np.float32) - canvas) * alpha


class ClipMaker:
    """Draws clips from a bank: `rng` decides everything."""

    def __init__(self, bank: ImageBank, settings: ClipSettings, rng: np.random.Generator) -> None:
        self._bank = bank
        self._settings = settings
        self._rng = rng

    def draw(self) -> Clip:
        """One clip of a cut-out that moves, grows, turns and changes its outline before a picture,
        among others, sometimes hidden and sometimes gone."""
        s, rng = self._settings, self._rng
        target = self._actor()
        behind: list[_Actor] = []
        if rng.random() < s.stranger:
            behind.append(self._actor())
        if rng.random() < s.lookalike:
            behind.append(self._lookalike(target))
        before = [self._crossing(target)] if rng.random() < s.occluder else []
        absent = self._absence()
        middle = np.full(2, s.side / 2)
        shifts = self._walk(middle, s.camera * s.side, 3 * s.camera * s.side) - middle
        picture = int(rng.integers(len(self._bank.photos)))
        zoom = rng.uniform(0.5, 0.9)
        frames, boxes = [], np.full((s.frames, 4), np.nan)
        for index in range(s.frames):
            canvas = self._background(picture, shifts[index], zoom)
            for actor in behind:
                actor.draw(canvas, index)
            if not absent[index]:
                target.draw(canvas, index)
                boxes[index] = target.box(index)
            for actor in before:
                actor.draw(canvas, index)
            canvas += rng.normal(0, 2.0, canvas.shape).astype(np.float32)
            frames.append(canvas.round().clip(0, 255).astype(np.uint8))
        return Clip(frames, boxes)

    def _actor(self) -> _Actor:
        """Any cut-out on a way of its own."""
        s, rng = self._settings, self._rng
        cutout = int(rng.integers(len(self._bank.cutouts)))
        width, height = (int(v) for v in self._bank.cutout_sizes[cutout])
        pixels = self._bank.cutouts[cutout, :, :height, :width].permute(1, 2, 0).cpu().numpy()
        size = s.side * math.exp(rng.uniform(math.log(s.smallest), math.log(s.largest)))
        start = rng.uniform(0.2, 0.8, 2) * s.side
        return _Actor(
            pixels=np.ascontiguousarray(pixels),
            hull=self._bank.cutout_hulls[cutout].cpu().double().numpy() * (width, height),
            centers=self._walk(start, s.speed * size, s.speed * size),
            sizes=self._drift(size, s.growth),
            aspects=self._drift(float(np.clip(width / height, 0.2, 5.0)), s.stretch),
            angles=np.cumsum(rng.normal(0, math.radians(s.turn), s.frames)),
            gain=np.exp(rng.normal(0, 0.1, 3)),
        )

    def _lookalike(self, target: _Actor) -> _Actor:
        """The target's own picture, in nearly its own colours, on a way across the target's."""
        s = self._settings
        return replace(
            self._crossing(target),
            pixels=target.pixels,
            hull=target.hull,
            sizes=self._drift(float(target.sizes[0]), s.growth),
            aspects=self._drift(float(target.aspects[0]), s.stretch),
            gain=target.gain * np.exp(self._rng.normal(0, 0.15, 3)),
        )

    def _crossing(self, target: _Actor) -> _Actor:
        """Some cut-out that moves straight across the target's place in some frame."""
        s, rng = self._settings, self._rng
        meeting = int(rng.integers(s.frames // 4, s.frames))
        direction = rng.uniform(0, 2 * math.pi)
        pace = target.sizes[0] * rng.uniform(0.1, 0.4)
        step = pace * np.array([math.cos(direction), math.sin(direction)])
        aside = rng.normal(0, 0.3 * target.sizes[0], 2)
        times = np.arange(s.frames)[:, None] - meeting
        return replace(
            self._actor(),
            centers=target.centers[meeting] + aside + times * step,
            sizes=np.full(s.frames, target.sizes[0] * rng.uniform(0.5, 1.0)),
        )

    def _absence(self) -> NDArray[np.bool_]:
        s, rng = self._settings, self._rng
        absent = np.zeros(s.frames, bool)
        if rng.random() < s.absence and s.frames > 2:
            start = int(rng.integers(1, s.frames - 1))
            absent[start : start + int(rng.integers(2, 6))] = True
        return absent

    def _walk(self, start: NDArray[np.float64], pace: float, push: float) -> NDArray[np.float64]:
        """A smooth way [T, 2] that turns back at the frame's edge."""
        s, rng = self._settings, self._rng
        place, velocity = start.astype(np.float64), rng.normal(0, max(pace, 1e-6), 2)
        low, high = _EDGE * s.side, (1 - _EDGE) * s.side
        way = []
        for _ in range(s.frames):
            way.append(place.copy())
            velocity = _INERTIA * velocity + (1 - _INERTIA) * rng.normal(0, 2 * push, 2)
            place = place + velocity
            outside = ((place < low) & (velocity < 0)) | ((place > high) & (velocity > 0))
            velocity = np.where(outside, -velocity, velocity)
        return np.array(way)

    def _drift(self, start: float, deviation: float) -> NDArray[np.float64]:
        steps = self._rng.normal(0, deviation, self._settings.frames)
        steps[0] = 0.0
        return start * np.exp(np.cumsum(steps))

    def _background(
        self, picture: int, shift: NDArray[np.float64], zoom: float
    ) -> NDArray[np.float32]:
        s = self._settings
        width, height = (int(v) for v in self._bank.photo_sizes[picture])
        photo = self._bank.photos[picture, :, :height, :width].permute(1, 2, 0).cpu().numpy()
        scale = s.side / (zoom * min(width, height))
        middle = np.array([s.side, s.side]) / 2 - scale * np.array([width, height]) / 2 + shift
        view = np.array([[scale, 0, middle[0]], [0, scale, middle[1]]])
        seen = cv2.warpAffine(
            np.ascontiguousarray(photo), view, (s.side, s.side), borderMode=cv2.BORDER_REFLECT
        )
        return seen.astype(np.float32)


def recorded_clips(bank: ImageBank) -> Iterator[Clip]:
    """The bank's tracks, each as one clip of all its frames of the first one's size."""
    for number in sorted(set(bank.object_tracks.tolist()) - {-1}):
        rows = torch.nonzero(bank.object_tracks == number)[:, 0]
        size = bank.photo_sizes[bank.object_photos[rows[0]]]
        rows = rows[(bank.photo_sizes[bank.object_photos[rows]] == size).all(1)]
        if len(rows) < 2:
            continue
        width, height = (int(v) for v in size)
        frames = [
            np.ascontiguousarray(bank.photos[p, :, :height, :width].permute(1, 2, 0).cpu().numpy())
            for p in bank.object_photos[rows].tolist()
        ]
        yield Clip(frames, bank.object_boxes[rows].cpu().double().numpy())
