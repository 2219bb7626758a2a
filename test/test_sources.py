"""Frames come out in order, with stamps, or with an error that helps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ostrack_ros.sources import Camera, ImageFolder, SourceError, VideoFile, open_source, read_image


def grey(value: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in (10, 2, 1):
        cv2.imwrite(str(tmp_path / f"frame{index}.png"), grey(index))
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (64, 48))
    assert writer.isOpened()
    for index in range(8):
        writer.write(grey(index * 30))
    writer.release()
    return path


def test_folder_is_read_in_natural_order_with_nominal_stamps(folder: Path) -> None:
    source = open_source(folder, rate=20.0)
    frames = list(source)
    assert [int(f.pixels[0, 0, 0]) for f in frames] == [1, 2, 10]
    assert [f.stamp for f in frames] == [0, 50_000_000, 100_000_000]
    assert [f.index for f in frames] == [0, 1, 2]
    assert source.frame_count == 3


def test_video_yields_every_frame_with_increasing_stamps(video: Path) -> None:
    source = open_source(str(video))
    assert isinstance(source, VideoFile)
    assert source.rate == pytest.approx(20.0)
    assert source.frame_count == 8
    frames = list(source)
    assert [f.index for f in frames] == list(range(8))
    stamps = np.array([f.stamp for f in frames])
    np.testing.assert_allclose(np.diff(stamps), 50e6, atol=1e6)
    assert abs(int(frames[5].pixels[0, 0, 0]) - 150) < 8


def test_video_can_be_iterated_again(video: Path) -> None:
    source = open_source(video)
    assert len(list(source)) == len(list(source)) == 8


def test_given_rate_replaces_the_videos_own(video: Path) -> None:
    stamps = [f.stamp for f in open_source(video, rate=10.0)]
    assert stamps == [i * 100_000_000 for i in range(8)]


def test_numbers_devices_and_urls_are_cameras() -> None:
    for text in ("0", "/dev/video7", "rtsp://127.0.0.1/stream"):
        source = open_source(text)
        assert isinstance(source, Camera)
        assert source.live
        assert source.frame_count is None


def test_camera_reports_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoFrames:
        left = 2

        def isOpened(self) -> bool:
            return True

        def set(self, *_: object) -> bool:
            return True

        def read(self) -> tuple[bool, np.ndarray | None]:
            self.left -= 1
            return (True, grey(7)) if self.left >= 0 else (False, None)

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: TwoFrames())
    ticks = iter((100, 200, 300))
    frames = iter(Camera(0, clock=lambda: next(ticks)))
    assert [next(frames).stamp, next(frames).stamp] == [100, 200]
    with pytest.raises(SourceError, match="stopped delivering after 2 frames"):
        next(frames)


def test_missing_camera_says_what_to_check() -> None:
    with pytest.raises(SourceError, match="cannot be opened"):
        next(iter(Camera("/dev/video_does_not_exist")))


def test_errors_name_the_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        open_source(tmp_path / "nowhere.mp4")
    with pytest.raises(SourceError, match="no images"):
        open_source(tmp_path)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\x00" * 400)
    with pytest.raises(SourceError, match="broken"):
        open_source(broken)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rate_must_be_positive(folder: Path, rate: float) -> None:
    with pytest.raises(SourceError, match="rate"):
        open_source(folder, rate=rate)


def test_undecodable_image_is_named(tmp_path: Path) -> None:
    for name, data in (("empty.jpg", b""), ("junk.jpg", b"junk")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match=name):
            read_image(tmp_path / name)


def test_grey_images_become_bgr(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((5, 6), 9, np.uint8))
    (frame,) = ImageFolder(tmp_path)
    assert frame.pixels.shape == (5, 6, 3)
