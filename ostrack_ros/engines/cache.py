"""Built engines on disk: found again by what they were built from, healed when damaged.

A TensorRT plan is machine code and TensorRT trusts it, so this cache trusts nothing: an entry is
handed out only if it lies in a safe folder, is whole, and was built for exactly this key. Anything
else is logged and counts as absent; the caller builds anew.

Entry format: `MAGIC`, header length (u32), plan length (u64), SHA-256 of header and plan, the
header as JSON, the plan. All integers are little-endian.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ostrack_ros.engines.base import EngineError

log = logging.getLogger(__name__)

FORMAT = 2
MAGIC = b"OSTRKENG"
DEFAULT_LIMIT = 2 << 30
DIRECTORY_VARIABLE = "OSTRACK_CACHE_DIR"

_PREFIX = struct.Struct("<8sIQ32s")
_MAX_HEADER = 1 << 20
_LOCK = ".lock"
_TIMES = "build-times.json"
_TEMPORARY = ".tmp"
_POLL_SECONDS = 0.25
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


Plan: TypeAlias = bytes | memoryview
"""A serialised engine; hundreds of megabytes, so it is not copied without need."""


class CacheError(EngineError):
    """The cache folder cannot be used."""


class InsecureCacheError(CacheError):
    """Somebody else could plant an engine in the cache folder."""


class BuildCancelled(EngineError):
    """A build, or waiting for another one, was stopped on request; nothing was written."""


class _Unusable(Exception):
    """An entry cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine depends on; two equal keys mean interchangeable engines.

    `runtime` is TensorRT's name and version, `gpu` the device's name and size, and
    `compute_capability` its SM number (`SM87`).
    """

    onnx_sha256: str
    runtime: str
    gpu: str
    compute_capability: str
    precision: str
    format: int = FORMAT

    @property
    def digest(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What the header of an entry says.

    `self_test` has the figures of the parity self-test the engine passed, None if it was not run.
    """

    key: EngineKey
    model: str
    created: str
    build_seconds: float
    self_test: dict[str, Any] | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EngineRecord:
        """Raises ValueError, TypeError or KeyError when `text` is no such record."""
        values = json.loads(text)
        values["key"] = EngineKey(**values["key"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An entry that was read and found whole; `plan` is a view of the file's content."""

    path: Path
    record: EngineRecord
    plan: memoryview


def default_directory() -> Path:
    """$OSTRACK_CACHE_DIR, else ostrack_ros/engines under the user's XDG cache folder."""
    if chosen := os.environ.get(DIRECTORY_VARIABLE):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification says to ignore relative ones
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise CacheError(
                f"there is no home folder to keep engines in ({error}); set {DIRECTORY_VARIABLE} "
                "or the parameter for the cache folder"
            ) from error
    return base / "ostrack_ros" / "engines"


class EngineCache:
    """A folder of built engines, at most `limit_bytes` of them, the least recently used go first.

    Several processes may share it. Loading needs no lock: entries appear whole or not at all.
    Building and storing happens inside `lock`.
    """

    def __init__(self, directory: Path | None = None, limit_bytes: int = DEFAULT_LIMIT) -> None:
        if limit_bytes <= 0:
            raise CacheError(f"the cache limit is {limit_bytes} bytes, expected a positive number")
        self.directory = (directory or default_directory()).absolute()
        self.limit_bytes = limit_bytes

    def prepare(self) -> None:
        """Make the folder where it is missing, and check that only its user can write there.

        Raises CacheError when it cannot be made, InsecureCacheError when others could write.
        """
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.directory.mkdir(mode=0o700)
            if not self.directory.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            _check_secure(self.directory)
        except OSError as error:
            raise self._unusable(error) from error

    def path(self, key: EngineKey, model: str) -> Path:
        """Where the engine of `key` lies or would lie; `model` only makes the name readable."""
        readable = re.sub(r"[^A-Za-z0-9_.-]", "_", model)[:60]
        return self.directory / f"{readable}-{key.precision}-{key.digest[:24]}.engine"

    def load(self, key: EngineKey, model: str) -> StoredEngine | None:
        """The engine of `key`, or None where it has to be built; why is logged.

        Raises CacheError as `prepare` does.
        """
        self.prepare()
        path = self.path(key, model)
        try:
            stored = _read(path, key)
        except FileNotFoundError:
            log.info("no engine for %s: %s", model, self._explain_absence(key))
            return None
        except (_Unusable, OSError) as error:
            log.warning("the engine file %s is not usable (%s); it will be built anew", path, error)
            self.discard(key, model)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # marks it as recently used
        return stored

    def store(self, record: EngineRecord, plan: Plan) -> Path:
        """Write an engine in one step and make room for it. Call it inside `lock`.

        Raises OSError when the disk is full or not writable; nothing is left behind then.
        """
        self.prepare()
        path = self.path(record.key, record.model)
        header = record.to_json().encode()
        digest = hashlib.sha256(header)
        digest.update(plan)
        prefix = _PREFIX.pack(MAGIC, len(header), len(plan), digest.digest())
        _write(path, prefix, header, plan)
        self._forget_refusal(record.key)
        self._evict(keep=path)
        return path

    def discard(self, key: EngineKey, model: str) -> None:
        """Remove the entry of `key`, if there is one."""
        with contextlib.suppress(OSError):
            self.path(key, model).unlink(missing_ok=True)

    def refuse(self, key: EngineKey, reason: str, test_version: int) -> None:
        """Remember that engines of `key` fail the self-test, so that nobody builds them again."""
        note = {"reason": reason, "test_version": test_version}
        _write(self._refusal(key), json.dumps(note).encode())

    def refusal(self, key: EngineKey, test_version: int) -> str | None:
        """Why engines of `key` were refused by this version of the self-test, or None."""
        try:
            note = json.loads(_read_secure(self._refusal(key)))
            return str(note["reason"]) if note["test_version"] == test_version else None
        except (OSError, _Unusable, ValueError, KeyError, TypeError):
            return None

    def expected_seconds(self, key: EngineKey) -> float | None:
        """How long the last build of this model on this GPU took, whatever TensorRT's version."""
        seconds = self._times().get(_time_label(key))
        return float(seconds) if isinstance(seconds, (int, float)) else None

    def record_seconds(self, key: EngineKey, seconds: float) -> None:
        """Remember a build time for `expected_seconds`. Call it inside `lock`."""
        times = {**self._times(), _time_label(key): round(seconds, 1)}
        _write(self.directory / _TIMES, json.dumps(times, indent=1).encode())

    @contextlib.contextmanager
    def lock(
        self,
        waiting: Callable[[float, str], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[bool]:
        """Be the only one, of all processes, that builds into this folder.

        One lock for all models: two builds at once on one GPU would spoil each other's timing.
        Yields whether there was somebody to wait for; `waiting(seconds, holder)` is called while
        waiting, about four times a second. The lock dies with its process, so a crash leaves
        nothing to clean up.

        Raises CacheError as `prepare` does, and BuildCancelled when `cancel` is set meanwhile.
        """
        self.prepare()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self.directory / _LOCK, flags, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            waited = self._acquire(descriptor, waiting, cancel)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
            self._sweep()
            yield waited
        finally:
            os.close(descriptor)

    def entries(self) -> list[Path]:
        """Engine files, the least recently used first."""
        found = []
        for path in self.directory.glob("*.engine"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]

    def _unusable(self, error: OSError) -> CacheError:
        return CacheError(
            f"cannot use the engine cache {self.directory}: {error.strerror or error}; choose "
            f"another folder with the parameter or the variable {DIRECTORY_VARIABLE}"
        )

    def _acquire(
        self,
        descriptor: int,
        waiting: Callable[[float, str], None] | None,
        cancel: threading.Event | None,
    ) -> bool:
        begin = time.monotonic()
        waited = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError as error:
                log.warning(
                    "%s cannot be locked (%s); two processes may build at once",
                    self.directory,
                    error.strerror or error,
                )
                return waited
            else:
                return waited
            if cancel is not None and cancel.is_set():
                raise BuildCancelled("waiting for another engine build was cancelled")
            holder = os.pread(descriptor, 64, 0).decode(errors="replace") or "another process"
            if not waited:
                waited = True
                log.info("%s is building an engine in %s; waiting", holder, self.directory)
            if waiting is not None:
                waiting(time.monotonic() - begin, holder)
            time.sleep(_POLL_SECONDS)

    def _sweep(self) -> None:
        """Remove what builders that were killed left half written."""
        for path in self.directory.glob(f".*{_TEMPORARY}"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _evict(self, keep: Path) -> None:
        sizes = {}
        for path in self.entries():
            with contextlib.suppress(OSError):
                sizes[path] = path.stat().st_size
        excess = sum(sizes.values()) - self.limit_bytes
        for path, size in sizes.items():
            if excess <= 0:
                return
            if path == keep:
                continue
            with contextlib.suppress(OSError):
                path.unlink()
                log.info("removed %s: the cache is limited to %d bytes", path, self.limit_bytes)
                excess -= size
        if excess > 0:
            log.warning(
                "the engine %s alone is larger than the cache limit of %d bytes; raise the limit",
                keep,
                self.limit_bytes,
            )

    def _explain_absence(self, key: EngineKey) -> str:
        """Which part of the key differs from an engine of the same model that is there."""
        differences: list[list[str]] = []
        for path in self.entries():
            try:
                other = _read_record(path).key
            except (OSError, _Unusable):
                continue
            if other.onnx_sha256 == key.onnx_sha256:
                differences.append(
                    [
                        f"{field.name} was {getattr(other, field.name)}, "
                        f"now {getattr(key, field.name)}"
                        for field in dataclasses.fields(key)
                        if getattr(other, field.name) != getattr(key, field.name)
                    ]
                )
        if not differences:
            return "none was built from this file yet"
        closest = min(differences, key=len)
        return "; ".join(closest)

    def _refusal(self, key: EngineKey) -> Path:
        return self.directory / f"{key.digest[:24]}.refused.json"

    def _forget_refusal(self, key: EngineKey) -> None:
        self._refusal(key).unlink(missing_ok=True)

    def _times(self) -> dict[str, Any]:
        try:
            times = json.loads(_read_secure(self.directory / _TIMES))
        except (OSError, _Unusable, ValueError):
            return {}
        return times if isinstance(times, dict) else {}


def _time_label(key: EngineKey) -> str:
    return f"{key.onnx_sha256[:16]} {key.gpu} {key.precision}"


def _check_secure(directory: Path) -> None:
    """Raise InsecureCacheError if another user could put a file into `directory`."""
    status = directory.stat()
    user = os.geteuid()
    if status.st_uid not in (user, 0):
        raise InsecureCacheError(
            f"the engine cache {directory} belongs to user {status.st_uid}, this process runs as "
            f"{user}; engines are code, so it is not used. `sudo chown {user} {directory}` or "
            f"choose another folder ({DIRECTORY_VARIABLE})"
        )
    if status.st_mode & _OTHERS_WRITE:
        raise InsecureCacheError(
            f"others may write to the engine cache {directory} (mode "
            f"{stat.S_IMODE(status.st_mode):o}); engines are code, so it is not used. "
            f"`chmod go-w {directory}`"
        )
    for parent in directory.resolve().parents:
        status = parent.stat()
        # Sticky folders such as /tmp let nobody rename what belongs to others.
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise InsecureCacheError(
                f"everybody may replace the engine cache {directory}, since {parent} is writable "
                f"by all (mode {stat.S_IMODE(status.st_mode):o}); `chmod o-w {parent}` or choose "
                f"another folder ({DIRECTORY_VARIABLE})"
            )


def _open_secure(path: Path) -> int:
    """Open a regular file that only its owner, this user or root, can write; no link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Unusable(f"cannot be opened: {error.strerror or error}") from error
    status = os.fstat(descriptor)
    reason = None
    if not stat.S_ISREG(status.st_mode):
        reason = "it is not a regular file"
    elif status.st_uid not in (os.geteuid(), 0):
        reason = f"it belongs to user {status.st_uid}"
    elif status.st_mode & _OTHERS_WRITE:
        reason = "others may write to it"
    if reason:
        os.close(descriptor)
        raise _Unusable(reason)
    return descriptor


def _read_secure(path: Path) -> bytes:
    with os.fdopen(_open_secure(path), "rb") as file:
        return file.read()


def _read(path: Path, key: EngineKey) -> StoredEngine:
    content = _read_secure(path)
    record, start = _parse(content, len(content))
    _, header_length, plan_length, digest = _PREFIX.unpack_from(content)
    if len(content) != start + plan_length:
        raise _Unusable(f"it has {len(content)} bytes, {start + plan_length} were written")
    if hashlib.sha256(memoryview(content)[start - header_length :]).digest() != digest:
        raise _Unusable("its checksum is wrong")
    if record.key != key:
        raise _Unusable("it was built for another model, TensorRT or GPU")
    return StoredEngine(path, record, memoryview(content)[start:])


def _read_record(path: Path) -> EngineRecord:
    with os.fdopen(_open_secure(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return _parse(file.read(_PREFIX.size + _MAX_HEADER), size)[0]


def _parse(start: bytes, size: int) -> tuple[EngineRecord, int]:
    """Record and offset of the plan, from the first bytes of a file of `size` bytes."""
    if len(start) < _PREFIX.size:
        raise _Unusable(f"it has only {size} bytes")
    magic, header_length, _, _ = _PREFIX.unpack_from(start)
    if magic != MAGIC:
        raise _Unusable("it is not an engine file of this package")
    end = _PREFIX.size + header_length
    if header_length > _MAX_HEADER or end > len(start):
        raise _Unusable("its header is cut off")
    try:
        record = EngineRecord.from_json(start[_PREFIX.size : end].decode())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _Unusable(f"its header cannot be read: {error}") from error
    return record, end


def _write(path: Path, *parts: Plan) -> None:
    """Write a file only its user can read, so that it appears whole or, even on a crash, not."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
