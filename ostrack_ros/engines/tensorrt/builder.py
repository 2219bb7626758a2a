"""ONNX file -> TensorRT plan (the serialised engine)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from ostrack_ros.engines.base import EngineError
from ostrack_ros.engines.cache import BuildCancelled
from ostrack_ros.engines.models import Model
from ostrack_ros.engines.spec import Precision
from ostrack_ros.engines.tensorrt.api import TensorRtApi
from ostrack_ros.engines.tensorrt.cuda import Cuda
from ostrack_ros.engines.tensorrt.progress import (
    Clock,
    PhaseTree,
    Progress,
    make_monitor,
    run_reporting,
)


def build_plan(
    api: TensorRtApi,
    model: Model,
    *,
    precision: Precision,
    cuda: Cuda | None = None,
    targets: Sequence[str] = (),
    expected_seconds: float | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> bytes:
    """Compile `model` for the GPU of `cuda`.

    `targets` names compute capabilities such as `SM86` to compile for without a GPU, which only
    TensorRT-RTX can. Nothing is written to disk.

    Raises EngineError with TensorRT's own words, and BuildCancelled when `cancel` is set.
    """
    phases = PhaseTree() if api.reports_progress else None
    clock = Clock(
        f"building {model.spec.name} for {api.name} in {precision}", expected_seconds, phases
    )

    if api.is_rtx and cuda is not None and not targets:
        # By default it compiles for every GPU family, which takes that many times as long.
        targets = ("CURRENT",)

    def work(stop: threading.Event) -> bytes:
        if cuda is not None:
            cuda.activate()
        return _build(api, model, precision, targets, phases, stop)

    return run_reporting(work, clock, progress, cancel)


def _build(
    api: TensorRtApi,
    model: Model,
    precision: Precision,
    targets: Sequence[str],
    phases: PhaseTree | None,
    stop: threading.Event,
) -> bytes:
    builder = api.builder()
    network = builder.create_network(api.network_flags)
    # An empty network is falsy, so truth says nothing here.
    if network is None:
        raise EngineError(api.explain(f"{api.name} cannot start a network"))
    parser = api.module.OnnxParser(network, api.logger)
    _parse(api, parser, model)
    config = api.configure(builder, network, precision, model.spec.precision)
    if targets:
        api.target(config, targets)
    if phases is not None:
        monitor = make_monitor(api.module, phases, stop)
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if stop.is_set():
        raise BuildCancelled("the engine build was cancelled; nothing was written")
    if plan is None:
        raise EngineError(_explain_failure(api, model))
    return bytes(plan)


def _parse(api: TensorRtApi, parser: Any, model: Model) -> None:
    if not parser.parse(model.content):
        reasons = " | ".join(api.parser_errors(parser)) or "no reason given"
        raise EngineError(
            f"{api.name} cannot read {model.path}: {reasons}; export the model again with "
            "`ostrack export`, and if it stays, report this line"
        )


def _explain_failure(api: TensorRtApi, model: Model) -> str:
    text = api.explain(f"{api.name} could not build an engine from {model.path}")
    lowered = text.lower()
    if "out of memory" in lowered or "outofmemory" in lowered or "insufficient memory" in lowered:
        text += (
            "; close other programs that use the GPU (on a Jetson the memory is shared: stop the "
            "desktop with `sudo systemctl isolate multi-user.target`, add swap), or take a smaller "
            "model"
        )
    return text
