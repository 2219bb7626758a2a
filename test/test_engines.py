"""CPU engines on a hand-made graph: answers, memory, and every way a model can be unusable."""

from __future__ import annotations

import builtins
import importlib
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tiny_graph import SPEC, expected, random_pair, write_tiny_graph

from ostrack_ros.engines import select
from ostrack_ros.engines.base import Engine, EngineError, Prediction
from ostrack_ros.engines.models import Model
from ostrack_ros.engines.onnxruntime import OnnxRuntimeEngine
from ostrack_ros.engines.openvino import OpenVinoEngine
from ostrack_ros.engines.runtime import BackendUnavailableError
from ostrack_ros.engines.select import BACKENDS, create_engine
from ostrack_ros.engines.selftest import ParityError
from ostrack_ros.engines.spec import sidecar_path

pytest.importorskip("onnx", reason="the test's graphs are made with onnx")

RUNTIMES = {"openvino": OpenVinoEngine, "onnxruntime": OnnxRuntimeEngine}


@pytest.fixture(params=RUNTIMES)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return RUNTIMES[request.param]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    write_tiny_graph(path)
    return path


def assert_answers(prediction: Prediction, seed: int, tolerance: float = 1e-5) -> None:
    result, scores = expected(*random_pair(seed))
    found = [
        prediction.cx,
        prediction.cy,
        prediction.width,
        prediction.height,
        prediction.score,
        prediction.response,
    ]
    np.testing.assert_allclose(found, result, atol=tolerance)
    np.testing.assert_allclose(prediction.score_map, scores, atol=tolerance)
    assert prediction.score_map.dtype == np.float32


def test_answers(make: Callable[..., Engine], model: Path) -> None:
    engine = make(model, threads=1)
    for seed in range(5):
        assert_answers(engine.infer(*random_pair(seed)), seed)


def test_answers_of_a_half_precision_graph(make: Callable[..., Engine], tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    write_tiny_graph(path, half=True)
    assert_answers(make(path).infer(*random_pair(3)), 3, tolerance=2e-3)


def test_an_answer_outlives_the_next(make: Callable[..., Engine], model: Path) -> None:
    engine = make(model)
    first = engine.infer(*random_pair(0))
    engine.infer(*random_pair(1))
    assert_answers(first, 0)
    engine.close()
    assert_answers(first, 0)


def test_inputs_may_be_views_and_stay_untouched(make: Callable[..., Engine], model: Path) -> None:
    template, search = random_pair(4)
    flipped = np.ascontiguousarray(search[:, ::-1])[:, ::-1]
    template.setflags(write=False)
    assert_answers(make(model).infer(template, flipped), 4)
    np.testing.assert_array_equal(flipped, random_pair(4)[1])


def test_batch(make: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "three.onnx"
    write_tiny_graph(path, batch=3)
    engine = make(path)
    assert_answers(engine.infer(*random_pair(9)), 9)
    for count in (1, 2, 3):
        pairs = [random_pair(10 * count + i) for i in range(count)]
        answers = engine.infer_batch([p[0] for p in pairs], [p[1] for p in pairs])
        engine.infer(*random_pair(0))
        assert len(answers) == count
        for i, answer in enumerate(answers):
            assert_answers(answer, 10 * count + i)
    for count in (0, 4):
        template, search = random_pair(0)
        with pytest.raises(EngineError, match=f"{count} templates"):
            engine.infer_batch([template] * count, [search] * count)


def test_description_names_library_precision_and_threads(
    make: Callable[..., Engine], model: Path
) -> None:
    line = make(model, threads=1).description
    assert "\n" not in line
    assert "fp32" in line
    assert "1 threads" in line


@pytest.mark.parametrize(
    ("template", "search"),
    [
        (np.zeros((8, 8), np.uint8), np.zeros((16, 16, 3), np.uint8)),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((17, 16, 3), np.uint8)),
        (np.zeros((8, 8, 3), np.float32), np.zeros((16, 16, 3), np.uint8)),
    ],
)
def test_refuses_wrong_images(
    make: Callable[..., Engine], model: Path, template: Any, search: Any
) -> None:
    with pytest.raises(EngineError, match="the model takes uint8"):
        make(model).infer(template, search)


def test_closing_twice_is_harmless_and_final(make: Callable[..., Engine], model: Path) -> None:
    engine = make(model)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer(*random_pair(0))


def test_refuses_a_file_that_is_not_the_sidecars(make: Callable[..., Engine], model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(EngineError, match="not the file its sidecar was written for"):
        make(model)


def test_names_an_lfs_pointer(make: Callable[..., Engine], model: Path) -> None:
    model.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(EngineError, match="git lfs pull"):
        make(model)


@pytest.mark.parametrize("missing", ["model", "sidecar"])
def test_refuses_a_missing_file(make: Callable[..., Engine], model: Path, missing: str) -> None:
    gone = model if missing == "model" else sidecar_path(model)
    gone.unlink()
    with pytest.raises(EngineError, match=f"cannot read {gone}"):
        make(model)


@pytest.mark.parametrize("content", [b"", b"no graph at all" * 20])
def test_refuses_damage_in_a_human_sentence(
    make: Callable[..., Engine], model: Path, content: bytes
) -> None:
    import hashlib

    model.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    sidecar_path(model).write_text(replace(SPEC, onnx_sha256=digest).to_json())
    with pytest.raises(EngineError, match=r"cannot read .*export it again") as caught:
        make(model)
    assert "src/" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)


def test_refuses_a_graph_that_contradicts_its_sidecar(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    path = tmp_path / "other.onnx"
    write_tiny_graph(path, score_size=8)
    with pytest.raises(EngineError, match=r"score_map.*\[1, 8, 8\].*sidecar says.*\[1, 4, 4\]"):
        make(path)
    write_tiny_graph(path, result_name="boxes")
    with pytest.raises(EngineError, match=r"no output .result., only .*boxes"):
        make(path)


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"precision": "int8"}])
def test_refuses_bad_arguments(
    make: Callable[..., Engine], model: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(EngineError, match=next(iter(arguments))):
        make(model, **arguments)


@pytest.mark.parametrize("name", RUNTIMES)
def test_says_what_to_install(name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=f"pip install {name}"):
        create_engine(model, name)


def test_says_when_a_library_is_broken(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> ModuleType:
        raise ImportError(f"lib{name}.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(BackendUnavailableError, match=r"cannot be loaded .*shared object"):
        create_engine(model, "openvino")


def without(monkeypatch: pytest.MonkeyPatch, *blocked: str) -> None:
    """Make modules unimportable, for `import x` and for importlib alike."""
    real_import = builtins.__import__

    def guarded(name: str, *args: Any, **kwargs: Any) -> ModuleType:
        if name in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    for name in blocked:
        monkeypatch.setitem(sys.modules, name, None)


def test_auto_falls_through_and_logs_why(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    without(monkeypatch, "ostrack_ros.engines.tensorrt", "openvino")
    with caplog.at_level(logging.INFO):
        engine = create_engine(model, threads=1)
    assert engine.description.startswith("ONNX Runtime")
    text = caplog.text
    assert "not using tensorrt" in text
    assert "pip install openvino" in text
    assert "using ONNX Runtime" in text


def test_auto_lists_all_reasons(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "ostrack_ros.engines.tensorrt", "openvino", "onnxruntime")
    with pytest.raises(EngineError) as caught:
        create_engine(model)
    for backend in BACKENDS:
        assert f"- {backend}: " in str(caught.value)


def test_refuses_an_unknown_backend(model: Path) -> None:
    with pytest.raises(EngineError, match="'cuda', expected auto, tensorrt"):
        create_engine(model, "cuda")


def test_a_damaged_model_is_not_blamed_on_the_backends(model: Path) -> None:
    model.write_bytes(b"cut off")
    with pytest.raises(EngineError, match="not the file its sidecar"):
        create_engine(model)


def test_a_gpu_engine_that_disagrees_gives_way_to_the_cpu_if_it_may(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")

    def disagree(model: Model, options: select.EngineOptions) -> Engine:
        raise ParityError("the box is off by 0.4")

    monkeypatch.setitem(select._MAKERS, "tensorrt", disagree)
    for backend in ("auto", "tensorrt"):
        caplog.clear()
        engine = create_engine(model, backend, precision="fp16", threads=1)
        assert engine.description.startswith("OpenVINO")
        assert "off by 0.4; going on with the CPU" in caplog.text
        with pytest.raises(ParityError):
            create_engine(model, backend, fallback="none")


def test_a_cancelled_auto_does_not_try_the_next(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "ostrack_ros.engines.tensorrt")
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(EngineError, match="TensorRT"):
        create_engine(model, cancel=cancel)
