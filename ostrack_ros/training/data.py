"""Batches for the trainer: made on the training's own device, or on the CPU by workers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ostrack_ros.engines.spec import IMAGENET_MEAN, IMAGENET_STD
from ostrack_ros.training.config import TrainingConfig
from ostrack_ros.training.images import ImageBank, load_bank
from ostrack_ros.training.replay import Replay, mixed
from ostrack_ros.training.synthesis import PairBatch, PairSynthesizer

HELD_OUT_EVERY = 20
"""Of so many pictures one is kept out of the training."""

SAMPLE_BATCHES = 12


class _Pairs(IterableDataset[PairBatch]):
    """An endless stream of batches; every worker draws its own."""

    def __init__(
        self, bank: ImageBank, replay: Replay | None, config: TrainingConfig, seed: int
    ) -> None:
        self._bank = bank
        self._replay = replay
        self._config = config
        self._seed = seed

    def __iter__(self) -> Iterator[PairBatch]:
        worker = get_worker_info()
        if worker is not None:
            torch.set_num_threads(1)
        generator = torch.Generator(self._bank.photos.device)
        generator.manual_seed(self._seed * 1009 + (worker.id if worker else 0))
        synthesizer = PairSynthesizer(self._bank, self._config.synthesis, generator)
        replay, count = self._replay, self._config.batch_size
        replayed = round(count * self._config.replay_share) if replay else 0
        while True:
            if replay is None or replayed == 0:
                yield synthesizer.draw(count)
            elif replayed == count:
                yield replay.draw(count, generator)
            else:
                drawn = synthesizer.draw(count - replayed)
                yield mixed(drawn, replay.draw(replayed, generator))


def pair_stream(config: TrainingConfig, device: torch.device, seed: int) -> Iterator[PairBatch]:
    """Endless batches on `device`. `seed` should differ after a resume, or the pairs repeat."""
    bank, _ = training_banks(config)
    replay = _replay(config)
    if device.type == "cuda":
        return iter(_Pairs(bank.to(device), replay and replay.to(device), config, seed))
    pairs = _Pairs(bank, replay, config, seed)
    if config.workers == 0:
        return iter(pairs)
    # OpenCV's threads stay behind in a fork; a worker that changed their number waited for ever.
    cv2.setNumThreads(0)
    return iter(DataLoader(pairs, batch_size=None, num_workers=config.workers, prefetch_factor=4))


def training_banks(config: TrainingConfig) -> tuple[ImageBank, ImageBank]:
    """What to train on, and what training never sees (for the calibration of presence)."""
    bank = load_bank(map(Path, config.banks), config.patches, config.seed, config.max_pictures)
    return bank.split(HELD_OUT_EVERY)


def _replay(config: TrainingConfig) -> Replay | None:
    if config.replay is None:
        return None
    sizes = config.synthesis.template_size, config.synthesis.search_size
    return Replay(Path(config.replay), *sizes)


def network_inputs(batch: PairBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalised templates and search regions [B, 3, H, W] of a batch, on `device`."""
    return normalise(batch.template.to(device)), normalise(batch.search.to(device))


def sample_inputs(
    batches: Iterator[PairBatch], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a network sees of the next SAMPLE_BATCHES batches, to measure what its layers do."""
    return (network_inputs(batch, device) for batch in islice(batches, SAMPLE_BATCHES))


def normalise(images: Tensor) -> Tensor:
    """uint8 RGB [B, 3, H, W] -> float32 with ImageNet's mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std
