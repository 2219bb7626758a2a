"""Find model files by name, and read them with their sidecar checked."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ostrack_ros.engines.base import EngineError
from ostrack_ros.engines.spec import ModelSpec, SpecError

PACKAGE = "ostrack_ros"


class ModelNotFoundError(EngineError):
    """No model has this name or path. The message says where it was looked for."""


@dataclass(frozen=True, slots=True)
class Model:
    """An ONNX file in memory with the sidecar that belongs to it."""

    path: Path
    spec: ModelSpec
    content: bytes


def model_directories() -> list[Path]:
    """Folders with shipped models, the first to be searched first.

    The repository's own, then share/ostrack_ros/models of each prefix in AMENT_PREFIX_PATH, of the
    Python environment, and of the prefix this package is installed in.
    """
    source = Path(__file__).resolve().parents[2]
    sourced = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    prefixes = [*map(Path, filter(None, sourced)), Path(sys.prefix), *_enclosing_prefixes(source)]
    candidates = [source / "models", *(p / "share" / PACKAGE / "models" for p in prefixes)]
    return [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]


def list_models() -> list[str]:
    """Names of the shipped models, sorted."""
    return sorted({path.stem for folder in model_directories() for path in folder.glob("*.onnx")})


def resolve_model(name_or_path: str | Path) -> Path:
    """The .onnx file of a shipped name (`ostrack_tiny`) or of a path.

    What ends in .onnx or has a folder part is a path, anything else a name. Raises
    ModelNotFoundError.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix == ".onnx" or path.name != str(path):
        if path.is_file():
            return path
        raise ModelNotFoundError(
            f"there is no file {path}; give the path of an .onnx file written by `ostrack export`, "
            f"or one of the names {', '.join(list_models()) or '(none are installed)'}"
        )
    folders = model_directories()
    for folder in folders:
        found = folder / f"{path.name}.onnx"
        if path.name and found.is_file():
            return found
    searched = ", ".join(map(str, folders)) or "no folder (is the package installed with models?)"
    raise ModelNotFoundError(
        f"there is no model named {str(name_or_path)!r}; known are "
        f"{', '.join(list_models()) or 'none'} (searched {searched})"
    )


def load_model(path: Path) -> Model:
    """Read an ONNX file and its sidecar, and check that they belong together.

    Raises EngineError when either cannot be read, or when the file's SHA-256 is not the one in the
    sidecar (a cut off download, a file replaced without its sidecar).
    """
    try:
        spec = ModelSpec.load(path)
        content = path.read_bytes()
    except SpecError as error:
        raise EngineError(str(error)) from error
    except OSError as error:
        raise EngineError(f"cannot read {path}: {error.strerror or error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != spec.onnx_sha256:
        hint = ""
        if content.startswith(b"version https://git-lfs"):
            hint = " (it is a Git LFS pointer: run `git lfs pull`)"
        raise EngineError(
            f"{path} is not the file its sidecar was written for: its SHA-256 starts with "
            f"{digest[:12]}, the sidecar says {spec.onnx_sha256[:12] or 'nothing'}{hint}; "
            "copy both files again or repeat the export"
        )
    return Model(path, spec, content)


def _enclosing_prefixes(location: Path) -> Iterator[Path]:
    """Prefixes whose lib folder holds `location`, as <prefix>/lib/python3.x/site-packages does."""
    for parent in location.parents:
        if parent.name in ("lib", "local"):
            yield parent.parent
