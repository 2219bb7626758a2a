"""Shipped names and paths lead to the right file, or to a message that says where it was sought."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ostrack_ros.engines import models
from ostrack_ros.engines.base import EngineError
from ostrack_ros.engines.models import ModelNotFoundError, list_models, resolve_model


def put(prefix: Path, name: str) -> Path:
    folder = prefix / "share" / "ostrack_ros" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    path.write_bytes(b"")
    return path


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No models but what the test puts below tmp_path."""
    source = tmp_path / "source" / "ostrack_ros" / "engines" / "models.py"
    monkeypatch.setattr(models, "__file__", str(source))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "python"))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    return tmp_path


def test_finds_a_name_in_the_repository(nowhere: Path) -> None:
    folder = nowhere / "source" / "models"
    folder.mkdir(parents=True)
    (folder / "a.onnx").write_bytes(b"")
    assert resolve_model("a") == folder / "a.onnx"


def test_finds_names_below_prefixes_in_order(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nowhere / "overlay", nowhere / "underlay"
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{first}:{second}")
    python = put(nowhere / "python", "a")
    assert resolve_model("a") == python
    under = put(second, "a")
    assert resolve_model("a") == under
    over = put(first, "a")
    put(first, "b")
    assert resolve_model("a") == over
    assert list_models() == ["a", "b"]


def test_finds_the_prefix_it_is_installed_in(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nowhere / "opt/lib/python3.11/site-packages/ostrack_ros/engines/models.py"
    monkeypatch.setattr(models, "__file__", str(module))
    assert resolve_model(put(nowhere / "opt", "a").stem) == put(nowhere / "opt", "a")


def test_takes_paths(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nowhere / "own.onnx"
    path.write_bytes(b"")
    monkeypatch.chdir(nowhere)
    assert resolve_model(path) == path
    assert resolve_model("own.onnx") == Path("own.onnx")
    assert resolve_model("./own.onnx") == Path("own.onnx")
    monkeypatch.setenv("HOME", str(nowhere))
    assert resolve_model("~/own.onnx") == path


@pytest.mark.parametrize("name", ["typo", "typo.onnx", "some/typo", ""])
def test_says_what_is_known(nowhere: Path, name: str) -> None:
    put(nowhere / "python", "ostrack_tiny")
    with pytest.raises(ModelNotFoundError, match="ostrack_tiny") as caught:
        resolve_model(name)
    assert isinstance(caught.value, EngineError)


def test_says_when_nothing_is_installed(nowhere: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="known are none"):
        resolve_model("a")
