"""Weights on a coarse grid."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-train.txt)")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from ostrack_ros.training.rounding import main, round_matrices  # noqa: E402

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


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"w": torch.tensor([[1.03, 0.0, -0.97]])}, source)
    assert main([str(output), str(source), "--levels", "4"]) == 0
    assert load_file(output)["w"].tolist() == [[1.0, 0.0, -1.0]]
    assert main([str(output), str(source), "--levels", "1"]) == 1
    assert "levels is 1" in capsys.readouterr().err
    assert main([str(output), str(tmp_path / "no.safetensors")]) == 1
    assert "no.safetensors" in capsys.readouterr().err
