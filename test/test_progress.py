"""Progress bars, with the rich of today and with what Ubuntu 22.04's (11.2) has of it."""

from __future__ import annotations

import pytest

rich_progress = pytest.importorskip("rich.progress", reason="progress bars need rich")

from ostrack_ros.progress import fraction_bar, progress_bar  # noqa: E402

NEWER_THAN_RICH_11 = ("MofNCompleteColumn", "TaskProgressColumn")


@pytest.fixture(autouse=True, params=["as installed", "rich 11"])
def rich_version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "rich 11":
        for name in NEWER_THAN_RICH_11:
            monkeypatch.delattr(rich_progress, name, raising=False)


def test_counts_to_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(3) as advance:
        for name in ("a", "b", "c"):
            advance(name)
    shown = capsys.readouterr()
    assert "3/3 frames" in shown.err
    assert "c" in shown.err.split()
    assert shown.out == ""


def test_counts_without_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(None, "images") as advance:
        advance("a")
        advance("b")
    assert "2/? images" in capsys.readouterr().err


def test_shows_a_fraction_once_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with fraction_bar() as report:
        report(None, "looking")
        report(0.25, "building")
    shown = capsys.readouterr().err
    assert "25%" in shown
    assert "building" in shown
    with fraction_bar():
        pass
    assert capsys.readouterr().err.strip() == "", "no bar before the first report"
