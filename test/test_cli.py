"""The command `ostrack` from argument to file, on a model that really follows a red square."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from sequences import lines
from synthetic_model import scene, write_red_blob_model

from ostrack_ros.cli import main
from ostrack_ros.cli.errors import UsageError, describe_error
from ostrack_ros.engines.base import EngineError

pytest.importorskip("onnx", reason="the test's model is written with onnx: pip install onnx")
pytest.importorskip("rich", reason="the command shows progress with rich: pip install rich")

ROOT = Path(__file__).resolve().parents[1]
SIDE = 40
FRAMES = 12


def square(index: int) -> tuple[float, float]:
    """Centre of the square in frame `index`."""
    return 100.0 + 4 * index, 120.0 + 2 * index


def truth() -> np.ndarray:
    centres = np.array([square(i) for i in range(FRAMES)])
    return np.concatenate([centres - SIDE / 2, np.full((FRAMES, 2), SIDE)], axis=1)


def write_frames(folder: Path, gone: range = range(0)) -> None:
    folder.mkdir(parents=True)
    for index in range(FRAMES):
        centre = None if index in gone else square(index)
        image = cv2.cvtColor(scene(centre=centre, side=SIDE), cv2.COLOR_RGB2BGR)
        assert cv2.imwrite(str(folder / f"{index + 1:04d}.png"), image)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "red_blob.onnx"
    write_red_blob_model(path)
    return path


@pytest.fixture
def backend() -> str:
    for name in ("onnxruntime", "openvino"):
        try:
            __import__(name)
        except ImportError:
            continue
        return name
    pytest.skip("needs onnxruntime or openvino")


@pytest.fixture
def track(model: Path, backend: str, tmp_path: Path):
    def run(*extra: str, source: Path | None = None, init: str = "80,100,40,40") -> int:
        where = source or tmp_path / "frames"
        options = ["--source", str(where), f"--init={init}", "--output", str(tmp_path / "b.txt")]
        return main(["track", "--model", str(model), "--backend", backend, *options, *extra])

    return run


def test_track_follows_and_writes_boxes(track, tmp_path: Path) -> None:
    write_frames(tmp_path / "frames")
    assert track() == 0
    text = (tmp_path / "b.txt").read_text()
    assert text.splitlines()[0] == "80.0000,100.0000,40.0000,40.0000"
    assert all(re.fullmatch(r"(-?\d+\.\d{4},){3}-?\d+\.\d{4}", x) for x in text.splitlines())
    boxes = np.loadtxt(tmp_path / "b.txt", delimiter=",")
    assert np.abs(boxes - truth()).max() < 3.0


def test_track_draws_a_video_of_the_same_length(track, tmp_path: Path) -> None:
    write_frames(tmp_path / "frames")
    assert track("--video", str(tmp_path / "out.avi"), "--rate", "10") == 0
    capture = cv2.VideoCapture(str(tmp_path / "out.avi"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == FRAMES
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10.0)
    _, image = capture.read()
    # The box's outline is green, and nothing in the scene is.
    outline = image[:, 80:84].astype(int)
    assert (outline[..., 1] - outline[..., 2]).max() > 60
    assert not list(tmp_path.glob(".out*"))


def test_track_presence_tells_when_the_target_is_gone(track, tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", gone=range(5, FRAMES))
    assert track("--presence", str(tmp_path / "p.csv"), "--rate", "3") == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == FRAMES
    assert rows[4]["state"] == "TRACKING"
    assert rows[4]["measured"] == "1"
    assert float(rows[4]["confidence"]) > 0.9
    assert rows[5]["state"] == "COASTING"
    assert rows[5]["measured"] == "0"
    assert rows[-1]["state"] == "LOST"
    assert rows[-1]["x"] == ""
    assert float(rows[3]["stamp"]) == pytest.approx(1.0)
    boxes = np.loadtxt(tmp_path / "b.txt", delimiter=",")
    assert len(boxes) == FRAMES
    assert np.isfinite(boxes).all()


def test_track_start_and_max_frames(track, tmp_path: Path) -> None:
    write_frames(tmp_path / "frames")
    assert track("--start", "3", "--max-frames", "4", init="92,106,40,40") == 0
    boxes = np.loadtxt(tmp_path / "b.txt", delimiter=",")
    assert np.abs(boxes - truth()[3:7]).max() < 3.0


@pytest.mark.parametrize(
    ("extra", "init", "status", "message"),
    [
        ([], "1,2,3", 2, "expected four numbers"),
        ([], "1,2,x,4", 2, "expected four numbers"),
        ([], "1,2,0,4", 2, "must be positive"),
        ([], "nan,2,3,4", 2, "must be positive"),
        ([], "5000,5000,20,20", 1, "outside the 320x240 image"),
        (["--start", "99"], "80,100,40,40", 2, "ends before frame 99"),
        (["--video", "x.gif"], "80,100,40,40", 1, "ending in"),
        (["--rate", "0"], "80,100,40,40", 1, "rate is 0"),
    ],
)
def test_track_errors_are_one_line_and_leave_no_file(
    track, tmp_path: Path, capsys, extra: list[str], init: str, status: int, message: str
) -> None:
    write_frames(tmp_path / "frames")
    assert track(*extra, init=init) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "b.txt").exists()


def test_missing_source_and_model_are_named(track, tmp_path: Path, capsys) -> None:
    assert track(source=tmp_path / "nowhere.mp4") == 1
    assert "nowhere.mp4" in capsys.readouterr().err
    write_frames(tmp_path / "frames")
    assert track("--model", "no_such_model") == 1
    assert "no_such_model" in capsys.readouterr().err


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        write_frames(tmp_path / "data" / name / "img")
        (tmp_path / "data" / name / "groundtruth_rect.txt").write_text(lines(truth()))
    return tmp_path / "data"


@pytest.mark.parametrize("protocol", ["otb", "got10k"])
def test_evaluate_writes_a_report(
    model: Path, backend: str, dataset: Path, tmp_path: Path, capsys, protocol: str
) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install matplotlib")
    options = ["--dataset", str(dataset), "--protocol", protocol, "--report", str(tmp_path / "r")]
    extra = ["--presence-report", "--contact-sheets", "--backend", backend]
    assert main(["evaluate", "--model", str(model), *options, *extra]) == 0
    values = json.loads((tmp_path / "r" / "report.json").read_text())
    assert values["overall"]["auc"] > 0.85
    assert values["overall"]["sr75"] == 1.0
    assert values["tracker"] == "red_blob"
    names = {p.relative_to(tmp_path / "r").as_posix() for p in (tmp_path / "r").rglob("*.*")}
    for kind in ("boxes/one.txt", "sheets/two.png", "curves.png", "overlaps.png", "presence.png"):
        assert kind in names
    output = capsys.readouterr().out
    assert f"{values['overall']['auc']:.3f}" in output
    assert "22 of 22 frames on target" in output


def test_evaluate_only_some(model: Path, backend: str, dataset: Path, tmp_path: Path) -> None:
    options = ["--dataset", str(dataset), "--sequences", "two", "--max-frames", "5"]
    extra = ["--backend", backend, "--report", str(tmp_path / "r"), "--presence"]
    assert main(["evaluate", "--model", str(model), *options, *extra]) == 0
    values = json.loads((tmp_path / "r" / "report.json").read_text())
    assert list(values["sequences"]) == ["two"]
    assert values["frames"] == 5


def test_evaluate_without_data_says_what_it_expected(model: Path, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", "--model", str(model), "--dataset", str(tmp_path)]) == 1
    assert "groundtruth_rect.txt" in capsys.readouterr().err


def test_bench_prints_stages(model: Path, backend: str, capsys) -> None:
    options = ["--iterations", "5", "--size", "320x240", "--backend", backend]
    assert main(["bench", "--model", str(model), *options, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values["timings"]) == {
        "crop",
        "inference",
        "decode",
        "presence",
        "update",
        "bare engine",
    }
    assert all(t["p95"] >= t["median"] > 0 for t in values["timings"].values())
    assert values["machine"]["cores"] >= 1
    assert main(["bench", "--model", str(model), *options]) == 0
    assert "bare engine" in capsys.readouterr().out


def test_bench_on_real_frames(model: Path, backend: str, tmp_path: Path, capsys) -> None:
    write_frames(tmp_path / "frames")
    options = ["--source", str(tmp_path / "frames"), "--iterations", "3", "--backend", backend]
    assert main(["bench", "--model", str(model), *options, "--init=80,100,40,40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image_size"] == [320, 240]
    assert main(["bench", "--model", str(model), *options]) == 2
    assert main(["bench", "--model", str(model), "--size", "big"]) == 2


def test_export_knows_its_variants_before_it_needs_torch(tmp_path: Path, capsys) -> None:
    options = ["--checkpoint", str(tmp_path / "x"), "--output", str(tmp_path)]
    assert main(["export", "--variant", "vitx", *options]) == 2
    assert "vitb_256_ce" in capsys.readouterr().err


def test_build_without_tensorrt_says_so(model: Path, capsys) -> None:
    from ostrack_ros.engines.tensorrt import tensorrt_available

    if tensorrt_available() is None:
        pytest.skip("TensorRT and a GPU are here; building is tested in test_tensorrt.py")
    assert main(["build", str(model)]) == 1
    error = capsys.readouterr().err
    assert "ostrack: " in error
    assert "Traceback" not in error


def test_help_is_instant_and_needs_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from ostrack_ros.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'numpy', 'cv2', 'torch', 'rich', 'onnx', 'rclpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for command in ("track", "evaluate", "bench", "export", "build", "train"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["export", "train"])
def test_without_torch_the_answer_is_what_to_install(tmp_path: Path, command: str) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    arguments = {
        "export": ["--checkpoint", "x", "--variant", "vitb_256_ce", "--output", str(tmp_path)],
        "train": ["config.yaml"],
    }[command]
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "ostrack_ros.cli", command, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install torch" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_messages_for_people_are_reported_without_traceback() -> None:
    assert describe_error(EngineError("the engine is gone")) == "the engine is gone"
    assert describe_error(UsageError("no")) == "no"
    assert describe_error(FileNotFoundError(2, "No such file", "a.onnx")) == "a.onnx: No such file"
    assert describe_error(ValueError("a bug of ours")) is None
    assert describe_error(ModuleNotFoundError("x", name="x")) is None
