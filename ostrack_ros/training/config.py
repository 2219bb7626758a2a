"""Training configurations: YAML files in config/training/, one for each shipped model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ostrack_ros.network.variants import PATCH_SIZE, Variant, get_variant
from ostrack_ros.training.synthesis import SynthesisSettings


class ConfigError(ValueError):
    """A training configuration is unusable. The message names the entry."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training run.

    It lasts `steps` optimiser steps or, if `minutes` is given, that long; all schedules follow the
    share of the run that is done. Learning rates are peaks: a linear warm-up over `warmup_steps`,
    constant until `decay_from` (a share of the run), then linear down to `final_rate` of the peak.
    With `relative_rate` the backbone's layers move by that share of their own weights' root mean
    square instead, and `backbone_rate` is left for its norms and positions.
    Candidate elimination is off until `elimination_from` and reaches the variant's own keep ratio
    at `elimination_full`. `initialise` is a DINOv2 backbone (.npz) or weights of a network of
    `initialise_variant` (the same variant unless given), of which `initialise_blocks` picks blocks;
    weights are what a training left (.safetensors) or an exported model (.onnx).
    Attention, MLPs and box head that are wider there than in `variant` are cut to size
    (`training.pruning`).
    The first `freeze_blocks` blocks stay as they are; with `train_only` everything does but the
    tensors whose names begin with one of these (`box_head.conv1_ctr`; `*` stands for anything, as
    in `backbone.blocks.*.mlp`).
    A `teacher`, weights of a network of `teacher_variant`, sees the same pairs; the trained network
    imitates its score map (`teacher_weight`) and its search features (`teacher_features`).

    `replay` is a file of pairs that a model met while tracking (`training.replay`); `replay_share`
    of every batch are drawn from it.

    A `search_size` below the variant's trains on the middle of the search region, which is much
    cheaper; the positions at its border are then left to a later run.

    Every `keep_every` steps (0: never) the averaged weights are kept under the step's number, for
    `training.averaging`.
    """

    variant: str
    banks: tuple[str, ...]
    output: str
    initialise: str | None = None
    initialise_variant: str | None = None
    initialise_blocks: tuple[int, ...] = ()
    freeze_blocks: int = 0
    train_only: tuple[str, ...] = ()
    search_size: int | None = None
    steps: int = 100_000
    minutes: float | None = None
    batch_size: int = 24
    backbone_rate: float = 3e-5
    relative_rate: float | None = None
    head_rate: float = 1e-3
    weight_decay: float = 0.02
    gradient_clip: float = 1.0
    warmup_steps: int = 60
    decay_from: float = 0.6
    final_rate: float = 0.02
    elimination_from: float = 0.3
    elimination_full: float = 0.6
    ema_decay: float = 0.998
    quality_score: bool = False
    bf16: bool = True
    compile: bool = False
    workers: int = 1
    threads: int | None = None
    patches: int = 1000
    max_pictures: int = 20_000
    seed: int = 0
    checkpoint_every: int = 500
    keep_every: int = 0
    log_every: int = 20
    validate_every: int = 0
    validation_data: str | None = None
    teacher: str | None = None
    teacher_variant: str | None = None
    teacher_weight: float = 1.0
    teacher_features: float = 0.0
    replay: str | None = None
    replay_share: float = 0.25
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)


def load_config(path: Path, banks: Sequence[str] | None = None) -> TrainingConfig:
    """Read a configuration, with other `banks` than its own if any are given; relative paths in it
    are taken from the current directory.

    Raises ConfigError for unreadable files and for unknown, missing or mistyped entries.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold entries `name: value`")
    try:
        config = make_config(values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return replace(config, banks=tuple(banks)) if banks else config


def make_config(values: dict[str, Any]) -> TrainingConfig:
    """From plain values; raises ConfigError or TypeError as `load_config` does."""
    synthesis = values.get("synthesis") or {}
    _refuse_unknown(values, TrainingConfig, "")
    _refuse_unknown(synthesis, SynthesisSettings, "synthesis.")
    variant = get_variant(str(values.get("variant")))
    shared = ("template_size", "search_size", "template_factor", "search_factor")
    given = [name for name in shared if name in synthesis]
    if given:
        raise ConfigError(f"synthesis.{given[0]} follows from the variant; remove it")
    sizes = {name: getattr(variant, name) for name in shared}
    if (side := values.get("search_size")) is not None:
        if side % PATCH_SIZE or not 0 < side <= variant.search_size:
            raise ConfigError(
                f"search_size is {side}, expected a multiple of {PATCH_SIZE} up to "
                f"{variant.search_size}"
            )
        sizes["search_factor"] *= side / variant.search_size
        sizes["search_size"] = side
    banks = values.get("banks")
    if not isinstance(banks, list) or not banks:
        raise ConfigError("banks must be a list of at least one folder")
    config = TrainingConfig(
        **{
            **values,
            "banks": tuple(map(str, banks)),
            "initialise_blocks": tuple(values.get("initialise_blocks") or ()),
            "train_only": tuple(map(str, values.get("train_only") or ())),
            "synthesis": SynthesisSettings(**{**synthesis, **sizes}),
        }
    )
    for name in ("steps", "batch_size", "checkpoint_every", "log_every"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}, expected at least 1")
    if not 0 <= config.freeze_blocks <= variant.depth:
        raise ConfigError(
            f"freeze_blocks is {config.freeze_blocks}, {variant.name} has {variant.depth} blocks"
        )
    if config.initialise_variant is not None:
        get_variant(config.initialise_variant)  # names the known ones
    if not 0 <= config.replay_share <= 1:
        raise ConfigError(f"replay_share is {config.replay_share}, expected a share in [0, 1]")
    if config.teacher is not None:
        _check_teacher(config, variant)
    return config


def _check_teacher(config: TrainingConfig, variant: Variant) -> None:
    """A teacher sees the trained network's own inputs, so it must be able to take them."""
    teacher = get_variant(config.teacher_variant or config.variant)
    side = config.synthesis.search_size
    if teacher.template_size != variant.template_size or teacher.search_size < side:
        raise ConfigError(
            f"teacher_variant {teacher.name} takes {teacher.template_size} and "
            f"{teacher.search_size} px, this training makes {variant.template_size} and "
            f"{side} px: the templates must be equal and the teacher's search region "
            "at least as large"
        )
    if config.teacher_features and teacher.embed_dim != variant.embed_dim:
        raise ConfigError(
            f"teacher_features needs features of one width: {teacher.name} has "
            f"{teacher.embed_dim}, {variant.name} {variant.embed_dim}"
        )


def _refuse_unknown(values: dict[str, Any], kind: type, prefix: str) -> None:
    known = {item.name for item in fields(kind)}
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown entry {prefix}{name}; known are {', '.join(sorted(known))}")
