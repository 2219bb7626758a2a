"""Tracks of moving objects in a video without labels: background subtraction and median flow.

Boxes start where something moves in front of a still background. They are followed by sparse
optical flow (Kalal et al., "Forward-Backward Error", ICPR 2010: the median motion of the points
that find their way back), and a track counts as far as following it backwards ends where it began.
For footage from a fixed camera; elsewhere it finds little, but nothing wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ostrack_ros.files import write_atomically
from ostrack_ros.tracking.geometry import Box, iou

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class FootageSettings:
    """Sizes in pixels of the scaled frames, whose longer side is at most `side`."""

    side: int = 640
    frames_per_second: float = 6.0
    max_frames: int = 900
    min_side: int = 24
    max_share: float = 0.3
    difference: int = 30
    track_frames: int = 30
    min_frames: int = 5
    max_tracks: int = 40
    return_overlap: float = 0.7


@dataclass(frozen=True, slots=True)
class FootageTrack:
    """One object: `boxes[i]` is its box in frame `frames[i]`."""

    frames: list[int] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)


def write_track(folder: Path, frames: Iterable[tuple[int, bytes, Box]]) -> None:
    """Write numbered frames (JPEG files) of one object and its boxes as a track of a picture bank
    (docs/training.md)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["frame,x,y,w,h"]
    for number, picture, box in frames:
        (folder / f"{number:05d}.jpg").write_bytes(picture)
        rows.append(",".join([f"{number:05d}", *(f"{value:.1f}" for value in box)]))
    # Last: a folder without boxes is not read as a track.
    write_atomically(folder / "boxes.csv", "\n".join(rows) + "\n")


def read_video(path: Path, settings: FootageSettings) -> list[Image]:
    """Frames (uint8 BGR [H, W, 3]) at about `frames_per_second`, scaled down to `side`.

    Raises ValueError when nothing can be decoded.
    """
    capture = cv2.VideoCapture(str(path))
    try:
        step = max(1, round((capture.get(cv2.CAP_PROP_FPS) or 25.0) / settings.frames_per_second))
        frames: list[Image] = []
        index = 0
        while len(frames) < settings.max_frames:
            arrived, frame = capture.read()
            if not arrived:
                break
            if index % step == 0:
                frames.append(_shrunk(np.asarray(frame, np.uint8), settings.side))
            index += 1
    finally:
        capture.release()
    if not frames:
        raise ValueError(f"no frame could be decoded from {path}")
    return frames


def find_tracks(frames: list[Image], settings: FootageSettings | None = None) -> list[FootageTrack]:
    """Tracks of what moves in `frames` (uint8 BGR, one size, one fixed camera)."""
    settings = settings or FootageSettings()
    if len(frames) < settings.min_frames:
        return []
    sample = np.stack(frames[:: max(1, len(frames) // 40)])
    background = np.asarray(np.median(sample, axis=0), np.uint8)
    greys = [np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), np.uint8) for frame in frames]
    tracks: list[FootageTrack] = []
    starts = range(0, len(frames), max(1, settings.track_frames // 3))
    for start in tqdm(starts, desc="following what moves", leave=False):
        for seed in _moving(frames[start], background, settings):
            if len(tracks) >= settings.max_tracks:
                return tracks
            taken = (
                track.boxes[track.frames.index(start)] for track in tracks if start in track.frames
            )
            if any(iou(seed, box) > 0.2 for box in taken):
                continue
            track = _follow(greys, start, seed, settings)
            if len(track.frames) >= settings.min_frames and _moves(track):
                tracks.append(track)
    return tracks


def _shrunk(frame: Image, side: int) -> Image:
    scale = side / max(frame.shape[:2])
    if scale >= 1:
        return frame
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def _moving(frame: Image, background: Image, settings: FootageSettings) -> list[Box]:
    """Boxes of what differs from the background, clear of the border."""
    difference = cv2.absdiff(cv2.blur(frame, (5, 5)), cv2.blur(background, (5, 5))).max(axis=2)
    mask = (difference > settings.difference).astype(np.uint8)
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)), np.uint8)
    height, width = mask.shape
    _, _, statistics, _ = cv2.connectedComponentsWithStats(mask)
    boxes = []
    for x, y, w, h, area in statistics[1:].tolist():
        inside = x > 2 and y > 2 and x + w < width - 2 and y + h < height - 2
        fitting = min(w, h) >= settings.min_side // 2 and max(w, h) >= settings.min_side
        shaped = max(w, h) < 4 * min(w, h) and area > 0.35 * w * h
        if inside and fitting and shaped and w * h < settings.max_share * width * height:
            boxes.append(Box(x, y, w, h))
    return boxes


def _follow(greys: list[Image], start: int, seed: Box, settings: FootageSettings) -> FootageTrack:
    """Follow `seed` while it lasts, then keep what leads back to it."""
    boxes = [seed]
    last = min(start + settings.track_frames, len(greys) - 1)
    for index in range(start, last):
        moved = flow_step(greys[index], greys[index + 1], boxes[-1])
        if moved is None:
            break
        boxes.append(moved)
    while len(boxes) >= settings.min_frames:
        if _leads_back(greys, start, boxes, settings.return_overlap):
            return FootageTrack(list(range(start, start + len(boxes))), boxes)
        boxes = boxes[: int(len(boxes) * 0.75)]
    return FootageTrack()


def _leads_back(greys: list[Image], start: int, boxes: list[Box], overlap: float) -> bool:
    box = boxes[-1]
    for index in range(start + len(boxes) - 1, start, -1):
        moved = flow_step(greys[index], greys[index - 1], box)
        if moved is None:
            return False
        box = moved
    return iou(box, boxes[0]) >= overlap


def flow_step(before: Image, after: Image, box: Box) -> Box | None:
    """`box` one frame later (grey uint8 frames), or None where too few points find back."""
    height, width = before.shape
    # Only the surroundings matter, and pyramids of whole frames would take most of the time.
    reach = max(48.0, box.width, box.height)
    left, top = max(0, int(box.x - reach)), max(0, int(box.y - reach))
    window = np.s_[top : int(box.bottom + reach), left : int(box.right + reach)]
    before, after = before[window], after[window]
    xs = np.linspace(box.x + 0.1 * box.width, box.x + 0.9 * box.width, 12)
    ys = np.linspace(box.y + 0.1 * box.height, box.y + 0.9 * box.height, 12)
    lattice = np.stack(np.meshgrid(xs - left, ys - top), axis=-1)
    points = lattice.reshape(-1, 1, 2).astype(np.float32)
    forward, found = _flow(before, after, points)
    back, found_back = _flow(after, before, forward)
    error = np.linalg.norm((points - back).reshape(-1, 2), axis=1)
    good = (found.ravel() == 1) & (found_back.ravel() == 1)
    if good.sum() < 16 or (middle := float(np.median(error[good]))) > 2.0:
        return None
    good &= error <= max(middle, 0.2)
    origin, target = points.reshape(-1, 2)[good], forward.reshape(-1, 2)[good]
    if len(origin) < 8:
        return None
    # The point pairs' distances give the change of size, their motion the shift of the centre.
    pairs = np.triu_indices(len(origin), 1)
    distance = np.linalg.norm(origin[pairs[0]] - origin[pairs[1]], axis=1)
    stretched = np.linalg.norm(target[pairs[0]] - target[pairs[1]], axis=1)
    scale = float(np.median(stretched / np.maximum(distance, 1e-6)))
    shift = np.median(target - origin, axis=0)
    if not 0.8 < scale < 1.25:
        return None
    centre = (box.cx + float(shift[0]), box.cy + float(shift[1]))
    moved = Box.from_center(*centre, box.width * scale, box.height * scale)
    inside = moved.x >= 0 and moved.y >= 0 and moved.right <= width and moved.bottom <= height
    return moved if inside else None


def _flow(
    before: Image, after: Image, points: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        before, after, points, np.zeros_like(points), winSize=(15, 15), maxLevel=4
    )
    return np.asarray(moved, np.float32), np.asarray(found, np.uint8)


def _moves(track: FootageTrack) -> bool:
    first, last = track.boxes[0], track.boxes[-1]
    return float(np.hypot(first.x - last.x, first.y - last.y)) > 0.3 * max(
        first.width, first.height
    )
