"""Sidecars survive a round trip and refuse damage by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_graph import SPEC

from ostrack_ros.engines.spec import (
    EliminationSchedule,
    ModelSpec,
    PresenceCalibration,
    SpecError,
    sidecar_path,
)

FULL = replace(
    SPEC,
    elimination=EliminationSchedule((3, 6, 9), 0.7),
    presence=PresenceCalibration(("score", "log_apce"), (3.0, 0.5), -2.0, "made up"),
    batch=2,
)


@pytest.mark.parametrize("spec", [SPEC, FULL], ids=["plain", "full"])
def test_round_trip(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_load_reads_beside_the_model(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    sidecar_path(model).write_text(FULL.to_json())
    assert ModelSpec.load(model) == FULL


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(FULL.to_json()), **values})


def without(name: str) -> str:
    return json.dumps({k: v for k, v in json.loads(FULL.to_json()).items() if k != name})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ("{}", "format_version is None"),
        (changed(format_version=99), "format_version is 99"),
        (changed(colour="red"), "colour"),
        (without("search_size"), "search_size"),
        (changed(name=None), "name is None"),
        (changed(elimination={"blocks": [1.5, "x"], "keep_ratio": 0.7}), r"elimination\.blocks"),
        (changed(elimination={"blocks": [1], "keep_ratio": None}), r"elimination\.keep_ratio"),
        (changed(search_size=0), "search_size is 0"),
        (changed(template_size="128"), "template_size is '128'"),
        (changed(batch=True), "batch is True"),
        (changed(search_factor=-1.0), "search_factor is -1.0"),
        (changed(template_factor=None), "template_factor is None"),
        (changed(precision="int4"), "precision is 'int4'"),
        (changed(mean="abc"), "mean"),
        (changed(mean=[0.5, 0.5]), "mean"),
        (changed(std=[0.0, 0.2, 0.2]), "std"),
        (changed(elimination={"blocks": [1]}), "keep_ratio"),
        (changed(elimination=[1, 2]), "elimination"),
        (
            changed(presence={"features": ["score"], "weights": [], "intercept": 0, "source": ""}),
            "number of features",
        ),
        (changed(presence=7), "presence"),
        (changed(onnx_sha256=5), "onnx_sha256"),
    ],
)
def test_damage_is_named(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_json(text)


def test_load_names_the_file(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    with pytest.raises(SpecError, match=r"m\.json.*ostrack export"):
        ModelSpec.load(model)
    sidecar_path(model).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"m\.json is not text"):
        ModelSpec.load(model)
    sidecar_path(model).write_text("{}")
    with pytest.raises(SpecError, match=r"m\.json: format_version"):
        ModelSpec.load(model)
