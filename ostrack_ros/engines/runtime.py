"""Import a runtime library when an engine needs it, and say what to install if it is absent."""

from __future__ import annotations

import importlib
from typing import Any

from ostrack_ros.engines.base import EngineError


class BackendUnavailableError(EngineError):
    """A backend cannot be used on this machine. The message says what to install."""


def import_runtime(module: str, install: str) -> Any:
    """The module, or BackendUnavailableError with the command that installs it.

    A library that is there but fails to load (a missing shared object) raises it too, with the
    loader's own words.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise _broken(module, install, error) from error
        raise BackendUnavailableError(f"{module} is not installed: {install}") from error
    except (ImportError, OSError) as error:
        raise _broken(module, install, error) from error


def _broken(module: str, install: str, error: Exception) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{module} is installed but cannot be loaded ({error}); reinstall it: {install}"
    )
