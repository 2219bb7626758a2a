#!/usr/bin/env python3
"""Speed against quality of network shapes: what the shipped models' shapes were chosen from.

    python benchmarks/frontier.py --dataset ../shared/eval_dev \
        --nanotrack ../shared/peers/nanotrack_v2
    python benchmarks/frontier.py --train config/training/ostrack_small.yaml --steps 250 \
        --dataset ../shared/eval_dev

The first line exports every shape and times whole updates (crop, network, decode) of all of them in
turn, medians over the rounds, beside NanoTrack v2. Shapes that a shipped model's weights fit
(another elimination, another search region) are judged on the data set with these weights; the
others have a speed only. The second line trains shapes of other depths on as many pairs each, from
the configuration's start, and judges those. Needs requirements-train.txt.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compare_trackers import NANOTRACK, opencv_peers
from records import RESULTS, write_record

from ostrack_ros.engines.base import Engine
from ostrack_ros.engines.models import resolve_model
from ostrack_ros.engines.select import create_engine
from ostrack_ros.engines.spec import EliminationSchedule, ModelSpec
from ostrack_ros.evaluation.bench import made_up_frames
from ostrack_ros.evaluation.datasets import load_dataset
from ostrack_ros.evaluation.metrics import Protocol
from ostrack_ros.evaluation.ostrack import ostrack_factory
from ostrack_ros.evaluation.report import Report
from ostrack_ros.evaluation.runner import TrackerFactory, evaluate_trackers
from ostrack_ros.network.checkpoint import read_weights
from ostrack_ros.network.export import export_network
from ostrack_ros.network.ostrack import OSTrack
from ostrack_ros.network.variants import VARIANTS, Variant, get_variant
from ostrack_ros.progress import progress_bar
from ostrack_ros.training.config import load_config
from ostrack_ros.training.initialise import initialise_from_network
from ostrack_ros.training.trainer import Trainer

DEPTHS = (4, 6, 8, 12)


@dataclass(frozen=True, slots=True)
class Shape:
    """`weights` is the shipped model whose weights fit, None where there are none."""

    variant: Variant
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """`seconds` is the median of an update, `sequences` AUC by sequence; None: not measured."""

    shape: str
    blocks: int
    width: int
    head: int
    search: int
    elimination: str
    parameters: int
    seconds: float
    updates_per_nanotrack_update: float | None
    auc: float | None
    sequences: dict[str, float] | None


def shapes() -> Iterator[Shape]:
    small, tiny = get_variant("ostrack_small"), get_variant("ostrack_tiny")
    yield Shape(small, small.name)
    for label, blocks, keep in (
        ("keeps all", (), 1.0),
        ("keeps 70 % once", (3,), 0.7),
        ("keeps 70 % thrice", (3, 5, 6), 0.7),
        ("keeps 50 % twice", (3, 5), 0.5),
        ("keeps 30 % twice", (3, 5), 0.3),
        ("keeps 70 % early", (1, 2), 0.7),
    ):
        yield Shape(_eliminating(small, label, blocks, keep), small.name)
    yield Shape(_searching(small, 224), small.name)
    yield Shape(_searching(small, 192), small.name)
    for depth in (6, 10, 12):
        yield Shape(_of_depth(small, depth, f"{depth} blocks"))
    for width in (40, 256):
        yield Shape(_named(small, f"head of {width}", head_channels=width))
    yield Shape(_named(small, "12 blocks of 192", depth=12, embed_dim=192, heads=3))
    yield Shape(tiny, tiny.name)
    for label, blocks, keep in (
        ("keeps all", (), 1.0),
        ("keeps 50 % once", (3,), 0.5),
        ("keeps 50 % twice", (3, 5), 0.5),
        ("keeps 30 % twice", (3, 5), 0.3),
        ("keeps 50 % early", (1, 2), 0.5),
    ):
        yield Shape(_eliminating(tiny, label, blocks, keep), tiny.name)
    yield Shape(_searching(tiny, 256), tiny.name)
    for depth in (4, 6):
        yield Shape(_of_depth(tiny, depth, f"{depth} blocks"))
    for heads in (3, 6):
        yield Shape(_named(tiny, f"{heads} heads", heads=heads))
    for width in (128, 512):
        yield Shape(_named(tiny, f"MLPs of {width}", mlp_width=width))
    yield Shape(_named(tiny, "head of 96", head_channels=96))
    # What ostrack_tiny was until 2026-11-26: all of its parameters in few blocks.
    early = EliminationSchedule((1, 2), 0.5)
    whole = {"heads": 6, "mlp_width": 4 * tiny.embed_dim, "head_channels": 40}
    yield Shape(_named(tiny, "4 whole blocks", depth=4, elimination=early, **whole))


def _named(variant: Variant, label: str, **changes: object) -> Variant:
    return dataclasses.replace(variant, name=f"{variant.name}, {label}", **changes)


def _eliminating(variant: Variant, label: str, blocks: tuple[int, ...], keep: float) -> Variant:
    return _named(variant, label, elimination=EliminationSchedule(blocks, keep) if blocks else None)


def _of_depth(variant: Variant, depth: int, label: str) -> Variant:
    """Eliminating in those of the variant's blocks that are left."""
    schedule = variant.elimination
    if schedule:
        blocks = tuple(block for block in schedule.blocks if block < depth)
        schedule = EliminationSchedule(blocks, schedule.keep_ratio) if blocks else None
    return _named(variant, label, depth=depth, elimination=schedule)


def _searching(variant: Variant, side: int) -> Variant:
    """Another search region at the same scale."""
    factor = variant.search_factor * side / variant.search_size
    return _named(variant, f"search {side} px", search_size=side, search_factor=factor)


def shipped_networks(chosen: list[Shape]) -> dict[str, OSTrack]:
    """Every shape's network, with the shipped weights where they fit."""
    names = {shape.weights for shape in chosen if shape.weights}
    weights = {name: read_weights(resolve_model(name)) for name in names}
    networks = {}
    for shape in chosen:
        torch.manual_seed(0)
        network = OSTrack(shape.variant)
        if shape.weights:
            initialise_from_network(network, weights[shape.weights], get_variant(shape.weights))
        networks[shape.variant.name] = network.eval()
    return networks


def measure(
    networks: dict[str, OSTrack], judged: set[str], arguments: argparse.Namespace
) -> list[Finding]:
    """Time all `networks` in turn, then judge those named in `judged`."""
    engines: dict[str, Engine] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for index, (name, network) in enumerate(networks.items()):
            path = Path(folder) / f"shape_{index}.onnx"
            # As shipped: a fp16 file, which an engine for the CPU computes in fp32.
            export_network(network, "fp16", path, source="frontier.py", source_sha256="")
            engines[name] = create_engine(path, threads=arguments.threads)
            stack.callback(engines[name].close)
            print(f"{name}: {engines[name].description}", file=sys.stderr)
        factories = {name: ostrack_factory(engine) for name, engine in engines.items()}
        peers, skipped = opencv_peers(arguments.nanotrack)
        if NANOTRACK in skipped:
            print(f"left out: {NANOTRACK}: {skipped[NANOTRACK]}")
        nano = {NANOTRACK: peers[NANOTRACK]} if NANOTRACK in peers else {}
        seconds = update_seconds({**factories, **nano}, arguments.rounds)
        reports: dict[str, Report] = {}
        if arguments.dataset and judged:
            reports = judge({name: factories[name] for name in judged}, arguments.dataset)
    return [
        finding(network.variant, engines[name].spec, seconds, reports.get(name))
        for name, network in networks.items()
    ]


def finding(
    variant: Variant, spec: ModelSpec, seconds: dict[str, float], report: Report | None
) -> Finding:
    elimination, nano = spec.elimination, seconds.get(NANOTRACK)
    return Finding(
        shape=variant.name,
        blocks=variant.depth,
        width=variant.embed_dim,
        head=variant.head_channels,
        search=spec.search_size,
        elimination=f"{elimination.keep_ratio:.0%} in {elimination.blocks}" if elimination else "",
        parameters=spec.parameters,
        seconds=seconds[variant.name],
        updates_per_nanotrack_update=nano / seconds[variant.name] if nano else None,
        auc=report.overall.auc if report else None,
        sequences={r.sequence.name: r.scores.auc for r in report.sequences} if report else None,
    )


def update_seconds(factories: dict[str, TrackerFactory], rounds: int) -> dict[str, float]:
    """Median seconds of one update, every tracker on every image in turn.

    Each update starts from the same box again: what an untrained shape makes of it must not change
    how much there is to crop.
    """
    images, box = made_up_frames(854, 480)
    taken: dict[str, list[float]] = {name: [] for name in factories}
    trackers = {name: factory() for name, factory in factories.items()}
    with progress_bar(rounds) as advance:
        for index in range(rounds):
            image = images[index % len(images)]
            for name, tracker in trackers.items():
                tracker.init(images[0], box)
                started = time.perf_counter()
                tracker.update(image)
                taken[name].append(time.perf_counter() - started)
            advance("timing")
    return {name: statistics.median(values) for name, values in taken.items()}


def judge(factories: dict[str, TrackerFactory], dataset: Path) -> dict[str, Report]:
    data = load_dataset(dataset)
    with progress_bar(data.frame_count) as advance:
        return evaluate_trackers(factories, data, Protocol.OTB, on_frame=advance)


def trained(arguments: argparse.Namespace) -> dict[str, OSTrack]:
    """Shapes of several depths, each after as many steps of the configuration's training."""
    config = load_config(arguments.train, arguments.banks)
    base = get_variant(config.variant)
    networks = {}
    for depth in DEPTHS:
        variant = _of_depth(base, depth, f"{depth} blocks, {arguments.steps} steps")
        VARIANTS[variant.name] = variant
        run = dataclasses.replace(
            config,
            variant=variant.name,
            output=str(arguments.runs / f"{depth}_blocks"),
            steps=arguments.steps,
            minutes=None,
            freeze_blocks=min(config.freeze_blocks, depth),
        )
        trainer = Trainer(run, torch.device(arguments.device))
        trainer.run()
        networks[variant.name] = trainer.averaged()
    return networks


def table(findings: list[Finding]) -> Table:
    result = Table(title="shapes, by speed")
    for column in ("shape", "M param.", "ms", "updates/s", "of NanoTrack's", "AUC"):
        result.add_column(column, justify="left" if column == "shape" else "right")
    for row in sorted(findings, key=lambda finding: finding.seconds):
        ratio = row.updates_per_nanotrack_update
        result.add_row(
            row.shape,
            f"{row.parameters / 1e6:.1f}",
            f"{1e3 * row.seconds:.1f}",
            f"{1 / row.seconds:.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if row.auc is None else f"{row.auc:.3f}",
        )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, help="what to judge shapes on")
    parser.add_argument("--nanotrack", type=Path, help="folder with NanoTrack v2's ONNX files")
    parser.add_argument("--rounds", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=None, help="of our engines and of OpenCV")
    parser.add_argument("--only", help="shapes whose name contains this")
    parser.add_argument("--train", type=Path, metavar="CONFIG", help="train depths instead")
    parser.add_argument("--banks", nargs="+", help="image banks instead of the configured ones")
    parser.add_argument("--steps", type=int, default=250, help="of each training (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), help="their outputs")
    parser.add_argument("--device", default="cpu", help="of the trainings (%(default)s)")
    parser.add_argument("--name", default="frontier", help="of the file in results/")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    cv2.setNumThreads(arguments.threads or 1)
    if arguments.train:
        networks = trained(arguments)
        judged = set(networks)
    else:
        chosen = [s for s in shapes() if (arguments.only or "") in s.variant.name]
        if not chosen:
            parser.error(f"no shape's name contains {arguments.only!r}")
        networks = shipped_networks(chosen)
        judged = {shape.variant.name for shape in chosen if shape.weights}
    findings = measure(networks, judged, arguments)

    Console(width=100).print(table(findings))
    contents = {
        "command": sys.argv,
        "shapes": [dataclasses.asdict(finding) for finding in findings],
    }
    path = write_record(arguments.output, arguments.name, contents)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
