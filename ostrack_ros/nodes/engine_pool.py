"""One engine for all nodes of a process that want the same one."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import Engine, Prediction
from ostrack_ros.engines.shared import SharedEngine
from ostrack_ros.engines.spec import ModelSpec
from ostrack_ros.nodes.engine_loading import LoadEngine, Progress, load_engine
from ostrack_ros.nodes.parameters import Settings


@dataclass(slots=True)
class _Entry:
    shared: SharedEngine
    users: int


class EnginePool:
    """Loads each different engine once and hands out shares of it.

    `load` has the signature that a TrackerNode wants. Nodes whose settings name the same engine
    (model, backend, precision, threads, device, cache) share it; it is freed when the last of them
    closes its share.
    """

    def __init__(self, load: LoadEngine = load_engine) -> None:
        self._load = load
        # Held while an engine loads: whoever wants the same one must wait for it, and two builds
        # at once would only slow each other down.
        self._lock = threading.Lock()
        self._entries: dict[tuple[object, ...], _Entry] = {}

    def load(self, settings: Settings, progress: Progress) -> Engine:
        """A share of the engine that `settings` name; raises EngineError as loading it does."""
        key = _engine_key(settings)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = _Entry(SharedEngine(self._load(settings, progress)), 0)
                self._entries[key] = entry
            entry.users += 1
            return _Share(self, key, entry.shared.handle())

    def release(self, key: tuple[object, ...]) -> None:
        with self._lock:
            entry = self._entries[key]
            entry.users -= 1
            if entry.users == 0:
                del self._entries[key]
                entry.shared.close()


class _Share:
    """An Engine (engines/base.py) that tells the pool when it is closed."""

    def __init__(self, pool: EnginePool, key: tuple[object, ...], handle: Engine) -> None:
        self._pool = pool
        self._key = key
        self._handle = handle
        self._closed = False

    @property
    def spec(self) -> ModelSpec:
        return self._handle.spec

    @property
    def description(self) -> str:
        return self._handle.description

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        return self._handle.infer(template, search)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._handle.close()
            self._pool.release(self._key)


def _engine_key(settings: Settings) -> tuple[object, ...]:
    return (
        settings.model,
        settings.backend,
        settings.precision,
        settings.threads,
        settings.device,
        settings.cache_directory,
        settings.fallback,
    )
