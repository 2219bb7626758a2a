#!/usr/bin/env python3
"""TensorRT on this machine's GPU: build, self-test, time per stage, memory, and PyTorch beside it.

    python benchmarks/tensorrt_gpu.py                            # everything, about 10 minutes
    python benchmarks/tensorrt_gpu.py --variant ostrack_small --no-torch --leak-updates 1000
    python benchmarks/tensorrt_gpu.py --runtime tensorrt_rtx     # TensorRT-RTX instead

Shipped models are taken as they are; other variants, and all with --random, get random weights with
the published statistics, which cost the same time. Exporting them and the comparison need torch;
without it, give a folder of exported files (--models) and see what is skipped in the record.

The contenders of the comparison take turns in short rounds on the same frames, so that clocks and
temperatures hit all alike: OSTrack as published in eager PyTorch (fp32 and fp16), our graph under
torch.compile with CUDA graphs (fp16), and TensorRT. Written to benchmarks/results/.

The file is not called tensorrt.py: Python would then import it in TensorRT's place.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "test"))

from ostrack_ros.engines.base import EngineError, Prediction
from ostrack_ros.engines.models import list_models, resolve_model
from ostrack_ros.engines.spec import ModelSpec
from ostrack_ros.engines.tensorrt import TensorRtEngine, Toolkit, build_engine
from ostrack_ros.engines.tensorrt.api import TensorRtApi, load_tensorrt
from ostrack_ros.engines.tensorrt.cuda import Cuda, load_cuda
from ostrack_ros.evaluation.bench import Timing, made_up_frames, run_bench
from ostrack_ros.files import write_atomically
from ostrack_ros.machine import describe_machine
from ostrack_ros.progress import fraction_bar
from ostrack_ros.tracking.frame import Frame, PixelFormat
from ostrack_ros.tracking.geometry import Box
from ostrack_ros.tracking.tracker import Tracker, TrackerSettings

RESULTS = Path(__file__).resolve().parent / "results"
VARIANTS = ("ostrack_tiny", "ostrack_small", "vitb_256_ce", "vitb_384_ce")
NO_GPU = 3
SEED = 7
ROUND = 10
INTERVAL = 33_333_333
SPEEDUP_GOAL, OVERHEAD_GOAL = 8.0, 1.15

Update = Callable[[NDArray[np.uint8], int], object]
"""Finds the target in one RGB image; the number is the image's index."""


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """GPU bytes in use on the whole device, and this process's resident bytes, around `updates`."""

    updates: int
    gpu_before: int
    gpu_after: int
    resident_before: int
    resident_after: int

    @property
    def gpu_growth(self) -> int:
        return self.gpu_after - self.gpu_before


def main() -> int:
    arguments = _arguments()
    try:
        kit = _toolkit(arguments.runtime, arguments.device)
    except EngineError as error:
        print(f"there is no GPU to measure on: {error}", file=sys.stderr)
        return NO_GPU
    print(f"{kit.api.name} on {kit.cuda.device}")
    record: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "gpu": str(kit.cuda.device),
        "runtime": kit.api.name,
        "torch": _torch_version() if arguments.torch else "not asked for",
        "variants": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for variant in arguments.variant or VARIANTS:
            for precision in arguments.precision or ("fp16",):
                name = f"{variant} {precision}"
                print(f"\n== {name}")
                try:
                    record["variants"][name] = _measure(
                        kit, variant, precision, arguments, Path(folder)
                    )
                except (EngineError, ModuleNotFoundError) as error:
                    record["variants"][name] = {"failed": str(error)}
                    print(f"failed: {error}")
    gpu = "_".join(kit.cuda.device.name.split()).lower()
    path = arguments.output / f"{arguments.name or f'tensorrt_{gpu}'}.json"
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    print(f"\nwritten: {path}")
    return int(any("failed" in result for result in record["variants"].values()))


def _measure(
    kit: Toolkit, variant: str, precision: str, arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    model, source = find_model(variant, precision, arguments, folder)
    result = measure_engine(
        kit,
        model,
        cache=folder / "cache" if arguments.fresh else None,
        iterations=arguments.iterations,
        leak_updates=arguments.leak_updates,
    )
    result["weights"] = source
    if arguments.torch and precision == "fp16":
        with closing(TensorRtEngine(model, precision=precision, toolkit=kit)) as engine:
            result["side_by_side"] = compare(variant, engine, arguments.rounds)
    return result


def measure_engine(
    kit: Toolkit, model: Path, *, cache: Path | None, iterations: int, leak_updates: int
) -> dict[str, Any]:
    """Build, self-test, time and watch the memory of one model."""
    images, box = made_up_frames(1280, 720)
    before = _gpu_used(kit.cuda)
    with fraction_bar() as progress:
        build = build_engine(model, toolkit=kit, cache_directory=cache, progress=progress)
    print(build.summary())
    with closing(TensorRtEngine(model, toolkit=kit, cache_directory=cache)) as engine:
        loaded = _gpu_used(kit.cuda) - before
        bench = run_bench(engine, images, box, iterations)
        memory = watch_memory(kit.cuda, engine, images, box, leak_updates)
        own = engine.gpu_bytes
    for stage, timing in bench.timings.items():
        print(f"{stage:>16}: median {timing.median:.3f} ms, p95 {timing.p95:.3f} ms")
    print(
        f"update / bare engine {bench.ratio:.3f} (goal {OVERHEAD_GOAL}); GPU memory "
        f"{loaded / 2**20:.0f} MiB, growth over {memory.updates} updates {memory.gpu_growth} bytes"
    )
    return {
        "build": {**asdict(build), "path": str(build.path)},
        "bench": bench.to_dict(),
        "gpu_bytes_when_loaded": loaded,
        "gpu_bytes_of_buffers_and_scratch": own,
        "memory": {**asdict(memory), "gpu_growth": memory.gpu_growth},
        "overhead_goal_met": bench.ratio <= OVERHEAD_GOAL,
        "no_growth": memory.gpu_growth <= 0,
    }


def watch_memory(
    cuda: Cuda, engine: TensorRtEngine, images: Sequence[NDArray[np.uint8]], box: Box, updates: int
) -> MemoryRecord:
    """Track for `updates` frames and look at the memory before and after.

    The first few updates are not counted: libraries allocate on first use.
    """
    tracker = Tracker(engine, TrackerSettings(presence=None))
    frames = _endless(images)
    tracker.init(next(frames), box)
    for _ in range(min(50, updates)):
        tracker.update(next(frames))
    gpu, resident = _gpu_used(cuda), _resident()
    for _ in range(updates):
        tracker.update(next(frames))
    return MemoryRecord(updates, gpu, _gpu_used(cuda), resident, _resident())


def compare(variant: str, engine: TensorRtEngine, rounds: int) -> dict[str, Any]:
    """TensorRT and PyTorch on the same frames in turn; milliseconds from image to box."""
    import torch

    images, box = made_up_frames(1280, 720)
    rgb = [np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8) for image in images]
    contenders: dict[str, Update] = {"TensorRT": _tracker(engine, rgb[0], box)}
    failed: dict[str, str] = {}
    for name, make in _torch_contenders(variant, engine.spec):
        made = _warmed_up(make, rgb, box)
        if isinstance(made, str):
            failed[name] = made
        else:
            contenders[name] = made
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, update in contenders.items():
            for step in range(ROUND):
                index = (turn * ROUND + step) % len(rgb)
                torch.cuda.synchronize()
                start = time.perf_counter()
                update(rgb[index], index)
                torch.cuda.synchronize()
                if turn:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
    timings = {name: Timing.of(values) for name, values in seconds.items()}
    for name, timing in timings.items():
        print(f"{name:>32}: median {timing.median:.3f} ms, p95 {timing.p95:.3f} ms")
    ours = timings["TensorRT"].median
    ratios = {name: timing.median / ours for name, timing in timings.items()}
    speedup = ratios.get("published, eager fp32")
    if speedup is not None:
        print(f"{speedup:.2f} times as fast as published (goal {SPEEDUP_GOAL})")
    return {
        "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
        "times_as_fast": ratios,
        "failed": failed,
        "speedup_goal_met": None if speedup is None else speedup >= SPEEDUP_GOAL,
    }


def _warmed_up(
    make: Callable[[NDArray[np.uint8], Box], Update], rgb: Sequence[NDArray[np.uint8]], box: Box
) -> Update | str:
    """A contender that has run a few times, or why it cannot."""
    try:
        update = make(rgb[0], box)
        for index in range(5):
            update(rgb[index % len(rgb)], index)
    except (RuntimeError, ImportError) as error:  # torch.compile has many ways to fail
        return str(error)[:500]
    return update


class CompiledEngine:
    """Our graph in fp16 under torch.compile with CUDA graphs, as an engine."""

    def __init__(self, variant: str, spec: ModelSpec) -> None:
        import torch

        from ostrack_ros.network.ostrack import OSTrackGraph

        self._torch = torch
        self.spec = spec
        self.description = f"torch.compile {torch.__version__}"
        graph = OSTrackGraph(_network(variant), "fp16").eval().cuda()
        self._run = torch.compile(graph, mode="reduce-overhead", fullgraph=True)

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        with self._torch.no_grad():
            inputs = (
                self._torch.from_numpy(np.ascontiguousarray(image))[None].cuda(non_blocking=True)
                for image in (template, search)
            )
            result, scores = (output.cpu().numpy() for output in self._run(*inputs))
        return Prediction.from_outputs(result[0], scores[0])

    def infer_batch(
        self, templates: Sequence[NDArray[np.uint8]], searches: Sequence[NDArray[np.uint8]]
    ) -> list[Prediction]:
        return [self.infer(t, s) for t, s in zip(templates, searches, strict=True)]

    def close(self) -> None:
        pass


def _torch_contenders(
    variant: str, spec: ModelSpec
) -> Iterator[tuple[str, Callable[[NDArray[np.uint8], Box], Update]]]:
    import torch
    from published_pipeline import PublishedPipeline

    def published(dtype: torch.dtype) -> Callable[[NDArray[np.uint8], Box], Update]:
        def make(image: NDArray[np.uint8], box: Box) -> Update:
            pipeline = PublishedPipeline(_network(variant), "cuda", dtype)
            pipeline.init(image, box)
            return lambda frame, _: pipeline.update(frame)

        return make

    def compiled(image: NDArray[np.uint8], box: Box) -> Update:
        return _tracker(CompiledEngine(variant, spec), image, box)

    yield "published, eager fp32", published(torch.float32)
    yield "published, eager fp16", published(torch.float16)
    yield "ours, torch.compile fp16", compiled


def _tracker(engine: Any, image: NDArray[np.uint8], box: Box) -> Update:
    tracker = Tracker(engine, TrackerSettings(presence=None))
    tracker.init(Frame(image, PixelFormat.RGB, 0), box)
    return lambda frame, index: tracker.update(Frame(frame, PixelFormat.RGB, index * INTERVAL))


def _network(variant: str) -> Any:
    from seeded_weights import seeded_state

    from ostrack_ros.network.ostrack import OSTrack
    from ostrack_ros.network.variants import get_variant

    network = OSTrack(get_variant(variant))
    network.load_state_dict(seeded_state(network, SEED))
    return network.eval()


def find_model(
    variant: str, precision: str, arguments: argparse.Namespace, folder: Path
) -> tuple[Path, str]:
    """The model's file and a word on its weights: a shipped one, one of --models, or a new one."""
    if variant in list_models() and not arguments.random:
        path = resolve_model(variant)
        if ModelSpec.load(path).precision == precision:
            return path, "shipped"
    if arguments.models:
        path = arguments.models / f"{variant}_{precision}.onnx"
        if path.is_file():
            return path, f"from {arguments.models}"
    from ostrack_ros.network.export import export_network

    path = export_network(
        _network(variant),
        "fp16" if precision == "fp16" else "fp32",
        folder / f"{variant}_{precision}.onnx",
        source=f"random weights, seed {SEED}",
        source_sha256="0" * 64,
    )
    return path, "random"


def _toolkit(runtime: str | None, device: int) -> Toolkit:
    if runtime is None:
        return Toolkit(load_tensorrt(), load_cuda(device))
    try:
        module = importlib.import_module(runtime)
    except ImportError as error:
        raise EngineError(f"{runtime} cannot be imported: {error}") from error
    return Toolkit(TensorRtApi(module), load_cuda(device))


def _endless(images: Sequence[NDArray[np.uint8]]) -> Iterator[Frame]:
    order = [*range(len(images)), *range(len(images) - 2, 0, -1)]
    count = 0
    while True:
        yield Frame(images[order[count % len(order)]], PixelFormat.BGR, count * INTERVAL)
        count += 1


def _gpu_used(cuda: Cuda) -> int:
    free, total = cuda.free_memory()
    return total - free


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _torch_version() -> str:
    try:
        import torch
    except ImportError:
        return "not installed"
    return str(torch.__version__)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", action="append", help="may be repeated; default: all four")
    parser.add_argument("--precision", action="append", choices=("fp16", "fp32"))
    parser.add_argument("--models", type=Path, help="folder with VARIANT_PRECISION.onnx files")
    parser.add_argument("--random", action="store_true", help="no shipped weights")
    parser.add_argument("--runtime", help="module to import instead of the first that is found")
    parser.add_argument("--device", type=int, default=0, help="index of the GPU")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=30, help=f"of {ROUND} updates each")
    parser.add_argument("--leak-updates", type=int, default=10_000)
    parser.add_argument("--no-torch", dest="torch", action="store_false", help="no comparison")
    parser.add_argument("--fresh", action="store_true", help="build into an empty cache")
    parser.add_argument("--name", help="of the file in results/ (default: tensorrt_GPU)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
