"""Ours against golden outputs of the published network and tracker (../shared/parity)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from shared_data import shared

torch = pytest.importorskip("torch", reason="the network needs torch (requirements-network.txt)")

from seeded_weights import seeded_tensor  # noqa: E402

from ostrack_ros.engines.onnxruntime import OnnxRuntimeEngine  # noqa: E402
from ostrack_ros.engines.openvino import OpenVinoEngine  # noqa: E402
from ostrack_ros.network.checkpoint import load_network  # noqa: E402
from ostrack_ros.network.export import export_network  # noqa: E402
from ostrack_ros.network.head import decode  # noqa: E402
from ostrack_ros.network.ostrack import OSTrack  # noqa: E402
from ostrack_ros.network.variants import get_variant  # noqa: E402
from ostrack_ros.tracking.frame import Frame, PixelFormat  # noqa: E402
from ostrack_ros.tracking.geometry import Box  # noqa: E402
from ostrack_ros.tracking.tracker import Tracker, TrackerSettings  # noqa: E402


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(shared("parity", "vitb_256_ce_seed7.npz"), allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def network() -> OSTrack:
    """The published variant, loaded strictly from the published list of keys and shapes."""
    weights = {}
    for line in shared("parity", "state_dict_vitb_256_ce.txt").read_text().splitlines():
        key, shape = line.split(" ", 1)
        sizes = tuple(int(n) for n in shape.strip("[] ").split(",") if n.strip())
        weights[key] = seeded_tensor(key, sizes, seed=7)
    network = OSTrack(get_variant("vitb_256_mae_ce_32x4_ep300")).eval()
    load_network(network, weights)
    return network


@pytest.fixture(scope="module")
def model(network: OSTrack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parity") / "vitb_256_ce.onnx"
    return export_network(network, "fp32", path, source="seed 7", source_sha256="0" * 64)


def test_maps_and_eliminated_candidates_equal_the_published(
    network: OSTrack, golden: dict[str, np.ndarray]
) -> None:
    rng = np.random.default_rng(8)
    template = torch.from_numpy(rng.standard_normal((1, 3, 128, 128)).astype(np.float32))
    search = torch.from_numpy(rng.standard_normal((1, 3, 256, 256)).astype(np.float32))
    with torch.no_grad():
        features = network.backbone(template, search)
        output = network(template, search)
    np.testing.assert_allclose(output.maps.score, golden["score_map"], atol=1e-5)
    np.testing.assert_allclose(output.maps.size, golden["size_map"], atol=1e-5)
    np.testing.assert_allclose(output.maps.offset, golden["offset_map"], atol=1e-4)
    np.testing.assert_array_equal(torch.cat(output.removed, 1), golden["removed"])
    # The template's own features leave the last block with nobody to read them: they are not made.
    expected = golden["feat_mean"][:, network.variant.template_tokens :]
    np.testing.assert_allclose(features.search.mean(-1), expected, atol=1e-4)
    box = decode(output.maps)[:, :4]
    np.testing.assert_allclose(box, golden["pred_boxes"][:, 0], atol=1e-5)


@pytest.mark.parametrize("engine_type", [OpenVinoEngine, OnnxRuntimeEngine])
def test_trajectory_equals_the_published(
    model: Path,
    golden: dict[str, np.ndarray],
    engine_type: type[OpenVinoEngine] | type[OnnxRuntimeEngine],
) -> None:
    folder = shared("eval_dev", "davis_drift-straight")
    truth = np.loadtxt(folder / "groundtruth_rect.txt", delimiter=",", max_rows=1)
    tracker = Tracker(engine_type(model), TrackerSettings(presence=None))
    boxes, scores = [], []
    for index, path in enumerate(sorted((folder / "img").glob("*.jpg"))[:30]):
        frame = Frame(cv2.imread(str(path)), PixelFormat.BGR, index * 33_000_000)
        if index == 0:
            tracker.init(frame, Box(*truth))
            boxes.append(tuple(truth))
            scores.append(np.nan)
            continue
        estimate = tracker.update(frame)
        assert estimate.box is not None
        boxes.append(tuple(estimate.box))
        scores.append(estimate.evidence.scores.peak)
    np.testing.assert_allclose(boxes, golden["boxes"], atol=0.05)
    np.testing.assert_allclose(scores, golden["scores"], atol=1e-4)
