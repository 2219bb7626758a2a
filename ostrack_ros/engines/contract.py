"""The graph's contract, checked: names, types and shapes against the sidecar (docs/graph.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import EngineError, Prediction
from ostrack_ros.engines.spec import ModelSpec

TEMPLATE, SEARCH = "template", "search"
RESULT, SCORE_MAP = "result", "score_map"
RESULT_LENGTH = 6
KEPT = "kept_candidates"
"""A tensor inside the graph, an output only where `engines.candidates` made it one."""

Port = tuple[str, tuple[int, ...]]
"""Element type (a NumPy name) and shape of an input or output."""


def expected_inputs(spec: ModelSpec) -> dict[str, Port]:
    """What the graph of this sidecar takes."""
    return {
        TEMPLATE: ("uint8", (spec.batch, spec.template_size, spec.template_size, 3)),
        SEARCH: ("uint8", (spec.batch, spec.search_size, spec.search_size, 3)),
    }


def expected_outputs(spec: ModelSpec) -> dict[str, Port]:
    """What the graph of this sidecar answers."""
    return {
        RESULT: ("float32", (spec.batch, RESULT_LENGTH)),
        SCORE_MAP: ("float32", (spec.batch, spec.score_size, spec.score_size)),
    }


def kept_port(spec: ModelSpec) -> Port:
    """The output that the graph of this sidecar may have besides: one number for each cell."""
    return expected_outputs(spec)[SCORE_MAP]


def check_graph(
    path: Path, spec: ModelSpec, inputs: Mapping[str, Port], outputs: Mapping[str, Port]
) -> None:
    """Raise EngineError naming the first input or output that is not as the sidecar says."""
    answers = expected_outputs(spec)
    if KEPT in outputs:
        answers[KEPT] = kept_port(spec)
    for kind, found, expected in (
        ("input", inputs, expected_inputs(spec)),
        ("output", outputs, answers),
    ):
        for name, port in expected.items():
            if name not in found:
                raise EngineError(
                    f"{path} has no {kind} {name!r}, only {', '.join(found) or 'none'}; "
                    "it is not a graph of `ostrack export` (docs/graph.md)"
                )
            if found[name] != port:
                raise EngineError(
                    f"{kind} {name!r} of {path} is {_show(found[name])}, its sidecar says "
                    f"{_show(port)}; export the model again"
                )
        if extra := sorted(set(found) - set(expected)):
            raise EngineError(f"{path} has an unknown {kind} {extra[0]!r} (docs/graph.md)")


def check_image(name: str, image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The image as contiguous uint8 [size, size, 3], copied only if it is not contiguous.

    Raises EngineError otherwise.
    """
    if image.shape != (size, size, 3) or image.dtype != np.uint8:
        raise EngineError(
            f"{name} is {_show((str(image.dtype), image.shape))}, "
            f"the model takes {_show(('uint8', (size, size, 3)))}"
        )
    return np.ascontiguousarray(image)


class BatchBuffers:
    """Turns single images into the graph's inputs, without a copy where the batch is 1."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._inputs = (
            {}
            if spec.batch == 1
            else {
                name: np.zeros(shape, np.uint8)
                for name, (_, shape) in expected_inputs(spec).items()
            }
        )

    def fill(
        self, templates: Sequence[NDArray[np.uint8]], searches: Sequence[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The inputs `template` and `search` for 1 to `spec.batch` pairs of images.

        They are views of the images, or of buffers that the next call overwrites; places that are
        not used keep whatever was in them. Raises EngineError for images or counts that do not fit.
        """
        spec = self._spec
        if len(templates) != len(searches) or not 1 <= len(templates) <= spec.batch:
            raise EngineError(
                f"{len(templates)} templates and {len(searches)} search regions for a model of "
                f"batch {spec.batch}; give as many of both, 1 to {spec.batch}"
            )
        images = {
            TEMPLATE: [check_image(TEMPLATE, t, spec.template_size) for t in templates],
            SEARCH: [check_image(SEARCH, s, spec.search_size) for s in searches],
        }
        if not self._inputs:
            return images[TEMPLATE][0][None], images[SEARCH][0][None]
        for name, buffer in self._inputs.items():
            for i, image in enumerate(images[name]):
                buffer[i] = image
        return self._inputs[TEMPLATE], self._inputs[SEARCH]


def predictions(outputs: Mapping[str, NDArray[np.float32]], count: int) -> list[Prediction]:
    """The first `count` answers in the graph's outputs by name, which must not change later."""
    kept = outputs.get(KEPT)
    return [
        Prediction.from_outputs(
            outputs[RESULT][i], outputs[SCORE_MAP][i], None if kept is None else kept[i]
        )
        for i in range(count)
    ]


def _show(port: Port) -> str:
    dtype, shape = port
    return f"{dtype} {list(shape)}"
