"""The model in the loop: a tracker follows clips, and what it saw and said is kept.

    python -m ostrack_ros.training.following MODEL CONFIG OUTPUT.safetensors

lets MODEL track clips of the pictures that CONFIG trains on, and keeps the frames on which its box
was poor or the target was gone. A training with `replay: OUTPUT.safetensors` takes a share of its
batches from there (after DAgger, Ross et al., AISTATS 2011: learn where one's own policy leads).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ostrack_ros.engines.base import Engine, EngineError, Prediction
from ostrack_ros.engines.models import resolve_model
from ostrack_ros.engines.select import create_engine
from ostrack_ros.engines.spec import ModelSpec
from ostrack_ros.evaluation.ostrack import FRAME_INTERVAL, PLAIN
from ostrack_ros.tracking.crop import crop_side
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box, BoxError, iou
from ostrack_ros.tracking.presence import Evidence
from ostrack_ros.tracking.tracker import Tracker
from ostrack_ros.training.clips import Clip, ClipMaker, ClipSettings, recorded_clips
from ostrack_ros.training.config import load_config
from ostrack_ros.training.data import training_banks
from ostrack_ros.training.replay import ReplayError, save_pairs
from ostrack_ros.training.synthesis import PairBatch

POOR_OVERLAP = 0.75
LOST_OVERLAP = 0.1
LOST_FRAMES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """One frame as the tracker met it, after its own errors on the frames before.

    `template` uint8 [Z, Z, 3] and `search` uint8 [X, X, 3] are the network's inputs. `truth` is the
    target's box in fractions of the search region, None where it is absent. `overlap` is the IoU
    of the tracker's box with it, 0 where it is absent.
    """

    template: NDArray[np.uint8]
    search: NDArray[np.uint8]
    truth: Box | None
    overlap: float
    evidence: Evidence


class _Recorder:
    """An engine that remembers what it was asked last."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.template: NDArray[np.uint8] | None = None
        self.search: NDArray[np.uint8] | None = None

    @property
    def spec(self) -> ModelSpec:
        return self._engine.spec

    @property
    def description(self) -> str:
        return self._engine.description

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        self.template, self.search = template, search
        return self._engine.infer(template, search)

    def close(self) -> None:
        self._engine.close()


def follow(engine: Engine, clip: Clip) -> Iterator[Sight]:
    """Track `clip` from its first box with the published tracker, without presence.

    It ends early when the box has left the frame, or once the target was lost for LOST_FRAMES
    frames in a row in which it was there: what comes after that says nothing about the target.
    """
    recorder = _Recorder(engine)
    tracker = Tracker(recorder, PLAIN)
    box = Box(*clip.boxes[0].tolist())
    tracker.init(_frame(clip, 0), box)
    lost = 0
    for index in range(1, len(clip.frames)):
        try:
            estimate = tracker.update(_frame(clip, index))
        except BoxError:
            return
        assert estimate.box is not None
        assert recorder.template is not None
        assert recorder.search is not None
        truth = Box(*clip.boxes[index].tolist()) if np.isfinite(clip.boxes[index]).all() else None
        overlap = iou(estimate.box, truth) if truth else 0.0
        yield Sight(
            recorder.template,
            recorder.search,
            _in_region(truth, box, engine.spec.search_factor) if truth else None,
            overlap,
            estimate.evidence,
        )
        box = estimate.box
        if truth:
            lost = lost + 1 if overlap < LOST_OVERLAP else 0
        if lost >= LOST_FRAMES:
            return


def poor_sights(sights: Iterable[Sight], below: float = POOR_OVERLAP) -> Iterator[Sight]:
    """Those worth learning from: the box overlaps less than `below`, or the target is gone.

    Left out where the target's centre lies outside the search region while part of it is inside:
    no answer would be right there.
    """
    for sight in sights:
        if sight.truth is None:
            yield sight
        elif sight.overlap < below:
            inside = 0 < sight.truth.cx < 1 and 0 < sight.truth.cy < 1
            if inside or not _touches_region(sight):
                yield sight


def as_pairs(sights: Sequence[Sight]) -> PairBatch:
    """One batch of all. Raises ReplayError when there are none."""
    if not sights:
        raise ReplayError("no pairs to keep: the model did well everywhere; give more --clips")
    shown = [sight.truth if _touches_region(sight) else None for sight in sights]
    boxes = [(t.cx, t.cy, t.width, t.height) if t else (0.5, 0.5, 0.25, 0.25) for t in shown]
    return PairBatch(
        template=_stacked([sight.template for sight in sights]),
        search=_stacked([sight.search for sight in sights]),
        box=torch.tensor(boxes, dtype=torch.float32),
        present=torch.tensor([t is not None for t in shown]),
    )


def _frame(clip: Clip, index: int) -> Frame:
    return Frame(clip.frames[index], PixelFormat.RGB, index * FRAME_INTERVAL)


def _in_region(truth: Box, around: Box, factor: float) -> Box:
    """`truth` in fractions of the search region that the tracker cuts around a box."""
    side = crop_side(around, factor)
    left, top = round(around.cx - 0.5 * side), round(around.cy - 0.5 * side)
    return Box(
        (truth.x - left) / side, (truth.y - top) / side, truth.width / side, truth.height / side
    )


def _touches_region(sight: Sight) -> bool:
    t = sight.truth
    return t is not None and t.right > 0 and t.bottom > 0 and t.x < 1 and t.y < 1


def _stacked(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ostrack_ros.training.following", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("model", help="shipped name or path to .onnx")
    parser.add_argument("config", type=Path, help="the configuration that will train on the pairs")
    parser.add_argument("output", type=Path, help="file to write (.safetensors)")
    parser.add_argument("--banks", nargs="+", help="image banks instead of the configured ones")
    parser.add_argument("--clips", type=int, default=500, help="drawn clips (default: %(default)s)")
    parser.add_argument(
        "--below", type=float, default=POOR_OVERLAP, help="IoU of a poor box (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, default=6000, help="pairs to keep at most")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config, arguments.banks)
        bank, _ = training_banks(config)
        engine = create_engine(resolve_model(arguments.model))
    except (ValueError, EngineError) as error:
        print(error, file=sys.stderr)
        return 1
    maker = ClipMaker(bank, ClipSettings(), np.random.default_rng(config.seed))
    clips = chain(recorded_clips(bank), (maker.draw() for _ in range(arguments.clips)))
    kept: list[Sight] = []
    seen = 0
    with tqdm(unit="clip") as bar:
        for clip in clips:
            sights = list(follow(engine, clip))
            seen += len(sights)
            kept.extend(poor_sights(sights, arguments.below))
            bar.set_postfix(kept=len(kept))
            bar.update()
            if len(kept) >= arguments.limit:
                break
    try:
        save_pairs(as_pairs(kept[: arguments.limit]), arguments.output)
    except ReplayError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments.output}: {min(len(kept), arguments.limit)} of {seen} frames kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
