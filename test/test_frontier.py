"""The benchmark that network shapes are chosen from: its shapes, and a short run of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sequences import write_photos

pytest.importorskip("torch", reason="shapes are exported with torch (requirements-train.txt)")
pytest.importorskip("matplotlib", reason="training needs matplotlib (requirements-train.txt)")

from ostrack_ros.engines.models import resolve_model
from ostrack_ros.network.checkpoint import read_weights
from ostrack_ros.network.ostrack import OSTrack
from ostrack_ros.network.variants import VARIANTS, get_variant
from ostrack_ros.training.initialise import initialise_from_network

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_judged_shapes_take_all_of_the_shipped_weights() -> None:
    from frontier import shapes

    found = list(shapes())
    assert len({shape.variant.name for shape in found}) == len(found)
    judged = [shape for shape in found if shape.weights]
    weights = {name: read_weights(resolve_model(name)) for name in {str(s.weights) for s in judged}}
    assert weights.keys() == {"ostrack_small", "ostrack_tiny"}
    for shape in judged:
        network = OSTrack(shape.variant)
        source = str(shape.weights)
        copied = initialise_from_network(network, weights[source], get_variant(source))
        assert copied == len(network.state_dict()), shape.variant.name


def test_depths_are_trained_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import frontier

    write_photos(tmp_path / "bank" / "photos")
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"variant: ostrack_tiny\nbanks: [{tmp_path / 'bank'}]\noutput: unused\nbatch_size: 1\n"
        "workers: 0\nbf16: false\npatches: 4\nsynthesis: {pasted: 0.0, track: 0.0}\n"
    )
    monkeypatch.setattr(frontier, "DEPTHS", (4,))
    monkeypatch.setattr(frontier, "VARIANTS", dict(VARIANTS))
    monkeypatch.setattr("ostrack_ros.network.variants.VARIANTS", frontier.VARIANTS)
    arguments = ["--train", config, "--steps", 1, "--runs", tmp_path / "runs", "--rounds", 2]
    arguments += ["--output", tmp_path / "results"]
    monkeypatch.setattr("sys.argv", ["frontier.py", *map(str, arguments)])
    assert frontier.main() == 0
    (row,) = json.loads((tmp_path / "results" / "frontier.json").read_text())["shapes"]
    assert (row["blocks"], row["elimination"]) == (4, "70% in (3,)")
    assert 0 < row["seconds"] < 10
    assert row["auc"] is None  # no data set was given
    assert (tmp_path / "runs" / "4_blocks" / "weights.safetensors").is_file()
    assert "left out: NanoTrack v2" in capsys.readouterr().out
