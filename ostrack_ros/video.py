"""Write videos that appear whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}


class VideoError(ValueError):
    """A video cannot be written. The message says which and why."""


class VideoWriter:
    """A context manager that takes BGR frames of one size; the file appears when it ends well."""

    def __init__(self, path: Path, rate: float) -> None:
        if path.suffix.lower() not in _CODECS:
            raise VideoError(f"{path}: expected a name ending in {', '.join(_CODECS)}")
        self._path = path
        self._temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
        self._rate = rate
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        # Ctrl-C is how watching a camera ends; what was filmed so far is a whole video.
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)

    def write(self, image: NDArray[np.uint8]) -> None:
        """Append an image, uint8 [H, W, 3] BGR. Raises VideoError when its size changed."""
        size = (image.shape[1], image.shape[0])
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            codec = cv2.VideoWriter.fourcc(*_CODECS[self._path.suffix.lower()])
            self._writer = cv2.VideoWriter(str(self._temporary), codec, self._rate, size)
            self._size = size
            if not self._writer.isOpened():
                self._writer = None
                raise VideoError(f"OpenCV cannot write {self._path}; try a name ending in .avi")
        if size != self._size:
            raise VideoError(
                f"{self._path}: the frames changed from {self._size[0]}x{self._size[1]} to "
                f"{size[0]}x{size[1]}, which one video cannot hold"
            )
        self._writer.write(image)
