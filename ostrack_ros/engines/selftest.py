"""Does an engine agree with its ONNX file, run in full precision on the CPU?

A compiler may pick a kernel that overflows, or drop a cast; the boxes are then wrong with no error
anywhere. So every engine that was built on this machine first answers a few stored inputs, and is
refused if it is off.

What is compared are the graph's two outputs and, where the file can tell (`engines.candidates`),
which candidates were kept. Rounding may swap the last one kept with the first one eliminated, so a
few swaps are borne, a different selection is not (docs/jetson.md has what was measured).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostrack_ros.engines.base import Engine, EngineError, Prediction
from ostrack_ros.engines.spec import ModelSpec, Precision

VERSION = 2
"""Part of what is remembered about a passed test: a changed test is run again."""

CLEAR_PEAK = 0.9
"""A peak is clear if no cell outside its 3x3 neighbourhood responds more than this much of it."""


SMALLEST_SPREAD = 0.01
"""Flatter score maps count as having this much between their lowest and highest cell."""


class ParityError(EngineError):
    """An engine does not agree with its ONNX file; the message has the figures."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest differences allowed: `box` in fractions of the search region's side (each of cx, cy,
    w, h), `score` of the raw peak and of the response, `score_map` of any cell,
    `score_map_mean` of all cells on average, as a fraction of the map's own spread, and `kept`,
    how many of the candidates that the reference kept may be missing."""

    box: float
    score: float
    score_map: float
    score_map_mean: float
    kept: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(box=0.002, score=0.005, score_map=0.02, score_map_mean=0.01, kept=1),
    "fp16": Tolerance(box=0.01, score=0.03, score_map=0.1, score_map_mean=0.04, kept=4),
}


@dataclass(frozen=True, slots=True)
class StoredInput:
    """A template uint8 [Z, Z, 3] and a search region uint8 [X, X, 3], RGB."""

    name: str
    template: NDArray[np.uint8]
    search: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """Differences on one input, as in Tolerance; `box` and `score` are None where the reference has
    two peaks of about the same height, between which rounding may choose, and `kept` where the
    reference does not tell."""

    name: str
    box: float | None
    score: float | None
    score_map: float
    score_map_mean: float
    kept: float | None

    def failures(self, tolerance: Tolerance) -> list[str]:
        """What is off, with figures; a difference that is not a number counts as off."""
        found = []
        for field in dataclasses.fields(tolerance):
            value, limit = getattr(self, field.name), getattr(tolerance, field.name)
            if value is not None and not value <= limit:
                found.append(f"{field.name} is off by {value:.4g} (allowed {limit:g})")
        return found


@dataclass(frozen=True, slots=True)
class SelfTestReport:
    """What the self-test found; `reference` and `engine` are the engines' descriptions."""

    engine: str
    reference: str
    tolerance: Tolerance
    cases: tuple[CaseResult, ...]
    version: int = VERSION

    @property
    def passed(self) -> bool:
        return not any(case.failures(self.tolerance) for case in self.cases)

    def summary(self) -> str:
        """One line with the largest differences, or with everything that is off."""
        failing = [case for case in self.cases if case.failures(self.tolerance)]
        if failing:
            return (
                f"{self.engine} does not agree with {self.reference} on {len(failing)} of "
                f"{len(self.cases)} stored inputs ("
                + "; ".join(f"{c.name}: {', '.join(c.failures(self.tolerance))}" for c in failing)
                + ")"
            )
        figures = []
        for name in ("box", "score", "score_map", "kept"):
            values = [v for case in self.cases if (v := getattr(case, name)) is not None]
            figures.append(f"{name} {max(values):.2g}" if values else f"{name} not comparable")
        return (
            f"agrees with {self.reference} on {len(self.cases)} stored inputs "
            f"(largest differences: {', '.join(figures)})"
        )

    def to_dict(self) -> dict[str, Any]:
        """For the record kept with the engine."""
        return dataclasses.asdict(self)


def run_self_test(
    engine: Engine, reference: Engine, precision: Precision, tolerance: Tolerance | None = None
) -> SelfTestReport:
    """Compare `engine`, built in `precision`, with `reference` on the stored inputs.

    Raises EngineError when either cannot run; a disagreement is in the report.
    """
    limits = tolerance or TOLERANCES[precision]
    cases = tuple(
        compare(
            case.name,
            engine.infer(case.template, case.search),
            reference.infer(case.template, case.search),
        )
        for case in stored_inputs(reference.spec)
    )
    return SelfTestReport(engine.description, reference.description, limits, cases)


def compare(name: str, found: Prediction, expected: Prediction) -> CaseResult:
    """Differences between two predictions for the same input."""
    cells = np.abs(found.score_map.astype(np.float64) - expected.score_map.astype(np.float64))
    box = score = None
    if has_clear_peak(expected.score_map):
        corners = ("cx", "cy", "width", "height")
        # max() would pass over a NaN, np.max keeps it.
        box = float(np.max([abs(getattr(found, c) - getattr(expected, c)) for c in corners]))
        score = float(
            np.max([abs(found.score - expected.score), abs(found.response - expected.response)])
        )
    spread = max(float(np.ptp(expected.score_map)), SMALLEST_SPREAD)
    mean = float(np.mean(cells)) / spread
    kept = missing_candidates(found.kept, expected.kept)
    return CaseResult(name, box, score, float(np.max(cells)), mean, kept)


def missing_candidates(
    found: NDArray[np.float32] | None, expected: NDArray[np.float32] | None
) -> float | None:
    """How many candidates `expected` kept and `found` did not, both float32 [S, S] of 1 and 0.

    None where `expected` does not tell; not a number where only `found` does not.
    """
    if expected is None:
        return None
    if found is None or not np.isfinite(found).all():
        return math.nan
    return float(np.count_nonzero((expected > 0.5) & (found < 0.5)))


def has_clear_peak(score_map: NDArray[np.float32]) -> bool:
    """Whether the windowed maximum of `score_map` float32 [S, S] stands alone."""
    side = score_map.shape[0]
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, side + 1) / (side + 1)))
    response = score_map * np.outer(window, window)
    row, column = np.unravel_index(int(np.argmax(response)), response.shape)
    peak = response[row, column]
    response[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 0
    return bool(peak > 0 and response.max() < CLEAR_PEAK * peak)


def stored_inputs(spec: ModelSpec) -> list[StoredInput]:
    """The inputs of the self-test, cut to the sizes and factors of a model.

    They are drawn, not photographed, so that they need no file and fit any size: a textured ground
    with a striped ellipse as the target, and other ellipses around it. Targets are centred, off
    centre, small, dark, alone, and absent.
    """
    return [_draw(spec, *scene) for scene in _SCENES]


@dataclass(frozen=True, slots=True)
class _Ellipse:
    """Centre and half axes in scene units, RGB colour in [0, 1], stripes per unit length."""

    x: float
    y: float
    a: float
    b: float
    colour: tuple[float, float, float]
    stripes: float = 0.0


_TARGET = _Ellipse(0.0, 0.0, 0.5, 0.4, (0.85, 0.2, 0.15), 6.0)
_OTHERS = (
    _Ellipse(1.5, 0.9, 0.45, 0.4, (0.2, 0.3, 0.8), 4.0),
    _Ellipse(-1.2, -1.4, 0.35, 0.6, (0.75, 0.7, 0.2), 0.0),
)

# Name, target, distractors, position of the target in the search region (fractions of its side
# from the centre) and ground brightness.
_SCENES: tuple[tuple[str, _Ellipse, tuple[_Ellipse, ...], tuple[float, float], float], ...] = (
    ("centred", _TARGET, _OTHERS, (0.0, 0.0), 0.45),
    ("off centre", _TARGET, _OTHERS, (0.13, -0.09), 0.45),
    ("dark", dataclasses.replace(_TARGET, colour=(0.3, 0.32, 0.3)), _OTHERS, (-0.1, 0.06), 0.15),
    ("plain", dataclasses.replace(_TARGET, stripes=0.0), (), (0.05, 0.1), 0.7),
    ("absent", _TARGET, _OTHERS, (2.0, 0.0), 0.45),
)


def _draw(
    spec: ModelSpec,
    name: str,
    target: _Ellipse,
    others: tuple[_Ellipse, ...],
    offset: tuple[float, float],
    ground: float,
) -> StoredInput:
    # Box sides are 2a and 2b, crops are factor * sqrt(area) wide: as the tracker would cut them.
    unit = float(np.sqrt(4 * target.a * target.b))
    objects = (*others, target)
    template = _render(objects, 0.0, 0.0, spec.template_factor * unit, spec.template_size, ground)
    side = spec.search_factor * unit
    search = _render(objects, -offset[0] * side, -offset[1] * side, side, spec.search_size, ground)
    return StoredInput(name, template, search)


def _render(
    objects: tuple[_Ellipse, ...], cx: float, cy: float, side: float, size: int, ground: float
) -> NDArray[np.uint8]:
    """A square view of the scene, `side` units wide around (cx, cy), as uint8 [size, size, 3]."""
    steps = (np.arange(size) + 0.5) / size - 0.5
    x, y = np.meshgrid(cx + steps * side, cy + steps * side)
    texture = 0.5 * np.sin(3.1 * x + 1.7 * np.sin(2.3 * y)) + 0.5 * np.sin(7.9 * y - 5.3 * x)
    shade = ground + 0.12 * texture
    image = np.stack([shade, shade * 1.05, shade * 0.9], axis=-1)
    for item in objects:
        inside = ((x - item.x) / item.a) ** 2 + ((y - item.y) / item.b) ** 2
        cover = np.clip((1 - inside) * 6 + 0.5, 0, 1)[..., np.newaxis]
        wave = 1 - 0.35 * (np.sin(2 * np.pi * item.stripes * x) > 0)
        image = image * (1 - cover) + wave[..., np.newaxis] * np.array(item.colour) * cover
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255), dtype=np.uint8)
