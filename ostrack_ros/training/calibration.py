"""Fit the presence calibration of a model: score statistics -> probability of being right.

Run as `python -m ostrack_ros.training.calibration MODEL CONFIG`: pairs are synthesised from the
pictures that training with CONFIG never sees, a good part of them without the target, the model
predicts, and a logistic regression of "IoU > 0.5" on the statistics is written into the model's
sidecar.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm import tqdm

from ostrack_ros.engines.base import Engine
from ostrack_ros.engines.models import resolve_model
from ostrack_ros.engines.select import create_engine
from ostrack_ros.engines.spec import ModelSpec, PresenceCalibration, sidecar_path
from ostrack_ros.files import write_atomically
from ostrack_ros.tracking.geometry import Box, iou
from ostrack_ros.tracking.presence import score_statistics
from ostrack_ros.training.config import load_config
from ostrack_ros.training.data import training_banks
from ostrack_ros.training.synthesis import PairSynthesizer

FEATURES = ("logit_score", "logit_second_peak", "log_apce", "log_psr")
RIGHT_IOU = 0.5
RIDGE = 1e-2
DRAWN_AT_ONCE = 32

FloatArray = NDArray[np.float64]


def collect(
    engine: Engine, synthesizer: PairSynthesizer, count: int
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Run `count` synthetic pairs: FEATURES [count, F] and whether each box was right [count]."""
    features: list[list[float]] = []
    right: list[bool] = []
    with tqdm(total=count, desc="predicting", unit="pair") as bar:
        while len(right) < count:
            pairs = synthesizer.draw(min(DRAWN_AT_ONCE, count - len(right)))
            for template, search, box, present in zip(
                _images(pairs.template),
                _images(pairs.search),
                pairs.box,
                pairs.present,
                strict=True,
            ):
                prediction = engine.infer(template, search)
                found = Box.from_center(
                    prediction.cx, prediction.cy, prediction.width, prediction.height
                )
                truth = Box.from_center(*box.tolist())
                right.append(bool(present) and iou(found, truth) > RIGHT_IOU)
                statistics = score_statistics(prediction)
                features.append([getattr(statistics, name) for name in FEATURES])
                bar.update()
    return np.array(features), np.array(right)


def _images(batch: torch.Tensor) -> list[NDArray[np.uint8]]:
    """[B, 3, H, W] on any device -> B images [H, W, 3]."""
    return [np.ascontiguousarray(image) for image in batch.permute(0, 2, 3, 1).cpu().numpy()]


def fit_logistic(
    features: FloatArray, right: NDArray[np.bool_], source: str
) -> PresenceCalibration:
    """Ridge logistic regression on standardised features, with the scaling folded back.

    Raises ValueError when all pairs were right, or none was.
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
    parser.add_argument("--pairs", type=int, default=4000, help="default: %(default)s")
    parser.add_argument("--absent", type=float, default=0.25, help="share without target")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config)
    if arguments.banks:
        config = dataclasses.replace(config, banks=tuple(arguments.banks))
    model = resolve_model(arguments.model)
    spec = ModelSpec.load(model)
    settings = dataclasses.replace(
        config.synthesis,
        search_size=spec.search_size,
        search_factor=spec.search_factor,
        absent=arguments.absent,
    )
    _, held_out = training_banks(config)
    synthesizer = PairSynthesizer(held_out, settings, torch.Generator().manual_seed(1))
    features, right = collect(create_engine(model), synthesizer, arguments.pairs)
    source = f"{len(right)} synthetic pairs of held-out pictures, {right.mean():.1%} right"
    calibration = fit_logistic(features, right, source)
    calibrated = dataclasses.replace(spec, presence=calibration)
    write_atomically(sidecar_path(model), calibrated.to_json())
    print(f"{sidecar_path(model)}: {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
