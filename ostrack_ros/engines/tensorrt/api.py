"""One view of TensorRT 8.6, 10, 11 and TensorRT-RTX.

What differs between them, read off the bindings of 8.6.1, 10.3, 10.7, 10.13, 11.4 and RTX 1.7.1
(test/tensorrt_api.json):

* strong typing: absent in 8.6, a creation flag in 10 (value 1), the only way in 11 and RTX (0);
* `BuilderFlag.FP16` and per-layer precision: 8.6 and 10 only, and needed only in 8.6;
* `EXPLICIT_BATCH`: needed in 8.6, ignored in 10, gone in 11;
* `IProgressMonitor`: from 10 on;
* `ICudaEngine.device_memory_size` became `device_memory_size_v2` in 10 and is gone in 11;
* `IExecutionContext.is_stream_capturable` and target compute capabilities: RTX only.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ostrack_ros.engines.base import EngineError
from ostrack_ros.engines.runtime import BackendUnavailableError
from ostrack_ros.engines.spec import Precision
from ostrack_ros.engines.tensorrt.cuda import CudaError

log = logging.getLogger(__name__)

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Import names in the order of preference."""

OLDEST = (8, 6)
INSTALL = (
    "install TensorRT: on a Jetson `sudo apt install python3-libnvinfer` (part of JetPack), on a "
    "PC `pip install tensorrt` or `pip install tensorrt-rtx`; see docs/jetson.md"
)
KEPT_MESSAGES = 8


class TensorRtApi:
    """The parts of one TensorRT module this package uses, without the differences.

    `module` is the imported runtime. Keep the object alive as long as anything made with it:
    TensorRT holds on to its logger.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.version: str = module.__version__
        self.is_rtx = "rtx" in module.__name__
        if not self.is_rtx and _numbers(self.version)[:2] < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise EngineError(
                f"TensorRT {self.version} is too old, {oldest} or newer is needed; {INSTALL}"
            )
        flags = module.NetworkDefinitionCreationFlag
        self.strongly_typed = hasattr(flags, "STRONGLY_TYPED")
        # The flag's number changed between releases, so it is always asked for.
        flag = flags.STRONGLY_TYPED if self.strongly_typed else flags.EXPLICIT_BATCH
        self.network_flags = 1 << int(flag)
        self.reports_progress = hasattr(module, "IProgressMonitor")
        self.messages: deque[str] = deque(maxlen=KEPT_MESSAGES)
        self._warnings: deque[str] = deque(maxlen=1)
        self.logger = _make_logger(module, self.messages, self._warnings)

    @property
    def name(self) -> str:
        """For people and for cache keys, such as `TensorRT 10.3.0` or `TensorRT-RTX 1.7.1.116`."""
        return f"TensorRT{'-RTX' if self.is_rtx else ''} {self.version}"

    def forget(self) -> None:
        """Drop what TensorRT has logged so far."""
        self.messages.clear()
        self._warnings.clear()

    def explain(self, what: str) -> str:
        """`what` followed by the errors TensorRT has logged since the last call, or, where there
        are none, its last warning."""
        messages = list(dict.fromkeys(self.messages or self._warnings))
        self.forget()
        return f"{what}: {' | '.join(messages)}" if messages else f"{what}, with no reason given"

    def builder(self) -> Any:
        """A builder. Raises CudaError where TensorRT finds no working CUDA."""
        return self._make("Builder")

    def runtime(self) -> Any:
        """A runtime, which loads plans. Raises CudaError where there is no working CUDA."""
        return self._make("Runtime")

    def configure(self, builder: Any, network: Any, precision: Precision, typed: Precision) -> Any:
        """A builder configuration for `precision`, from an ONNX file typed as `typed`.

        Raises EngineError where this TensorRT cannot make one from the other.
        """
        flags = self.module.BuilderFlag
        config = builder.create_builder_config()
        # TF32 is on by default and would round fp32 products to 10 bits behind the user's back.
        config.clear_flag(flags.TF32)
        if self.strongly_typed:
            if precision != typed:
                raise EngineError(
                    f"{self.name} takes each layer's type from the ONNX file, which is {typed}, "
                    f"so it cannot build a {precision} engine from it; export the model with "
                    f"`ostrack export --precision {precision}`"
                )
        elif precision == "fp16":
            config.set_flag(flags.FP16)
            if typed == "fp16":
                self._keep_declared_fp32(network, config)
        elif typed == "fp16":
            raise EngineError(
                f"{self.name} cannot build an fp32 engine from an ONNX file typed fp16; export "
                "the model with `ostrack export --precision fp32`"
            )
        return config

    def target(self, config: Any, capabilities: Sequence[str]) -> None:
        """Compile for the named compute capabilities (`SM86`) instead of the present GPU.

        Only TensorRT-RTX can; raises EngineError elsewhere and for unknown names.
        """
        if not self.is_rtx:
            raise EngineError(f"{self.name} builds for the present GPU only; leave the targets out")
        known = self.module.ComputeCapability
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            if not hasattr(known, name):
                names = ", ".join(n for n in dir(known) if n.startswith("SM"))
                raise EngineError(f"{self.name} does not know {name!r}, only {names}")
            config.set_compute_capability(getattr(known, name), index)

    def parser_errors(self, parser: Any) -> list[str]:
        errors = (parser.get_error(index) for index in range(parser.num_errors))
        return [f"node {error.node()}: {error.desc()}" for error in errors]

    def scratch_bytes(self, engine: Any) -> int:
        """GPU memory one execution context of `engine` needs besides weights and inputs."""
        if hasattr(engine, "device_memory_size_v2"):
            return int(engine.device_memory_size_v2)
        return int(engine.device_memory_size)

    def can_capture(self, context: Any, stream: Any) -> bool:
        """Whether the context may be captured into a CUDA graph, as far as this release tells."""
        if not hasattr(context, "is_stream_capturable"):
            return True
        return bool(context.is_stream_capturable(int(stream)))

    def _make(self, name: str) -> Any:
        self.forget()
        try:
            return getattr(self.module, name)(self.logger)
        except TypeError as error:
            # `pybind11::init(): factory function returned nullptr`; the cause is in the log.
            raise CudaError(
                self.explain(f"{self.name} cannot start ({error}); is CUDA installed and working?")
            ) from error

    def _keep_declared_fp32(self, network: Any, config: Any) -> None:
        """Let a weakly typed network keep fp32 where the ONNX file says so.

        The file keeps the elimination's softmax and the decoded outputs in fp32, and without this
        TensorRT would be free to round them. `PREFER` instead of `OBEY`: where a layer has no fp32
        form the build goes on, and the self-test judges the result.
        """
        module = self.module
        config.set_flag(module.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        untyped = {
            getattr(module.LayerType, name)
            for name in ("CONSTANT", "SHAPE", "CAST", "IDENTITY", "SHUFFLE", "SLICE", "GATHER")
        }
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type in untyped:
                continue
            if layer.get_output(0).dtype == module.DataType.FLOAT:
                layer.precision = module.DataType.FLOAT
                layer.set_output_type(0, module.DataType.FLOAT)


def load_tensorrt(importer: Callable[[str], Any] = importlib.import_module) -> TensorRtApi:
    """The first usable TensorRT module.

    Raises BackendUnavailableError naming every module that was tried, why it failed, and what to
    install.
    """
    reasons = []
    for name in MODULES:
        try:
            module = importer(name)
        except ModuleNotFoundError as error:  # noqa: PERF203  # three names, once
            reasons.append(f"{name} is not installed" if error.name == name else str(error))
        except (ImportError, OSError) as error:
            # Installed, but its libraries are not found or belong to another release.
            reasons.append(f"{name}: {error}")
        else:
            return _api_of(module)
    raise BackendUnavailableError(f"TensorRT is not usable ({'; '.join(reasons)}); {INSTALL}")


@functools.cache
def _api_of(module: Any) -> TensorRtApi:
    # One per module and process: TensorRT keeps the first logger it is given for its global
    # registries and never lets go of it, so that logger must not be freed.
    return TensorRtApi(module)


def _make_logger(module: Any, errors: deque[str], warnings: deque[str]) -> Any:
    severity = module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
    }

    class Logger(module.ILogger):  # type: ignore[misc]  # a class of the runtime module
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # pybind11 wants the base initialised by name

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity)
            if level is None:
                return
            if level == logging.ERROR:
                errors.append(message.strip())
            elif level == logging.WARNING:
                warnings.append(message.strip())
            # Errors also end up in the exception; here they are context, not a second alarm.
            log.log(min(level, logging.WARNING), "%s", message)

    return Logger()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
