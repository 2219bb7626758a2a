"""The TensorRT engine against a fake TensorRT and CUDA, in all recorded versions.

The fake offers what the real bindings offer (tensorrt_api.json), which the first tests check. What
no test here can show is that a GPU computes right: that is the self-test's job on every machine.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import importlib.util
import inspect
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import RECORDED, FakeCuda, FakeTensorRt, Faults
from tiny_graph import expected, random_pair, write_tiny_graph

import ostrack_ros.engines.tensorrt as package
from ostrack_ros.engines import cache as cache_module
from ostrack_ros.engines.base import EngineError
from ostrack_ros.engines.cache import BuildCancelled, InsecureCacheError
from ostrack_ros.engines.models import load_model
from ostrack_ros.engines.onnxruntime import OnnxRuntimeEngine
from ostrack_ros.engines.runtime import BackendUnavailableError
from ostrack_ros.engines.selftest import ParityError
from ostrack_ros.engines.tensorrt import (
    TensorRtEngine,
    Toolkit,
    build_engine,
    load_toolkit,
    tensorrt_available,
)
from ostrack_ros.engines.tensorrt import engine as engine_module
from ostrack_ros.engines.tensorrt import progress as progress_module
from ostrack_ros.engines.tensorrt.api import TensorRtApi, load_tensorrt
from ostrack_ros.engines.tensorrt.builder import build_plan
from ostrack_ros.engines.tensorrt.cuda import Cuda, CudaError, GpuMemoryError, load_cuda
from ostrack_ros.engines.tensorrt.progress import Clock, PhaseTree, run_reporting
from ostrack_ros.engines.tensorrt.session import PlanError, Session
from ostrack_ros.engines.tensorrt.widen import model_in

pytest.importorskip("onnx", reason="the test's graphs are made with onnx")
pytest.importorskip("onnxruntime", reason="the fake TensorRT computes with ONNX Runtime")

VERSIONS = list(RECORDED["tensorrt"])
SOURCES = sorted(Path(package.__file__).parent.glob("*.py"))


class Rig:
    """One fake machine: a TensorRT, a GPU, what goes wrong on it, and a model."""

    def __init__(self, folder: Path, version: str = "TensorRT 10.3.0", half: bool = True) -> None:
        self.faults = Faults()
        self.runtime = FakeCuda(self.faults)
        self.trt = FakeTensorRt(version, self.runtime)
        self.kit = Toolkit(TensorRtApi(self.trt), Cuda(self.runtime))
        self.cache = folder / "cache"
        self.model = folder / "tiny.onnx"
        write_tiny_graph(self.model, half=half)

    def engine(self, **options: Any) -> TensorRtEngine:
        return TensorRtEngine(self.model, toolkit=self.kit, cache_directory=self.cache, **options)

    def build(self, **options: Any) -> package.BuildReport:
        return build_engine(self.model, toolkit=self.kit, cache_directory=self.cache, **options)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_reporting, "__kwdefaults__", {"poll": 0.01})
    monkeypatch.setattr(cache_module, "_POLL_SECONDS", 0.01)
    # The self-test's reference: OpenVINO takes longer to start than the rest of a test.
    monkeypatch.setattr(engine_module, "OpenVinoEngine", OnnxRuntimeEngine)


def assert_answers(engine: TensorRtEngine, seed: int) -> None:
    result, scores = expected(*random_pair(seed))
    found = engine.infer(*random_pair(seed))
    np.testing.assert_allclose(
        [found.cx, found.cy, found.width, found.height, found.score, found.response],
        result,
        atol=2e-3,
    )
    np.testing.assert_allclose(found.score_map, scores, atol=2e-3)


# --- The fake is like the real ones, and the code uses nothing that was not looked up ---


def _parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_has_the_recorded_names_and_parameters(version: str) -> None:
    fake = FakeTensorRt(version, FakeCuda())
    for path, recorded in RECORDED["tensorrt"][version].items():
        owner: Any = fake
        *parts, name = path.split(".")
        for part in parts:
            owner = getattr(owner, part, None)
        if recorded == "absent":
            assert owner is None or not hasattr(owner, name), path
        elif isinstance(recorded, int):
            assert isinstance(owner[name], enum.IntEnum), path
            assert int(owner[name]) == recorded, path
        elif recorded == "property":
            assert isinstance(inspect.getattr_static(owner, name), property), path
        elif path != "ICudaEngine.create_execution_context":  # all its parameters are optional
            assert _parameters(getattr(owner, name)) in recorded, path


@pytest.mark.parametrize("version", list(RECORDED["cuda"]))
def test_the_fake_cuda_has_the_recorded_names_and_parameters(version: str) -> None:
    fake = FakeCuda()
    for path, recorded in RECORDED["cuda"][version].items():
        name = path.split(".")[0]
        if isinstance(recorded, list):
            assert _parameters(getattr(fake, name)) == recorded[0], path
        elif name != "cudaDeviceProp":
            assert hasattr(fake, name), path


def test_all_recorded_cuda_bindings_agree() -> None:
    first, *others = RECORDED["cuda"].values()
    for other in others:
        assert other == first
    assert "absent" not in first.values()


def test_the_code_calls_only_recorded_cuda_functions() -> None:
    words = [
        node.value
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    attributes = {
        node.attr
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute)
    }
    used = {word for word in words if word.startswith("cuda") and word.isidentifier()}
    used |= {name for name in attributes if name.startswith("cuda") and name != "cuda"}
    used -= {"cuda_path"}
    recorded = {
        part for table in RECORDED["cuda"].values() for path in table for part in path.split(".")
    }
    assert {"cudaMalloc", "cudaGraphLaunch"} <= used
    assert used <= recorded


OWNERS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "layer": "ILayer",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "flags": "BuilderFlag",
    "severity": "ILogger.Severity",
}
"""What the variables of these names are."""


def test_the_code_uses_only_recorded_names_of_tensorrt() -> None:
    """By the names of variables in the modules that touch TensorRT's objects."""
    recorded = {path for table in RECORDED["tensorrt"].values() for path in table}
    used = set()
    for source in SOURCES:
        if source.name not in ("api.py", "builder.py", "session.py", "progress.py"):
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if name in OWNERS:
                used.add(f"{OWNERS[name]}.{node.attr}")
            elif isinstance(owner, ast.Attribute) and name[0].isupper():
                used.add(f"{name}.{node.attr}")
    used.discard("ILogger.Severity")  # a class, recorded by its members
    used -= {"BuilderFlag.STRONGLY_TYPED", "BuilderFlag.EXPLICIT_BATCH"}  # a second `flags`
    assert {"Builder.create_network", "IExecutionContext.execute_async_v3"} <= used
    assert used <= recorded


def test_the_recorder_reads_signatures() -> None:
    from record_tensorrt_api import parameters

    pybind = "f(self: a.B, flags: typing.SupportsInt = 0, m: dict[str, int] = {}) -> a.C\n\n    Doc"
    assert parameters(pybind, "f") == [["flags", "m"]]
    assert parameters("f(*args, **kwargs)\nOverloaded.\n\n1. f(self: A) -> B\n2. f(x: C)", "f") == [
        [],
        ["x"],
    ]
    assert parameters("cudaHostAlloc(size_t size, unsigned int flags)", "cudaHostAlloc") == [
        ["size", "flags"]
    ]


# --- Building and running ---


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_builds_runs_and_frees(tmp_path: Path, version: str, half: bool) -> None:
    rig = Rig(tmp_path, version, half)
    engine = rig.engine()
    for seed in range(3):
        assert_answers(engine, seed)
    built = rig.trt.builds[-1]
    assert built["precision"] == ("fp16" if half else "fp32")
    assert "TF32" not in built["flags"]
    assert "CUDA graph" in engine.description
    assert version in engine.description
    assert "Fake GPU, SM87" in engine.description
    assert rig.runtime.calls["cudaGraphLaunch"] >= 3
    engine.close()
    engine.close()
    assert rig.runtime.leaked == 0
    with pytest.raises(EngineError, match="closed"):
        engine.infer(*random_pair(0))


@pytest.mark.parametrize("version", VERSIONS)
def test_typing_follows_the_version(tmp_path: Path, version: str) -> None:
    rig = Rig(tmp_path, version)
    rig.build()
    built = rig.trt.builds[-1]
    recorded = RECORDED["tensorrt"][version]
    strong = recorded["NetworkDefinitionCreationFlag.STRONGLY_TYPED"]
    if strong == "absent":
        assert built["network_flags"] == 1  # EXPLICIT_BATCH
        assert {"FP16", "PREFER_PRECISION_CONSTRAINTS"} <= built["flags"]
        cast, full, half, constant = built["layers"]
        assert full.precision == full.output_type == rig.trt.DataType.FLOAT
        assert (cast.precision, half.precision, constant.precision) == (None, None, None)
    else:
        assert built["network_flags"] == 1 << strong
        assert built["flags"] == set()
    assert built["targets"] == (["CURRENT"] if "RTX" in version else [])


def test_the_second_start_builds_nothing(rig: Rig) -> None:
    rig.engine().close()
    engine = rig.engine()
    assert len(rig.trt.builds) == 1
    assert_answers(engine, 5)
    engine.close()
    assert rig.runtime.leaked == 0


def test_a_batch_of_pairs(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    write_tiny_graph(rig.model, batch=3, half=True)
    engine = rig.engine()
    pairs = [random_pair(seed) for seed in (7, 8)]
    found = engine.infer_batch([t for t, _ in pairs], [s for _, s in pairs])
    assert len(found) == 2
    for prediction, pair in zip(found, pairs, strict=True):
        result, scores = expected(*pair)
        assert prediction.cx == pytest.approx(result[0], abs=2e-3)
        np.testing.assert_allclose(prediction.score_map, scores, atol=2e-3)
    engine.close()


def test_answers_do_not_change_with_the_next_one(rig: Rig) -> None:
    engine = rig.engine()
    first = engine.infer(*random_pair(1)).score_map
    copy = first.copy()
    engine.infer(*random_pair(2))
    np.testing.assert_array_equal(first, copy)
    engine.close()


def test_strided_and_read_only_images(rig: Rig) -> None:
    engine = rig.engine()
    template, search = random_pair(3)
    mirrored = search[:, ::-1]
    mirrored.flags.writeable = False
    found = engine.infer(template, mirrored)
    np.testing.assert_allclose(found.score_map, expected(template, mirrored)[1], atol=2e-3)
    with pytest.raises(EngineError, match="search is uint8"):
        engine.infer(template, search[:-1])
    engine.close()


def test_another_thread_may_run_it(rig: Rig) -> None:
    engine = rig.engine()
    seen: list[Any] = []

    def work() -> None:
        assert_answers(engine, 4)
        seen.append(rig.runtime.current.device)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]  # CUDA's current device belongs to a thread
    engine.close()


@pytest.mark.parametrize(
    "fault",
    [
        {"cuda": {"cudaStreamBeginCapture": 900}},
        {"cuda": {"cudaStreamEndCapture": 901}},
        {"cuda": {"cudaGraphInstantiate": 1}},
        {"capture_in_execute": True},
        {"capturable": False},
    ],
    ids=lambda fault: next(iter(fault.get("cuda", fault))),
)
def test_runs_without_a_cuda_graph_where_capturing_fails(
    tmp_path: Path, fault: dict[str, Any]
) -> None:
    rig = Rig(tmp_path, "TensorRT-RTX 1.7.1.116")
    for name, value in fault.items():
        setattr(rig.faults, name, value)
    engine = rig.engine()
    assert "no CUDA graph" in engine.description
    assert_answers(engine, 1)
    assert "cudaGraphLaunch" not in rig.runtime.calls
    engine.close()
    assert rig.runtime.leaked == 0


def test_timings_come_part_by_part(rig: Rig) -> None:
    engine = rig.engine()
    engine.infer(*random_pair(0))
    timings = engine.measure()
    assert (timings.to_device, timings.execute, timings.to_host) == (0.25, 0.25, 0.25)
    assert engine.gpu_bytes > 1 << 20
    engine.close()
    assert rig.runtime.leaked == 0


# --- The cache heals ---


def _engine_file(rig: Rig) -> Path:
    (path,) = rig.cache.glob("*.engine")
    return path


def test_a_damaged_file_is_built_anew(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.build()
    path = _engine_file(rig)
    path.write_bytes(path.read_bytes()[:-10])
    engine = rig.engine()
    assert_answers(engine, 2)
    assert len(rig.trt.builds) == 2
    assert "will be built anew" in caplog.text
    engine.close()
    rig.engine().close()
    assert len(rig.trt.builds) == 2


def test_an_upgrade_builds_anew(rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig.build()
    upgraded = Rig(tmp_path, "TensorRT 10.7.0")
    upgraded.engine().close()
    assert len(upgraded.trt.builds) == 1
    assert "runtime was TensorRT 10.3.0, now TensorRT 10.7.0" in caplog.text
    rig.engine().close()  # and the old one is still there
    assert len(rig.trt.builds) == 1


def test_a_plan_tensorrt_rejects_is_built_anew(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.build()
    path = _engine_file(rig)
    store = cache_module.EngineCache(rig.cache)
    key = cache_module.EngineKey(
        load_model(rig.model).spec.onnx_sha256,
        "TensorRT 10.3.0",
        "Fake GPU, 8 multiprocessors",
        "SM87",
        "fp16",
    )
    stored = store.load(key, "tiny")
    assert stored is not None
    store.store(stored.record, b"not a plan")
    engine = rig.engine()
    assert_answers(engine, 2)
    assert "magicTag" in caplog.text
    assert "built anew" in caplog.text
    assert _engine_file(rig) == path
    engine.close()
    assert rig.runtime.leaked == 0


def test_a_changed_model_is_built_anew(rig: Rig) -> None:
    rig.build()
    write_tiny_graph(rig.model, half=False)
    report = rig.build()
    assert report.built
    assert report.precision == "fp32"


def test_force_builds_anew(rig: Rig) -> None:
    assert rig.build().built
    again = rig.build()
    assert not again.built
    assert again.self_test is not None
    assert "was already built" in again.summary()
    assert rig.build(force=True).built
    assert rig.runtime.leaked == 0


def test_an_insecure_cache_is_refused_before_building(rig: Rig) -> None:
    rig.cache.mkdir(mode=0o777)
    rig.cache.chmod(0o777)
    with pytest.raises(InsecureCacheError, match="chmod go-w"):
        rig.engine()
    assert rig.trt.builds == []


def test_a_full_disk_does_not_stop_the_engine(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "_write", full)
    engine = rig.engine()
    assert_answers(engine, 1)
    assert "No space left on device" in caplog.text
    engine.close()
    assert rig.build().path is None


# --- The self-test ---


def test_an_engine_that_is_off_is_refused_for_good(rig: Rig) -> None:
    rig.faults.score_offset = 0.3
    with pytest.raises(ParityError, match=r"score_map is off by 0\.3\d* \(allowed 0\.1\)"):
        rig.engine(fallback="none")
    assert rig.runtime.leaked == 0
    assert not list(rig.cache.glob("*.engine"))
    with pytest.raises(ParityError, match=r"found earlier.*--force"):
        rig.engine(fallback="none")
    assert len(rig.trt.builds) == 1
    rig.faults.score_offset = 0.0
    assert rig.build(force=True).built
    rig.engine(fallback="none").close()


@pytest.mark.parametrize("version", ["TensorRT 8.6.1", "TensorRT 10.3.0", "TensorRT 11.4.0.106"])
def test_fp32_follows_a_refused_fp16(tmp_path: Path, version: str) -> None:
    rig = Rig(tmp_path, version)
    rig.faults.score_offset, rig.faults.only_precision = 0.3, "fp16"
    engine = rig.engine(fallback="fp32")
    assert "fp32" in engine.description
    assert [built["precision"] for built in rig.trt.builds] == ["fp16", "fp32"]
    assert_answers(engine, 1)
    engine.close()
    rig.engine().close()
    assert len(rig.trt.builds) == 2
    assert rig.runtime.leaked == 0


@pytest.mark.parametrize("fallback", ["fp32", "cpu"])
def test_when_fp32_is_off_too_the_engine_is_refused(rig: Rig, fallback: str) -> None:
    rig.faults.score_offset = 0.3
    with pytest.raises(ParityError):
        rig.engine(fallback=fallback)
    assert len(rig.trt.builds) == 2
    assert rig.runtime.leaked == 0


def test_an_engine_that_keeps_other_candidates_is_refused(rig: Rig) -> None:
    """Though its boxes and scores are the model's own."""
    rig.faults.swapped_candidates = 5
    with pytest.raises(ParityError, match=r"kept is off by 5 \(allowed 4\)"):
        rig.engine(fallback="none")
    rig.faults.swapped_candidates = 1
    engine = rig.build(force=True)
    assert engine.self_test is not None
    assert {case["kept"] for case in engine.self_test["cases"]} == {1.0}


def test_an_engine_tells_what_it_kept(rig: Rig) -> None:
    engine = rig.engine()
    template, search = random_pair(3)
    scores = expected(template, search)[1]
    np.testing.assert_array_equal(engine.infer(template, search).kept, scores > scores.mean())
    engine.close()


def test_a_nan_is_refused(rig: Rig) -> None:
    rig.faults.score_offset = float("nan")
    with pytest.raises(ParityError, match="nan"):
        rig.engine()


def test_without_a_cpu_runtime_the_test_is_made_up_for_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise BackendUnavailableError("not installed")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "OpenVinoEngine", missing)
        patch.setattr(engine_module, "OnnxRuntimeEngine", missing)
        report = rig.build()
        assert report.self_test is None
        assert "not self-tested" in report.summary()
        assert "pip install onnxruntime" in caplog.text
    rig.engine().close()
    report = rig.build()
    assert not report.built
    assert report.self_test is not None
    assert len(rig.trt.builds) == 1


def test_an_untested_engine_of_the_process_waited_for_is_tested(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held then, and must not be asked for again."""

    def missing(*_: Any, **__: Any) -> None:
        raise BackendUnavailableError("not installed")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "OpenVinoEngine", missing)
        patch.setattr(engine_module, "OnnxRuntimeEngine", missing)
        rig.build()
    hidden = _engine_file(rig).rename(rig.cache / "hidden")
    holder = cache_module.EngineCache(rig.cache)
    with contextlib.ExitStack() as held:
        held.enter_context(holder.lock())

        def appears(_: float | None, text: str) -> None:
            if "waiting for process" in text and hidden.exists():
                hidden.rename(next(iter(stored)))
                held.close()

        key = engine_module._Provider(rig.kit, holder, None, None)._key(
            load_model(rig.model), "fp16"
        )
        stored = [holder.path(key, "tiny")]
        report = rig.build(progress=appears)
    assert not report.built
    assert report.self_test is not None


def test_a_bad_engine_of_unknown_origin_is_found_on_first_load(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise BackendUnavailableError("not installed")

    rig.faults.score_offset = 0.3
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "OpenVinoEngine", missing)
        patch.setattr(engine_module, "OnnxRuntimeEngine", missing)
        rig.build()
    with pytest.raises(ParityError):
        rig.engine(fallback="none")
    assert not list(rig.cache.glob("*.engine"))
    assert rig.runtime.leaked == 0


# --- Precision ---


def test_precisions_are_checked(rig: Rig) -> None:
    with pytest.raises(EngineError, match="precision is 'bf16'"):
        rig.engine(precision="bf16")
    with pytest.raises(EngineError, match="fallback is 'gpu'"):
        rig.engine(fallback="gpu")


def test_fp32_from_an_fp16_file_keeps_the_weights(rig: Rig) -> None:
    model = load_model(rig.model)
    wide = model_in(model, "fp32")
    assert wide.spec.precision == "fp32"
    assert wide.spec.onnx_sha256 != model.spec.onnx_sha256
    import onnx
    import onnxruntime

    graph = onnx.load_model_from_string(wide.content)
    onnx.checker.check_model(graph, full_check=True)
    assert b"FLOAT16" not in str(graph).encode()
    template, search = random_pair(1)
    outputs = onnxruntime.InferenceSession(wide.content).run(
        None, {"template": template[None], "search": search[None]}
    )
    np.testing.assert_allclose(outputs[1][0], expected(template, search)[1], atol=2e-4)


def test_an_export_of_the_same_checkpoint_is_preferred(rig: Rig) -> None:
    twin = rig.model.with_name("tiny_wide.onnx")
    write_tiny_graph(twin, half=False)
    (rig.model.with_name("broken.json")).write_text("{")
    assert model_in(load_model(rig.model), "fp32").path == twin
    assert model_in(load_model(twin), "fp16").path == rig.model


def test_fp16_from_an_fp32_file(tmp_path: Path) -> None:
    strong = Rig(tmp_path, "TensorRT 10.3.0", half=False)
    with pytest.raises(EngineError, match="ostrack export --precision fp16"):
        strong.engine(precision="fp16")
    weak = Rig(tmp_path, "TensorRT 8.6.1", half=False)
    weak.engine(precision="fp16").close()
    assert weak.trt.builds[-1]["precision"] == "fp16"
    assert "PREFER_PRECISION_CONSTRAINTS" not in weak.trt.builds[-1]["flags"]


# --- Errors say what to do ---


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (35, "older than the Python bindings.*nvidia-smi.*--gpus all.*--runtime nvidia"),
        (100, "CUDA_VISIBLE_DEVICES"),
        (803, "reboot"),
        (4711, "CUDA error 4711"),
    ],
)
def test_driver_errors(code: int, words: str) -> None:
    runtime = FakeCuda(Faults(cuda={"cudaGetDeviceCount": code}))
    with pytest.raises(CudaError, match=words):
        Cuda(runtime)


def test_an_old_binding_without_a_driver() -> None:
    class Old(FakeCuda):
        def cudaGetDeviceCount(self) -> tuple[Any, ...]:
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    with pytest.raises(CudaError, match=r"dlopen libcuda\.so\.1.*no usable NVIDIA driver"):
        Cuda(Old())


@pytest.mark.parametrize(("count", "words"), [(2, r"has 2 \(0\.\.1\)"), (0, "there is no GPU")])
def test_a_device_that_does_not_exist(count: int, words: str) -> None:
    with pytest.raises(CudaError, match=words):
        Cuda(FakeCuda(devices=count), index=2)
    with pytest.raises(CudaError, match="device -1 does not exist"):
        Cuda(FakeCuda(), index=-1)


def test_missing_bindings() -> None:
    def importer(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with pytest.raises(CudaError, match=r"cuda\.bindings\.runtime.*cuda\.cudart.*cuda-python"):
        load_cuda(importer=importer)
    with pytest.raises(BackendUnavailableError, match=r"tensorrt_rtx is not installed.*jetson\.md"):
        load_tensorrt(importer)


def test_older_bindings_are_found() -> None:
    runtime = FakeCuda()

    def importer(name: str) -> Any:
        if name == "cuda.cudart":
            return runtime
        raise ModuleNotFoundError(name=name)

    assert load_cuda(importer=importer).device.name == "Fake GPU"


def test_a_broken_tensorrt_is_named_and_the_next_one_tried() -> None:
    fake = FakeTensorRt("TensorRT-RTX 1.7.1.116", FakeCuda())

    def importer(name: str) -> Any:
        if name == "tensorrt":
            raise ImportError("libnvinfer.so.10: cannot open shared object file")
        if name == "tensorrt_rtx" and fake:
            return fake
        raise ModuleNotFoundError(name=name)

    assert load_tensorrt(importer).name == "TensorRT-RTX 1.7.1.116"
    fake_gone, fake = fake, None  # type: ignore[assignment]
    assert fake_gone
    with pytest.raises(BackendUnavailableError, match=r"libnvinfer\.so\.10: cannot open"):
        load_tensorrt(importer)


def test_an_old_tensorrt_is_refused() -> None:
    fake = FakeTensorRt("TensorRT 8.6.1", FakeCuda())
    fake.__version__ = "8.5.3.1"
    with pytest.raises(EngineError, match=r"8\.5\.3\.1 is too old, 8\.6"):
        TensorRtApi(fake)


def test_this_machine_says_what_is_missing() -> None:
    reason = tensorrt_available()
    if reason is None:
        load_toolkit()
        return
    with pytest.raises(EngineError) as caught:
        load_toolkit()
    assert str(caught.value) == reason


@pytest.mark.parametrize("name", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags"])
def test_out_of_memory(rig: Rig, name: str) -> None:
    rig.faults.cuda[name] = 2
    with pytest.raises(GpuMemoryError, match=r"1024 of 8192 MiB free.*ostrack_tiny"):
        rig.engine()
    assert rig.runtime.leaked == 0


def test_no_memory_for_a_context(rig: Rig) -> None:
    rig.faults.context = True
    with pytest.raises(GpuMemoryError, match="needs 1 MiB and 1024 of 8192 MiB are free"):
        rig.engine()
    assert rig.runtime.leaked == 0


def test_memory_that_runs_out_later_does_not_drop_the_cache(rig: Rig) -> None:
    rig.build()
    rig.faults.cuda["cudaMalloc"] = 2
    with pytest.raises(GpuMemoryError):
        rig.engine()
    rig.faults.cuda.clear()
    rig.engine().close()
    assert len(rig.trt.builds) == 1


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("Could not find any implementation for node X", "Could not find any implementation"),
        ("[defaultAllocator.cpp] Requested size was 9 bytes: out of memory", "swap"),
        ("", "could not build an engine"),
    ],
)
def test_a_failed_build_repeats_tensorrts_words(rig: Rig, words: str, advice: str) -> None:
    rig.faults.build_error = words or " "
    with pytest.raises(EngineError, match=advice):
        rig.engine()
    assert not list(rig.cache.glob("*.engine"))
    rig.faults.build_error = ""
    rig.engine().close()


def test_tensorrt_without_cuda(rig: Rig) -> None:
    rig.build()
    rig.faults.no_cuda = True
    words = r"10\.3\.0 cannot start .*nullptr.*: CUDA initialization failure with error: 35"
    with pytest.raises(EngineError, match=words):
        rig.build(force=True)
    with pytest.raises(EngineError, match=words):
        rig.engine()
    rig.faults.no_cuda = False
    rig.engine().close()
    assert len(rig.trt.builds) == 1


def test_a_failed_run(rig: Rig) -> None:
    engine = rig.engine()
    rig.faults.cuda["cudaGraphLaunch"] = 719
    with pytest.raises(CudaError, match=r"719.*restart this process"):
        engine.infer(*random_pair(0))
    rig.faults.cuda["cudaStreamSynchronize"] = 719
    engine.close()  # logs instead of raising
    engine.close()


def test_a_run_tensorrt_refuses(rig: Rig) -> None:
    rig.faults.capturable = False
    rig.build()
    rig.faults.execute = True
    with pytest.raises(EngineError, match="could not run the engine"):
        rig.engine()
    assert len(rig.trt.builds) == 2  # a new engine might have run
    assert rig.runtime.leaked == 0


def test_a_graph_of_something_else(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    write_tiny_graph(rig.model, result_name="boxes", half=True)
    with pytest.raises(PlanError, match="no output 'result'"):
        rig.engine()
    assert rig.runtime.leaked == 0


def test_an_onnx_file_tensorrt_cannot_read(rig: Rig) -> None:
    model = load_model(rig.model)
    broken = type(model)(model.path, model.spec, b"not onnx")
    with pytest.raises(EngineError, match="Failed to parse the ONNX model"):
        build_plan(rig.kit.api, broken, precision="fp16")


def test_targets_are_for_rtx_only(tmp_path: Path) -> None:
    rtx = Rig(tmp_path, "TensorRT-RTX 1.7.1.116")
    model = load_model(rtx.model)
    build_plan(rtx.kit.api, model, precision="fp16", targets=("SM86", "SM89"))
    assert rtx.trt.builds[-1]["targets"] == ["SM86", "SM89"]
    with pytest.raises(EngineError, match="does not know 'SM12345', only SM86, SM89"):
        build_plan(rtx.kit.api, model, precision="fp16", targets=("SM12345",))
    classic = Rig(tmp_path, "TensorRT 10.3.0")
    with pytest.raises(EngineError, match="present GPU only"):
        build_plan(classic.kit.api, model, precision="fp16", targets=("SM86",))


def test_the_session_needs_no_graph(rig: Rig) -> None:
    model = load_model(rig.model)
    plan = build_plan(rig.kit.api, model, precision="fp16", cuda=rig.kit.cuda)
    session = Session(rig.kit.api, rig.kit.cuda, plan, model, use_graph=False)
    assert not session.captured
    template, search = random_pair(6)
    scores = session.run(template[None], search[None])["score_map"]
    np.testing.assert_allclose(scores[0], expected(template, search)[1], atol=2e-3)
    session.close()
    assert rig.runtime.leaked == 0


# --- Progress and cancelling ---


@pytest.mark.parametrize("version", VERSIONS)
def test_progress_rises_to_the_end(tmp_path: Path, version: str) -> None:
    rig = Rig(tmp_path, version)
    rig.faults.build_seconds = 0.3
    seen: list[tuple[float | None, str]] = []
    rig.build(progress=lambda fraction, text: seen.append((fraction, text)))
    fractions = [fraction for fraction, _ in seen if fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any("building tiny for" in text for _, text in seen)
    assert any("testing the engine" in text for _, text in seen)
    if "8.6" in version:
        assert any(fraction is None and "building" in text for fraction, text in seen)
    else:
        assert any(0 < fraction < 1 for fraction in fractions)
        assert any("Timing tactics" in text for _, text in seen)


def test_without_a_monitor_the_last_build_is_the_measure(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "TensorRT 8.6.1")
    rig.faults.build_seconds = 0.3
    rig.build()
    seen: list[tuple[float | None, str]] = []
    rig.build(force=True, progress=lambda fraction, text: seen.append((fraction, text)))
    building = [(fraction, text) for fraction, text in seen if "building" in text]
    assert all(fraction is not None and fraction < 1 for fraction, _ in building)
    assert all("(last build)" in text for _, text in building)


@pytest.mark.parametrize("version", ["TensorRT 8.6.1", "TensorRT 10.3.0"])
def test_cancelling_leaves_nothing(tmp_path: Path, version: str) -> None:
    rig = Rig(tmp_path, version)
    rig.faults.build_seconds = 2.0
    cancel = threading.Event()
    begin = time.monotonic()
    with pytest.raises(BuildCancelled, match="nothing was written"):
        rig.engine(cancel=cancel, progress=lambda *_: cancel.set())
    assert time.monotonic() - begin < rig.faults.build_seconds
    assert not list(rig.cache.glob("*.engine"))
    rig.faults.build_seconds = 0.0
    rig.engine().close()


def test_ctrl_c_leaves_nothing(rig: Rig) -> None:
    rig.faults.build_seconds = 2.0

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rig.engine(progress=interrupt)
    assert rig.trt.builds == []
    assert [path.name for path in rig.cache.iterdir()] == [".lock"]
    rig.faults.build_seconds = 0.0
    rig.engine().close()
    assert rig.runtime.leaked == 0


def test_a_failing_callback_stops_the_build(rig: Rig) -> None:
    rig.faults.build_seconds = 2.0

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rig.build(progress=broken)
    assert rig.trt.builds == []


def test_phases_nest() -> None:
    phases = PhaseTree()
    assert phases.fraction == 0.0
    phases.start("build", None, 4)
    phases.step("build", 0)
    assert phases.fraction == pytest.approx(0.25)
    phases.start("tactics", "build", 10)
    phases.step("tactics", 4)
    assert phases.current == "tactics"
    assert phases.fraction == pytest.approx(0.25 + 0.5 / 4)
    phases.step("tactics", 9)
    phases.finish("tactics")
    assert phases.fraction == pytest.approx(0.5)  # does not fall back to 0.25
    assert phases.current == "build"
    phases.step("build", 3)
    assert phases.fraction == 1.0
    phases.step("never started", 3)
    phases.finish("never started")
    phases.start("zero steps", None, 0)
    phases.step("zero steps", 0)
    assert phases.fraction == 1.0


def test_the_clock_never_claims_to_be_done() -> None:
    clock = Clock("building", 10.0, None)
    assert clock.report(5.0)[0] == pytest.approx(0.5)
    assert clock.report(500.0)[0] == 0.99
    assert Clock("building", None, None).report(5.0) == (None, "building: 5 s")
    assert progress_module.POLL_SECONDS <= 1.0


# --- Two processes ---


def _rig_of(folder: Path, build_seconds: float) -> Rig:
    """As Rig, but with the model that is already there."""
    rig = Rig.__new__(Rig)
    rig.faults = Faults(build_seconds=build_seconds)
    rig.runtime = FakeCuda(rig.faults)
    rig.trt = FakeTensorRt("TensorRT 10.3.0", rig.runtime)
    rig.kit = Toolkit(TensorRtApi(rig.trt), Cuda(rig.runtime))
    rig.cache, rig.model = folder / "cache", folder / "tiny.onnx"
    return rig


def _node(folder: Path, events: Any) -> None:
    rig = _rig_of(folder, build_seconds=1.0)
    texts: list[str] = []
    engine = rig.engine(progress=lambda _, text: texts.append(text))
    assert_answers(engine, 1)
    engine.close()
    events.put((len(rig.trt.builds), any("waiting for process" in text for text in texts)))


def _interrupted(folder: Path, events: Any) -> None:
    # A shell starts what it puts into the background with SIGINT ignored, tests included.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rig = _rig_of(folder, build_seconds=300.0)
    try:
        rig.build(progress=lambda *_: events.put("building"))
    except KeyboardInterrupt:
        events.put("interrupted")


def test_a_real_ctrl_c_ends_a_build(rig: Rig, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    builder = context.Process(target=_interrupted, args=(tmp_path, events))
    builder.start()
    assert events.get(timeout=100) == "building"
    assert builder.pid is not None
    os.kill(builder.pid, signal.SIGINT)
    builder.join(200)
    assert builder.exitcode == 0
    seen = [events.get(timeout=10)]
    while seen[-1] != "interrupted":
        seen.append(events.get(timeout=10))
    assert [path.name for path in rig.cache.iterdir()] == [".lock"]


def test_two_nodes_build_once(rig: Rig, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    nodes = [context.Process(target=_node, args=(tmp_path, events)) for _ in range(2)]
    for node in nodes:
        node.start()
    seen = sorted(events.get(timeout=100) for _ in nodes)
    for node in nodes:
        node.join(60)
        assert node.exitcode == 0
    builds = [count for count, _ in seen]
    assert builds == [0, 1]
    # The one that did not build waited, unless it was so late that the engine was already there.
    assert seen[1] == (1, False)


# --- The benchmark for a machine with a GPU ---


@pytest.fixture
def benchmark_script() -> Any:
    path = Path(package.__file__).parents[3] / "benchmarks" / "tensorrt_gpu.py"
    if not path.is_file():
        pytest.skip("the benchmarks are in the source tree only")
    spec = importlib.util.spec_from_file_location("tensorrt_gpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tensorrt_gpu"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_measures(rig: Rig, benchmark_script: Any) -> None:
    result = benchmark_script.measure_engine(
        rig.kit, rig.model, cache=rig.cache, iterations=5, leak_updates=20
    )
    timings = result["bench"]["timings"]
    assert {"crop", "inference", "decode", "copy to GPU", "network on GPU"} <= set(timings)
    assert timings["network on GPU"]["median"] == pytest.approx(0.25)
    assert result["memory"]["updates"] == 20
    assert result["no_growth"]
    assert rig.runtime.leaked == 0
    json.dumps(result)


def test_the_benchmark_says_that_there_is_no_gpu(
    benchmark_script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tensorrt_gpu.py", "--runtime", "no_such_tensorrt"])
    assert benchmark_script.main() == benchmark_script.NO_GPU
    assert "there is no GPU to measure on: no_such_tensorrt" in capsys.readouterr().err


# --- From official weights ---


class _Settings:
    """As the published checkpoints pickle beside their weights."""

    def __init__(self) -> None:
        self.project_path = "train/ostrack"


class _Meter:
    def __init__(self, value: float) -> None:
        self.value = value


def test_an_official_checkpoint_tracks_on_the_engine(rig: Rig, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="exporting needs torch")
    pytest.importorskip("onnxscript", reason="exporting needs onnxscript")
    from seeded_weights import seeded_state, seeded_tensor

    from ostrack_ros.engines.select import create_engine
    from ostrack_ros.evaluation.bench import made_up_frames
    from ostrack_ros.network.export import export_checkpoint
    from ostrack_ros.network.ostrack import OSTrack
    from ostrack_ros.network.variants import get_variant
    from ostrack_ros.tracking.frame import Frame, PixelFormat
    from ostrack_ros.tracking.tracker import Tracker, TrackerSettings

    variant = "vitt_256_ce"  # the published architecture, narrow: the wide one takes minutes here
    weights = seeded_state(OSTrack(get_variant(variant)), seed=7)
    width = get_variant(variant).embed_dim
    for key, shape in (("cls_token", (1, 1, width)), ("pos_embed", (1, 197, width))):
        weights[f"backbone.{key}"] = seeded_tensor(f"backbone.{key}", shape, 7)
    checkpoint = tmp_path / "OSTrack_ep0300.pth.tar"
    extras = {"settings": _Settings(), "stats": {"train": {"Loss/total": _Meter(1.5)}}}
    torch.save({"epoch": 300, "net": weights, "optimizer": {}, **extras}, checkpoint)

    rig.model = export_checkpoint(checkpoint, variant, "fp16", tmp_path / "models")
    report = rig.build()
    assert report.self_test is not None
    assert report.precision == "fp16"

    images, box = made_up_frames(640, 360, 4)
    boxes = []
    engines = (rig.engine(), create_engine(rig.model, "onnxruntime", threads=1))
    for engine in engines:
        tracker = Tracker(engine, TrackerSettings(presence=None))
        tracker.init(Frame(images[0], PixelFormat.BGR, 0), box)
        estimates = [
            tracker.update(Frame(image, PixelFormat.BGR, index * 33_333_333))
            for index, image in enumerate(images[1:], start=1)
        ]
        boxes.append([tuple(estimate.box or ()) for estimate in estimates])
        engine.close()
    np.testing.assert_allclose(boxes[0], boxes[1], atol=0.05)
    assert np.all(np.isfinite(boxes[0]))
    assert rig.runtime.leaked == 0


# --- The report ---


def test_a_report_for_people(rig: Rig) -> None:
    report = rig.build()
    assert report.path == _engine_file(rig)
    assert report.device == "Fake GPU, SM87"
    assert report.self_test is not None
    assert report.self_test["reference"]
    assert "self-test passed" in report.summary()
    assert str(report.path) in report.summary()
    json.dumps(report.self_test)


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "tensorrt-build":
            thread.join(10)
