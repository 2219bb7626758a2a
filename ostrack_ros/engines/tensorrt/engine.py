"""TensorRT behind the common engine interface: from the cache, or built, tested and kept."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import Engine, EngineError, Prediction
from ostrack_ros.engines.cache import DEFAULT_LIMIT, EngineCache, EngineKey, EngineRecord, Plan
from ostrack_ros.engines.candidates import with_kept_output
from ostrack_ros.engines.contract import BatchBuffers, predictions
from ostrack_ros.engines.models import Model, load_model
from ostrack_ros.engines.onnxruntime import OnnxRuntimeEngine
from ostrack_ros.engines.openvino import OpenVinoEngine
from ostrack_ros.engines.runtime import BackendUnavailableError
from ostrack_ros.engines.selftest import VERSION as SELF_TEST_VERSION
from ostrack_ros.engines.selftest import ParityError, SelfTestReport, run_self_test
from ostrack_ros.engines.spec import ModelSpec, Precision
from ostrack_ros.engines.tensorrt.api import TensorRtApi, load_tensorrt
from ostrack_ros.engines.tensorrt.builder import build_plan
from ostrack_ros.engines.tensorrt.cuda import Cuda, CudaError, load_cuda
from ostrack_ros.engines.tensorrt.progress import Progress
from ostrack_ros.engines.tensorrt.session import Session, Timings
from ostrack_ros.engines.tensorrt.widen import model_in

log = logging.getLogger(__name__)

Fallback = Literal["none", "fp32", "cpu"]
FALLBACKS: tuple[Fallback, ...] = ("none", "fp32", "cpu")
"""What follows when an engine fails its self-test: nothing, an fp32 engine, or that and then a CPU
engine (which is up to `engines.select`)."""


@dataclass(frozen=True, slots=True)
class Toolkit:
    """The two libraries on one GPU."""

    api: TensorRtApi
    cuda: Cuda


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What `build_engine` did; `built` is False where a tested engine was already there, and
    `path` None where it could not be written (the log says why)."""

    path: Path | None
    built: bool
    seconds: float
    size_bytes: int
    runtime: str
    device: str
    precision: Precision
    self_test: dict[str, Any] | None

    def summary(self) -> str:
        """A few words for people."""
        done = f"built in {self.seconds:.0f} s" if self.built else "was already built"
        tested = "self-test passed" if self.self_test else "not self-tested"
        return (
            f"{self.precision} engine for {self.runtime} on {self.device} {done}, "
            f"{self.size_bytes / 1e6:.0f} MB, {tested}: {self.path or 'not kept'}"
        )


def load_toolkit(device: int = 0) -> Toolkit:
    """TensorRT and CUDA on GPU `device`. Raises EngineError saying what is missing."""
    return Toolkit(load_tensorrt(), load_cuda(device))


def tensorrt_available(device: int = 0) -> str | None:
    """None where TensorRT can be used on GPU `device`, else one sentence why not."""
    try:
        load_toolkit(device)
    except EngineError as error:
        return str(error)
    return None


class TensorRtEngine:
    """Runs a model on an NVIDIA GPU.

    The engine comes from the cache; where it is not there, it is built, which takes minutes:
    `progress` hears how far it is, and setting `cancel` stops it. `precision` None means as the
    ONNX file is typed. `fallback` says what to do when the engine fails its parity self-test.
    Not thread-safe, but it may be used from another thread than the one that made it.

    Raises EngineError for everything that is missing, ParityError when the engine disagrees with
    the model, BuildCancelled when `cancel` was set.
    """

    def __init__(
        self,
        model: Model | Path,
        *,
        precision: str | None = None,
        device: int = 0,
        cache_directory: Path | None = None,
        cache_limit_bytes: int = DEFAULT_LIMIT,
        fallback: str = "cpu",
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        toolkit: Toolkit | None = None,
    ) -> None:
        if fallback not in FALLBACKS:
            raise EngineError(f"fallback is {fallback!r}, expected {', '.join(FALLBACKS)}")
        model = load_model(model) if isinstance(model, Path) else model
        chosen = _precision_of(model, precision)
        builder = _Provider(
            toolkit or load_toolkit(device),
            EngineCache(cache_directory, cache_limit_bytes),
            progress,
            cancel,
        )
        self._spec = model.spec
        self._buffers = BatchBuffers(model.spec)
        try:
            provided = builder.provide(model, chosen)
        except ParityError as error:
            if fallback == "none" or chosen == "fp32":
                raise
            log.error("%s; trying fp32", error)
            provided = builder.provide(model, "fp32")
        self._session = provided.session
        self._description = provided.description

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def description(self) -> str:
        return self._description

    @property
    def gpu_bytes(self) -> int:
        """GPU memory of buffers and scratch space; weights and CUDA's own come on top."""
        return self._session.gpu_bytes

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        return self.infer_batch([template], [search])[0]

    def infer_batch(
        self, templates: Sequence[NDArray[np.uint8]], searches: Sequence[NDArray[np.uint8]]
    ) -> list[Prediction]:
        """Predict for up to `spec.batch` pairs in one run; see Engine.infer."""
        outputs = self._session.run(*self._buffers.fill(templates, searches))
        return predictions(outputs, len(templates))

    def measure(self) -> Timings:
        """GPU time of the last inputs' copies and network, run once more; for benchmarks."""
        return self._session.measure()

    def close(self) -> None:
        self._session.close()


def build_engine(
    model: Model | Path,
    *,
    precision: str | None = None,
    device: int = 0,
    cache_directory: Path | None = None,
    cache_limit_bytes: int = DEFAULT_LIMIT,
    force: bool = False,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    toolkit: Toolkit | None = None,
) -> BuildReport:
    """Have a tested engine of `model` in the cache; `force` builds it even if there is one.

    Raises as TensorRtEngine does.
    """
    model = load_model(model) if isinstance(model, Path) else model
    chosen = _precision_of(model, precision)
    kit = toolkit or load_toolkit(device)
    cache = EngineCache(cache_directory, cache_limit_bytes)
    begin = time.monotonic()
    provided = _Provider(kit, cache, progress, cancel).provide(model, chosen, force=force)
    provided.session.close()
    return BuildReport(
        path=provided.path,
        built=provided.built,
        seconds=time.monotonic() - begin,
        size_bytes=provided.plan_bytes,
        runtime=kit.api.name,
        device=str(kit.cuda.device),
        precision=chosen,
        self_test=provided.self_test,
    )


@dataclass(frozen=True, slots=True)
class _Provided:
    session: Session
    description: str
    path: Path | None
    built: bool
    plan_bytes: int
    self_test: dict[str, Any] | None


class _Provider:
    """Gets a tested engine from the cache or, failing that, from a build."""

    def __init__(
        self,
        kit: Toolkit,
        cache: EngineCache,
        progress: Progress | None,
        cancel: threading.Event | None,
    ) -> None:
        self._kit = kit
        self._cache = cache
        self._progress = progress
        self._cancel = cancel

    def provide(self, model: Model, precision: Precision, *, force: bool = False) -> _Provided:
        self._cache.prepare()
        if self._kit.api.strongly_typed or precision == "fp32":
            model = model_in(model, precision)
        # The engine that is tested must be the one that is used, so both can be asked.
        model = with_kept_output(model)
        key = self._key(model, precision)
        if not force and (found := self._from_cache(model, key, precision)):
            return found
        with self._lock() as waited:
            if waited and not force:
                found = self._from_cache(model, key, precision, locked=True)
                if found is not None:
                    return found
            return self._build(model, key, precision)

    def _key(self, model: Model, precision: Precision) -> EngineKey:
        device = self._kit.cuda.device
        return EngineKey(
            onnx_sha256=model.spec.onnx_sha256,
            runtime=self._kit.api.name,
            # All Jetsons of a generation have one name: an Orin Nano and an AGX are both "Orin".
            gpu=f"{device.name}, {device.multiprocessors} multiprocessors",
            compute_capability=device.sm,
            precision=precision,
        )

    def _from_cache(
        self, model: Model, key: EngineKey, precision: Precision, *, locked: bool = False
    ) -> _Provided | None:
        if reason := self._cache.refusal(key, SELF_TEST_VERSION):
            raise ParityError(
                f"{reason} (found earlier; `ostrack build --force` builds and tests it again)"
            )
        stored = self._cache.load(key, model.spec.name)
        if stored is None:
            return None
        try:
            session = Session(self._kit.api, self._kit.cuda, stored.plan, model)
        except CudaError:
            raise  # no memory or a broken driver: a new engine would fare no better
        except EngineError as error:
            log.warning("%s: %s; it will be built anew", stored.path, error)
            self._cache.discard(key, model.spec.name)
            return None
        figures = stored.record.self_test
        if figures is None or figures.get("version") != SELF_TEST_VERSION:
            figures = self._self_test(session, model, key, precision)
            if figures is not None:
                record = dataclasses.replace(stored.record, self_test=figures)
                # The lock is not reentrant.
                with contextlib.nullcontext() if locked else self._lock():
                    self._keep(record, stored.plan)
        return _Provided(
            session=session,
            description=self._describe(session, precision),
            path=stored.path,
            built=False,
            plan_bytes=len(stored.plan),
            self_test=figures,
        )

    def _build(self, model: Model, key: EngineKey, precision: Precision) -> _Provided:
        log.info("building %s for %s on %s", model.path, key.runtime, self._kit.cuda.device)
        begin = time.monotonic()
        plan = build_plan(
            self._kit.api,
            model,
            precision=precision,
            cuda=self._kit.cuda,
            expected_seconds=self._cache.expected_seconds(key),
            progress=self._progress,
            cancel=self._cancel,
        )
        seconds = time.monotonic() - begin
        session = Session(self._kit.api, self._kit.cuda, plan, model)
        figures = self._self_test(session, model, key, precision)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = EngineRecord(key, model.spec.name, created, round(seconds, 1), figures)
        path = self._keep(record, plan)
        log.info("built %s in %.0f s", path or model.spec.name, seconds)
        if self._progress is not None:
            self._progress(1.0, f"engine for {model.spec.name} built in {seconds:.0f} s")
        return _Provided(
            session=session,
            description=self._describe(session, precision),
            path=path,
            built=True,
            plan_bytes=len(plan),
            self_test=figures,
        )

    def _keep(self, record: EngineRecord, plan: Plan) -> Path | None:
        """Store, but go on without a stored engine where the disk is full or read-only."""
        try:
            path = self._cache.store(record, plan)
            self._cache.record_seconds(record.key, record.build_seconds)
        except OSError as error:
            log.warning(
                "the engine works but could not be kept in %s (%s), so the next start builds it "
                "again; make room or choose another folder",
                self._cache.directory,
                error.strerror or error,
            )
            return None
        return path

    def _self_test(
        self, session: Session, model: Model, key: EngineKey, precision: Precision
    ) -> dict[str, Any] | None:
        """Figures of the passed test, None where nothing can be compared with.

        Raises ParityError, with session closed and the refusal remembered, when it fails.
        """
        try:
            reference = cpu_engine(model)
        except BackendUnavailableError as error:
            log.warning("the engine was not tested against the model on the CPU: %s", error)
            return None
        if self._progress is not None:
            self._progress(None, f"testing the engine of {model.spec.name} against the CPU")
        candidate = _SessionEngine(session, model.spec, self._describe(session, precision))
        try:
            report: SelfTestReport = run_self_test(candidate, reference, precision)
        except BaseException:
            session.close()
            raise
        finally:
            reference.close()
        if report.passed:
            log.info("self-test: %s", report.summary())
            return report.to_dict()
        session.close()
        self._cache.discard(key, model.spec.name)
        try:
            self._cache.refuse(key, report.summary(), SELF_TEST_VERSION)
        except OSError as error:
            log.warning("could not note the refusal in %s: %s", self._cache.directory, error)
        raise ParityError(report.summary())

    def _describe(self, session: Session, precision: Precision) -> str:
        launch = "CUDA graph" if session.captured else "no CUDA graph"
        return f"{self._kit.api.name} on {self._kit.cuda.device} ({precision}, {launch})"

    def _lock(self) -> contextlib.AbstractContextManager[bool]:
        return self._cache.lock(self._report_waiting, self._cancel)

    def _report_waiting(self, seconds: float, holder: str) -> None:
        if self._progress is not None:
            self._progress(None, f"waiting for {holder}, which builds an engine: {seconds:.0f} s")


class _SessionEngine:
    """A session as an engine, for the self-test."""

    def __init__(self, session: Session, spec: ModelSpec, description: str) -> None:
        self.spec = spec
        self.description = description
        self._session = session
        self._buffers = BatchBuffers(spec)

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        return self.infer_batch([template], [search])[0]

    def infer_batch(
        self, templates: Sequence[NDArray[np.uint8]], searches: Sequence[NDArray[np.uint8]]
    ) -> list[Prediction]:
        outputs = self._session.run(*self._buffers.fill(templates, searches))
        return predictions(outputs, len(templates))

    def close(self) -> None:
        self._session.close()


def cpu_engine(model: Model) -> Engine:
    """`model` in fp32 on the CPU: what the self-test takes for the truth.

    Raises BackendUnavailableError where neither OpenVINO nor ONNX Runtime is installed.
    """
    try:
        return OpenVinoEngine(model, precision="fp32")
    except BackendUnavailableError:
        pass
    try:
        return OnnxRuntimeEngine(model, precision="fp32")
    except BackendUnavailableError as error:
        raise BackendUnavailableError(
            "neither OpenVINO nor ONNX Runtime is installed; `pip install onnxruntime`"
        ) from error


def _precision_of(model: Model, precision: str | None) -> Precision:
    if precision is None:
        return model.spec.precision
    for known in get_args(Precision):
        if precision == known:
            return cast(Precision, known)
    raise EngineError(f"precision is {precision!r}, TensorRT takes fp16 or fp32")
