"""What changes in the course of a run, as functions of its done share in [0, 1]."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ostrack_ros.training.config import TrainingConfig


@dataclass(slots=True)
class Progress:
    """Counts steps and working time; both survive a resume."""

    steps: int | None
    minutes: float | None
    step: int = 0
    seconds: float = 0.0
    _since: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Working time counts from here."""
        self._since = time.monotonic()

    def advance(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        self.step += 1

    @property
    def share(self) -> float:
        if self.minutes is not None:
            return min(self.seconds / (60 * self.minutes), 1.0)
        return min(self.step / (self.steps or 1), 1.0)

    @property
    def done(self) -> bool:
        return self.share >= 1


def learning_rate_factor(config: TrainingConfig, step: int, share: float) -> float:
    """Warm-up, plateau, linear decay; a factor of the peak rates."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if share <= config.decay_from:
        return warm
    rest = (1 - share) / max(1 - config.decay_from, 1e-9)
    return warm * (config.final_rate + (1 - config.final_rate) * rest)


def keep_ratio(config: TrainingConfig, target: float, share: float) -> float:
    """Share of candidates kept in each eliminating block: 1, then falling to the variant's own."""
    if share < config.elimination_from:
        return 1.0
    if share >= config.elimination_full:
        return target
    span = config.elimination_full - config.elimination_from
    return 1 - (1 - target) * (share - config.elimination_from) / span


class WeightAverage:
    """Exponential moving average of a network's weights and normalisation statistics.

    The decay rises from 0, so that the average forgets the first steps quickly.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {key: value.detach().clone() for key, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for key, value in network.state_dict().items():
            average = self.values[key]
            if average.dtype.is_floating_point:
                average.lerp_(value.detach(), 1 - decay)
            else:
                average.copy_(value)

    def state(self) -> dict[str, Tensor]:
        return {**self.values, "updates": torch.tensor(self.updates)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        for key, value in self.values.items():
            value.copy_(state[key])
