"""`ostrack train`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ostrack_ros.evaluation.datasets import load_dataset
from ostrack_ros.network.ostrack import OSTrack
from ostrack_ros.training.config import TrainingConfig, load_config
from ostrack_ros.training.data import training_banks
from ostrack_ros.training.report import VALIDATION_FILE, append_row, write_pair_sheet
from ostrack_ros.training.synthesis import PairSynthesizer
from ostrack_ros.training.trainer import Trainer, Validate
from ostrack_ros.training.validation import validate

VALIDATION_COLUMNS = ("step", "auc", "precision", "normalised_precision", "ao")

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML file, see config/training/")
    parser.add_argument("--output", help="folder for checkpoints, logs and curves")
    parser.add_argument("--minutes", type=float, help="length of the run, instead of its steps")
    parser.add_argument("--steps", type=int, help="number of optimiser steps")
    parser.add_argument("--banks", nargs="+", help="image banks to use instead of the configured")
    parser.add_argument(
        "--sheet", type=Path, help="only draw a contact sheet of training pairs into this PNG"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Train; returns the exit status."""
    config = load_config(arguments.config)
    changes = {
        name: value
        for name in ("output", "minutes", "steps", "banks")
        if (value := getattr(arguments, name)) is not None
    }
    if "banks" in changes:
        changes["banks"] = tuple(changes["banks"])
    config = dataclasses.replace(config, **changes)
    if config.threads:
        torch.set_num_threads(config.threads)
    if arguments.sheet:
        _, held_out = training_banks(config)
        generator = torch.Generator().manual_seed(config.seed)
        pairs = PairSynthesizer(held_out, config.synthesis, generator).draw(24)
        write_pair_sheet(pairs, arguments.sheet)
        print(f"wrote {arguments.sheet}")
        return 0
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    Trainer(config, torch.device(device)).run(_validation(config))
    return 0


def _validation(config: TrainingConfig) -> Validate | None:
    """Track the configured sequences now and then, and note the figures in `validation.csv`."""
    if not config.validation_data:
        return None
    dataset = load_dataset(Path(config.validation_data))
    path = Path(config.output) / VALIDATION_FILE

    def measure(network: OSTrack, step: int) -> None:
        scores = validate(network, dataset).overall
        figures = (scores.auc, scores.precision, scores.normalised_precision, scores.ao)
        append_row(path, VALIDATION_COLUMNS, [str(step), *(f"{v:.4f}" for v in figures)])
        logger.info("step %d: AUC %.3f, precision %.3f on %s", step, *figures[:2], dataset.name)

    return measure


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="ostrack train", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
