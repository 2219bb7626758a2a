"""The engine cache: what it finds, what it refuses, how it heals, and who waits for whom."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ostrack_ros.engines.cache import (
    BuildCancelled,
    CacheError,
    EngineCache,
    EngineKey,
    EngineRecord,
    InsecureCacheError,
    default_directory,
)

KEY = EngineKey("a" * 64, "TensorRT 10.3.0", "Orin", "SM87", "fp16")
PLAN = bytes(range(256)) * 40


def record(key: EngineKey = KEY, model: str = "tiny") -> EngineRecord:
    return EngineRecord(key, model, "2026-11-22T11:00:00+00:00", 42.0, {"version": 1})


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_gives_back_what_was_stored(cache: EngineCache) -> None:
    path = cache.store(record(), PLAN)
    stored = cache.load(KEY, "tiny")
    assert stored is not None
    assert (stored.path, stored.plan, stored.record) == (path, PLAN, record())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700
    assert not list(cache.directory.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("onnx_sha256", "b" * 64),
        ("runtime", "TensorRT 10.7.0"),
        ("gpu", "Orin Nano"),
        ("compute_capability", "SM86"),
        ("precision", "fp32"),
        ("format", 99),
    ],
)
def test_every_part_of_the_key_counts(cache: EngineCache, field: str, value: Any) -> None:
    cache.store(record(), PLAN)
    other = dataclasses.replace(KEY, **{field: value})
    assert other.digest != KEY.digest
    assert cache.load(other, "tiny") is None
    assert cache.load(KEY, "tiny") is not None


def test_says_what_changed_since_the_last_build(
    cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert cache.load(KEY, "tiny") is None
    assert "none was built from this file yet" in caplog.text
    cache.store(record(), PLAN)
    caplog.clear()
    assert cache.load(dataclasses.replace(KEY, runtime="TensorRT 10.7.0"), "tiny") is None
    assert "runtime was TensorRT 10.3.0, now TensorRT 10.7.0" in caplog.text


def _cut(content: bytes) -> bytes:
    return content[:-100]


def _empty(content: bytes) -> bytes:
    return b""


def _longer(content: bytes) -> bytes:
    return content + b"x"


def _flip_plan(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _flip_header(content: bytes) -> bytes:
    return content.replace(b'"tiny"', b'"TINY"')


def _foreign(content: bytes) -> bytes:
    return b"ftrt" + content[4:]


def _huge_header(content: bytes) -> bytes:
    return content[:8] + b"\xff\xff\xff\xff" + content[12:]


def _not_json(content: bytes) -> bytes:
    return content.replace(b'{"build_seconds"', b'["build_seconds"')


DAMAGES = [_cut, _empty, _longer, _flip_plan, _flip_header, _foreign, _huge_header, _not_json]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_logged_and_absent(
    cache: EngineCache, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    path = cache.store(record(), PLAN)
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    assert cache.load(KEY, "tiny") is None
    assert "will be built anew" in caplog.text
    assert not path.exists()
    cache.store(record(), PLAN)
    assert cache.load(KEY, "tiny") is not None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_changed_byte_gets_through(cache: EngineCache, data: st.DataObject) -> None:
    path = cache.store(record(), PLAN)
    content = bytearray(path.read_bytes())
    index = data.draw(st.integers(0, len(content) - 1))
    content[index] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert cache.load(KEY, "tiny") is None


def test_a_whole_file_of_another_key_is_refused(
    cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    other = dataclasses.replace(KEY, gpu="H100")
    cache.store(record(other), PLAN).rename(cache.path(KEY, "tiny"))
    assert cache.load(KEY, "tiny") is None
    assert "built for another model, TensorRT or GPU" in caplog.text


def test_links_and_folders_are_not_read(cache: EngineCache, tmp_path: Path) -> None:
    path = cache.store(record(), PLAN)
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    assert cache.load(KEY, "tiny") is None
    assert elsewhere.exists()
    path.mkdir(exist_ok=True)
    assert cache.load(KEY, "tiny") is None


def test_a_pipe_does_not_block(cache: EngineCache) -> None:
    cache.prepare()
    os.mkfifo(cache.path(KEY, "tiny"))
    assert cache.load(KEY, "tiny") is None


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_folders_others_can_write_are_refused(cache: EngineCache, mode: int) -> None:
    cache.store(record(), PLAN)
    cache.directory.chmod(mode)
    with pytest.raises(InsecureCacheError, match="chmod go-w"):
        cache.load(KEY, "tiny")
    with pytest.raises(InsecureCacheError), cache.lock():
        pass
    cache.directory.chmod(0o755)
    assert cache.load(KEY, "tiny") is not None


def test_files_others_can_write_are_rebuilt(
    cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.store(record(), PLAN).chmod(0o666)
    assert cache.load(KEY, "tiny") is None
    assert "others may write to it" in caplog.text


def test_folders_under_a_public_one_are_refused(tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o777)
    with pytest.raises(InsecureCacheError, match="writable by all"):
        EngineCache(public / "engines").prepare()
    public.chmod(0o1777)  # like /tmp
    EngineCache(public / "engines").prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folders_and_files_of_another_user_are_refused(
    cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache.store(record(), PLAN)
    os.chown(cache.directory, 12345, 12345)
    with pytest.raises(InsecureCacheError, match="belongs to user 12345"):
        cache.load(KEY, "tiny")
    os.chown(cache.directory, 0, 0)
    os.chown(path, 12345, 12345)
    assert cache.load(KEY, "tiny") is None
    assert "it belongs to user 12345" in caplog.text


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("in the way")
    with pytest.raises(CacheError, match="choose another folder"):
        EngineCache(tmp_path / "engines").lock().__enter__()
    with pytest.raises(CacheError, match="choose another folder"):
        EngineCache(tmp_path / "engines" / "deeper").prepare()


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", limit_bytes=int(3.5 * len(PLAN)))
    keys = [dataclasses.replace(KEY, gpu=f"GPU {i}") for i in range(4)]
    paths = []
    for age, key in enumerate(keys[:3]):
        path = cache.store(record(key), PLAN)
        os.utime(path, (1000 + age, 1000 + age))
        paths.append(path)
    assert cache.load(keys[0], "tiny") is not None  # now the newest
    cache.store(record(keys[3]), PLAN)
    kept = [cache.load(key, "tiny") is not None for key in keys]
    assert kept == [True, False, True, True]


def test_one_engine_larger_than_the_limit_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path / "engines", limit_bytes=100)
    cache.store(record(dataclasses.replace(KEY, gpu="other")), PLAN)
    cache.store(record(), PLAN)
    assert cache.load(KEY, "tiny") is not None
    assert len(cache.entries()) == 1
    assert "raise the limit" in caplog.text


def test_a_limit_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is 0 bytes"):
        EngineCache(tmp_path, limit_bytes=0)


def test_a_failed_write_leaves_nothing(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.prepare()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        cache.store(record(), PLAN)
    assert list(cache.directory.iterdir()) == []


def test_leftovers_of_a_killed_builder_are_removed(cache: EngineCache) -> None:
    cache.prepare()
    leftover = cache.directory / ".tiny.engine.12ab.tmp"
    leftover.write_bytes(PLAN)
    with cache.lock():
        assert not leftover.exists()


def test_refusals_are_remembered_until_an_engine_passes(cache: EngineCache) -> None:
    cache.prepare()
    assert cache.refusal(KEY, 1) is None
    cache.refuse(KEY, "score is off by 0.4", 1)
    assert cache.refusal(KEY, 1) == "score is off by 0.4"
    assert cache.refusal(KEY, 2) is None  # a changed self-test judges anew
    assert cache.refusal(dataclasses.replace(KEY, precision="fp32"), 1) is None
    cache.store(record(), PLAN)
    assert cache.refusal(KEY, 1) is None


def test_build_times_outlive_versions_of_tensorrt(cache: EngineCache) -> None:
    cache.prepare()
    assert cache.expected_seconds(KEY) is None
    cache.record_seconds(KEY, 81.24)
    assert cache.expected_seconds(dataclasses.replace(KEY, runtime="TensorRT 11")) == 81.2
    assert cache.expected_seconds(dataclasses.replace(KEY, gpu="other")) is None
    (cache.directory / "build-times.json").write_text("[not json")
    assert cache.expected_seconds(KEY) is None
    cache.record_seconds(KEY, 5)
    assert cache.expected_seconds(KEY) == 5


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OSTRACK_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "ostrack_ros" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_directory() == Path("/home/somebody/.cache/ostrack_ros/engines")
    monkeypatch.setenv("OSTRACK_CACHE_DIR", str(tmp_path / "mine"))
    assert default_directory() == tmp_path / "mine"


def test_names_are_readable_and_stay_in_the_folder(cache: EngineCache) -> None:
    path = cache.path(KEY, "../../etc/my model")
    assert path.parent == cache.directory
    assert path.name.startswith(".._.._etc_my_model-fp16-")


def _build_slowly(directory: Path, events: Any, name: str, hold: float) -> None:
    cache = EngineCache(directory)
    with cache.lock() as waited:
        events.put((name, "in", waited))
        time.sleep(hold)
        if cache.load(KEY, "tiny") is None:
            cache.store(record(), PLAN)
            events.put((name, "built", waited))
        events.put((name, "out", waited))


def test_two_processes_do_not_build_at_once(cache: EngineCache) -> None:
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    builders = [
        context.Process(target=_build_slowly, args=(cache.directory, events, name, 0.6))
        for name in ("one", "two")
    ]
    for builder in builders:
        builder.start()
    seen = [events.get(timeout=60) for _ in range(5)]
    for builder in builders:
        builder.join(60)
        assert builder.exitcode == 0
    assert [event for _, event, _ in seen] == ["in", "built", "out", "in", "out"]
    assert seen[0][0] != seen[3][0]
    assert (seen[0][2], seen[3][2]) == (False, True)


def test_the_lock_dies_with_its_process(cache: EngineCache) -> None:
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    builder = context.Process(target=_build_slowly, args=(cache.directory, events, "one", 600.0))
    builder.start()
    assert events.get(timeout=60)[1] == "in"
    waits: list[str] = []
    cancel = threading.Event()

    def waiting(seconds: float, holder: str) -> None:
        waits.append(holder)
        if len(waits) == 2:
            builder.kill()

    with cache.lock(waiting, cancel) as waited:
        assert waited
    builder.join(60)
    assert waits[0] == f"process {builder.pid}"


def test_waiting_can_be_cancelled(cache: EngineCache) -> None:
    cancel = threading.Event()
    with (
        cache.lock(),
        pytest.raises(BuildCancelled, match="waiting"),
        EngineCache(cache.directory).lock(lambda *_: cancel.set(), cancel),
    ):
        pass
    with EngineCache(cache.directory).lock() as waited:
        assert not waited


def test_headers_are_plain_json(cache: EngineCache) -> None:
    content = cache.store(record(), PLAN).read_bytes()
    start = content.index(b"{")
    header, _ = json.JSONDecoder().raw_decode(content[start:].decode("latin-1"))
    assert header["key"]["runtime"] == "TensorRT 10.3.0"
    assert content.endswith(PLAN)
