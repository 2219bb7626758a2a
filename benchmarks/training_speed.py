#!/usr/bin/env python3
"""How many training pairs a second this machine makes and learns from: plan a run before it starts.

    python benchmarks/training_speed.py config/training/ostrack_small.yaml --rounds 7

Times, in turn, what makes a batch (one process, as a worker does) and what learns from it (forward,
backward, optimiser) with one thread and with all of them, and prints medians. Needs
requirements-train.txt and the configuration's banks; nothing is written but the record.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from records import RESULTS, write_record

from ostrack_ros.training.config import load_config
from ostrack_ros.training.data import training_banks
from ostrack_ros.training.synthesis import PairSynthesizer
from ostrack_ros.training.trainer import Trainer

DRAWING = "making pairs, one process"


def seconds(action: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--banks", nargs="+", help="image banks instead of the configured ones")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(arguments.config, arguments.banks)
        config = dataclasses.replace(config, output=folder, workers=0)
        bank, _ = training_banks(config)
        generator = torch.Generator(device)
        synthesizer = PairSynthesizer(bank.to(device), config.synthesis, generator)
        trainer = Trainer(config, device)
        batch = synthesizer.draw(config.batch_size)

        def learn() -> None:
            # Reading a figure waits for the GPU.
            trainer._step(batch, trainer._losses).total.item()

        def draw() -> None:
            synthesizer.draw(config.batch_size).present.sum().item()

        counts = sorted({1, torch.get_num_threads()})
        actions = {DRAWING: (draw, 1)}
        actions |= {
            f"learning, {count} thread{'s' * (count > 1)}": (learn, count) for count in counts
        }
        times: dict[str, list[float]] = {name: [] for name in actions}
        for number in range(arguments.rounds + 1):
            for name, (action, threads) in actions.items():
                taken = seconds(action, threads)
                if number:  # the first round warms up
                    times[name].append(taken)

    rates = {name: config.batch_size / statistics.median(taken) for name, taken in times.items()}
    table = Table("", "pairs/s", "ms/pair", title=f"{config.variant}, {device}")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}", f"{1e3 / rate:.1f}")
    Console(width=100).print(table)
    contents = {
        "config": arguments.config.name,
        "torch": torch.__version__,
        "device": str(device),
        "batch_size": config.batch_size,
        "rounds": arguments.rounds,
        "pairs_per_second": rates,
    }
    path = write_record(arguments.output, "training_speed", contents)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
