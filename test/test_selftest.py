"""The parity self-test: its inputs, what it lets pass and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_graph import SPEC

from ostrack_ros.engines.base import Prediction
from ostrack_ros.engines.selftest import (
    TOLERANCES,
    compare,
    has_clear_peak,
    run_self_test,
    stored_inputs,
)
from ostrack_ros.engines.spec import ModelSpec

REAL = dataclasses.replace(SPEC, template_size=128, search_size=256, score_size=16)


class Scripted:
    """Answers from the mean colour of the search region, plus an error."""

    def __init__(
        self,
        error: float = 0.0,
        map_error: float = 0.0,
        kept: NDArray[np.float32] | None = None,
    ) -> None:
        self.error, self.map_error, self.kept = error, map_error, kept
        self.spec: ModelSpec = REAL
        self.description = "scripted"

    def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
        score_map = np.full((16, 16), 0.01, np.float32)
        score_map[7, 8] = 0.8
        score_map[2, 2] += np.float32(self.map_error)
        value = float(search.mean()) / 255 + self.error
        return Prediction(value, 0.5, 0.25, 0.25, 0.8 + self.error, 0.7, score_map, self.kept)

    def infer_batch(
        self, templates: Sequence[NDArray[np.uint8]], searches: Sequence[NDArray[np.uint8]]
    ) -> list[Prediction]:
        return [self.infer(t, s) for t, s in zip(templates, searches, strict=True)]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("template", "search"), [(128, 256), (192, 384), (112, 224)])
def test_inputs_fit_the_model_and_differ(template: int, search: int) -> None:
    spec = dataclasses.replace(REAL, template_size=template, search_size=search)
    inputs = stored_inputs(spec)
    assert len(inputs) >= 5
    for case in inputs:
        assert case.template.shape == (template, template, 3)
        assert case.search.shape == (search, search, 3)
        assert case.template.dtype == case.search.dtype == np.uint8
        assert case.search.std() > 5
    assert len({case.search.tobytes() for case in inputs}) == len(inputs)
    again = stored_inputs(spec)
    assert all(np.array_equal(a.search, b.search) for a, b in zip(inputs, again, strict=True))


def test_the_target_is_where_the_scene_says() -> None:
    centred = stored_inputs(REAL)[0]
    middle = centred.search[120:136, 120:136].reshape(-1, 3).mean(axis=0)
    corner = centred.search[:16, 240:].reshape(-1, 3).mean(axis=0)
    assert middle[0] > 2 * middle[1]  # the red target
    assert corner[0] < 1.5 * corner[1]
    absent = stored_inputs(REAL)[-1]
    red, green = absent.search[..., 0].astype(int), absent.search[..., 1].astype(int)
    assert (red > 2 * green).mean() < 0.01


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_equal_engines_pass(precision: str) -> None:
    report = run_self_test(Scripted(), Scripted(), precision)  # type: ignore[arg-type]
    assert report.passed
    assert "agrees with scripted on 5 stored inputs" in report.summary()
    assert json.loads(json.dumps(report.to_dict()))["version"] >= 1


@pytest.mark.parametrize(
    ("error", "map_error", "named"),
    [
        (0.3, 0.0, "box is off by 0.3 (allowed 0.01)"),
        (float("nan"), 0.0, "box is off by nan"),
        (0.0, 0.4, "score_map is off by 0.4 (allowed 0.1)"),
        (0.0, float("nan"), "score_map is off by nan"),
    ],
)
def test_engines_that_are_off_are_refused_with_figures(
    error: float, map_error: float, named: str
) -> None:
    report = run_self_test(Scripted(error, map_error), Scripted(), "fp16")
    assert not report.passed
    assert "does not agree" in report.summary()
    assert named in report.summary()


def kept(count: int, first: int = 0) -> NDArray[np.float32]:
    mask = np.zeros(256, np.float32)
    mask[first : first + count] = 1
    return mask.reshape(16, 16)


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (kept(89, first=4), None),
        (kept(89, first=5), "kept is off by 5 (allowed 4)"),
        (kept(0), "kept is off by 89 (allowed 4)"),
        (np.full((16, 16), np.nan, np.float32), "kept is off by nan"),
        (None, "kept is off by nan"),
    ],
)
def test_another_selection_is_refused(found: NDArray[np.float32] | None, named: str | None) -> None:
    report = run_self_test(Scripted(kept=found), Scripted(kept=kept(89)), "fp16")
    assert report.passed == (named is None)
    assert (named or "kept 4") in report.summary()


def test_a_reference_that_does_not_tell_is_no_failure() -> None:
    report = run_self_test(Scripted(kept=kept(89)), Scripted(), "fp32")
    assert report.passed
    assert "kept not comparable" in report.summary()


def test_a_flat_map_is_judged_by_its_own_spread() -> None:
    """A network with little to say must not make any answer look right."""
    flat = (0.1 + 0.03 * np.random.default_rng(1).random((16, 16))).astype(np.float32)
    shuffled = np.random.default_rng(2).permutation(flat.ravel()).reshape(16, 16)
    one_flip = flat.copy()
    one_flip[4:9, 4:9] += np.float32(0.004)
    prediction = Prediction(0.5, 0.5, 0.2, 0.2, 0.12, 0.1, flat)
    for wrong in (shuffled, np.full_like(flat, flat.mean())):
        other = Prediction(0.5, 0.5, 0.2, 0.2, 0.12, 0.1, wrong)
        assert compare("flat", other, prediction).failures(TOLERANCES["fp16"])
    other = Prediction(0.5, 0.5, 0.2, 0.2, 0.12, 0.1, one_flip)
    assert not compare("flat", other, prediction).failures(TOLERANCES["fp16"])


def test_fp32_is_judged_more_strictly() -> None:
    off_by_little = Scripted(error=0.009)
    assert run_self_test(off_by_little, Scripted(), "fp16").passed
    assert not run_self_test(off_by_little, Scripted(), "fp32").passed
    for field in dataclasses.fields(TOLERANCES["fp32"]):
        assert getattr(TOLERANCES["fp32"], field.name) < getattr(TOLERANCES["fp16"], field.name)


def test_an_overflow_everywhere_is_refused() -> None:
    class Overflowing(Scripted):
        def infer(self, template: NDArray[np.uint8], search: NDArray[np.uint8]) -> Prediction:
            nan = float("nan")
            return Prediction(nan, nan, nan, nan, nan, nan, np.full((16, 16), nan, np.float32))

    assert not run_self_test(Overflowing(), Scripted(), "fp16").passed


def peaked(*cells: tuple[int, int, float]) -> NDArray[np.float32]:
    score_map = np.full((16, 16), 0.01, np.float32)
    for row, column, value in cells:
        score_map[row, column] = value
    return score_map


def test_boxes_are_compared_where_one_peak_stands_out() -> None:
    assert has_clear_peak(peaked((7, 7, 0.8)))
    assert has_clear_peak(peaked((7, 7, 0.8), (7, 8, 0.79)))  # neighbours are one peak
    assert not has_clear_peak(peaked((7, 7, 0.8), (7, 10, 0.9)))
    assert not has_clear_peak(np.zeros((16, 16), np.float32))


def test_a_tie_is_judged_by_the_map_alone() -> None:
    tie = peaked((7, 4, 0.8), (7, 11, 0.8))
    left = Prediction(0.3, 0.5, 0.2, 0.2, 0.8, 0.6, tie)
    right = Prediction(0.7, 0.5, 0.2, 0.2, 0.8, 0.6, tie)
    result = compare("tie", left, right)
    assert result.box is None
    assert not result.failures(TOLERANCES["fp32"])


def test_the_documented_tolerances_are_the_real_ones() -> None:
    page = Path(__file__).parents[1] / "docs" / "jetson.md"
    if not page.is_file():
        pytest.skip("the documentation is in the source tree only")
    rows = re.findall(r"\| ([\d.]+) \| ([\d.]+) \|\n", page.read_text(encoding="utf-8"))
    documented = [(float(fp16), float(fp32)) for fp16, fp32 in rows]
    fields = dataclasses.fields(TOLERANCES["fp16"])
    real = [
        (getattr(TOLERANCES["fp16"], f.name), getattr(TOLERANCES["fp32"], f.name)) for f in fields
    ]
    assert documented == real
