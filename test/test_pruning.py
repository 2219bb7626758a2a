"""Networks made narrow: exact where nothing is lost, fitted anew where something is."""

from __future__ import annotations

import copy
import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-train.txt)")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from seeded_weights import seeded_state  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from ostrack_ros.network.ostrack import OSTrack  # noqa: E402
from ostrack_ros.network.variants import Variant  # noqa: E402
from ostrack_ros.training.errors import TrainingError  # noqa: E402
from ostrack_ros.training.initialise import initialise_from_network  # noqa: E402
from ostrack_ros.training.pruning import is_wider, narrow_network  # noqa: E402

WIDE = Variant("wide", embed_dim=48, depth=2, heads=3, search_size=128, head_channels=32)
HEAD_DIM = WIDE.embed_dim // WIDE.heads
WIDTH = 4 * WIDE.embed_dim


def wide_network(seed: int = 3) -> OSTrack:
    network = OSTrack(WIDE).eval()
    network.load_state_dict(seeded_state(network, seed=seed))
    return network


def narrow_from(
    wide: OSTrack, inputs: list[tuple[Tensor, Tensor]], **change: int
) -> tuple[OSTrack, dict[str, float]]:
    """As a training starts it."""
    network = OSTrack(dataclasses.replace(WIDE, head_dim=HEAD_DIM, **change)).eval()
    weights = wide.state_dict()
    initialise_from_network(network, weights, WIDE)
    assert is_wider(weights, WIDE, network)
    return network, narrow_network(network, weights, inputs)


def images(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def image() -> Tensor:
        return torch.randn(2, 3, 128, 128, generator=generator)

    return [(image(), image()) for _ in range(count)]


@torch.no_grad()
def silence(wide: OSTrack) -> None:
    """A third of all parts, different ones in each block and layer, shall say nothing."""
    for index, block in enumerate(wide.backbone.blocks):
        block.mlp.fc2.weight[:, index::3] = 0
        block.attn.proj.weight[:, index * HEAD_DIM : (index + 1) * HEAD_DIM] = 0
    for tower in ("ctr", "offset", "size"):
        for layer in (1, 2, 3, 4):
            following = wide.box_head.get_submodule(f"conv{layer + 1}_{tower}")
            weight = (following[0] if layer < 4 else following).weight
            weight[:, 1::2] = 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "fitted"),
    [
        ({"heads": 2}, {"backbone.blocks.0.attn.proj", "backbone.blocks.1.attn.proj"}),
        ({"mlp_width": WIDTH * 2 // 3}, {"backbone.blocks.0.mlp.fc2", "backbone.blocks.1.mlp.fc2"}),
        (
            {"head_channels": 16},
            {
                f"box_head.conv{n}_{tower}"
                for n in (2, 3, 4, 5)
                for tower in ("ctr", "offset", "size")
            },
        ),
    ],
)
def test_what_says_nothing_is_what_goes(change: dict[str, int], fitted: set[str]) -> None:
    wide = wide_network()
    silence(wide)
    inputs = images()
    narrow, missed = narrow_from(wide, inputs, **change)
    assert missed.keys() == fitted
    assert max(missed.values()) < 1e-6
    for template, search in inputs:
        expected, maps = wide(template, search).maps, narrow(template, search).maps
        for name in ("score", "size", "offset"):
            assert torch.allclose(getattr(maps, name), getattr(expected, name), atol=1e-4), name


@torch.no_grad()
def test_all_three_at_once_stay_near_the_wide_network() -> None:
    wide = wide_network()
    inputs = images(8)
    narrow, missed = narrow_from(wide, inputs[:6], heads=2, mlp_width=120, head_channels=24)
    assert all(0 < share < 0.7 for share in missed.values()), missed
    plain = OSTrack(narrow.variant).eval()
    initialise_from_network(plain, wide.state_dict(), WIDE)
    for template, search in inputs[6:]:
        expected = wide(template, search).maps.size
        near = (narrow(template, search).maps.size - expected).square().mean()
        far = (plain(template, search).maps.size - expected).square().mean()
        assert near < 0.5 * far


@torch.no_grad()
def test_units_that_stay_are_untouched_and_other_blocks_are_too() -> None:
    wide = wide_network()
    narrow, _ = narrow_from(wide, images(2), mlp_width=60)
    for own, given_block in zip(narrow.backbone.blocks, wide.backbone.blocks, strict=True):
        rows = given_block.mlp.fc1.weight
        assert all((rows == row).all(1).any() for row in own.mlp.fc1.weight)
        assert torch.equal(own.attn.qkv.weight, given_block.attn.qkv.weight)
    for key, value in narrow.box_head.state_dict().items():
        assert torch.equal(value, wide.box_head.state_dict()[key]), key


@torch.no_grad()
def test_a_deeper_network_keeps_the_blocks_that_the_wide_one_does_not_have() -> None:
    wide = wide_network()
    deeper = OSTrack(dataclasses.replace(WIDE, depth=3, mlp_width=60)).eval()
    last = copy.deepcopy(deeper.backbone.blocks[2].state_dict())
    weights = wide.state_dict()
    initialise_from_network(deeper, weights, WIDE)
    missed = narrow_network(deeper, weights, images(2))
    assert missed.keys() == {"backbone.blocks.0.mlp.fc2", "backbone.blocks.1.mlp.fc2"}
    for key, value in deeper.backbone.blocks[2].state_dict().items():
        assert torch.equal(value, last[key]), key


def test_only_wider_networks_are_cut() -> None:
    wide = wide_network()
    narrow = OSTrack(dataclasses.replace(WIDE, mlp_width=60))
    assert is_wider(wide.state_dict(), WIDE, narrow)
    assert not is_wider(narrow.state_dict(), narrow.variant, wide)
    assert not is_wider(wide.state_dict(), WIDE, wide)
    smaller_inputs = OSTrack(dataclasses.replace(WIDE, search_size=96))
    assert not is_wider(wide.state_dict(), WIDE, smaller_inputs)
    fewer_features = OSTrack(dataclasses.replace(WIDE, embed_dim=24))
    assert not is_wider(wide.state_dict(), WIDE, fewer_features)


def test_heads_of_another_width_are_refused_in_words() -> None:
    other = OSTrack(dataclasses.replace(WIDE, heads=4, head_dim=8))
    with pytest.raises(TrainingError, match="wide has attention heads of width 16, wide of 8"):
        is_wider(wide_network().state_dict(), WIDE, other)


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(width=st.integers(8, WIDTH - 1), seed=st.integers(0, 1000))
def test_the_fitted_layer_is_nearer_than_the_cut_one(width: int, seed: int) -> None:
    wide = wide_network(seed)
    inputs = images(3)
    narrow, missed = narrow_from(wide, inputs, mlp_width=width)
    assert 0 <= missed["backbone.blocks.0.mlp.fc2"] <= 1 + 1e-6

    block, own = wide.backbone.blocks[0], narrow.backbone.blocks[0].mlp
    tokens = torch.cat([wide.backbone.embed(*pair) for pair in inputs])
    seen = block.norm2(tokens + block.attn(block.norm1(tokens))[0])
    true = block.mlp(seen)
    rows = block.mlp.fc1.weight
    kept = torch.tensor([int((rows == row).all(1).nonzero()[0]) for row in own.fc1.weight])
    cut = F.linear(F.gelu(own.fc1(seen)), block.mlp.fc2.weight[:, kept], block.mlp.fc2.bias)
    assert (own(seen) - true).square().mean() <= (cut - true).square().mean() * (1 + 1e-3)
