"""Crops are bit-exact with OSTrack's sample_target, whatever the box, the layout and the format."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ostrack_ros.tracking import crop as crop_module
from ostrack_ros.tracking.crop import MAX_SIDE, CropError, crop_region, crop_side
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box, BoxError
from ostrack_ros.tracking.resample import matches_opencv, shrink_on_black

NOISE = np.random.default_rng(0).integers(0, 256, (600, 800, 4), dtype=np.uint8)


def reference(rgb: NDArray[np.uint8], box: Box, factor: float, size: int) -> NDArray[np.uint8]:
    """The plain way: cut what is inside, pad all of it with black, resize."""
    height, width = rgb.shape[:2]
    side = math.ceil(math.sqrt(box.width * box.height) * factor)
    x1 = round(box.x + 0.5 * box.width - side * 0.5)
    y1 = round(box.y + 0.5 * box.height - side * 0.5)
    x2, y2 = x1 + side, y1 + side
    pad_left, pad_top = max(0, -x1), max(0, -y1)
    pad_right, pad_bottom = max(0, x2 - width + 1), max(0, y2 - height + 1)
    inside = rgb[y1 + pad_top : y2 - pad_bottom, x1 + pad_left : x2 - pad_right]
    padded = cv2.copyMakeBorder(
        inside, pad_top, pad_bottom, pad_left, pad_right, cv2.BORDER_CONSTANT, value=0
    )
    assert padded.shape[:2] == (side, side)
    if side == 1:  # OpenCV 4.5.4 cannot enlarge these.
        return np.repeat(np.repeat(padded, size, axis=0), size, axis=1)
    return cv2.resize(padded, (size, size))


def image(width: int, height: int, pixel_format: PixelFormat) -> NDArray[np.uint8]:
    channels = NOISE[:height, :width, : pixel_format.channels]
    return channels[..., 0] if pixel_format is PixelFormat.MONO else channels


def to_rgb(pixels: NDArray[np.uint8], pixel_format: PixelFormat) -> NDArray[np.uint8]:
    """Channel order by indexing, so that it does not share code with the crop."""
    if pixel_format is PixelFormat.MONO:
        return np.repeat(pixels[..., None], 3, axis=2)
    order = [2, 1, 0] if pixel_format in (PixelFormat.BGR, PixelFormat.BGRA) else [0, 1, 2]
    return np.ascontiguousarray(pixels[..., order])


def hits(width: int, height: int, box: Box, factor: float) -> bool:
    side = math.ceil(math.sqrt(box.width * box.height) * factor)
    x1 = round(box.x + 0.5 * box.width - side * 0.5)
    y1 = round(box.y + 0.5 * box.height - side * 0.5)
    columns = set(range(max(0, x1), min(x1 + side, width - 1)))
    rows = set(range(max(0, y1), min(y1 + side, height - 1)))
    return bool(columns and rows)


lengths = st.one_of(st.integers(1, 40), st.integers(1, 800))
places = st.one_of(
    st.integers(-300, 900).map(float),
    st.integers(-600, 1800).map(lambda v: v / 2),
    st.floats(-900, 1500),
)
sides = st.one_of(st.integers(1, 90).map(float), st.floats(0.05, 60.0), st.floats(60.0, 900.0))


@settings(max_examples=400, deadline=None)
@given(
    width=lengths,
    height=lengths.map(lambda v: min(v, 600)),
    box=st.builds(Box, places, places, sides, sides),
    case=st.sampled_from([(2.0, 32), (4.0, 64), (2.0, 128), (4.0, 256), (5.0, 384), (3.3, 17)]),
    pixel_format=st.sampled_from(PixelFormat),
    layout=st.sampled_from(["packed", "view", "padded rows", "every other", "flipped"]),
)
def test_equals_reference(
    width: int,
    height: int,
    box: Box,
    case: tuple[float, int],
    pixel_format: PixelFormat,
    layout: str,
) -> None:
    factor, size = case
    pixels = image(width, height, pixel_format)
    if layout == "packed":
        pixels = np.ascontiguousarray(pixels)
    elif layout == "padded rows":
        row = width * pixel_format.channels
        buffer = np.zeros((height, row + 13), np.uint8)
        buffer[:, :row] = pixels.reshape(height, row)
        pixels = buffer[:, :row].reshape(pixels.shape)
    elif layout == "every other" and width > 1:
        pixels = pixels[:, ::2]
    elif layout == "flipped":
        pixels = pixels[::-1, ::-1]
    before = pixels.copy()
    frame = Frame(pixels, pixel_format, 0)
    if not hits(frame.width, frame.height, box, factor):
        with pytest.raises(CropError, match=f"{frame.width}x{frame.height}"):
            crop_region(frame, box, factor, size)
        return
    crop = crop_region(frame, box, factor, size)
    assert crop.pixels.shape == (size, size, 3)
    assert crop.pixels.dtype == np.uint8
    assert crop.pixels.flags.c_contiguous
    assert crop.side == math.ceil(math.sqrt(box.width * box.height) * factor)
    assert crop.scale == size / crop.side
    np.testing.assert_array_equal(
        crop.pixels, reference(to_rgb(pixels, pixel_format), box, factor, size)
    )
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("pixel_format", PixelFormat)
@pytest.mark.parametrize(
    "box",
    [
        Box(-400, -300, 1600, 1200),
        Box(0, 0, 800, 600),
        Box(300.5, 100.25, 900.0, 700.5),
        Box(-900, 200, 1000, 333),
        Box(790, 590, 500, 500),
    ],
    ids=str,
)
@pytest.mark.parametrize("known_opencv", [True, False])
def test_equals_reference_for_huge_boxes(
    pixel_format: PixelFormat, box: Box, known_opencv: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known_opencv:
        monkeypatch.setattr(crop_module, "matches_opencv", lambda: False)
    pixels = image(800, 600, pixel_format)
    crop = crop_region(Frame(pixels, pixel_format, 0), box, 4.0, 256)
    np.testing.assert_array_equal(
        crop.pixels, reference(to_rgb(pixels, pixel_format), box, 4.0, 256)
    )


@pytest.mark.parametrize("factor", [2.0, 4.0, 5.0])
def test_equals_reference_when_shrinking_by_two(factor: float) -> None:
    """OpenCV averages areas at exactly half size; the crop must take the same way."""
    side = 256 / factor
    for x in (100.0, -20.0, 760.0):
        box = Box(x, 200.0, side, side)
        crop = crop_region(Frame(NOISE, PixelFormat.BGRA, 0), box, factor, 128)
        expected = reference(to_rgb(NOISE, PixelFormat.BGRA), box, factor, 128)
        np.testing.assert_array_equal(crop.pixels, expected)


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    side=st.integers(70, 1400),
    left=st.integers(0, 1399),
    top=st.integers(0, 1399),
    size=st.sampled_from([8, 32, 64]),
    channels=st.sampled_from([(), (3,), (4,)]),
)
def test_shrinking_on_black_equals_resizing_the_square(
    width: int, height: int, side: int, left: int, top: int, size: int, channels: tuple[int, ...]
) -> None:
    assert matches_opencv(), "this OpenCV computes otherwise: crops fall back to a canvas"
    left, top = left % side, top % side
    pixels = NOISE[: min(height, side - top), : min(width, side - left)]
    pixels = pixels[..., : channels[0]] if channels else pixels[..., 0]
    square = np.zeros((side, side, *channels), np.uint8)
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    np.testing.assert_array_equal(
        shrink_on_black(pixels, left, top, side, size), cv2.resize(square, (size, size))
    )


def test_touching_the_edge_blacks_the_last_column_and_row() -> None:
    white = Frame(np.full((100, 100), 255, np.uint8), PixelFormat.MONO, 0)
    touching = crop_region(white, Box(80, 80, 20, 20), 1.0, 20).pixels
    assert touching[:-1, :-1].min() == 255
    assert touching[-1].max() == 0
    assert touching[:, -1].max() == 0
    assert crop_region(white, Box(79, 79, 20, 20), 1.0, 20).pixels.min() == 255


def test_corner_rounds_half_to_even() -> None:
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8), (100, 100))
    frame = Frame(np.ascontiguousarray(ramp), PixelFormat.MONO, 0)
    assert crop_region(frame, Box(10.5, 10, 10, 10), 1.0, 10).pixels[0, 0, 0] == 10
    assert crop_region(frame, Box(11.5, 10, 10, 10), 1.0, 10).pixels[0, 0, 0] == 12


@pytest.mark.parametrize(
    "box",
    [
        Box(0, 0, 0, 5),
        Box(0, 0, 5, -1),
        Box(math.nan, 0, 5, 5),
        Box(0, math.inf, 5, 5),
        Box(1.7e308, 0, 1.7e308, 5),
    ],
)
def test_refuses_what_is_no_box(box: Box) -> None:
    with pytest.raises(BoxError, match="is not a box"):
        crop_side(box, 4.0)


def test_refuses_a_vanishing_box() -> None:
    with pytest.raises(CropError, match="too small"):
        crop_side(Box(0, 0, 1e-200, 1e-200), 4.0)


@pytest.mark.parametrize("side", [MAX_SIDE, 1e150, 1e200])
def test_refuses_a_giant_crop(side: float) -> None:
    frame = Frame(NOISE, PixelFormat.RGBA, 0)
    with pytest.raises(CropError, match=f"limit is {MAX_SIDE}"):
        crop_region(frame, Box(-side / 2, -side / 2, side, side), 4.0, 256)


def test_largest_crop_is_affordable() -> None:
    """A crop of MAX_SIDE has pages that nobody touches: it fits where its size in bytes may not."""
    frame = Frame(NOISE[..., :3], PixelFormat.RGB, 0)
    side = MAX_SIDE / 4.0
    crop = crop_region(frame, Box(-side / 2, -side / 2, side, side), 4.0, 256)
    assert crop.side == MAX_SIDE


@pytest.mark.parametrize("pixel_format", PixelFormat)
def test_a_crop_of_one_pixel_needs_no_opencv(
    monkeypatch: pytest.MonkeyPatch, pixel_format: PixelFormat
) -> None:
    """OpenCV 4.5.4, which Ubuntu 22.04 has, raises for a colour picture of 1 x 1."""

    def resize(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a picture of 1 x 1 reached OpenCV")

    monkeypatch.setattr(crop_module.cv2, "resize", resize)
    pixels = image(2, 2, pixel_format)
    crop = crop_region(Frame(pixels, pixel_format, 0), Box(0.0, 0.0, 1.0, 0.05), 2.0, 32)
    assert np.array_equal(crop.pixels, np.tile(to_rgb(pixels, pixel_format)[:1, :1], (32, 32, 1)))
