"""The demo's clip and what the demo leaves behind: track as CSV, overlay video, contact sheet."""

from __future__ import annotations

import csv
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ostrack_ros.drawing import draw_label
from ostrack_ros.files import write_atomically
from ostrack_ros.tracking.geometry import Box, iou

Image = NDArray[np.uint8]

FOLLOWED_IOU = 0.5
"""From this overlap with the ground truth on, a box counts as being on the target (as in OTB)."""

FEWEST_ANSWERS = 10
"""With fewer answers nobody can say that the target was followed."""


class DemoError(RuntimeError):
    """The demo cannot go on. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A video with a target: the box to start with, and one true box for each frame (px)."""

    video: Path
    target: str
    init_box: Box
    truth: tuple[Box, ...]

    @classmethod
    def load(cls, description: Path) -> Clip:
        """Read `description`, a JSON file beside the video.

        Raises DemoError when it, or a file that it names, cannot be read.
        """
        folder = description.parent
        try:
            values = json.loads(description.read_text(encoding="utf-8"))
            rows = (folder / values["groundtruth"]).read_text(encoding="utf-8").splitlines()
            truth = tuple(Box(*map(float, row.split(","))) for row in rows)
            # Floats, whatever JSON has: ROS stores an int in a float64 field as garbage.
            init_box = Box(*map(float, values["init_box"]))
            clip = cls(folder / values["video"], values["target"], init_box, truth)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DemoError(f"cannot read the demo clip {description}: {error}") from error
        if not clip.video.is_file():
            raise DemoError(f"the demo clip's video {clip.video} is missing")
        return clip

    def frames(self) -> Iterator[Image]:
        """Decode the video: BGR uint8 [H, W, 3], one by one."""
        capture = cv2.VideoCapture(str(self.video))
        try:
            if not capture.isOpened():
                raise DemoError(f"OpenCV cannot open {self.video}: is its video support complete?")
            while True:
                read, frame = capture.read()
                if not read:
                    return
                yield np.asarray(frame, dtype=np.uint8)
        finally:
            capture.release()

    def index_by_content(self) -> dict[int, int]:
        """Which frame an image is, by `content_key` of its bytes; for frames that got lost."""
        return {content_key(frame.tobytes()): number for number, frame in enumerate(self.frames())}


def content_key(pixels: bytes | memoryview) -> int:
    """A checksum of an image's bytes."""
    return zlib.crc32(pixels)


@dataclass(frozen=True, slots=True)
class TrackRow:
    """One answer of the tracker. The box is NaN where there is none; `iou` is NaN then, too."""

    frame: int
    stamp_ns: int
    state: str
    x: float
    y: float
    width: float
    height: float
    confidence: float
    score: float
    latency_ms: float
    iou: float

    @property
    def followed(self) -> bool:
        """Whether the box is on the target."""
        return self.iou >= FOLLOWED_IOU

    def line(self) -> str:
        """For people, in a terminal."""
        box = (
            "no box"
            if math.isnan(self.x)
            else f"{self.width:.0f}x{self.height:.0f} at ({self.x:.0f}, {self.y:.0f})"
        )
        return (
            f"frame {self.frame:4d}  {self.state:<9}  box {box:<22}  "
            f"confidence {self.confidence:4.2f}  score {self.score:4.2f}  "
            f"latency {self.latency_ms:4.0f} ms  IoU {self.iou:4.2f}"
        )


def overlap(box: Box, truth: Box) -> float:
    """IoU of a box with the true one; NaN where there is no box."""
    return iou(box, truth) if box.is_valid else math.nan


def track_csv(rows: Iterable[TrackRow]) -> str:
    """The rows as CSV text with a header."""
    text = io.StringIO()
    names = [field.name for field in fields(TrackRow)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow([f"{v:.4f}" if isinstance(v, float) else v for v in values])
    return text.getvalue()


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run went: frames in the clip, answers, their boxes on the target, mean IoU."""

    frames: int
    answers: int
    followed: int
    mean_iou: float
    median_latency_ms: float

    @classmethod
    def of(cls, rows: Sequence[TrackRow], frames: int) -> Summary:
        """Over all answers; one without a box counts as IoU 0."""
        overlaps = [0.0 if math.isnan(row.iou) else row.iou for row in rows]
        return cls(
            frames=frames,
            answers=len(rows),
            followed=sum(row.followed for row in rows),
            mean_iou=float(np.mean(overlaps)) if rows else 0.0,
            median_latency_ms=float(np.median([row.latency_ms for row in rows])) if rows else 0.0,
        )

    @property
    def failure(self) -> str | None:
        """Why the demo failed; None if the target was followed in more than half of the answers."""
        if self.answers < FEWEST_ANSWERS:
            return (
                f"only {self.answers} answers for {self.frames} frames: this machine is too slow "
                "or too busy for the clip; try a lower rate"
            )
        if self.followed * 2 <= self.answers:
            return "the target was not followed"
        return None

    def __str__(self) -> str:
        return (
            f"{self.answers} tracks for {self.frames} frames; on the target in {self.followed} "
            f"(IoU >= {FOLLOWED_IOU}), mean IoU {self.mean_iou:.3f}, "
            f"median latency {self.median_latency_ms:.0f} ms"
        )


class OverlayRecorder:
    """Collects overlay images as a video and as the tiles of one contact sheet."""

    def __init__(self, video: Path, rate: float, frames: int, tiles: int = 12) -> None:
        """Images will come for some of `frames` frames; the video plays at `rate` per second."""
        self._path = video
        self._rate = rate
        self._writer: cv2.VideoWriter | None = None
        # Not the first frame: what a track looks like is seen from the second on.
        self._wanted = list(np.linspace(1, max(1, frames - 1), tiles).round().astype(int))
        self._tiles: list[Image] = []
        self._last: tuple[int, Image] | None = None
        self.images = 0

    def add(self, frame: int, image: Image) -> None:
        """Append the overlay of frame number `frame`: BGR uint8 [H, W, 3].

        Raises DemoError when OpenCV cannot write the video.
        """
        if self._writer is None:
            height, width = image.shape[:2]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # MPEG-4: the one codec of .mp4 that every build of OpenCV can write.
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), codec, self._rate, (width, height))
            if not self._writer.isOpened():
                raise DemoError(f"OpenCV cannot write the video {self._path}")
        self._writer.write(image)
        self.images += 1
        self._last = frame, image
        if self._wanted and frame >= self._wanted[0]:
            self._wanted = [number for number in self._wanted if number > frame]
            self._tiles.append(_tile(image, frame))
            self._last = None

    def close(self) -> None:
        """Finish the video."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def write_sheet(self, path: Path, columns: int = 4) -> None:
        """Write the tiles as one picture; nothing if no image came."""
        tiles = list(self._tiles)
        if self._wanted and self._last is not None:  # the end of the clip went unseen
            frame, image = self._last
            tiles.append(_tile(image, frame))
        if not tiles:
            return
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
        rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
        encoded, data = cv2.imencode(path.suffix, np.vstack(rows))
        if not encoded:
            raise DemoError(f"OpenCV cannot write images of type {path.suffix!r}")
        write_atomically(path, data.tobytes())


def _tile(image: Image, frame: int, width: int = 400) -> Image:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    tile = np.asarray(resized, dtype=np.uint8)
    draw_label(tile, f"frame {frame}", origin=(8, height - 20))
    return tile
