"""Where frames come from: a video file, a folder of images, or a camera."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
DEFAULT_RATE = 30.0
_NANOSECONDS = 1_000_000_000


class SourceError(ValueError):
    """A source cannot be opened or read. The message says which one and what to do."""


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """One frame: 0-based `index`, `stamp` in nanoseconds, `pixels` uint8 [H, W, 3] BGR.

    Stamps of files count from their first frame; those of cameras are the host's wall clock at
    the moment the frame was handed over.
    """

    index: int
    stamp: int
    pixels: NDArray[np.uint8]


class FrameSource(Protocol):
    """Frames in order. Iterating again starts from the beginning (a camera: opens it again)."""

    @property
    def name(self) -> str:
        """What a person would call it."""

    @property
    def rate(self) -> float:
        """Nominal frames per second."""

    @property
    def frame_count(self) -> int | None:
        """Number of frames where it is known beforehand; containers may be off by a few."""

    @property
    def live(self) -> bool:
        """Whether frames arrive at their own pace (a camera) instead of on demand (a file)."""

    def __iter__(self) -> Iterator[SourceFrame]:
        """Yield the frames. Raises SourceError when one cannot be read."""


class ImageFolder:
    """The images of a folder in natural order (img2 before img10), stamped at a fixed rate."""

    live = False

    def __init__(self, folder: Path, rate: float = DEFAULT_RATE) -> None:
        self._paths = image_paths(folder)
        if not self._paths:
            kinds = " ".join(sorted(IMAGE_SUFFIXES))
            raise SourceError(f"{folder} holds no images ({kinds})")
        self.name = str(folder)
        self.rate = rate
        self.frame_count: int | None = len(self._paths)

    def __iter__(self) -> Iterator[SourceFrame]:
        for index, path in enumerate(self._paths):
            yield SourceFrame(index, _nominal_stamp(index, self.rate), read_image(path))


class VideoFile:
    """A video file, stamped by its own time base where the container has one."""

    live = False

    def __init__(self, path: Path, rate: float | None = None) -> None:
        capture = self._open(path)
        try:
            own_rate = _property(capture, cv2.CAP_PROP_FPS)
            count = _property(capture, cv2.CAP_PROP_FRAME_COUNT)
        finally:
            capture.release()
        self._path = path
        self._keep_time_base = rate is None and own_rate is not None
        self.name = str(path)
        self.rate = rate or own_rate or DEFAULT_RATE
        self.frame_count: int | None = int(count) if count else None

    def __iter__(self) -> Iterator[SourceFrame]:
        capture = self._open(self._path)
        try:
            index, last = 0, -1
            while True:
                read, pixels = capture.read()
                if not read:
                    break
                stamp = _nominal_stamp(index, self.rate)
                if self._keep_time_base:
                    position = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                    # Some containers report 0 or run backwards after an edit list.
                    stamp = position if position > last else max(stamp, last + 1)
                last = stamp
                yield SourceFrame(index, stamp, _as_bgr(pixels))
                index += 1
            if index == 0:
                raise SourceError(f"{self._path} opens, but no frame of it can be decoded")
        finally:
            capture.release()

    @staticmethod
    def _open(path: Path) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(path))
        if not capture.isOpened():
            raise SourceError(
                f"{path} cannot be opened as a video; OpenCV lacks its codec or the file is "
                "damaged (try `ffmpeg -i FILE -c:v libx264 out.mp4`)"
            )
        return capture


class Camera:
    """A camera index, a device path, or a network stream that OpenCV can open."""

    live = True
    frame_count: int | None = None

    def __init__(
        self, device: int | str, rate: float | None = None, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._device = device
        self._requested_rate = rate
        self._clock = clock
        self.name = f"camera {device}"
        self.rate = rate or DEFAULT_RATE

    def __iter__(self) -> Iterator[SourceFrame]:
        capture = cv2.VideoCapture(self._device)
        try:
            if not capture.isOpened():
                raise SourceError(
                    f"{self.name} cannot be opened; check that it is connected, that no other "
                    "program uses it and that you may read it (group `video`)"
                )
            if self._requested_rate is not None:
                capture.set(cv2.CAP_PROP_FPS, self._requested_rate)
            # Only the newest frame matters; drivers that ignore this keep their own queue.
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            index = 0
            while True:
                read, pixels = capture.read()
                if not read:
                    raise SourceError(f"{self.name} stopped delivering after {index} frames")
                yield SourceFrame(index, self._clock(), _as_bgr(pixels))
                index += 1
        finally:
            capture.release()


def open_source(source: str | Path, rate: float | None = None) -> FrameSource:
    """Open a video file, a folder of images or a camera.

    A camera is a number ("0"), a device ("/dev/video0") or a stream URL ("rtsp://..."). `rate`
    (frames per second) replaces the file's own; a folder without it plays at 30.

    Raises SourceError when there is no such source or it cannot be decoded.
    """
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise SourceError(f"rate is {rate}, expected a positive number of frames per second")
    text = str(source)
    if text.isdigit():
        return Camera(int(text), rate)
    if "://" in text or text.startswith("/dev/"):
        return Camera(text, rate)
    path = Path(source).expanduser()
    if path.is_dir():
        return ImageFolder(path, rate or DEFAULT_RATE)
    if path.is_file():
        return VideoFile(path, rate)
    raise SourceError(
        f"{text!r} is neither a video file, a folder of images nor a camera (0, /dev/video0, "
        "rtsp://...)"
    )


def image_paths(folder: Path) -> tuple[Path, ...]:
    """The image files directly in `folder`, in natural order."""
    paths = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return tuple(sorted(paths, key=natural_key))


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as uint8 [H, W, 3] BGR. Raises SourceError when it cannot be decoded."""
    # imdecode and not imread: imread prints its own warning and fails on non-ASCII paths.
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if pixels is None:
        raise SourceError(f"{path} is not an image that OpenCV can decode ({data.size} bytes)")
    return _as_bgr(pixels)


def natural_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which 9.jpg comes before 10.jpg."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for character in path.name + "\0":
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((0, int(digits), digits))
            digits = ""
        parts.append((1, 0, character))
    return tuple(parts)


def _nominal_stamp(index: int, rate: float) -> int:
    return round(index * _NANOSECONDS / rate)


def _property(capture: cv2.VideoCapture, which: int) -> float | None:
    value = float(capture.get(which))
    return value if math.isfinite(value) and value > 0 else None


def _as_bgr(pixels: object) -> NDArray[np.uint8]:
    array = np.asarray(pixels, dtype=np.uint8)
    return cv2.cvtColor(array, cv2.COLOR_GRAY2BGR).astype(np.uint8) if array.ndim == 2 else array
