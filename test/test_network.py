"""The network against a plain, slow statement of the paper, on several variants and seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network needs torch (requirements-network.txt)")

from seeded_weights import seeded_state  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from ostrack_ros.network.elimination import (  # noqa: E402
    central_token,
    restore_tokens,
    split_candidates,
)
from ostrack_ros.network.head import Maps, decode, hann_window  # noqa: E402
from ostrack_ros.network.ostrack import OSTrack  # noqa: E402
from ostrack_ros.network.variants import PUBLISHED, VARIANTS, Variant, get_variant  # noqa: E402
from ostrack_ros.network.vit import _attend, central_positions  # noqa: E402


def plain_backbone(network: OSTrack, template: Tensor, search: Tensor) -> tuple[Tensor, list[int]]:
    """One pair through the backbone, attention written out, tokens eliminated one by one."""
    weights, variant = network.state_dict(), network.variant
    backbone = {key.removeprefix("backbone."): value for key, value in weights.items()}

    def tokens(image: Tensor, positions: str) -> Tensor:
        conv = F.conv2d(
            image, backbone["patch_embed.proj.weight"], backbone["patch_embed.proj.bias"], stride=16
        )
        return conv[0].flatten(1).T + backbone[positions][0]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], backbone[f"{name}.weight"], backbone[f"{name}.bias"], 1e-6
        )

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ backbone[f"{name}.weight"].T + backbone[f"{name}.bias"]

    z, x = tokens(template, "pos_embed_z"), tokens(search, "pos_embed_x")
    remaining, removed = list(range(len(x))), []
    sequence = torch.cat([z, x])
    side = variant.attention_width // variant.heads
    for index in range(variant.depth):
        name = f"blocks.{index}"
        query, key, value = linear(norm(sequence, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, -1)
        mixed, attention = [], torch.zeros(len(sequence))
        for head in range(variant.heads):
            part = slice(head * side, (head + 1) * side)
            softmax = (query[:, part] @ key[:, part].T / math.sqrt(side)).softmax(-1)
            mixed.append(softmax @ value[:, part])
            attention += softmax[central_token(len(z))] / variant.heads
        sequence = sequence + linear(torch.cat(mixed, 1), f"{name}.attn.proj")
        if variant.elimination and index in variant.elimination.blocks:
            candidates = attention[len(z) :]
            keep = math.ceil(variant.elimination.keep_ratio * len(candidates))
            order = candidates.argsort(descending=True).tolist()
            removed += [remaining[i] for i in order[keep:]]
            remaining = [remaining[i] for i in order[:keep]]
            kept = [i + len(z) for i in order[:keep]]
            sequence = torch.cat([sequence[: len(z)], sequence[kept]])
        hidden = F.gelu(linear(norm(sequence, f"{name}.norm2"), f"{name}.mlp.fc1"))
        sequence = sequence + linear(hidden, f"{name}.mlp.fc2")
    sequence = norm(sequence, "norm")
    grid = torch.zeros(len(x), variant.embed_dim)
    for position, token in zip(remaining, sequence[len(z) :], strict=True):
        grid[position] = token
    return grid, removed


def seeded_network(name: str, seed: int) -> OSTrack:
    network = OSTrack(get_variant(name)).eval()
    network.load_state_dict(seeded_state(network, seed))
    return network


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("vitt_256", 1),
        ("vitt_256_ce", 2),
        ("vitt_384_ce", 3),
        ("ostrack_small", 4),
        ("ostrack_tiny", 8),
    ],
)
@torch.no_grad()
def test_backbone_equals_the_plain_statement(name: str, seed: int) -> None:
    network = seeded_network(name, seed)
    generator = torch.Generator().manual_seed(seed)
    sizes = (network.variant.template_size, network.variant.search_size)
    template, search = (torch.randn(1, 3, n, n, generator=generator) for n in sizes)
    expected, removed = plain_backbone(network, template, search)
    features = network.backbone(template, search)
    np.testing.assert_allclose(features.search[0], expected, atol=2e-4)
    assert [int(i) for stage in features.removed for i in stage[0]] == removed


@torch.no_grad()
def test_a_batch_equals_its_items() -> None:
    network = seeded_network("ostrack_tiny", 5)
    template, search = torch.randn(3, 3, 128, 128), torch.randn(3, 3, 192, 192)
    together = network(template, search).maps
    for i in range(3):
        alone = network(template[i : i + 1], search[i : i + 1]).maps
        np.testing.assert_allclose(together.score[i], alone.score[0], atol=1e-5)
        np.testing.assert_allclose(together.offset[i], alone.offset[0], atol=1e-4)


def test_attention_is_the_same_while_training() -> None:
    """On a CPU, attention that gradients go through is written out instead of fused."""
    query, key, value = (torch.randn(2, 3, n, 8) for n in (5, 9, 9))
    fused = _attend(query, key, value)
    trained = _attend(query.requires_grad_(), key, value)
    torch.testing.assert_close(trained, fused, atol=1e-6, rtol=1e-5)
    trained.sum().backward()
    assert query.grad is not None


@torch.no_grad()
def test_a_smaller_search_is_the_middle_of_the_region() -> None:
    network = seeded_network("vitt_256", 7)
    torch.nn.init.zeros_(network.box_head.conv5_size.weight)  # the same size everywhere
    search = torch.randn(1, 3, 256, 256)
    template = torch.randn(1, 3, 128, 128)
    whole = network(template, search).maps
    middle = network(template, search[:, :, 32:224, 32:224]).maps
    assert middle.score.shape == (1, 1, 12, 12)
    np.testing.assert_allclose(middle.size[0, :, 0, 0] * 192, whole.size[0, :, 0, 0] * 256)
    positions = network.backbone.pos_embed_x.reshape(16, 16, -1)[2:14, 2:14].reshape(1, 144, -1)
    assert torch.equal(central_positions(network.backbone.pos_embed_x, 144), positions)


@torch.no_grad()
def test_the_template_matters() -> None:
    network = seeded_network("ostrack_tiny", 6)
    search = torch.randn(1, 3, 192, 192)
    a, b = (network(torch.randn(1, 3, 128, 128), search).maps.score for _ in range(2))
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "counts"), [("vitb_256_ce", (76, 54, 37)), ("vitb_384_ce", (172, 121, 84))]
)
def test_published_numbers_of_eliminated_candidates(name: str, counts: tuple[int, ...]) -> None:
    variant = get_variant(name)
    assert variant.elimination is not None
    remaining, dropped = variant.score_size**2, []
    for _ in variant.elimination.blocks:
        split = split_candidates(torch.rand(1, remaining), variant.elimination.keep_ratio)
        dropped.append(split.removed.shape[1])
        remaining = split.kept.shape[1]
    assert tuple(dropped) == counts


@pytest.mark.parametrize(("side", "middle"), [(7, 3), (8, 3), (12, 5), (14, 6)])
def test_central_token(side: int, middle: int) -> None:
    assert central_token(side * side) == middle * side + middle


def test_restored_tokens_are_exact_also_in_half_precision() -> None:
    tokens = torch.randn(2, 5, 8).half()
    positions = torch.stack([torch.randperm(9)[:5] for _ in range(2)])
    restored = restore_tokens(tokens, positions, 9)
    for item in range(2):
        expected = torch.zeros(9, 8).half()
        expected[positions[item]] = tokens[item]
        assert torch.equal(restored[item], expected)


def test_window_is_symmetric_and_positive() -> None:
    window = hann_window(16)
    np.testing.assert_allclose(window, window.T)
    np.testing.assert_allclose(window, window.flip(0, 1), atol=1e-7)
    assert window.min() > 0
    assert window[7, 7] == window.max()
    assert window[0, 0] == pytest.approx((0.5 * (1 - math.cos(2 * math.pi / 17))) ** 2)


def test_decode_reads_the_maps_at_the_windowed_peak() -> None:
    score = torch.full((1, 1, 16, 16), 0.1)
    score[0, 0, 0, 0] = 0.9  # the raw peak, in a corner, where the window is nearly zero
    score[0, 0, 8, 5] = 0.6
    size, offset = torch.rand(1, 2, 16, 16), torch.rand(1, 2, 16, 16)
    maps = Maps(score, size, offset)
    window = hann_window(16)
    cx, cy, width, height, raw, response = decode(maps, window)[0].tolist()
    assert (width, height) == pytest.approx(size[0, :, 8, 5].tolist())
    assert cx == pytest.approx((5 + float(offset[0, 0, 8, 5])) / 16)
    assert cy == pytest.approx((8 + float(offset[0, 1, 8, 5])) / 16)
    assert raw == pytest.approx(0.6)
    assert response == pytest.approx(0.6 * float(window[8, 5]))
    assert decode(maps)[0, 4] == pytest.approx(0.9)


def test_variants_cover_the_published_configurations() -> None:
    assert len(PUBLISHED) == 6
    for name, short in PUBLISHED.items():
        variant = get_variant(name)
        assert variant is VARIANTS[short]
        assert (variant.elimination is not None) == ("_ce_" in name)
        expected = (192, 384, 5.0) if "384" in name else (128, 256, 4.0)
        assert (variant.template_size, variant.search_size, variant.search_factor) == expected


def test_unknown_variant_lists_the_known() -> None:
    with pytest.raises(ValueError, match="vitb_256_ce"):
        get_variant("vitb_257")


@pytest.mark.parametrize(
    "change", [{"search_size": 250}, {"heads": 5}, {"head_channels": 12}, {"template_size": 0}]
)
def test_impossible_variants_are_refused(change: dict[str, int]) -> None:
    values = {"name": "x", "embed_dim": 192, "depth": 2, "heads": 3} | change
    with pytest.raises(ValueError, match=r"expected|multiple"):
        Variant(**values)
