"""Weights on a coarse grid."""

from __future__ import annotations

import copy
import dataclasses
import zlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-train.txt)")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from seeded_weights import seeded_state  # noqa: E402
from sequences import write_photos  # noqa: E402
from torch import Tensor  # noqa: E402

from ostrack_ros.engines.spec import EliminationSchedule  # noqa: E402
from ostrack_ros.network.ostrack import OSTrack, fp16_normalisation  # noqa: E402
from ostrack_ros.network.variants import VARIANTS, Variant  # noqa: E402
from ostrack_ros.training.rounding import (  # noqa: E402
    fold_norms,
    main,
    round_matrices,
    round_network,
)

TOY = Variant(
    "toy",
    embed_dim=48,
    depth=2,
    heads=2,
    search_size=128,
    elimination=EliminationSchedule((1,), 0.7),
    head_channels=16,
)

size = st.floats(2.0**-8, 256.0, width=32)
weight = size | size.map(lambda value: -value) | st.just(0.0)


@given(st.lists(weight, min_size=1), st.integers(2, 256))
def test_each_weight_is_the_nearest_multiple_of_one_step(values: list[float], levels: int) -> None:
    exact = torch.tensor([values], dtype=torch.float64)
    rounded = round_matrices({"w": exact}, levels)["w"]
    scale = exact.square().mean().sqrt()
    if scale == 0:
        assert torch.equal(rounded, exact)
        return
    step = scale / levels
    # A power of two is at most a factor of sqrt(2) from what was asked for.
    assert torch.all((rounded - exact).abs() <= step * 2**0.5 / 2 * (1 + 1e-9))
    powers = [2.0 ** int(torch.log2(step).floor()), 2.0 ** int(torch.log2(step).ceil())]
    assert any(torch.equal(rounded / power, (rounded / power).round()) for power in powers)


def test_vectors_and_counters_stay_and_fp16_holds_what_was_rounded() -> None:
    torch.manual_seed(0)
    weights = {
        "matrix": torch.randn(64, 64) * 0.02,
        "bias": torch.randn(64),
        "counter": torch.tensor([[7]]),
        "none": torch.zeros(3, 3),
    }
    rounded = round_matrices(weights, 16)
    for name in ("bias", "counter", "none"):
        assert torch.equal(rounded[name], weights[name])
    matrix = rounded["matrix"]
    assert torch.equal(matrix.half().float(), matrix)
    packed, before = (
        len(zlib.compress(values.half().numpy().tobytes()))
        for values in (matrix, weights["matrix"])
    )
    assert packed < 0.65 * before


def toy_network() -> OSTrack:
    network = OSTrack(TOY).eval()
    network.load_state_dict(seeded_state(network, seed=2))
    return network


def smooth_images(count: int) -> list[tuple[Tensor, Tensor]]:
    """As pictures are: neighbouring pixels are alike, so that errors can make up for each other."""
    generator = torch.Generator().manual_seed(1)

    def image() -> Tensor:
        coarse = torch.randn(4, 3, 12, 12, generator=generator)
        return torch.nn.functional.interpolate(coarse, size=128, mode="bilinear")

    return [(image(), image()) for _ in range(count)]


@torch.no_grad()
def test_folded_norms_change_nothing() -> None:
    network, folded = toy_network(), OSTrack(TOY).eval()
    folded.load_state_dict(fold_norms(network.state_dict()))
    (pair,) = smooth_images(1)
    expected, maps = network(*pair).maps, folded(*pair).maps
    for name in ("score", "size", "offset"):
        assert torch.allclose(getattr(maps, name), getattr(expected, name), atol=1e-5), name
    assert torch.all(folded.box_head.conv1_ctr[1].weight == 1)


@torch.no_grad()
def test_rounding_by_what_layers_see_changes_less_than_rounding_each_weight() -> None:
    network = toy_network()
    network.load_state_dict(fold_norms(network.state_dict()))
    inputs = smooth_images(6)
    nearest, fitted = copy.deepcopy(network), copy.deepcopy(network)
    nearest.load_state_dict(round_matrices(network.state_dict(), 4))
    off = round_network(fitted, 4, inputs[:4])
    assert len(off) == 1 + 4 * TOY.depth + 3 * 5
    assert all(0 < share < 0.1 for share in off.values()), off

    def error(rounded: OSTrack) -> float:
        differences = [
            rounded.backbone(*pair, 1.0).search - network.backbone(*pair, 1.0).search
            for pair in inputs[4:]
        ]
        return float(torch.cat(differences).square().mean())

    assert error(fitted) < 0.6 * error(nearest)


@torch.no_grad()
def test_what_an_fp16_file_holds_lies_on_grids() -> None:
    network = toy_network()
    network.load_state_dict(fold_norms(network.state_dict()))
    round_network(network, 4, smooth_images(1))
    slope, _ = fp16_normalisation()
    for name, value in network.state_dict().items():
        if value.ndim < 2:
            continue
        if name == "backbone.patch_embed.proj.weight":
            value = (value.double() * slope).half().double()
        whole = value.double() / 2.0**-12
        assert torch.equal(whole, whole.round()), name
        assert len(value.unique()) < 60, name


def test_command_with_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(VARIANTS, "toy", dataclasses.replace(TOY, search_size=256))
    monkeypatch.setattr("ostrack_ros.training.data.SAMPLE_BATCHES", 1)
    write_photos(tmp_path / "bank" / "photos")
    config = tmp_path / "toy.yaml"
    config.write_text(
        f"variant: toy\nbanks: [{tmp_path / 'bank'}]\noutput: unused\nbatch_size: 2\n"
        "workers: 0\npatches: 4\nsearch_size: 128\nsynthesis: {pasted: 0.0, track: 0.0}\n"
    )
    network = OSTrack(VARIANTS["toy"])
    save_file(seeded_state(network, seed=2), tmp_path / "a.safetensors")
    arguments = [str(tmp_path / "b.safetensors"), str(tmp_path / "a.safetensors")]
    assert main([*arguments, "--levels", "5", "--config", str(config)]) == 0
    assert "outputs are off by at most" in capsys.readouterr().out
    network.load_state_dict(load_file(tmp_path / "b.safetensors"))
    assert len(network.backbone.blocks[0].mlp.fc1.weight.unique()) < 60
    assert main([*arguments, "--config", str(tmp_path / "no.yaml")]) == 1
    assert "no.yaml" in capsys.readouterr().err


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"w": torch.tensor([[1.03, 0.0, -0.97]])}, source)
    assert main([str(output), str(source), "--levels", "4"]) == 0
    assert load_file(output)["w"].tolist() == [[1.0, 0.0, -1.0]]
    assert main([str(output), str(source), "--levels", "1"]) == 1
    assert "levels is 1" in capsys.readouterr().err
    assert main([str(output), str(tmp_path / "no.safetensors")]) == 1
    assert "no.safetensors" in capsys.readouterr().err
