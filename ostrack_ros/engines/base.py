"""What every engine offers: run one OSTrack graph on a template and a search region.

The graph's contract (inputs, outputs, sidecar) is described in docs/graph.md. Engines know neither
ROS nor torch, and each imports its own runtime library only when it is constructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.spec import ModelSpec


class EngineError(RuntimeError):
    """An engine cannot be made or run. The message says what was wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One decoded answer of the network.

    `cx`, `cy`, `width`, `height` are fractions of the search region's side; `score` is the raw
    peak in [0, 1] (before the window) and `response` the same cell after the Hann window;
    `score_map` is float32 [S, S], before the window. `kept`, float32 [S, S], is 1 where a candidate
    survived the elimination and 0 elsewhere; None unless the graph was asked for it
    (`engines.candidates`).
    """

    cx: float
    cy: float
    width: float
    height: float
    score: float
    response: float
    score_map: NDArray[np.float32] = field(repr=False)
    kept: NDArray[np.float32] | None = field(default=None, repr=False)

    @classmethod
    def from_outputs(
        cls,
        result: NDArray[np.float32],
        score_map: NDArray[np.float32],
        kept: NDArray[np.float32] | None = None,
    ) -> Prediction:
        """From the graph's outputs for one item: `result` [6], `score_map` [S, S] and, if the graph
        has it, `kept` [S, S]."""
        cx, cy, width, height, score, response = (float(v) for v in result)
        return cls(cx, cy, width, height, score, response, score_map, kept)


class Engine(Protocol):
    """Runs one graph on one device. Not thread-safe: one owner calls it."""

    @property
    def spec(self) -> ModelSpec:
        """What the graph expects and what it was made from."""

    @property
    def description(self) -> str:
        """Backend, version, device and precision in one line, for logs and diagnostics."""

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        """Predict for one RGB `template` uint8 [Z, Z, 3] and one `search` uint8 [X, X, 3].

        Raises EngineError when the runtime fails; the inputs are not kept.
        """

    def close(self) -> None:
        """Free the runtime's memory. Calling it twice is harmless."""


@runtime_checkable
class BatchEngine(Engine, Protocol):
    """An engine that runs several pairs at once, for models exported with a batch."""

    def infer_batch(
        self, templates: Sequence[NDArray[np.uint8]], searches: Sequence[NDArray[np.uint8]]
    ) -> list[Prediction]:
        """Predict for 1 to `spec.batch` pairs of images; see `infer`."""
