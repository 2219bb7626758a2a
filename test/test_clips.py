"""Clips with known boxes, the tracker that follows them, and the pairs that it leaves to learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-train.txt)")
pytest.importorskip("onnx", reason="the hand-made model needs onnx")

from synthetic_model import (  # noqa: E402
    RED,
    SEARCH_SIZE,
    TEMPLATE_SIZE,
    write_red_blob_model,
)

from ostrack_ros.engines.base import Engine  # noqa: E402
from ostrack_ros.engines.select import create_engine  # noqa: E402
from ostrack_ros.engines.spec import ModelSpec, sidecar_path  # noqa: E402
from ostrack_ros.tracking.geometry import Box  # noqa: E402
from ostrack_ros.training import calibration, following  # noqa: E402
from ostrack_ros.training.clips import (  # noqa: E402
    Clip,
    ClipMaker,
    ClipSettings,
    recorded_clips,
)
from ostrack_ros.training.config import ConfigError, TrainingConfig, make_config  # noqa: E402
from ostrack_ros.training.data import pair_stream  # noqa: E402
from ostrack_ros.training.following import (  # noqa: E402
    LOST_FRAMES,
    Sight,
    as_pairs,
    follow,
    poor_sights,
)
from ostrack_ros.training.images import ImageBank, load_bank  # noqa: E402
from ostrack_ros.training.replay import Replay, ReplayError, save_pairs  # noqa: E402
from ostrack_ros.training.synthesis import PairBatch  # noqa: E402

ALONE = ClipSettings(stranger=0, lookalike=0, occluder=0, absence=0)
"""Nothing but the target."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Red discs as cut-outs; grey pictures; tracks of a red square that moves to the right."""
    bank = tmp_path / "bank"
    for part in ("cutouts", "backgrounds"):
        (bank / part).mkdir(parents=True)
    disc = np.zeros((100, 120, 4), np.uint8)
    cv2.ellipse(disc, (60, 50), (50, 40), 0, 0, 360, (*RED[::-1], 255), -1)
    for index in range(3):
        cv2.imwrite(str(bank / "cutouts" / f"{index}.png"), disc)
    for index in range(24):
        grey = np.full((240, 320, 3), 60 + 5 * index, np.uint8)
        cv2.imwrite(str(bank / "backgrounds" / f"{index}.jpg"), grey)
    for track in ("a", "b"):
        path = bank / "tracks" / track
        path.mkdir(parents=True)
        rows = []
        for index in range(12):
            frame = np.full((240, 320, 3), 90, np.uint8)
            left = 30 + 10 * index
            frame[100:140, left : left + 40] = RED[::-1]
            cv2.imwrite(str(path / f"{index:05d}.png"), frame)
            rows.append(f"{index},{left},100,40,40")
        (path / "boxes.csv").write_text("frame,x,y,w,h\n" + "\n".join(rows))
    return bank


@pytest.fixture
def bank(folder: Path) -> ImageBank:
    return load_bank([folder], patches=0)


@pytest.fixture
def plain_bank(folder: Path, tmp_path: Path) -> ImageBank:
    """The same without the tracks, whose frames would put other red things behind the target."""
    plain = tmp_path / "plain"
    plain.mkdir()
    for part in ("cutouts", "backgrounds"):
        (plain / part).symlink_to(folder / part)
    return load_bank([plain], patches=0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "red_blob.onnx"
    write_red_blob_model(path)
    return path


@pytest.fixture
def engine(model: Path) -> Engine:
    return create_engine(model)


def red(image: np.ndarray) -> np.ndarray:
    """Where a picture [H, W, 3] shows the target."""
    channels = image.astype(int)
    return np.asarray(channels[..., 0] - channels[..., 1:].max(-1) > 60)


def drawn(bank: ImageBank, settings: ClipSettings, seed: int) -> Clip:
    return ClipMaker(bank, settings, np.random.default_rng(seed)).draw()


@pytest.mark.parametrize("seed", range(5))
def test_boxes_of_drawn_clips_enclose_the_target(plain_bank: ImageBank, seed: int) -> None:
    clip = drawn(plain_bank, ALONE, seed)
    assert len(clip.frames) == len(clip.boxes) == ALONE.frames
    inside = 0
    for frame, (x, y, w, h) in zip(clip.frames, clip.boxes, strict=True):
        if min(x, y) < 1 or max(x + w, y + h) > ALONE.side - 1:
            continue
        rows, columns = np.nonzero(red(frame))
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert found == pytest.approx((x, y, x + w, y + h), abs=2.5)
        inside += 1
    assert inside >= 3


def test_a_target_that_is_gone_is_not_drawn_and_has_no_box(plain_bank: ImageBank) -> None:
    gone = 0
    for seed in range(5):
        clip = drawn(plain_bank, dataclasses.replace(ALONE, absence=1), seed)
        absent = np.isnan(clip.boxes).all(1)
        assert not absent[0]
        for frame, missing in zip(clip.frames, absent, strict=True):
            assert red(frame).any() != missing
        gone += absent.sum()
    assert gone >= 5


def test_doubles_and_occluders_come_into_the_picture(plain_bank: ImageBank) -> None:
    alone, crowded = 0, 0
    for seed in range(6):
        alone += sum(red(f).sum() for f in drawn(plain_bank, ALONE, seed).frames)
        full = dataclasses.replace(ALONE, lookalike=1, stranger=1, occluder=1)
        crowded += sum(red(f).sum() for f in drawn(plain_bank, full, seed).frames)
    assert crowded > 1.3 * alone


def test_the_seed_decides_a_clip(bank: ImageBank) -> None:
    first, again, other = (drawn(bank, ClipSettings(), seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.frames[7], again.frames[7])
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.frames[7], other.frames[7])


def test_tracks_of_a_bank_are_clips(bank: ImageBank) -> None:
    clips = list(recorded_clips(bank))
    assert [len(clip.frames) for clip in clips] == [12, 12]
    assert (np.diff(clips[0].boxes[:, 0]) > 0).all(), "frame 10 comes after frame 9"
    for frame, (x, y, w, h) in zip(clips[0].frames, clips[0].boxes, strict=True):
        rows, columns = np.nonzero(red(frame))
        assert (columns.min(), rows.min()) == pytest.approx((x, y), abs=2)
        assert (columns.max() + 1, rows.max() + 1) == pytest.approx((x + w, y + h), abs=2)


def test_the_tracker_sees_each_frame_around_its_own_last_box(
    bank: ImageBank, engine: Engine
) -> None:
    sights = list(follow(engine, next(recorded_clips(bank))))
    assert len(sights) == 11
    for sight in sights:
        assert sight.overlap > 0.6
        assert sight.truth is not None
        seen = red(sight.search)
        rows, columns = np.nonzero(seen)
        left, top = sight.truth.x * SEARCH_SIZE, sight.truth.y * SEARCH_SIZE
        assert (columns.min(), rows.min()) == pytest.approx((left, top), abs=2)


def test_a_target_that_is_lost_for_good_ends_the_clip(engine: Engine) -> None:
    frames = [np.full((240, 320, 3), 90, np.uint8) for _ in range(20)]
    boxes = np.tile([30.0, 100.0, 20.0, 20.0], (20, 1))
    boxes[3:, 0] = 280.0
    for frame, (x, y, w, h) in zip(frames, boxes.astype(int), strict=True):
        frame[y : y + h, x : x + w] = RED
    sights = list(follow(engine, Clip(frames, boxes)))
    assert len(sights) == 2 + LOST_FRAMES
    assert [s.overlap > 0.5 for s in sights] == [True] * 2 + [False] * LOST_FRAMES


def sight(truth: Box | None, overlap: float, engine: Engine) -> Sight:
    clip = Clip([np.full((64, 64, 3), 90, np.uint8)] * 2, np.array([[20.0, 20, 16, 16]] * 2))
    (one,) = follow(engine, clip)
    return dataclasses.replace(one, truth=truth, overlap=overlap)


def test_only_what_the_model_did_badly_is_kept(engine: Engine) -> None:
    middle, outside, half_out = (Box(x, 0.4, 0.2, 0.2) for x in (0.4, 2.0, -0.15))
    good = sight(middle, 0.9, engine)
    poor = sight(middle, 0.4, engine)
    gone = sight(None, 0.0, engine)
    away = sight(outside, 0.0, engine)
    undecidable = sight(half_out, 0.0, engine)
    kept = list(poor_sights([good, poor, gone, away, undecidable], below=0.7))
    assert [any(one is k for k in kept) for one in (good, poor, gone, away, undecidable)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    pairs = as_pairs(kept)
    assert pairs.present.tolist() == [True, False, False]
    assert pairs.box[0].tolist() == pytest.approx([0.5, 0.5, 0.2, 0.2])
    assert pairs.template.shape == (3, 3, TEMPLATE_SIZE, TEMPLATE_SIZE)
    assert pairs.search.shape == (3, 3, SEARCH_SIZE, SEARCH_SIZE)
    with pytest.raises(ReplayError, match="more --clips"):
        as_pairs([])


def recorded_pairs() -> PairBatch:
    """Four pairs of 32 and 64 px; a white square is where the box says, the last one is absent.
    The third target lies outside the middle half."""
    boxes = torch.tensor(
        [[0.5, 0.5, 0.25, 0.25], [0.625, 0.5, 0.25, 0.125], [0.1, 0.5, 0.1, 0.1], [0.5] * 4]
    )
    search = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    for image, (cx, cy, w, h) in zip(search, boxes.tolist(), strict=True):
        left, top = round((cx - w / 2) * 64), round((cy - h / 2) * 64)
        image[:, top : top + round(h * 64), left : left + round(w * 64)] = 255
    search[3] = 7
    template = torch.arange(32, dtype=torch.uint8).expand(4, 3, 32, 32).contiguous()
    return PairBatch(template, search, boxes, torch.tensor([True, True, True, False]))


def test_replayed_pairs_are_cut_to_size_and_their_boxes_with_them(tmp_path: Path) -> None:
    path = tmp_path / "pairs.safetensors"
    save_pairs(recorded_pairs(), path)
    replay = Replay(path, 32, 32)
    assert len(replay) == 3
    pairs = replay.draw(40, torch.Generator().manual_seed(0))
    assert pairs.search.shape == (40, 3, 32, 32)
    mirrored = pairs.template[:, 0, 0, 0] > 0
    assert 0 < int(mirrored.sum()) < 40
    assert 0 < int(pairs.present.sum()) < 40
    for image, box, present in zip(pairs.search, pairs.box, pairs.present, strict=True):
        if present:
            rows, columns = (image[0] > 128).nonzero(as_tuple=True)
            low = (box[:2] - box[2:] / 2) * 32
            assert [int(columns.min()), int(rows.min())] == pytest.approx(low.tolist(), abs=0.6)
            assert int(columns.max()) + 1 - int(columns.min()) == round(float(box[2]) * 32)


def test_unusable_recordings_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "pairs.safetensors"
    save_pairs(recorded_pairs(), path)
    with pytest.raises(ReplayError, match="64 px, this training needs 32 and at least 96"):
        Replay(path, 32, 96)
    with pytest.raises(ReplayError, match="templates of 32 px"):
        Replay(path, 48, 64)
    (tmp_path / "words.safetensors").write_text("no tensors")
    for name in ("words.safetensors", "missing.safetensors"):
        with pytest.raises(ReplayError, match="holds no recorded pairs"):
            Replay(tmp_path / name, 32, 32)


@pytest.fixture
def config(folder: Path) -> TrainingConfig:
    return make_config(
        {
            "variant": "ostrack_tiny",
            "banks": [str(folder)],
            "output": str(folder.parent / "run"),
            "batch_size": 4,
            "workers": 0,
            "patches": 0,
        }
    )


@pytest.mark.parametrize(("share", "replayed"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_a_share_of_every_batch_is_replayed(
    config: TrainingConfig, tmp_path: Path, share: float, replayed: int
) -> None:
    count, z, x = 3, config.synthesis.template_size, config.synthesis.search_size
    marked = PairBatch(
        torch.full((count, 3, z, z), 123, dtype=torch.uint8),
        torch.full((count, 3, x, x), 231, dtype=torch.uint8),
        torch.full((count, 4), 0.5),
        torch.ones(count, dtype=torch.bool),
    )
    path = tmp_path / "pairs.safetensors"
    save_pairs(marked, path)
    config = dataclasses.replace(config, replay=str(path), replay_share=share)
    batches = pair_stream(config, torch.device("cpu"), seed=0)
    for _ in range(2):
        batch = next(batches)
        assert len(batch.present) == 4
        assert int((batch.search == 231).all((1, 2, 3)).sum()) == replayed


def test_a_share_beyond_one_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"replay_share is 1\.5"):
        make_config(
            {
                "variant": "ostrack_tiny",
                "banks": [str(folder)],
                "output": "run",
                "replay_share": 1.5,
            }
        )


@pytest.fixture
def config_file(folder: Path) -> Path:
    path = folder.parent / "config.yaml"
    path.write_text(f"variant: ostrack_tiny\nbanks: [{folder}]\noutput: run\npatches: 0\n")
    return path


def test_following_leaves_pairs_that_a_training_can_read(
    model: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pairs.safetensors"
    arguments = [str(model), str(config_file), str(output), "--clips", "4", "--limit", "9"]
    assert following.main(arguments) == 0
    assert f"{output}: 9 of " in capsys.readouterr().out
    assert len(Replay(output, TEMPLATE_SIZE, SEARCH_SIZE)) == 9
    assert following.main([*arguments, "--clips", "0", "--below", "0"]) == 1
    assert "more --clips" in capsys.readouterr().err


def test_calibration_writes_what_held_out_clips_say(model: Path, config_file: Path) -> None:
    before = ModelSpec.load(model).presence
    assert calibration.main([str(model), str(config_file), "--clips", "6"]) == 0
    after = ModelSpec.load(model).presence
    assert sidecar_path(model).is_file()
    assert after is not None
    assert after != before
    assert after.features == calibration.FEATURES
    assert "6 drawn and " in after.source
    assert "real clips of held-out pictures" in after.source


@pytest.mark.parametrize("command", [following.main, calibration.main])
def test_what_cannot_be_started_is_said_in_words(
    command: Callable[[list[str]], int],
    model: Path,
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = ["pairs.safetensors"] if command is following.main else []
    missing = str(config_file.parent / "missing")
    for arguments, complaint in (
        ([missing + ".onnx", str(config_file)], "there is no file"),
        ([str(model), missing], "cannot read"),
        ([str(model), str(config_file), "--banks", missing], "there is no image bank"),
    ):
        assert command([*arguments[:2], *output, *arguments[2:]]) == 1
        assert complaint in capsys.readouterr().err


def test_a_slower_camera_sees_targets_leap(bank: ImageBank) -> None:
    leaps = []
    for settings in (ALONE, ALONE.every(4)):
        clips = [drawn(bank, settings, seed) for seed in range(20)]
        centers = [clip.boxes[:, :2] + clip.boxes[:, 2:] / 2 for clip in clips]
        sizes = [np.sqrt(clip.boxes[1:, 2] * clip.boxes[1:, 3]) for clip in clips]
        steps = [
            np.linalg.norm(np.diff(c, axis=0), axis=1) / s
            for c, s in zip(centers, sizes, strict=True)
        ]
        leaps.append(float(np.median(np.concatenate(steps))))
    assert 2 < leaps[1] / leaps[0] < 6
    assert ALONE.every(1) == ALONE
    assert ALONE.every(4).growth == pytest.approx(2 * ALONE.growth)
