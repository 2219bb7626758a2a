"""The JSON sidecar beside each ONNX file: what the graph expects and what it was made from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

FORMAT_VERSION = 1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Precision = Literal["fp32", "fp16"]


class SpecError(ValueError):
    """A sidecar is missing, damaged or of another format version."""


@dataclass(frozen=True, slots=True)
class EliminationSchedule:
    """Candidate elimination (OSTrack, section 3.2): after attention in each of the 0-based
    `blocks`, keep ceil(keep_ratio * n) of the n remaining search tokens."""

    blocks: tuple[int, ...]
    keep_ratio: float


@dataclass(frozen=True, slots=True)
class PresenceCalibration:
    """Logistic model from what a frame shows to the probability that the box is on the target.

    `features` is a choice of `tracking.presence.FEATURES`; `weights` has one weight each.
    `source` says on which data it was fitted.
    """

    features: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float
    source: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Contents of a sidecar.

    Sizes are pixels of the square inputs; factors are side lengths of the crops in units of
    sqrt(box area); `score_size` is the side of the score map in cells; `mean` and `std` are
    applied inside the graph and stated here for the record.
    """

    name: str
    variant: str
    template_size: int
    search_size: int
    template_factor: float
    search_factor: float
    score_size: int
    precision: Precision
    elimination: EliminationSchedule | None
    parameters: int
    licence: str
    source_checkpoint: str
    source_sha256: str
    onnx_sha256: str
    batch: int = 1
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    presence: PresenceCalibration | None = None
    format_version: int = field(default=FORMAT_VERSION)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Parse and check a sidecar.

        Raises SpecError naming the field that is missing, unknown or out of range.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"not valid JSON ({error}); export the model again") from error
        if not isinstance(values, dict):
            raise SpecError("expected a JSON object; export the model again")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise SpecError(
                f"format_version is {version!r}, this release reads {FORMAT_VERSION}; "
                "export the model again with `ostrack export`"
            )
        try:
            spec = cls(**_convert(values))
        except (TypeError, ValueError, KeyError) as error:
            raise SpecError(f"{error}; export the model again") from error
        spec._check()
        return spec

    @classmethod
    def load(cls, model: Path) -> ModelSpec:
        """Read the sidecar of an .onnx file (same name, suffix .json)."""
        path = sidecar_path(model)
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SpecError(
                f"cannot read {path}: {error.strerror or error}; every model needs its sidecar "
                "beside it, `ostrack export` writes both"
            ) from error
        except UnicodeDecodeError as error:
            raise SpecError(f"{path} is not text; export the model again") from error
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from error

    def _check(self) -> None:
        for name in (
            "name",
            "variant",
            "licence",
            "source_checkpoint",
            "source_sha256",
            "onnx_sha256",
        ):
            if not isinstance(getattr(self, name), str):
                raise SpecError(f"{name} is {getattr(self, name)!r}, expected text")
        for name in ("template_size", "search_size", "score_size", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 4096:
                raise SpecError(f"{name} is {value!r}, expected an integer in 1..4096")
        for name in ("template_factor", "search_factor"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
                raise SpecError(f"{name} is {value!r}, expected a positive number")
        if self.precision not in ("fp32", "fp16"):
            raise SpecError(f"precision is {self.precision!r}, expected fp32 or fp16")
        if self.presence and len(self.presence.features) != len(self.presence.weights):
            raise SpecError("presence has a different number of features and weights")


def sidecar_path(model: Path) -> Path:
    return model.with_suffix(".json")


def _convert(values: dict[str, Any]) -> dict[str, Any]:
    converted = dict(values)
    for name in ("mean", "std"):
        if name in values:
            converted[name] = _numbers(name, values[name], length=3)
    if any(value <= 0 for value in converted.get("std", ())):
        raise ValueError(f"std is {values['std']!r}, expected positive numbers")
    for name, read in (("elimination", _elimination), ("presence", _presence)):
        if values.get(name) is not None:
            if not isinstance(values[name], dict):
                raise ValueError(f"{name} is {values[name]!r}, expected an object")
            converted[name] = read(values[name])
    return converted


def _elimination(values: dict[str, Any]) -> EliminationSchedule:
    blocks = _numbers("elimination.blocks", _member("elimination", values, "blocks"))
    ratio = _numbers("elimination.keep_ratio", [_member("elimination", values, "keep_ratio")])
    return EliminationSchedule(tuple(int(block) for block in blocks), ratio[0])


def _presence(values: dict[str, Any]) -> PresenceCalibration:
    features = _member("presence", values, "features")
    if not isinstance(features, list) or not all(isinstance(f, str) for f in features):
        raise ValueError(f"presence.features is {features!r}, expected a list of names")
    return PresenceCalibration(
        tuple(features),
        _numbers("presence.weights", _member("presence", values, "weights")),
        _numbers("presence.intercept", [_member("presence", values, "intercept")])[0],
        str(_member("presence", values, "source")),
    )


def _member(owner: str, values: dict[str, Any], name: str) -> Any:
    if name not in values:
        raise ValueError(f"{owner}.{name} is missing")
    return values[name]


def _numbers(name: str, values: Any, length: int | None = None) -> tuple[float, ...]:
    if (
        not isinstance(values, list)
        or (length is not None and len(values) != length)
        or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        or not all(map(math.isfinite, values))
    ):
        count = "" if length is None else f"{length} "
        raise ValueError(f"{name} is {values!r}, expected {count}finite numbers")
    return tuple(float(value) for value in values)
