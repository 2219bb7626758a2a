"""Exported graphs: valid, equal to torch, and described truthfully by their sidecars."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network needs torch (requirements-network.txt)")
onnx = pytest.importorskip("onnx", reason="needs onnx")

from seeded_weights import seeded_state  # noqa: E402
from synthetic_model import write_red_blob_model  # noqa: E402

from ostrack_ros.engines.candidates import with_kept_output  # noqa: E402
from ostrack_ros.engines.models import load_model  # noqa: E402
from ostrack_ros.engines.onnxruntime import OnnxRuntimeEngine  # noqa: E402
from ostrack_ros.engines.openvino import OpenVinoEngine  # noqa: E402
from ostrack_ros.engines.spec import EliminationSchedule, ModelSpec  # noqa: E402
from ostrack_ros.network.checkpoint import (  # noqa: E402
    CheckpointError,
    load_network,
    read_weights,
    sha256_of,
)
from ostrack_ros.network.export import export_checkpoint, export_network  # noqa: E402
from ostrack_ros.network.ostrack import OSTrack, OSTrackGraph  # noqa: E402
from ostrack_ros.network.variants import get_variant  # noqa: E402
from ostrack_ros.training.averaging import average_weights  # noqa: E402


@pytest.fixture(scope="module")
def network() -> OSTrack:
    network = OSTrack(get_variant("ostrack_tiny")).eval()
    network.load_state_dict(seeded_state(network, seed=11))
    return network


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def model(
    request: pytest.FixtureRequest, network: OSTrack, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("export") / f"tiny_{request.param}.onnx"
    return export_network(network, request.param, path, source="seed 11", source_sha256="ab" * 32)


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    template = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return template, rng.integers(0, 256, (192, 192, 3), dtype=np.uint8)


@pytest.mark.parametrize("engine_type", [OpenVinoEngine, OnnxRuntimeEngine])
def test_engines_equal_torch(
    model: Path,
    network: OSTrack,
    engine_type: type[OpenVinoEngine] | type[OnnxRuntimeEngine],
) -> None:
    # fp16 weights are rounded to 11 bits; in fp32 nothing but the order of sums differs.
    tolerance = 1e-5 if ModelSpec.load(model).precision == "fp32" else 2e-2
    engine = engine_type(model)
    graph = OSTrackGraph(network, "fp32").eval()
    for seed in range(3):
        template, search = random_pair(seed)
        prediction = engine.infer(template, search)
        with torch.no_grad():
            result, score_map = graph(
                torch.from_numpy(template)[None], torch.from_numpy(search)[None]
            )
        np.testing.assert_allclose(prediction.score_map, score_map[0], atol=tolerance)
        found = (prediction.cx, prediction.cy, prediction.width, prediction.height)
        if tolerance < 1e-4 or result[0, 5] - _second(graph, score_map) > tolerance:
            np.testing.assert_allclose(found, result[0, :4], atol=max(tolerance, 1e-5))
        np.testing.assert_allclose(prediction.score, result[0, 4], atol=tolerance)


def _second(graph: OSTrackGraph, score_map: torch.Tensor) -> float:
    """The second best windowed response: where it is close, rounding may choose the other."""
    return float((score_map[0] * graph.window).flatten().sort().values[-2])


def test_graph_is_valid_and_follows_the_contract(model: Path) -> None:
    onnx.checker.check_model(str(model), full_check=True)
    graph = onnx.load(model).graph
    shapes = {
        value.name: (
            value.type.tensor_type.elem_type,
            tuple(d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "template": (onnx.TensorProto.UINT8, (1, 128, 128, 3)),
        "search": (onnx.TensorProto.UINT8, (1, 192, 192, 3)),
        "result": (onnx.TensorProto.FLOAT, (1, 6)),
        "score_map": (onnx.TensorProto.FLOAT, (1, 12, 12)),
    }


@pytest.mark.parametrize("engine_type", [OpenVinoEngine, OnnxRuntimeEngine])
def test_a_file_can_be_asked_what_it_kept(
    model: Path,
    network: OSTrack,
    engine_type: type[OpenVinoEngine] | type[OnnxRuntimeEngine],
) -> None:
    loaded = load_model(model)
    template, search = random_pair(4)
    plain = engine_type(loaded).infer(template, search)
    assert plain.kept is None
    asked = with_kept_output(loaded)
    onnx.checker.check_model(asked.content, full_check=True)
    prediction = engine_type(asked).infer(template, search)
    np.testing.assert_array_equal(prediction.score_map, plain.score_map)
    graph = OSTrackGraph(network, "fp32").eval()
    with torch.no_grad():
        kept = graph.watched(torch.from_numpy(template)[None], torch.from_numpy(search)[None])[2]
    assert kept is not None
    assert kept.sum() == 71  # 70 % of 144, and 70 % of that, rounded up
    assert prediction.kept is not None
    assert np.abs(prediction.kept - kept[0].numpy()).sum() <= 2 * (loaded.spec.precision == "fp16")


@pytest.mark.parametrize("schedule", [None, EliminationSchedule((1,), 1.0)])
def test_a_network_without_elimination_has_no_answer(
    tmp_path: Path, schedule: EliminationSchedule | None
) -> None:
    network = OSTrack(dataclasses.replace(get_variant("ostrack_tiny"), elimination=schedule))
    path = export_network(network, "fp32", tmp_path / "x.onnx", source="s", source_sha256="0")
    loaded = load_model(path)
    assert with_kept_output(loaded) is loaded


def test_fp16_graph_is_typed_so(model: Path) -> None:
    kinds = {weight.data_type for weight in onnx.load(model).graph.initializer if weight.dims}
    half = onnx.TensorProto.FLOAT16 in kinds
    assert half == (ModelSpec.load(model).precision == "fp16")


def test_sidecar(model: Path, network: OSTrack) -> None:
    spec = ModelSpec.load(model)
    assert spec.onnx_sha256 == sha256_of(model)
    assert spec.source_sha256 == "ab" * 32
    assert spec.elimination == network.variant.elimination
    assert spec.parameters == sum(p.numel() for p in network.parameters())
    assert (spec.template_size, spec.search_size, spec.score_size) == (128, 192, 12)


def test_checkpoint_to_batched_model(tmp_path: Path, network: OSTrack) -> None:
    checkpoint = tmp_path / "OSTrack_ep0300.pth.tar"
    torch.save({"net": network.state_dict(), "epoch": 300}, checkpoint)
    path = export_checkpoint(checkpoint, "ostrack_tiny", "fp32", tmp_path / "out", batch=2)
    assert path.name == "ostrack_tiny_fp32_b2.onnx"
    spec = ModelSpec.load(path)
    assert spec.batch == 2
    assert spec.source_checkpoint == checkpoint.name
    assert spec.source_sha256 == sha256_of(checkpoint)
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    pairs = [random_pair(seed) for seed in range(2)]
    inputs = {
        "template": np.stack([p[0] for p in pairs]),
        "search": np.stack([p[1] for p in pairs]),
    }
    result, _ = session.run(None, inputs)
    graph = OSTrackGraph(network, "fp32").eval()
    with torch.no_grad():
        expected, _ = graph(*(torch.from_numpy(v) for v in inputs.values()))
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_failed_export_leaves_nothing(tmp_path: Path, network: OSTrack) -> None:
    with pytest.raises(ValueError, match="batch is 0"):
        export_network(network, "fp32", tmp_path / "x.onnx", source="s", source_sha256="0", batch=0)
    assert list(tmp_path.iterdir()) == []


def test_an_exported_model_comes_back_as_the_network(model: Path, network: OSTrack) -> None:
    """So that a shipped model, of which there is no checkpoint, can be trained further."""
    half = ModelSpec.load(model).precision == "fp16"
    restored = OSTrack(network.variant).eval()
    load_network(restored, read_weights(model))
    template, search = (torch.from_numpy(image)[None] for image in random_pair(5))
    with torch.no_grad():
        expected = OSTrackGraph(network, "fp32").eval()(template, search)
        found = OSTrackGraph(restored, "fp32").eval()(template, search)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=2e-2 if half else 1e-5)
    kept, given = restored.state_dict(), network.state_dict()
    for key in ("backbone.patch_embed.proj.weight", "backbone.blocks.3.attn.qkv.weight"):
        assert torch.allclose(kept[key], given[key], rtol=2e-3 if half else 1e-5, atol=1e-4), key


def test_what_is_no_exported_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.onnx").write_text("not a model")
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        read_weights(tmp_path / "words.onnx")
    write_red_blob_model(tmp_path / "blob.onnx")
    with pytest.raises(CheckpointError, match="not an OSTrack network that this package exported"):
        read_weights(tmp_path / "blob.onnx")


def test_weights_of_exported_models_are_not_averaged(model: Path) -> None:
    with pytest.raises(CheckpointError, match="is an exported model"):
        average_weights([model, model])
