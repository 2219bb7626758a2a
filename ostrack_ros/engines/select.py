"""Choose and make an engine for a model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ostrack_ros.engines.base import Engine, EngineError
from ostrack_ros.engines.models import Model, load_model
from ostrack_ros.engines.runtime import BackendUnavailableError
from ostrack_ros.engines.selftest import ParityError

log = logging.getLogger(__name__)

Progress = Callable[[float | None, str], None]
"""Called with the fraction done in [0, 1], None where nobody knows, and one line of text."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What a backend may want to know; each takes what concerns it.

    `precision` is fp32, fp16 or bf16, None for the backend's safe choice; `threads` is the number
    of CPU threads, None for the backend's choice; `device` is the index of the GPU;
    `cache_directory` is where built engines are kept, None for the user's cache; `fallback` says
    what TensorRT does when its engine disagrees with the model; `progress` hears how far a build
    is, and setting `cancel` stops it.
    """

    precision: str | None = None
    threads: int | None = None
    device: int = 0
    cache_directory: Path | None = None
    fallback: str = "cpu"
    progress: Progress | None = None
    cancel: threading.Event | None = None


def create_engine(
    model: Path,
    backend: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    device: int = 0,
    cache_directory: Path | None = None,
    fallback: str = "cpu",
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Engine:
    """Load `model` (an .onnx file with its sidecar) into an engine of the given backend.

    `auto` takes the first of BACKENDS that works here and logs why the ones before did not. The
    other arguments are those of EngineOptions; with `fallback` cpu, a GPU engine that disagrees
    with its model gives way to the CPU.

    Raises EngineError: for a damaged model, an unknown backend, or when the backend (with `auto`:
    each of them) cannot run it, saying why. Its subclass ParityError is raised when a GPU engine
    disagrees with its model and `fallback` is not cpu.
    """
    if backend != "auto" and backend not in _MAKERS:
        raise EngineError(f"backend is {backend!r}, expected auto, {', '.join(BACKENDS)}")
    options = EngineOptions(precision, threads, device, cache_directory, fallback, progress, cancel)
    loaded = load_model(model)
    waiting = list(BACKENDS) if backend == "auto" else [backend]
    reasons = []
    while waiting:
        name = waiting.pop(0)
        made = _attempt(name, loaded, options)
        if not isinstance(made, EngineError):
            log.info("using %s", made.description)
            return made
        reasons.append(f"{name}: {made}")
        if isinstance(made, ParityError):
            if fallback != "cpu":
                raise made
            log.warning("%s; going on with the CPU", made)
            waiting, options = list(CPU_BACKENDS), replace(options, precision=None)
        elif backend == "auto":
            log.info("not using %s: %s", name, made)
        elif len(reasons) == 1:
            raise made
    raise EngineError(f"no backend can run {model}:\n" + "\n".join(f"- {r}" for r in reasons))


def _attempt(backend: str, model: Model, options: EngineOptions) -> Engine | EngineError:
    try:
        return _MAKERS[backend](model, options)
    except EngineError as error:
        if options.cancel is not None and options.cancel.is_set():
            raise
        return error


def _tensorrt(model: Model, options: EngineOptions) -> Engine:
    try:
        from ostrack_ros.engines.tensorrt import TensorRtEngine
    except ImportError as error:
        raise BackendUnavailableError(
            f"this installation has no TensorRT adapter ({error})"
        ) from error
    return TensorRtEngine(
        model,
        precision=options.precision,
        device=options.device,
        cache_directory=options.cache_directory,
        fallback=options.fallback,
        progress=options.progress,
        cancel=options.cancel,
    )


def _openvino(model: Model, options: EngineOptions) -> Engine:
    from ostrack_ros.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(model, precision=options.precision, threads=options.threads)


def _onnxruntime(model: Model, options: EngineOptions) -> Engine:
    from ostrack_ros.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(model, precision=options.precision, threads=options.threads)


_MAKERS: dict[str, Callable[[Model, EngineOptions], Engine]] = {
    "tensorrt": _tensorrt,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}

BACKENDS = tuple(_MAKERS)
"""Names of the backends, in the order in which `auto` tries them."""

CPU_BACKENDS = ("openvino", "onnxruntime")
