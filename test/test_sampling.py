"""Textures resampled on a CPU look as they do on a GPU."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-train.txt)")

from ostrack_ros.training.sampling import _by_torch, pixel_centers, sample  # noqa: E402

SIZE = 64


@pytest.fixture
def textures() -> torch.Tensor:
    """Three smooth pictures: a step would show every difference in how its edge is blended."""
    steps = torch.linspace(0, 2 * math.pi, 96)
    waves = [
        127 + 120 * torch.sin(steps * (1 + index))[:, None] * torch.cos(steps)[None]
        for index in range(9)
    ]
    return torch.stack(waves).view(3, 3, 96, 96).to(torch.uint8)


def view(angle: float, scale: float, shift: float, tilt: float) -> torch.Tensor:
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    rows = [[cosine, -sine, shift], [sine, cosine, shift / 2], [tilt, -tilt, 1.0]]
    return torch.tensor(rows)


VIEWS = torch.stack(
    [view(0.0, 1.0, 8.0, 0.0), view(0.5, 1.3, 20.0, 0.002), view(-0.3, 0.7, -15.0, 0.0)]
)
USED = torch.tensor([[96.0, 96.0], [96.0, 70.0], [60.0, 96.0]])


@pytest.mark.parametrize("mirrored", [None, True, False])
@pytest.mark.parametrize("bent", [False, True])
def test_both_ways_of_sampling_agree(
    textures: torch.Tensor, mirrored: bool | None, bent: bool
) -> None:
    chosen = torch.tensor([2, 0, 1])
    mirror = None if mirrored is None else torch.tensor([mirrored, mirrored, not mirrored])
    bend = None
    if bent:
        wave = torch.sin(pixel_centers(SIZE, torch.device("cpu")) / 9).T.view(2, SIZE, SIZE) * 4
        bend = torch.stack([wave, torch.zeros_like(wave), -wave])
    arguments = (textures, chosen, VIEWS, SIZE, USED, mirror, bend)
    on_cpu, on_gpu = sample(*arguments).numpy(), _by_torch(*arguments).numpy()
    assert on_cpu.shape == (3, 3, SIZE, SIZE)
    # At the used part's border one blends with black and the other does not.
    different = np.abs(on_cpu - on_gpu) > 3
    assert different.mean() < 0.04
    assert on_cpu.std() > 20


def test_pixels_lie_between_their_borders() -> None:
    """The identity view reproduces the texture exactly; half a pixel off would blur it."""
    texture = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    whole = torch.full((1, 2), 32.0)
    seen = sample(texture, torch.tensor([0]), torch.eye(3)[None], 32, whole)
    assert torch.equal(seen, texture.float())
