"""From the node's parameters to an engine."""

from __future__ import annotations

from collections.abc import Callable

from ostrack_ros.engines.base import Engine
from ostrack_ros.nodes.parameters import Settings

Progress = Callable[[float | None, str], None]
LoadEngine = Callable[[Settings, Progress], Engine]


def load_engine(settings: Settings, progress: Progress) -> Engine:
    """Find the model and start it on the chosen backend.

    `progress` hears the fraction done, None where nobody knows, and what is being done. Raises
    EngineError with what was tried and what to do.
    """
    from ostrack_ros.engines.models import resolve_model
    from ostrack_ros.engines.select import create_engine

    return create_engine(
        resolve_model(settings.model),
        backend=settings.backend,
        precision=settings.precision,
        threads=settings.threads,
        device=settings.device,
        cache_directory=settings.cache_directory,
        fallback=settings.fallback,
        progress=progress,
    )
