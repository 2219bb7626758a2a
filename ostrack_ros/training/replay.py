"""Recorded training pairs, mixed into drawn ones: what a model met while tracking, see
`training.following`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ostrack_ros.training.state import save_tensors
from ostrack_ros.training.synthesis import PairBatch

_NAMES = ("template", "search", "box", "present")


class ReplayError(ValueError):
    """Recorded pairs cannot be used. The message says which and why."""


def save_pairs(pairs: PairBatch, path: Path) -> None:
    save_tensors({name: getattr(pairs, name) for name in _NAMES}, path)


class Replay:
    """Recorded pairs to draw from, as `template_size` and `search_size` want them.

    Search regions larger than `search_size` are cut to their middle; a target whose centre is not
    in there leaves the pair out. Raises ReplayError for a file that is not one of these, or of
    other sizes.
    """

    def __init__(self, path: Path, template_size: int, search_size: int) -> None:
        try:
            tensors = load_file(path)
            pairs = PairBatch(*(tensors[name] for name in _NAMES))
        except (OSError, KeyError, SafetensorError) as error:
            raise ReplayError(f"{path} holds no recorded pairs: {error}") from error
        sizes = (pairs.template.shape[-1], pairs.search.shape[-1])
        if sizes[0] != template_size or sizes[1] < search_size:
            raise ReplayError(
                f"{path} has templates of {sizes[0]} px and search regions of {sizes[1]} px, this "
                f"training needs {template_size} and at least {search_size}: record it again with "
                "a model of this variant"
            )
        self._pairs = _middle(pairs, search_size)
        if not len(self):
            raise ReplayError(f"{path}: no target lies in the middle {search_size} px")

    def __len__(self) -> int:
        return len(self._pairs.present)

    def to(self, device: torch.device) -> Replay:
        self._pairs = PairBatch(*(getattr(self._pairs, name).to(device) for name in _NAMES))
        return self

    def draw(self, count: int, generator: torch.Generator) -> PairBatch:
        """`count` pairs at random, each mirrored or not."""
        device = self._pairs.box.device
        chosen = torch.randint(len(self), (count,), generator=generator, device=device)
        pairs = PairBatch(*(getattr(self._pairs, name)[chosen] for name in _NAMES))
        flip = torch.rand(count, generator=generator, device=device) < 0.5
        pairs.template[flip] = pairs.template[flip].flip(-1)
        pairs.search[flip] = pairs.search[flip].flip(-1)
        pairs.box[flip, 0] = 1 - pairs.box[flip, 0]
        return pairs


def mixed(first: PairBatch, second: PairBatch) -> PairBatch:
    """One batch of the pairs of both."""
    return PairBatch(*(torch.cat([getattr(first, n), getattr(second, n)]) for n in _NAMES))


def _middle(pairs: PairBatch, side: int) -> PairBatch:
    whole = pairs.search.shape[-1]
    margin = (whole - side) // 2
    box = pairs.box * whole
    box[:, :2] -= margin
    box = box / side
    usable = ~pairs.present | ((box[:, :2] > 0) & (box[:, :2] < 1)).all(1)
    search = pairs.search[usable, :, margin : margin + side, margin : margin + side]
    return PairBatch(
        pairs.template[usable], search.contiguous(), box[usable], pairs.present[usable]
    )
