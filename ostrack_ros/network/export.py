"""Checkpoint -> ONNX file and sidecar."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor

from ostrack_ros.engines.contract import KEPT, RESULT, SCORE_MAP, SEARCH, TEMPLATE
from ostrack_ros.engines.spec import Precision, sidecar_path
from ostrack_ros.network.checkpoint import load_network, read_weights, sha256_of
from ostrack_ros.network.ostrack import OSTrack, OSTrackGraph, describe_network
from ostrack_ros.network.variants import Variant, get_variant

OPSET = 18
UNKNOWN_LICENCE = "not stated by the checkpoint; see where you got it"


def export_checkpoint(
    checkpoint: Path,
    variant: str,
    precision: Precision,
    output: Path,
    *,
    name: str | None = None,
    licence: str = UNKNOWN_LICENCE,
    batch: int = 1,
) -> Path:
    """Write `<output>/<name>.onnx` and its sidecar from a published or own checkpoint.

    `name` defaults to `<variant>_<precision>` (and `_b<batch>` for a batch above 1). Both files
    appear whole or not at all. Returns the path of the .onnx file; raises CheckpointError for an
    unusable checkpoint and ValueError for an unknown variant.
    """
    config = get_variant(variant)
    network = OSTrack(config)
    load_network(network, read_weights(checkpoint))
    name = name or f"{variant}_{precision}" + (f"_b{batch}" if batch > 1 else "")
    return export_network(
        network,
        precision,
        output / f"{name}.onnx",
        source=checkpoint.name,
        source_sha256=sha256_of(checkpoint),
        licence=licence,
        batch=batch,
    )


def export_network(
    network: OSTrack,
    precision: Precision,
    path: Path,
    *,
    source: str,
    source_sha256: str,
    licence: str = UNKNOWN_LICENCE,
    batch: int = 1,
) -> Path:
    """Write one network as ONNX, with its sidecar; see `export_checkpoint`."""
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1")
    variant = network.variant
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / path.name
        _write_onnx(OSTrackGraph(network, precision), variant, batch, draft)
        onnx.checker.check_model(str(draft), full_check=True)
        spec = describe_network(
            network,
            precision,
            name=path.stem,
            licence=licence,
            source_checkpoint=source,
            source_sha256=source_sha256,
            onnx_sha256=sha256_of(draft),
            batch=batch,
        )
        sidecar = sidecar_path(draft)
        sidecar.write_text(spec.to_json(), encoding="utf-8")
        # The sidecar goes first: it names the digest of the ONNX file, so a crash between the
        # two leaves a pair that is recognised as not belonging together.
        sidecar.replace(sidecar_path(path))
        draft.replace(path)
    return path


class _WatchedGraph(torch.nn.Module):
    """The graph with all that `OSTrackGraph.watched` tells."""

    def __init__(self, graph: OSTrackGraph) -> None:
        super().__init__()
        self.inner = graph

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, ...]:
        return tuple(item for item in self.inner.watched(template, search) if item is not None)


def _write_onnx(graph: OSTrackGraph, variant: Variant, batch: int, path: Path) -> None:
    template, search = (
        torch.zeros(batch, size, size, 3, dtype=torch.uint8)
        for size in (variant.template_size, variant.search_size)
    )
    eliminates = variant.elimination is not None and variant.elimination.keep_ratio < 1
    names = [RESULT, SCORE_MAP, *([KEPT] if eliminates else [])]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            _WatchedGraph(graph).eval(),
            (template, search),
            str(path),
            input_names=[TEMPLATE, SEARCH],
            output_names=names,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if eliminates:
        _hide_output(path, KEPT)


def _hide_output(path: Path, name: str) -> None:
    """Leave a tensor in the file but not among its outputs; who wants to see it makes it one again
    (`engines.candidates`)."""
    model = onnx.load(str(path))
    (port,) = (port for port in model.graph.output if port.name == name)
    model.graph.value_info.append(port)
    model.graph.output.remove(port)
    onnx.save(model, str(path))
