"""What `make test` installs for the tests that need torch, and when it leaves that out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import install_network


@pytest.fixture
def installations(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The pip commands that would have been run, pip having found a set of small packages."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(install_network, "planned_packages", lambda: ["torch", "onnxscript"])
    monkeypatch.setattr(subprocess, "run", run)
    return commands


def install(monkeypatch: pytest.MonkeyPatch, mode: str, free: int) -> int:
    monkeypatch.setattr(sys, "argv", ["install_network.py", mode])
    monkeypatch.setattr(
        install_network.shutil, "disk_usage", lambda place: SimpleNamespace(free=free)
    )
    return install_network.main()


def test_auto_installs_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, installations: list[list[str]]
) -> None:
    assert install(monkeypatch, "auto", free=10 * 10**9) == 0
    assert len(installations) == 1


def test_auto_leaves_torch_out_of_a_full_disk_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
    installations: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """pip would stop half-way with `No space left on device`, and the whole test run with it."""
    assert install(monkeypatch, "auto", free=1_200_000_000) == 0
    assert installations == []
    assert "the disk has 1.2 GB left" in capsys.readouterr().out


def test_who_asks_for_torch_gets_the_attempt(
    monkeypatch: pytest.MonkeyPatch, installations: list[list[str]]
) -> None:
    assert install(monkeypatch, "yes", free=0) == 0
    assert len(installations) == 1


def test_auto_leaves_out_several_gigabytes_of_cuda(
    monkeypatch: pytest.MonkeyPatch,
    installations: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(install_network, "planned_packages", lambda: ["torch", "nvidia-cudnn"])
    assert install(monkeypatch, "auto", free=10 * 10**9) == 0
    assert installations == []
    assert "1 CUDA packages" in capsys.readouterr().out
