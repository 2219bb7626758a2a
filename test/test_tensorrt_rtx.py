"""The real TensorRT-RTX parser and builder compile every graph we export, without a GPU.

TensorRT-RTX is TensorRT's sibling for workstations: the same API, parser and typing rules, and it
builds for a named compute capability where no GPU is. Running the result needs one, so what is
proven here is that TensorRT accepts and compiles the graphs, and that the adapter speaks the real
API: names, flags, progress monitor, cancelling, errors.

`pip install -r requirements-tensorrt-ci.txt` (230 MB on disk) brings it.
"""

from __future__ import annotations

import collections
import threading
import time
from pathlib import Path

import pytest

from ostrack_ros.engines.base import EngineError
from ostrack_ros.engines.cache import BuildCancelled
from ostrack_ros.engines.candidates import with_kept_output
from ostrack_ros.engines.models import Model, list_models, load_model, resolve_model
from ostrack_ros.engines.tensorrt.api import TensorRtApi
from ostrack_ros.engines.tensorrt.builder import build_plan
from ostrack_ros.engines.tensorrt.widen import model_in

TARGETS = ("SM86", "SM89")
GRAPHS = ("ostrack_tiny", "ostrack_small", "vitb_256_ce", "vitb_384_ce")

# What TensorRT 8.6's ONNX parser reads, of the operators of opset 18 that our exporter writes
# (docs/operators.md of onnx-tensorrt, release 8.6-GA). ReduceMean is left out on purpose: that
# parser does not look at the axes input of opset 18 and would average over everything.
READ_BY_8_6 = {
    "Add",
    "And",
    "ArgMax",
    "Cast",
    "Clip",
    "Concat",
    "Constant",
    "Conv",
    "Div",
    "Equal",
    "Erf",
    "Expand",
    "Gather",
    "GatherElements",
    "LayerNormalization",
    "Less",
    "MatMul",
    "Mod",
    "Mul",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Sub",
    "TopK",
    "Transpose",
    "Unsqueeze",
    "Where",
}


@pytest.fixture(scope="module")
def api() -> TensorRtApi:
    module = pytest.importorskip(
        "tensorrt_rtx_bindings",
        reason="TensorRT-RTX is not installed: pip install -r requirements-tensorrt-ci.txt",
    )
    return TensorRtApi(module)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Exports a variant with random weights, once per module."""
    torch = pytest.importorskip("torch", reason="exporting needs torch")
    pytest.importorskip("onnxscript", reason="exporting needs onnxscript")
    from ostrack_ros.network.export import export_network
    from ostrack_ros.network.ostrack import OSTrack
    from ostrack_ros.network.variants import get_variant

    folder = tmp_path_factory.mktemp("graphs")

    def make(variant: str, precision: str) -> Model:
        path = folder / f"{variant}_{precision}.onnx"
        if not path.exists():
            torch.manual_seed(0)
            network = OSTrack(get_variant(variant)).eval()
            export_network(
                network, precision, path, source="random", source_sha256=variant.ljust(64, "0")
            )
        return load_model(path)

    return make


def compile_for_targets(api: TensorRtApi, model: Model) -> bytes:
    """As an engine is built: with the third output for the self-test."""
    model = with_kept_output(model)
    return build_plan(api, model, precision=model.spec.precision, targets=TARGETS)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("variant", GRAPHS)
def test_exported_graphs_compile(api: TensorRtApi, export, variant: str, precision: str) -> None:  # type: ignore[no-untyped-def]
    model = export(variant, precision)
    plan = compile_for_targets(api, model)
    # The weights are in the plan, so it cannot be much smaller than the file.
    assert len(plan) > 0.9 * len(model.content)
    model.path.unlink()  # 370 MB each


@pytest.mark.parametrize("variant", ["vitt_256", "vitt_384"])
def test_graphs_without_elimination_compile(api: TensorRtApi, export, variant: str) -> None:  # type: ignore[no-untyped-def]
    """Two of the published configurations have none; they differ from these in width only."""
    compile_for_targets(api, export(variant, "fp16"))


def test_batched_graphs_compile(api: TensorRtApi, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="exporting needs torch")
    pytest.importorskip("onnxscript", reason="exporting needs onnxscript")
    from ostrack_ros.network.export import export_network
    from ostrack_ros.network.ostrack import OSTrack
    from ostrack_ros.network.variants import get_variant

    torch.manual_seed(0)
    path = export_network(
        OSTrack(get_variant("ostrack_tiny")).eval(),
        "fp16",
        tmp_path / "batch.onnx",
        source="random",
        source_sha256="0" * 64,
        batch=3,
    )
    compile_for_targets(api, load_model(path))


@pytest.mark.parametrize("name", list_models() or ["(none)"])
def test_shipped_models_compile(api: TensorRtApi, name: str) -> None:
    if name == "(none)":
        pytest.skip("no model is shipped yet")
    model = load_model(resolve_model(name))
    compile_for_targets(api, model)
    wide = model_in(model, "fp32")
    compile_for_targets(api, wide)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_exported_graphs_suit_the_parser_of_tensorrt_8_6(export, precision: str) -> None:  # type: ignore[no-untyped-def]
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_model_from_string(export("ostrack_tiny", precision).content).graph
    found = collections.Counter(node.op_type for node in graph.node)
    assert set(found) <= READ_BY_8_6
    # TensorRT lets nothing but a cast to a float type touch an uint8 input.
    readers = [node.op_type for node in graph.node if {"template", "search"} & set(node.input)]
    assert readers == ["Cast", "Cast"]


def test_progress_and_cancelling(api: TensorRtApi, export) -> None:  # type: ignore[no-untyped-def]
    model = export("ostrack_small", "fp16")
    seen: list[tuple[float | None, str]] = []
    compile_with = {"precision": model.spec.precision, "targets": TARGETS}
    build_plan(api, model, progress=lambda *report: seen.append(report), **compile_with)
    fractions = [fraction for fraction, _ in seen]
    assert fractions
    assert None not in fractions
    assert fractions == sorted(fractions)  # type: ignore[type-var]

    cancel = threading.Event()
    cancel.set()
    begin = time.monotonic()
    with pytest.raises(BuildCancelled):
        build_plan(api, model, cancel=cancel, **compile_with)
    assert time.monotonic() - begin < 60


def test_real_errors_reach_the_message(api: TensorRtApi, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from tiny_graph import write_tiny_graph

    path = tmp_path / "tiny.onnx"
    write_tiny_graph(path, half=True)
    model = load_model(path)
    broken = Model(path, model.spec, model.content[: len(model.content) // 2])
    with pytest.raises(EngineError, match=r"TensorRT-RTX 1.* cannot read .*tiny\.onnx"):
        compile_for_targets(api, broken)
    with pytest.raises(EngineError, match="takes each layer's type from the ONNX file"):
        build_plan(api, model, precision="fp32", targets=TARGETS)
    with pytest.raises(EngineError, match="does not know 'SM12'"):
        build_plan(api, model, precision="fp16", targets=("SM12",))


def test_the_real_runtime_rejects_what_is_no_plan(api: TensorRtApi) -> None:
    assert api.runtime().deserialize_cuda_engine(b"not a plan" * 100) is None
    assert "magicTag" in api.explain("rejected")
    assert api.explain("again") == "again, with no reason given"  # not told twice


def test_the_recorded_api_is_the_real_one(api: TensorRtApi) -> None:
    from fake_tensorrt import RECORDED
    from record_tensorrt_api import describe_tensorrt

    recorded = RECORDED["tensorrt"].get(f"TensorRT-RTX {api.version}")
    if recorded is None:
        pytest.skip(f"TensorRT-RTX {api.version} was not recorded; run test/record_tensorrt_api.py")
    assert describe_tensorrt(api.module) == recorded
