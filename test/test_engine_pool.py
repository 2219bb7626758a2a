"""Nodes in one process: equal settings share an engine, and the last one out frees it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_model import SPEC

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from ostrack_ros.engines.base import Engine, EngineError, Prediction
from ostrack_ros.nodes.engine_loading import Progress
from ostrack_ros.nodes.engine_pool import EnginePool
from ostrack_ros.nodes.parameters import PARAMETERS, Settings

SETTINGS = Settings.from_values({row.name: row.default for row in PARAMETERS})
IMAGE = np.zeros((SPEC.template_size, SPEC.template_size, 3), np.uint8)
SEARCH = np.zeros((SPEC.search_size, SPEC.search_size, 3), np.uint8)


class Made:
    """An engine that counts."""

    spec = SPEC
    description = "made"

    def __init__(self) -> None:
        self.runs = 0
        self.closed = 0

    def infer(self, template: np.ndarray, search: np.ndarray) -> Prediction:
        self.runs += 1
        return Prediction(0.5, 0.5, 0.1, 0.1, 0.9, 0.9, np.zeros((16, 16), np.float32))

    def close(self) -> None:
        self.closed += 1


class Loader:
    def __init__(self) -> None:
        self.made: list[Made] = []
        self.error: EngineError | None = None

    def __call__(self, settings: Settings, progress: Progress) -> Engine:
        if self.error is not None:
            raise self.error
        self.made.append(Made())
        return self.made[-1]


def quiet(fraction: float | None, text: str) -> None:
    pass


def test_equal_settings_share_and_the_last_share_frees() -> None:
    loader = Loader()
    pool = EnginePool(loader)
    first = pool.load(SETTINGS, quiet)
    second = pool.load(replace(SETTINGS, image_timeout=9.0), quiet)
    assert len(loader.made) == 1
    assert first.infer(IMAGE, SEARCH).score == second.infer(IMAGE, SEARCH).score
    assert loader.made[0].runs == 2
    first.close()
    first.close()
    assert loader.made[0].closed == 0
    second.infer(IMAGE, SEARCH)
    second.close()
    assert loader.made[0].closed == 1
    pool.load(SETTINGS, quiet)
    assert len(loader.made) == 2


def test_other_models_get_engines_of_their_own() -> None:
    loader = Loader()
    pool = EnginePool(loader)
    pool.load(SETTINGS, quiet)
    pool.load(replace(SETTINGS, model="other"), quiet)
    pool.load(replace(SETTINGS, threads=1), quiet)
    assert len(loader.made) == 3


def test_a_failed_load_is_tried_again_by_the_next() -> None:
    loader = Loader()
    pool = EnginePool(loader)
    loader.error = EngineError("no such device")
    with pytest.raises(EngineError, match="no such device"):
        pool.load(SETTINGS, quiet)
    loader.error = None
    pool.load(SETTINGS, quiet)
    assert len(loader.made) == 1
