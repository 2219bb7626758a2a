"""Fit the presence calibration of a model: score statistics -> probability of being right.

Run as `python -m ostrack_ros.training.calibration MODEL CONFIG`: the model tracks clips of the
pictures that training with CONFIG never sees, drawn ones, in which targets vanish and doubles cross
their way, and the tracks among those pictures. A logistic regression of "IoU > 0.5" on the score
map's statistics and the box's innovation is written into the model's sidecar.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm import tqdm

from ostrack_ros.engines.base import Engine, EngineError
from ostrack_ros.engines.models import resolve_model
from ostrack_ros.engines.select import create_engine
from ostrack_ros.engines.spec import ModelSpec, PresenceCalibration, sidecar_path
from ostrack_ros.files import write_atomically
from ostrack_ros.training.clips import Clip, ClipMaker, ClipSettings, recorded_clips
from ostrack_ros.training.config import load_config
from ostrack_ros.training.data import training_banks
from ostrack_ros.training.following import follow

FEATURES = ("logit_score", "logit_second_peak", "log_apce", "log_psr", "log_innovation")
INTERVALS = (1.0, 0.3, 2.5, 5.0)
"""Clips are drawn by turns as a camera sees them that takes one of so many frames: what a slow one
sees leaps further, and confidence must not depend on which of them was used."""

RIGHT_IOU = 0.5
RIDGE = 1e-2

FloatArray = NDArray[np.float64]


def collect(engine: Engine, clips: Iterable[Clip]) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Track `clips`: FEATURES [N, F] of every frame, and whether its box was right [N]."""
    features: list[list[float]] = []
    right: list[bool] = []
    for clip in tqdm(clips, desc="tracking", unit="clip"):
        for sight in follow(engine, clip):
            right.append(sight.overlap > RIGHT_IOU)
            features.append([sight.evidence.feature(name) for name in FEATURES])
    return np.array(features).reshape(-1, len(FEATURES)), np.array(right, bool)


def fit_logistic(
    features: FloatArray, right: NDArray[np.bool_], source: str
) -> PresenceCalibration:
    """Ridge logistic regression on standardised features, with the scaling folded back.

    Raises ValueError when all boxes were right, or none was.
    """
    if right.all() or not right.any():
        raise ValueError(f"{right.sum()} of {len(right)} boxes were right: nothing to tell apart")
    mean, deviation = features.mean(0), features.std(0) + 1e-9
    x = torch.from_numpy((features - mean) / deviation)
    y = torch.from_numpy(right.astype(np.float64))
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = x @ weights[1:] + weights[0]
        loss = F.binary_cross_entropy_with_logits(logits, y) + RIDGE * (weights[1:] ** 2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    fitted = weights.detach().numpy()
    slopes = fitted[1:] / deviation
    intercept = float(fitted[0] - (slopes * mean).sum())
    return PresenceCalibration(FEATURES, tuple(float(w) for w in slopes), intercept, source)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ostrack_ros.training.calibration", description=__doc__
    )
    parser.add_argument("model", help="shipped name or path to .onnx")
    parser.add_argument("config", type=Path, help="the training configuration of the model")
    parser.add_argument("--banks", nargs="+", help="image banks instead of the configured ones")
    parser.add_argument("--clips", type=int, default=250, help="drawn clips (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config, arguments.banks)
        model = resolve_model(arguments.model)
        spec = ModelSpec.load(model)
        _, held_out = training_banks(config)
        engine = create_engine(model)
    except (ValueError, EngineError) as error:
        print(error, file=sys.stderr)
        return 1
    rng = np.random.default_rng(1)
    makers = [ClipMaker(held_out, ClipSettings().every(n), rng) for n in INTERVALS]
    recorded = list(recorded_clips(held_out))
    drawn = (maker.draw() for maker in islice(cycle(makers), arguments.clips))
    features, right = collect(engine, chain(recorded, drawn))
    source = (
        f"{len(right)} frames of {arguments.clips} drawn and {len(recorded)} real clips of "
        f"held-out pictures, {right.mean():.1%} right"
    )
    calibration = fit_logistic(features, right, source)
    calibrated = dataclasses.replace(spec, presence=calibration)
    write_atomically(sidecar_path(model), calibrated.to_json())
    print(f"{sidecar_path(model)}: {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
