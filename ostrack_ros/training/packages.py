"""Fetch Debian, PyPI and npm packages with their ordinary clients, and read them as archives.

Nothing from a package is installed or run: wheels only (an sdist would run its set-up script), npm
without scripts, Debian packages unpacked as a stream. The clients check what arrives against their
registry's signatures or digests.
"""

from __future__ import annotations

import email
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO

MAX_MEMBER_BYTES = 256 << 20
CLIENT_SECONDS = 1800
ARCHIVES = {".deb", ".whl", ".tgz"}


class PackageError(RuntimeError):
    """A package could not be fetched or is not what was asked for. Says what to do."""


class Registry(str, Enum):
    DEBIAN = "Debian"
    PYPI = "PyPI"
    NPM = "npm"


@dataclass(frozen=True, slots=True)
class Package:
    """A package by name; `version` None takes what the registry offers."""

    registry: Registry
    name: str
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.registry.value} {self.name}" + (f" {self.version}" if self.version else "")


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of an archive: its path inside, and its bytes."""

    path: str
    data: bytes


Fetch = Callable[[Package, Path], Path]
"""Brings a package's archive into a folder, as `download` does."""


def download(package: Package, folder: Path) -> Path:
    """Fetch `package` into `folder` with its registry's client; returns the archive.

    Raises PackageError when the client is missing or fails, or brings another package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = _command(package)
    if shutil.which(command[0]) is None:
        raise PackageError(
            f"{package} needs the command {command[0]}, which is not installed: install it, "
            "or leave this source out with --skip"
        )
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        try:
            subprocess.run(
                command,
                cwd=temporary,
                check=True,
                capture_output=True,
                text=True,
                timeout=CLIENT_SECONDS,
            )
        except subprocess.CalledProcessError as error:
            lines = (error.stderr or error.stdout or "").strip().splitlines() or ["no message"]
            raise PackageError(f"{command[0]} could not fetch {package}: {lines[-1]}") from error
        except subprocess.TimeoutExpired as error:
            raise PackageError(
                f"{command[0]} was still fetching {package} after {CLIENT_SECONDS} s: try again"
            ) from error
        arrived = [path for path in Path(temporary).iterdir() if path.suffix in ARCHIVES]
        if len(arrived) != 1:
            raise PackageError(f"{command[0]} left {len(arrived)} archives for {package}, not one")
        name, _ = identity(arrived[0])
        if _normal(name) != _normal(package.name):
            raise PackageError(f"asked for {package}, but {arrived[0].name} holds {name}")
        return arrived[0].replace(folder / arrived[0].name)


def _command(package: Package) -> list[str]:
    if package.registry is Registry.DEBIAN:
        version = f"={package.version}" if package.version else ""
        return ["apt-get", "download", "--quiet", package.name + version]
    if package.registry is Registry.PYPI:
        version = f"=={package.version}" if package.version else ""
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        return [*pip, "--only-binary=:all:", package.name + version]
    version = f"@{package.version}" if package.version else ""
    return ["npm", "pack", "--ignore-scripts", "--silent", package.name + version]


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def identity(archive: Path) -> tuple[str, str]:
    """Name and version that the archive itself states. Raises PackageError for a foreign one."""
    try:
        if archive.suffix == ".deb":
            fields = [
                subprocess.run(
                    ["dpkg-deb", "--field", str(archive), field],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.strip()
                for field in ("Package", "Version")
            ]
            return fields[0], fields[1]
        if archive.suffix == ".whl":
            metadata = next(members(archive, lambda path: path.endswith(".dist-info/METADATA")))
            message = email.message_from_bytes(metadata.data)
            return str(message["Name"]), str(message["Version"])
        manifest = next(members(archive, lambda path: path == "package/package.json"))
        fields_by_name = json.loads(manifest.data)
        return str(fields_by_name["name"]), str(fields_by_name["version"])
    except (StopIteration, KeyError, ValueError, OSError, subprocess.CalledProcessError) as error:
        raise PackageError(f"{archive} is no readable package: {error}") from error


def members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The regular files of an archive whose path is `wanted`, without unpacking it to disk.

    Links, devices and files above 256 MB are left out. Raises PackageError for a broken archive.
    """
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                yield from zip_members(wheel, wanted)
        elif archive.suffix == ".deb":
            with (
                _unpacked_stream(archive) as stream,
                tarfile.open(fileobj=stream, mode="r|") as tar,
            ):
                yield from _tar_members(tar, wanted)
        else:
            with tarfile.open(archive, "r:gz") as tar:
                yield from _tar_members(tar, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise PackageError(f"{archive} is damaged ({error}): delete it and start again") from error


def zip_members(archive: zipfile.ZipFile, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """As `members`, of an open ZIP file."""
    for info in archive.infolist():
        if not info.is_dir() and info.file_size <= MAX_MEMBER_BYTES and wanted(info.filename):
            yield Member(info.filename, archive.read(info))


def _tar_members(archive: tarfile.TarFile, wanted: Callable[[str], bool]) -> Iterator[Member]:
    for info in archive:
        path = info.name.removeprefix("./")
        if info.isfile() and info.size <= MAX_MEMBER_BYTES and wanted(path):
            file = archive.extractfile(info)
            if file is not None:
                yield Member(path, file.read())


@contextmanager
def _unpacked_stream(archive: Path) -> Iterator[IO[bytes]]:
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()


def nested_members(member: Member) -> Iterator[Member]:
    """What a member holds: the files of a ZIP, the pictures in a Qt resource file, or itself.

    Qt resource files (.rcc) keep each uncompressed file behind its 32-bit length, so pictures are
    found by their signature.
    """
    if zipfile.is_zipfile(io.BytesIO(member.data)):
        with zipfile.ZipFile(io.BytesIO(member.data)) as inner:
            for item in zip_members(inner, lambda path: True):
                yield Member(f"{member.path}/{item.path}", item.data)
    elif member.path.endswith(".rcc"):
        yield from _carved(member)
    else:
        yield member


def _carved(member: Member) -> Iterator[Member]:
    signatures = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"RIFF": "webp"}
    for signature, suffix in signatures.items():
        start = member.data.find(signature, 4)
        while start >= 0:
            length = int.from_bytes(member.data[start - 4 : start], "big")
            if 64 <= length <= len(member.data) - start:
                yield Member(
                    f"{member.path}/{start:08x}.{suffix}", member.data[start : start + length]
                )
                start += length - 1
            start = member.data.find(signature, start + 1)
