"""Checkpoints: official files with pickled extras load, and nothing in them is ever executed."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the network needs torch (requirements-network.txt)")

from safetensors.torch import save_file  # noqa: E402
from seeded_weights import seeded_state, seeded_tensor  # noqa: E402

from ostrack_ros.network.checkpoint import (  # noqa: E402
    CheckpointError,
    load_network,
    read_weights,
)
from ostrack_ros.network.ostrack import OSTrack  # noqa: E402
from ostrack_ros.network.variants import Variant  # noqa: E402

TINY = Variant("test", embed_dim=32, depth=2, heads=2, head_channels=8)


class Settings:
    """Like the training settings that the published files pickle."""

    def __init__(self) -> None:
        self.project_path = "train/ostrack"
        self.nested = {"loss": [1.0, 2.0]}


class Meter:
    """Like their statistics: restored through __setstate__ and an argument to __reduce__."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __reduce__(self) -> tuple[object, ...]:
        return Meter, (self.value,), {"value": self.value}


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    published = seeded_state(OSTrack(TINY), seed=3)
    published["backbone.cls_token"] = seeded_tensor("backbone.cls_token", (1, 1, 32), 3)
    published["backbone.pos_embed"] = seeded_tensor("backbone.pos_embed", (1, 197, 32), 3)
    return published


def test_published_layout_with_pickled_objects(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "OSTrack_ep0300.pth.tar"
    stats = {"train": {"Loss/total": Meter(1.5)}}
    torch.save(
        {"epoch": 300, "net": weights, "settings": Settings(), "stats": stats, "optimizer": {}},
        path,
    )
    network = OSTrack(TINY)
    load_network(network, read_weights(path))
    for key, value in network.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    target = tmp_path / "executed"
    path = tmp_path / "evil.pth.tar"
    torch.save({"net": weights, "settings": Bomb(target)}, path)
    with contextlib.suppress(CheckpointError):
        read_weights(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the bomb is a real one
    assert target.exists()


def test_own_safetensors(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    assert read_weights(path).keys() == weights.keys()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no zip archive"),
        (b"PK\x03\x04 truncated", "no zip archive"),
        (pickle.dumps({"net": {}}), "no zip archive"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.pth.tar"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_weights(path)


def test_missing_file_and_missing_entry(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_weights(tmp_path / "absent.pth.tar")
    path = tmp_path / "other.pth.tar"
    torch.save({"model": {"a": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match=r"no entry 'net'.*found: model"):
        read_weights(path)


def test_loading_is_strict(weights: dict[str, torch.Tensor]) -> None:
    del weights["backbone.norm.bias"]
    weights["backbone.extra"] = torch.zeros(1)
    weights["box_head.conv5_ctr.bias"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as caught:
        load_network(OSTrack(TINY), weights)
    for part in (
        "missing backbone.norm.bias",
        "unknown backbone.extra",
        "conv5_ctr.bias is (2,), expected (1,)",
        "3 differences",
    ):
        assert part in str(caught.value)
