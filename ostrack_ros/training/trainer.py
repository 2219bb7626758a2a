"""The training loop."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ostrack_ros.network.checkpoint import load_network, read_weights
from ostrack_ros.network.ostrack import OSTrack
from ostrack_ros.network.variants import get_variant
from ostrack_ros.network.vit import Features
from ostrack_ros.training.config import TrainingConfig
from ostrack_ros.training.data import network_inputs, pair_stream, sample_inputs
from ostrack_ros.training.errors import TrainingError
from ostrack_ros.training.initialise import (
    adapt_weights,
    copy_fitting,
    initialise_from_dinov2,
    pick_blocks,
    settle_norms,
)
from ostrack_ros.training.losses import (
    Losses,
    feature_imitation,
    score_imitation,
    tracking_losses,
)
from ostrack_ros.training.pruning import is_wider, narrow_network
from ostrack_ros.training.report import LOG_FILE, append_row, plot_training
from ostrack_ros.training.schedule import (
    Progress,
    WeightAverage,
    keep_ratio,
    learning_rate_factor,
)
from ostrack_ros.training.state import restore_state, save_state, save_tensors
from ostrack_ros.training.synthesis import PairBatch

LOG_COLUMNS = ("step", "minutes", "rate", "keep", "total", "focal", "giou", "l1", "hit", "iou")

logger = logging.getLogger(__name__)

Validate = Callable[[OSTrack, int], None]


@dataclass(frozen=True, slots=True)
class _Teacher:
    """A larger network whose score map and search features the trained one imitates, beside the
    labels."""

    network: OSTrack
    score_weight: float
    feature_weight: float

    @torch.no_grad()
    def look(self, template: Tensor, search: Tensor) -> Features:
        features: Features = self.network.backbone(template, search)
        return features

    @torch.no_grad()
    def score(self, features: Features) -> Tensor:
        return self.network.predict(features).maps.score


class Trainer:
    """Trains one network as a configuration says; see `TrainingConfig`."""

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.folder = Path(config.output)
        torch.manual_seed(config.seed)
        self.network = OSTrack(get_variant(config.variant))
        self._wide: dict[str, Tensor] = {}
        self._initialise()
        self.network.to(device)
        self._freeze()
        self.average = WeightAverage(self.network, config.ema_decay)
        self.optimizer = _optimizer(self.network, config)
        self.progress = Progress(config.steps, config.minutes)
        self._teacher = self._load_teacher()
        if restore_state(self.folder, self.network, self.average, self.optimizer, self.progress):
            logger.info("going on from step %d in %s", self.progress.step, self.folder)

    def run(self, validate: Validate | None = None) -> None:
        """Train to the end; `validate` gets the averaged network every `validate_every` steps.

        Interrupting it (Ctrl-C) saves the state first; starting again goes on from there.
        """
        config, progress = self.config, self.progress
        batches = pair_stream(config, self.device, seed=config.seed + progress.step)
        if progress.step == 0:
            self._fit_start(batches)
        step = torch.compile(self._losses) if config.compile else self._losses
        bar = tqdm(
            total=None if config.minutes else config.steps, initial=progress.step, unit="step"
        )
        sums = _Sums()
        progress.start()
        try:
            while not progress.done:
                losses = self._step(next(batches), step)
                progress.advance()
                bar.update()
                sums.add(losses)
                if progress.step % config.log_every == 0:
                    self._log(sums, bar)
                    sums = _Sums()
                if progress.step % config.checkpoint_every == 0:
                    self._save()
                if config.keep_every and progress.step % config.keep_every == 0:
                    self._keep()
                if validate and config.validate_every and not progress.step % config.validate_every:
                    validate(self.averaged(), progress.step)
        finally:
            self._save()
            bar.close()

    def averaged(self) -> OSTrack:
        """A copy of the network with the averaged weights, on the CPU, ready to run."""
        network = OSTrack(self.network.variant)
        network.load_state_dict({key: value.cpu() for key, value in self.average.values.items()})
        return network.eval()

    def _step(self, batch: PairBatch, losses_of: Callable[..., Losses]) -> Losses:
        config, progress = self.config, self.progress
        factor = learning_rate_factor(config, progress.step, progress.share)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self._train_mode()
        losses: Losses = losses_of(batch, self._keep_ratio())
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        self.optimizer.step()
        self.average.update(self.network)
        return losses

    def _losses(self, batch: PairBatch, keep: float | None) -> Losses:
        device = self.device
        template, search = network_inputs(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16):
            features = self.network.backbone(template, search, keep)
            maps = self.network.predict(features).maps
        losses = tracking_losses(
            maps, batch.box.to(device), batch.present.to(device), self.config.quality_score
        )
        teacher = self._teacher
        if teacher is None:
            return losses
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16):
            taught = teacher.look(template, search)
            taught_score = teacher.score(taught) if teacher.score_weight else None
        total = losses.total
        if taught_score is not None:
            total = total + teacher.score_weight * score_imitation(maps.score, taught_score)
        if teacher.feature_weight:
            total = total + teacher.feature_weight * feature_imitation(features, taught)
        return Losses(total, *_rest(losses))

    def _keep_ratio(self) -> float | None:
        elimination = self.network.variant.elimination
        if elimination is None:
            return None
        return keep_ratio(self.config, elimination.keep_ratio, self.progress.share)

    def _initialise(self) -> None:
        if self.config.initialise is None:
            return
        path = Path(self.config.initialise)
        if path.suffix == ".npz":
            initialise_from_dinov2(self.network, path)
            logger.info("backbone initialised from %s", path)
        else:
            source = get_variant(self.config.initialise_variant or self.config.variant)
            picked = pick_blocks(read_weights(path), self.config.initialise_blocks, source)
            weights = adapt_weights(picked, source, self.network.variant)
            copied = copy_fitting(self.network, weights)
            logger.info("%d of %d tensors from %s", copied, len(self.network.state_dict()), path)
            if is_wider(weights, source, self.network):
                self._wide = weights

    def _fit_start(self, batches: Iterator[PairBatch]) -> None:
        """What a start from another network needs pairs for: what is wider there is cut to this
        network's widths, and an exported network's norms are shown what they normalise."""
        exported = (self.config.initialise or "").endswith(".onnx")
        if not (self._wide or exported):
            return
        if self._wide:
            narrow = copy.deepcopy(self.network).cpu()
            inputs = list(sample_inputs(batches, torch.device("cpu")))
            missed = narrow_network(narrow, self._wide, inputs)
            self.network.load_state_dict(narrow.state_dict())
            worst = max(missed, key=lambda name: missed[name])
            logger.info("narrowed: outputs miss up to %.1f %% (%s)", 100 * missed[worst], worst)
            self._wide = {}
        if exported:
            settle_norms(self.network, sample_inputs(batches, self.device))
        self.average = WeightAverage(self.network, self.config.ema_decay)

    def _train_mode(self) -> None:
        """Frozen norms neither follow the batches nor normalise by them."""
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()

    def _freeze(self) -> None:
        only = self.config.train_only
        if only:
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(any(fnmatchcase(name, f"{part}*") for part in only))
            if not any(parameter.requires_grad for parameter in self.network.parameters()):
                raise TrainingError(f"no tensor's name begins with {' or '.join(only)}")
        count = self.config.freeze_blocks
        if count == 0:
            return
        backbone = self.network.backbone
        for module in (backbone.patch_embed, *backbone.blocks[:count]):
            module.requires_grad_(False)
        # Were these still trained, every step would go back through all the frozen blocks.
        for positions in (backbone.pos_embed_z, backbone.pos_embed_x):
            positions.requires_grad_(False)

    def _load_teacher(self) -> _Teacher | None:
        if self.config.teacher is None:
            return None
        network = OSTrack(get_variant(self.config.teacher_variant or self.config.variant))
        load_network(network, read_weights(Path(self.config.teacher)))
        network.requires_grad_(False)
        return _Teacher(
            network.to(self.device).eval(),
            self.config.teacher_weight,
            self.config.teacher_features,
        )

    def _log(self, sums: _Sums, bar: tqdm[None]) -> None:
        means = sums.means()
        append_row(
            self.folder / LOG_FILE,
            LOG_COLUMNS,
            [
                str(self.progress.step),
                f"{self.progress.seconds / 60:.2f}",
                f"{self.optimizer.param_groups[-1]['lr']:.2e}",
                f"{self._keep_ratio() or 1.0:.2f}",
                *(f"{value:.4f}" for value in means),
            ],
        )
        bar.set_postfix(loss=f"{means[0]:.3f}", hit=f"{means[4]:.3f}", iou=f"{means[5]:.3f}")

    def _keep(self) -> None:
        """Leave the averaged weights of this step beside the latest ones."""
        path = self.folder / f"weights_{self.progress.step:06d}.safetensors"
        save_tensors(self.average.values, path)

    def _save(self) -> None:
        save_state(self.folder, self.network, self.average, self.optimizer, self.progress)
        if (self.folder / LOG_FILE).exists():
            plot_training(self.folder)


class _Sums:
    """Running sums of the figures of some batches."""

    def __init__(self) -> None:
        self._sum = torch.zeros(6)
        self._count = 0

    def add(self, losses: Losses) -> None:
        self._sum += torch.stack([losses.total.detach(), *_rest(losses)]).cpu()
        self._count += 1

    def means(self) -> list[float]:
        return [float(v) for v in self._sum / max(self._count, 1)]


def _rest(losses: Losses) -> tuple[Tensor, ...]:
    return losses.focal, losses.giou, losses.l1, losses.hit, losses.iou


def _optimizer(network: OSTrack, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with other rates for the backbone, and no decay of biases, norms and positions."""
    rates = _peak_rates(network, config)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or "pos_embed" in name
        groups.setdefault((rates[name], plain), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rate,
                "peak": rate,
                "weight_decay": 0.0 if plain else config.weight_decay,
            }
            for (rate, plain), parameters in groups.items()
        ]
    )


def _peak_rates(network: OSTrack, config: TrainingConfig) -> dict[str, float]:
    """The peak rate of every parameter, by its name.

    AdamW moves a weight by about its rate in every step, however small the weight is; with
    `relative_rate` a layer's rate follows the root mean square of its matrix, which in a DINOv2
    ViT-S with LayerScale folded in is 0.0035 to 0.024.
    """
    rates = {
        name: config.backbone_rate if name.startswith("backbone.") else config.head_rate
        for name, _ in network.named_parameters()
    }
    if config.relative_rate is None:
        return rates
    for name, layer in network.named_modules():
        if name.startswith("backbone.") and isinstance(layer, nn.Linear | nn.Conv2d):
            size = float(layer.weight.detach().square().mean().sqrt())
            for part, _ in layer.named_parameters():
                rates[f"{name}.{part}"] = config.relative_rate * size
    return rates
