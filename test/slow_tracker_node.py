"""The tracker node with an engine that takes its time, to load and, if asked, to run."""

from __future__ import annotations

import os
import sys
import time

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import Engine, Prediction
from ostrack_ros.engines.spec import ModelSpec
from ostrack_ros.nodes.engine_loading import Progress, load_engine
from ostrack_ros.nodes.parameters import Settings
from ostrack_ros.nodes.tracker_node import main

LOADING_SECONDS = float(os.environ.get("TEST_LOADING_SECONDS", "2.0"))
UPDATE_SECONDS = float(os.environ.get("TEST_UPDATE_SECONDS", "0.0"))


class SlowEngine:
    """Another engine, and a pause before each answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def spec(self) -> ModelSpec:
        return self._engine.spec

    @property
    def description(self) -> str:
        return f"slow {self._engine.description}"

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        time.sleep(UPDATE_SECONDS)
        return self._engine.infer(template, search)

    def close(self) -> None:
        self._engine.close()


def load(settings: Settings, progress: Progress) -> Engine:
    steps = 10
    for step in range(steps):
        progress(step / steps, "warming up")
        time.sleep(LOADING_SECONDS / steps)
    return SlowEngine(load_engine(settings, progress))


if __name__ == "__main__":
    sys.exit(main(load=load))
