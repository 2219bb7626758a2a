"""Image messages to frames: every encoding, padded rows, byte orders, and what is refused."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
pytest.importorskip("ostrack_ros.msg", reason="the package's messages are not built")

from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from ostrack_ros.msg import Box2D
from ostrack_ros.nodes.convert import (
    ReceivedImage,
    box_from_message,
    box_to_message,
    decode_compressed,
    duration_message,
    frame_from_image,
    image_message,
    jpeg_message,
    stamp_from_nanoseconds,
    stamp_to_nanoseconds,
)
from ostrack_ros.nodes.distro_bridge import CONVERTED_BY_BRIDGE, find_distro_bridge
from ostrack_ros.nodes.encodings import ENCODINGS, ConversionError
from ostrack_ros.tracking.frame import PixelFormat
from ostrack_ros.tracking.geometry import Box

PLAIN = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8")
WIDTH, HEIGHT = 34, 22


def picture(seed: int = 0) -> NDArray[np.uint8]:
    """A smooth RGB image [H, W, 3]: subsampled colour and mosaics survive on it."""
    random = np.random.default_rng(seed)
    coarse = random.integers(30, 226, (4, 5, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


def message(
    rows: NDArray[Any], encoding: str, padding: int = 0, height: int = HEIGHT, big: bool = False
) -> Image:
    """`rows` [R, W, ...] of samples; each row is followed by `padding` bytes of 0xAA."""
    flat = rows.astype(rows.dtype.newbyteorder(">" if big else "<"))
    row_bytes = np.ascontiguousarray(flat).view(np.uint8).reshape(rows.shape[0], -1)
    padded = np.pad(row_bytes, ((0, 0), (0, padding)), constant_values=0xAA)
    return Image(
        header=Header(stamp=stamp_from_nanoseconds(7), frame_id="camera"),
        height=height,
        width=rows.shape[1],
        encoding=encoding,
        is_bigendian=int(big),
        step=padded.shape[1],
        data=padded.tobytes(),
    )


def encode(rgb: NDArray[np.uint8], encoding: str) -> NDArray[Any]:
    """The rows of samples a camera with this encoding would send for `rgb`, by definition."""
    if encoding.startswith("bayer"):
        order = encoding[6:10]
        depth = 16 if encoding.endswith("16") else 8
        mosaic = np.empty(rgb.shape[:2], np.uint8)
        for at, letter in enumerate(order):
            y, x = divmod(at, 2)
            mosaic[y::2, x::2] = rgb[y::2, x::2, "rgb".index(letter)]
        return mosaic if depth == 8 else mosaic.astype(np.uint16) * 257
    if encoding == "mono16":
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.uint16) * 257
    # BT.601, studio swing, from the standard: Y 16..235, U and V 16..240.
    r, g, b = (rgb[..., channel].astype(float) / 255 for channel in range(3))
    luma = 16 + 65.481 * r + 128.553 * g + 24.966 * b
    u = 128 - 37.797 * r - 74.203 * g + 112.0 * b
    v = 128 + 112.0 * r - 93.786 * g - 18.214 * b
    if encoding in ("nv12", "nv21"):
        pair = (u, v) if encoding == "nv12" else (v, u)
        small = [p.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).mean(axis=(1, 3)) for p in pair]
        chroma = np.stack(small, axis=-1).reshape(HEIGHT // 2, WIDTH)
        return np.rint(np.concatenate([luma, chroma])).astype(np.uint8)
    across = [p.reshape(HEIGHT, WIDTH // 2, 2).mean(axis=2) for p in (u, v)]
    chroma = np.stack(across, axis=-1).reshape(HEIGHT, WIDTH)
    first_luma = encoding in ("yuv422_yuy2", "yuyv")
    samples = (luma, chroma) if first_luma else (chroma, luma)
    return np.rint(np.stack(samples, axis=-1)).astype(np.uint8)


def as_rgb(pixels: NDArray[np.uint8], pixel_format: PixelFormat) -> NDArray[np.uint8]:
    if pixel_format is PixelFormat.MONO:
        return np.repeat(pixels[..., None], 3, axis=2)
    order = {"R": 0, "G": 1, "B": 2}
    return pixels[..., [pixel_format.name.index(letter) for letter in order]]


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", PLAIN)
def test_eight_bit_images_are_views_of_the_message(encoding: str, padding: int) -> None:
    rgb = picture()
    rows = {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "rgba8": np.dstack([rgb, np.full(rgb.shape[:2], 9, np.uint8)]),
        "bgra8": np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], 9, np.uint8)]),
        "mono8": rgb[..., 1],
    }[encoding]
    sent = message(rows, encoding, padding)
    frame = frame_from_image(sent)
    assert np.shares_memory(frame.pixels, np.frombuffer(sent.data, np.uint8))
    assert frame.format.value == encoding
    assert frame.stamp == 7
    np.testing.assert_array_equal(frame.pixels, rows)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(
    "encoding", [name for name in ENCODINGS if name.startswith(("yuv", "u", "y", "nv"))]
)
def test_yuv_gives_back_the_colours(encoding: str, padding: int) -> None:
    rgb = picture(1)
    frame = frame_from_image(message(encode(rgb, encoding), encoding, padding))
    assert frame.format is PixelFormat.RGB
    assert frame.pixels.shape == rgb.shape
    difference = np.abs(frame.pixels.astype(int) - rgb)
    assert np.percentile(difference, 95) < 16, (
        "subsampled colour blurs, swapped channels do not pass"
    )


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name.startswith("bayer")])
def test_bayer_gives_back_the_colours(encoding: str, padding: int, big: bool) -> None:
    rgb = picture(2)
    frame = frame_from_image(message(encode(rgb, encoding), encoding, padding, big=big))
    inner = np.abs(frame.pixels.astype(int) - rgb)[2:-2, 2:-2]
    assert np.percentile(inner, 90) < 14


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("big", [False, True])
def test_mono16_is_scaled_to_its_upper_byte(big: bool, padding: int) -> None:
    samples = np.random.default_rng(3).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    frame = frame_from_image(message(samples, "mono16", padding, big=big))
    assert frame.format is PixelFormat.MONO
    np.testing.assert_allclose(frame.pixels, samples / 257, atol=0.5)


def test_byte_order_matters_for_16_bits_only() -> None:
    rgb = picture()
    sent = message(rgb, "rgb8")
    sent.is_bigendian = 1
    np.testing.assert_array_equal(frame_from_image(sent).pixels, rgb)


def test_padding_may_be_missing_after_the_last_row() -> None:
    sent = message(picture(), "rgb8", padding=6)
    sent.data = sent.data[:-6]
    np.testing.assert_array_equal(frame_from_image(sent).pixels, picture())


@pytest.mark.parametrize("encoding", sorted(CONVERTED_BY_BRIDGE))
@pytest.mark.parametrize("padding", [0, 6])
def test_agrees_with_the_distros_cv_bridge(encoding: str, padding: int) -> None:
    bridge = find_distro_bridge()
    if bridge is None:
        pytest.skip("no ROS distro's cv_bridge is installed here")
    sent = message(encode(picture(4), encoding), encoding, padding)
    ours = ReceivedImage(sent).frame()
    pixels, pixel_format = bridge(sent)
    assert pixel_format is ours.format
    assert np.percentile(np.abs(pixels.astype(int) - ours.pixels), 99) <= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoding": "32FC1"}, "encoding '32FC1' is not supported; this node reads rgb8"),
        ({"encoding": ""}, "encoding ''"),
        ({"width": 0}, "0x22 pixels"),
        ({"height": 0}, "34x0 pixels"),
        ({"step": 10}, "step is 10 bytes, but a row of 34 rgb8 pixels has 102"),
        ({"step": 0}, "step is 0"),
        ({"height": 23}, "needs 2346"),
        ({"height": 2**32 - 1, "width": 2**32 - 1, "step": 2**32 - 1}, "step is"),
        ({"height": 2**32 - 1}, "the buffer holds 2244 bytes"),
        ({"data": b""}, "holds 0 bytes"),
        ({"encoding": "yuv422", "width": 33}, "even sizes"),
        ({"encoding": "nv12", "height": 21}, "even sizes"),
        ({"encoding": "nv21", "step": 34, "height": 60}, "needs 3060"),
    ],
)
def test_what_cannot_be_an_image_is_refused_at_once(change: dict[str, Any], words: str) -> None:
    sent = message(picture(), "rgb8")
    for name, value in change.items():
        setattr(sent, name, value)
    with pytest.raises(ConversionError, match=words):
        ReceivedImage(sent)


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    padding=st.integers(0, 9),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    cut=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_message_gives_a_frame_of_its_size_or_a_reason(
    width: int, height: int, padding: int, encoding: str, cut: int, seed: int
) -> None:
    layout = ENCODINGS[encoding]
    step = width * layout.channels * layout.depth + padding
    size = max(0, step * layout.rows(height) - cut)
    data = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    sent = Image(height=height, width=width, encoding=encoding, step=step, data=data.tobytes())
    try:
        frame = frame_from_image(sent)
    except ConversionError as error:
        reason = str(error)
    else:
        reason = ""
        assert (frame.width, frame.height) == (width, height)
    odd = (layout.even_width and width % 2) or (layout.planar and height % 2)
    assert bool(reason) == bool(odd or cut > padding)


@given(
    width=st.integers(1, 30), height=st.integers(1, 30), seed=st.integers(0, 9), crop=st.booleans()
)
def test_images_survive_the_way_out_and_back(
    width: int, height: int, seed: int, crop: bool
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width + 3, 3), dtype=np.uint8)
    view = pixels[:, 1:-2] if crop else pixels
    sent = image_message(view, "bgr8", Header())
    np.testing.assert_array_equal(frame_from_image(sent).pixels, view)


def test_jpeg_and_png_are_decoded() -> None:
    rgb = picture(5)
    sent = jpeg_message(rgb[..., ::-1], Header(), quality=95)
    pixels, pixel_format = decode_compressed(sent)
    assert np.abs(as_rgb(pixels, pixel_format).astype(int) - rgb).mean() < 6
    deep = rgb[..., 0].astype(np.uint16) * 257
    _, data = cv2.imencode(".png", deep)
    pixels, pixel_format = decode_compressed(CompressedImage(format="png", data=data.tobytes()))
    assert pixel_format is PixelFormat.MONO
    np.testing.assert_allclose(pixels, rgb[..., 0], atol=1)


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "jpeg", "0 bytes"),
        (b"no image at all", "jpeg", "cannot be decoded"),
        (b"1234", "16UC1; compressedDepth png", "depth image"),
    ],
)
def test_what_cannot_be_decoded_is_explained(data: bytes, kind: str, words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        decode_compressed(CompressedImage(format=kind, data=data))


def test_a_stamp_of_zero_is_replaced_and_the_header_kept() -> None:
    sent = message(picture(), "rgb8")
    sent.header.stamp = stamp_from_nanoseconds(0)
    received = ReceivedImage(sent, fallback_stamp=5)
    assert received.stamp == received.frame().stamp == 5
    assert received.header is sent.header
    assert stamp_to_nanoseconds(received.header.stamp) == 0


@given(st.integers(-(2**31) * 10**9, 2**31 * 10**9 - 1))
def test_stamps_are_exact(nanoseconds: int) -> None:
    assert stamp_to_nanoseconds(stamp_from_nanoseconds(nanoseconds)) == nanoseconds


@given(st.integers(-(10**20), 10**20))
def test_durations_never_overflow(nanoseconds: int) -> None:
    duration = duration_message(nanoseconds)
    if abs(nanoseconds) < 2**31 * 10**9:
        assert duration.sec * 10**9 + duration.nanosec == nanoseconds


@given(*[st.floats(-1e4, 1e4) for _ in range(2)], *[st.floats(0.01, 1e4) for _ in range(2)])
def test_boxes_survive_the_way_out_and_back(
    x: float, y: float, width: float, height: float
) -> None:
    box = Box(x, y, width, height)
    assert np.allclose(list(box_from_message(box_to_message(box))), list(box))


def test_whole_numbers_arrive_as_such() -> None:
    """rclpy would store the int 4 in a float field as 2e-323."""
    sent = box_to_message(Box(1, 2, 4, 6))
    assert all(
        type(value) is float for value in (sent.center_x, sent.center_y, sent.size_x, sent.size_y)
    )


def test_no_box_is_nan_everywhere() -> None:
    sent = box_to_message(None)
    assert all(
        math.isnan(value) for value in (sent.center_x, sent.center_y, sent.size_x, sent.size_y)
    )
    assert not box_from_message(Box2D(center_x=math.nan)).is_valid


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prefix with a module cv_bridge that would convert everything to zeros."""
    packages = tmp_path / "prefix/lib/python3/site-packages"
    (packages / "cv_bridge").mkdir(parents=True)
    (packages / "cv_bridge/__init__.py").write_text(
        "import numpy as np\n"
        "class CvBridge:\n"
        "    def imgmsg_to_cv2(self, image, desired_encoding):\n"
        "        if desired_encoding != 'mono8':\n"
        "            raise RuntimeError('no way')\n"
        "        return np.zeros((image.height, image.width), np.uint8)\n"
    )
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.delitem(sys.modules, "cv_bridge", raising=False)
    importlib.invalidate_caches()
    yield tmp_path / "prefix"
    sys.modules.pop("cv_bridge", None)


def test_a_cv_bridge_from_pypi_is_never_used(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(wheel))
    assert find_distro_bridge() is None


def test_the_distros_cv_bridge_is_used(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = wheel / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    (index / "cv_bridge").touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{wheel}")
    bridge = find_distro_bridge()
    assert bridge is not None
    samples = np.full((HEIGHT, WIDTH), 40000, np.uint16)
    assert not ReceivedImage(message(samples, "mono16"), bridge=bridge).frame().pixels.any()
    with pytest.raises(ConversionError, match="cv_bridge cannot convert bayer_rggb8: no way"):
        ReceivedImage(message(samples.astype(np.uint8), "bayer_rggb8"), bridge=bridge).frame()
    # What cv_bridge does not know goes the own way, as does what needs no conversion.
    chroma = encode(picture(), "nv12")
    assert ReceivedImage(message(chroma, "nv12"), bridge=bridge).frame().pixels.any()
