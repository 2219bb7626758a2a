"""`ostrack train`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ostrack_ros.training.config import TrainingConfig, load_config
from ostrack_ros.training.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML file, see config/training/")
    parser.add_argument("--output", help="folder for checkpoints, logs and curves")
    parser.add_argument("--minutes", type=float, help="length of the run, instead of its steps")
    parser.add_argument("--steps", type=int, help="number of optimiser steps")
    parser.add_argument("--banks", nargs="+", help="image banks to use instead of the configured")
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
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.threads:
        torch.set_num_threads(config.threads)
    train(config, torch.device(device))
    return 0


def train(config: TrainingConfig, device: torch.device) -> None:
    trainer = Trainer(config, device)
    trainer.run()


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="ostrack train", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
