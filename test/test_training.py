"""Training: schedules, losses, initialisation, resuming, and that it really learns."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from sequences import lines, moving_boxes, write_images

torch = pytest.importorskip("torch", reason="training needs torch (requirements-train.txt)")
pytest.importorskip("matplotlib", reason="training needs matplotlib (requirements-train.txt)")

from hypothesis import example, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from seeded_weights import seeded_state  # noqa: E402

from ostrack_ros.cli.main import main as ostrack  # noqa: E402
from ostrack_ros.network.checkpoint import (  # noqa: E402
    CheckpointError,
    load_network,
    read_weights,
)
from ostrack_ros.network.head import Maps  # noqa: E402
from ostrack_ros.network.ostrack import OSTrack  # noqa: E402
from ostrack_ros.network.variants import VARIANTS, Variant  # noqa: E402
from ostrack_ros.network.vit import Features  # noqa: E402
from ostrack_ros.tracking.geometry import Box, iou  # noqa: E402
from ostrack_ros.training.averaging import average_weights  # noqa: E402
from ostrack_ros.training.averaging import main as average_command  # noqa: E402
from ostrack_ros.training.calibration import FEATURES, fit_logistic  # noqa: E402
from ostrack_ros.training.config import (  # noqa: E402
    ConfigError,
    TrainingConfig,
    load_config,
    make_config,
)
from ostrack_ros.training.data import normalise, pair_stream  # noqa: E402
from ostrack_ros.training.errors import TrainingError  # noqa: E402
from ostrack_ros.training.initialise import (  # noqa: E402
    initialise_from_dinov2,
    initialise_from_network,
    pick_blocks,
    settle_norms,
)
from ostrack_ros.training.losses import (  # noqa: E402
    Losses,
    box_overlap,
    feature_imitation,
    gaussian_targets,
    nearness_to_center,
    tracking_losses,
)
from ostrack_ros.training.report import VALIDATION_FILE, append_row, plot_training  # noqa: E402
from ostrack_ros.training.schedule import (  # noqa: E402
    WeightAverage,
    keep_ratio,
    learning_rate_factor,
)
from ostrack_ros.training.state import STATE_FILE, WEIGHTS_FILE  # noqa: E402
from ostrack_ros.training.trainer import Trainer  # noqa: E402
from ostrack_ros.training.validation import TorchEngine  # noqa: E402

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def bank_folder(tmp_path: Path) -> Path:
    """Coloured discs and squares as cut-outs, smooth random fields as pictures."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "bank"
    for part in ("cutouts", "photos", "tracks/ball"):
        (folder / part).mkdir(parents=True)
    for index in range(8):
        image = np.zeros((80, 100, 4), np.uint8)
        colour = (*(int(c) for c in rng.integers(60, 256, 3)), 255)
        cv2.circle(image, (50, 40), 35, colour, -1)
        cv2.rectangle(image, (40, 30), (60, 50), (255, 255, 255, 255), index % 3 + 1)
        cv2.imwrite(str(folder / "cutouts" / f"{index}.png"), image)
    for index in range(6):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        photo = cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "photos" / f"{index}.jpg"), photo)
    rows = []
    for index in range(5):
        frame = np.full((240, 320, 3), 90, np.uint8)
        cv2.circle(frame, (60 + 40 * index, 120), 25, (30, 200, 240), -1)
        cv2.imwrite(str(folder / "tracks" / "ball" / f"{index:05d}.jpg"), frame)
        rows.append(f"{index},{35 + 40 * index},95,50,50")
    (folder / "tracks" / "ball" / "boxes.csv").write_text("frame,x,y,w,h\n" + "\n".join(rows))
    (folder / "photos" / "boxes.csv").write_text("file,x,y,w,h\n0.jpg,100,80,60,70\n")
    return folder


@pytest.fixture
def config(bank_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    variant = Variant("toy", embed_dim=48, depth=2, heads=2, head_channels=16)
    monkeypatch.setitem(VARIANTS, "toy", variant)
    return make_config(
        {
            "variant": "toy",
            "banks": [str(bank_folder)],
            "output": str(tmp_path / "run"),
            "steps": 6,
            "batch_size": 4,
            "search_size": 128,
            "bf16": False,
            "workers": 0,
            "patches": 4,
            "warmup_steps": 1,
            "log_every": 2,
            "checkpoint_every": 3,
        }
    )


def test_a_run_leaves_weights_log_and_curves(config: TrainingConfig) -> None:
    Trainer(config, CPU).run()
    folder = Path(config.output)
    network = OSTrack(VARIANTS["toy"])
    network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    log = (folder / "log.csv").read_text().splitlines()
    assert len(log) == 1 + 3
    assert all(math.isfinite(float(v)) for line in log[1:] for v in line.split(","))
    curves = cv2.imread(str(folder / "curves.png"))
    append_row(folder / VALIDATION_FILE, ("step", "auc"), ["3", "0.5"])
    with_validation = cv2.imread(str(plot_training(folder)))
    assert with_validation.shape[1] * 2 == curves.shape[1] * 3  # a third panel


def test_an_interrupted_run_goes_on_where_it_stopped(config: TrainingConfig) -> None:
    half = dataclasses.replace(config, steps=3)
    Trainer(half, CPU).run()
    trainer = Trainer(config, CPU)
    assert trainer.progress.step == 3
    saved = load_file(Path(config.output) / STATE_FILE)
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(value, saved[f"network.{key}"]), key
    assert trainer.optimizer.state_dict()["state"][0]["step"] == 3
    trainer.run()
    assert trainer.progress.step == 6


def test_a_state_of_another_network_is_refused(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(config, CPU).run()
    other = Variant("toy", embed_dim=32, depth=2, heads=2, head_channels=16)
    monkeypatch.setitem(VARIANTS, "toy", other)
    with pytest.raises(ValueError, match="does not fit this configuration"):
        Trainer(config, CPU)


def test_training_lowers_the_loss_on_one_batch(config: TrainingConfig) -> None:
    quick = dataclasses.replace(
        config, steps=1000, head_rate=1e-2, backbone_rate=1e-3, gradient_clip=100.0
    )
    trainer = Trainer(quick, CPU)
    batch = next(pair_stream(config, CPU, seed=3))
    losses = [float(trainer._step(batch, trainer._losses).total.detach()) for _ in range(60)]
    assert min(losses[50:]) < 0.85 * min(losses[:3])


def test_relative_rates_follow_the_size_of_the_matrices(config: TrainingConfig) -> None:
    """One flat rate changes small weights by most of their size in a few hundred steps."""
    relative = dataclasses.replace(
        config, relative_rate=0.01, backbone_rate=0.5, head_rate=0.25, warmup_steps=1
    )
    trainer = Trainer(relative, CPU)
    rates = {
        id(parameter): group["peak"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    parameters = dict(trainer.network.named_parameters())
    matrix = parameters["backbone.blocks.1.mlp.fc2.weight"]
    size = float(matrix.detach().square().mean().sqrt())
    for name, expected in {
        "backbone.blocks.1.mlp.fc2.weight": 0.01 * size,
        "backbone.blocks.1.mlp.fc2.bias": 0.01 * size,
        "backbone.blocks.1.norm2.weight": 0.5,
        "backbone.pos_embed_x": 0.5,
        "box_head.conv5_size.bias": 0.25,
    }.items():
        assert rates[id(parameters[name])] == pytest.approx(expected), name
    before = matrix.detach().clone()
    trainer._step(next(pair_stream(config, CPU, seed=3)), trainer._losses)
    moved = (matrix.detach() - before).abs().max()
    assert 0 < moved <= 1.1 * 0.01 * size  # AdamW's first step moves a weight by its rate


def test_the_speed_of_training_is_measured(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.yaml").write_text(
        f"variant: toy\nbanks: [{config.banks[0]}]\noutput: unused\nbatch_size: 2\npatches: 2\n"
    )
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    arguments = ["toy.yaml", "--rounds", "2", "--device", "cpu", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["training_speed.py", *arguments])
    threads = torch.get_num_threads()
    try:
        from training_speed import DRAWING, main

        assert main() == 0
    finally:
        torch.set_num_threads(threads)
    rates = json.loads((tmp_path / "training_speed.json").read_text())["pairs_per_second"]
    assert {DRAWING, "learning, 1 thread"} <= set(rates)
    assert all(rate > 0 for rate in rates.values())
    assert not (tmp_path / "unused").exists()


def test_frozen_blocks_stay(config: TrainingConfig) -> None:
    trainer = Trainer(dataclasses.replace(config, freeze_blocks=1), CPU)
    trained = {name for name, p in trainer.network.named_parameters() if p.requires_grad}
    # Positions too: were they trained, every step would go back through the frozen blocks.
    assert not any("pos_embed" in name or "patch_embed" in name for name in trained)
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    trainer.run()
    after = trainer.network.state_dict()
    assert torch.equal(
        before["backbone.blocks.0.attn.qkv.weight"], after["backbone.blocks.0.attn.qkv.weight"]
    )
    assert not torch.equal(
        before["backbone.blocks.1.attn.qkv.weight"], after["backbone.blocks.1.attn.qkv.weight"]
    )


def test_shipped_configurations_are_valid() -> None:
    paths = sorted((REPOSITORY / "config" / "training").glob("*.yaml"))
    assert paths
    for path in paths:
        assert load_config(path).variant in VARIANTS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variant": "nonsense"}, "unknown variant"),
        ({"initialise_variant": "nonsense"}, "unknown variant"),
        ({"learning_rate": 1}, "unknown entry learning_rate"),
        ({"synthesis": {"blurr": 1}}, "unknown entry synthesis.blurr"),
        ({"synthesis": {"search_size": 128}}, "follows from the variant"),
        ({"banks": []}, "banks"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"freeze_blocks": 99}, "freeze_blocks is 99"),
        ({"search_size": 100}, "search_size is 100"),
    ],
)
def test_bad_configurations_are_refused(change: dict[str, object], words: str) -> None:
    values = {"variant": "ostrack_tiny", "banks": ["x"], "output": "y"} | change
    with pytest.raises(ValueError, match=words):
        make_config(values)


def test_config_file_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(broken)


def test_schedules() -> None:
    config = TrainingConfig(
        "x",
        ("y",),
        "z",
        warmup_steps=10,
        decay_from=0.5,
        elimination_from=0.2,
        elimination_full=0.6,
    )
    assert learning_rate_factor(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate_factor(config, 50, 0.5) == 1
    assert learning_rate_factor(config, 50, 1.0) == pytest.approx(config.final_rate)
    assert keep_ratio(config, 0.7, 0.1) == 1
    assert keep_ratio(config, 0.7, 0.4) == pytest.approx(0.85)
    assert keep_ratio(config, 0.7, 0.9) == 0.7


def test_weight_average_follows() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1.0)
    average = WeightAverage(layer, 0.9)
    torch.nn.init.constant_(layer.weight, 3.0)
    for _ in range(100):
        average.update(layer)
    assert average.values["weight"].item() == pytest.approx(3.0, abs=1e-3)


def test_kept_weights_average_to_a_network(config: TrainingConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, steps=3, keep_every=1)
    Trainer(config, CPU).run()
    kept = sorted(Path(config.output).glob("weights_*.safetensors"))
    assert [path.name for path in kept] == [f"weights_{step:06d}.safetensors" for step in (1, 2, 3)]
    latest = load_file(Path(config.output) / WEIGHTS_FILE)
    assert all(torch.equal(value, latest[key]) for key, value in load_file(kept[-1]).items())

    output = tmp_path / "mean.safetensors"
    assert average_command([str(output), *map(str, kept)]) == 0
    mean, parts = load_file(output), [load_file(path) for path in kept]
    assert mean.keys() == latest.keys()
    moved = 0
    for key, value in mean.items():
        assert value.dtype == latest[key].dtype
        if value.is_floating_point():
            expected = torch.stack([part[key].double() for part in parts]).mean(0)
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
            moved += int(not torch.equal(value, latest[key]))
        else:
            assert torch.equal(value, parts[0][key])
    assert moved > 0
    OSTrack(VARIANTS["toy"]).load_state_dict(mean)


def test_only_weights_of_one_network_are_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "a": {"x": torch.ones(2)},
        "wider": {"x": torch.ones(3)},
        "other": {"x": torch.ones(2), "y": torch.ones(1)},
    }
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="at least one"):
        average_weights([])
    for name, words in (
        ("wider", r"x is \(3,\) and \(2,\)"),
        ("other", "only one of them has y"),
        ("missing", "there is no checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=words):
            average_weights([tmp_path / "a.safetensors", tmp_path / f"{name}.safetensors"])
    output = tmp_path / "mean.safetensors"
    command = [str(output), str(tmp_path / "a.safetensors"), str(tmp_path / "wider.safetensors")]
    assert average_command(command) == 1
    assert "wider" in capsys.readouterr().err
    assert not output.exists()


fraction = st.floats(0.05, 0.5)
position = st.floats(0.2, 0.8)


@given(
    st.tuples(position, position, fraction, fraction),
    st.tuples(position, position, fraction, fraction),
)
def test_overlap_equals_the_trackers_own(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    value, generalised = box_overlap(torch.tensor([a]), torch.tensor([b]))
    assert value.item() == pytest.approx(iou(Box.from_center(*a), Box.from_center(*b)), abs=1e-4)
    assert -1 <= generalised.item() <= value.item() + 1e-5


@given(st.tuples(position, position, fraction, fraction))
@example((0.5, 0.49999999999999994, 0.5, 0.5))
def test_heat_maps_peak_at_the_centre(box: tuple[float, ...]) -> None:
    # In float32, the losses' own type, the last double below a cell's border lies on it.
    truth = torch.tensor([box])
    target = gaussian_targets(truth, 16)[0]
    row, column = divmod(int(target.argmax()), 16)
    x, y = truth[0, :2].tolist()
    assert (column, row) == (int(x * 16), int(y * 16))
    assert target.max() == 1
    assert target.min() >= 0


def perfect_maps(box: torch.Tensor, side: int = 16) -> Maps:
    """The box in every cell, and the score's peak in its centre's."""
    cell = (box[0, :2] * side).long()
    score = torch.full((1, 1, side, side), 1e-4)
    score[0, 0, cell[1], cell[0]] = 1 - 1e-4
    size = box[0, 2:].view(1, 2, 1, 1).expand(1, 2, side, side)
    steps = torch.arange(side)
    cells = torch.stack(torch.meshgrid(steps, steps, indexing="xy"))
    return Maps(score, size, box[0, :2].view(1, 2, 1, 1) * side - cells)


def test_losses_know_right_from_wrong() -> None:
    box = torch.tensor([[0.52, 0.4, 0.2, 0.3]])
    present = torch.tensor([True])
    good = tracking_losses(perfect_maps(box), box, present)
    assert good.total < 0.05
    assert (good.hit, good.iou) == (1, pytest.approx(1))
    moved = tracking_losses(perfect_maps(torch.tensor([[0.2, 0.8, 0.1, 0.1]])), box, present)
    assert moved.total > 5
    assert moved.hit == 0
    absent = tracking_losses(perfect_maps(box), box, torch.tensor([False]))
    assert absent.focal > 5
    assert absent.l1 == absent.giou == 0


def test_the_score_can_learn_how_good_the_box_is() -> None:
    """With `quality_score` a score of 1 on a box of half the size is an error, 0.25 is none."""
    box, present = torch.tensor([[0.52, 0.4, 0.2, 0.3]]), torch.tensor([True])
    loose = perfect_maps(box)
    loose = dataclasses.replace(loose, size=loose.size * 0.5)

    def focal(score: float, quality_score: bool) -> float:
        map_ = torch.where(loose.score > 0.5, torch.tensor(score), loose.score)
        maps = dataclasses.replace(loose, score=map_)
        return float(tracking_losses(maps, box, present, quality_score).focal)

    assert min((0.05, 0.25, 0.6, 0.99), key=lambda score: focal(score, True)) == 0.25
    assert min((0.05, 0.25, 0.6, 0.99), key=lambda score: focal(score, False)) == 0.99
    tight = tracking_losses(perfect_maps(box), box, present, quality_score=True)
    assert tight.focal < 0.01


def test_the_box_is_learned_next_to_its_centre_too() -> None:
    """At run time the peak may be one cell off, and the box is read there."""
    box, present = torch.tensor([[0.52, 0.4, 0.2, 0.3]]), torch.tensor([True])
    good = tracking_losses(perfect_maps(box), box, present)
    row, column = 6, 8  # the centre's cell

    def spoiled(row: int, column: int) -> Losses:
        maps = perfect_maps(box)
        size = maps.size.clone()
        size[0, :, row, column] *= 0.5
        return tracking_losses(dataclasses.replace(maps, size=size), box, present)

    losses = [spoiled(row, column + shift) for shift in (0, 1, 2)]
    assert losses[0].l1 > losses[1].l1 > losses[2].l1 == good.l1
    assert (losses[0].iou, losses[1].iou) == (pytest.approx(0.25), pytest.approx(1))


@given(st.tuples(position, position, fraction, fraction))
def test_every_box_teaches_as_much(box: tuple[float, ...]) -> None:
    weights = nearness_to_center(torch.tensor([box]), 16)[0]
    assert weights.sum().item() == pytest.approx(1)
    assert 1 <= (weights > 0).sum() <= 9
    row, column = divmod(int(weights.argmax()), 16)
    assert abs(column + 0.5 - box[0] * 16) <= 0.51
    assert abs(row + 0.5 - box[1] * 16) <= 0.51


def test_dinov2_initialisation_needs_the_right_width(tmp_path: Path) -> None:
    path = tmp_path / "dino.npz"
    np.savez(path, **{"layernorm.weight": np.ones(64, np.float16)})
    with pytest.raises(ValueError, match="0 blocks of width 64"):
        initialise_from_dinov2(OSTrack(VARIANTS["ostrack_tiny"]), path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"banks": ["nowhere"]}, "no image bank at nowhere.*training.bank"),
        ({"initialise": "missing.npz"}, "missing.npz: No such file.*training.dinov2 missing.npz"),
        ({"initialise": "missing.safetensors"}, "missing.safetensors"),
        ({"initialise": "junk.onnx"}, "junk.onnx"),
    ],
)
def test_what_is_missing_is_told_without_a_traceback(
    bank_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, object],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    values = {"variant": "ostrack_tiny", "banks": [str(bank_folder)], "output": "run"} | change
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values | {"steps": 1}))
    assert ostrack(["train", "config.yaml"]) == 1
    assert re.search(words, capsys.readouterr().err)


SOURCE = Variant("source", embed_dim=48, depth=4, heads=2, head_channels=16)


def test_a_larger_networks_positions_are_resampled() -> None:
    same_region = dataclasses.replace(SOURCE, template_size=96, search_size=192, depth=2)
    large, small = OSTrack(SOURCE), OSTrack(same_region)
    ramp = torch.linspace(0, 1, 16).repeat(16).view(1, 256, 1).expand(1, 256, 48)
    with torch.no_grad():
        large.backbone.pos_embed_x.copy_(ramp)
    copied = initialise_from_network(small, large.state_dict(), SOURCE)
    assert copied == len(small.state_dict())
    assert torch.equal(
        small.backbone.blocks[1].mlp.fc1.weight, large.backbone.blocks[1].mlp.fc1.weight
    )
    row = small.backbone.pos_embed_x.view(12, 12, 48)[5, :, 0]
    assert (row.diff() > 0).all()
    assert row.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert row.diff().mean().item() == pytest.approx(16 / 12 / 15, rel=0.05)


def test_a_smaller_region_takes_the_positions_of_the_middle() -> None:
    middle = dataclasses.replace(SOURCE, search_size=192, search_factor=3.0)
    large, small = OSTrack(SOURCE), OSTrack(middle)
    initialise_from_network(small, large.state_dict(), SOURCE)
    expected = large.backbone.pos_embed_x.view(16, 16, 48)[2:14, 2:14].reshape(1, 144, 48)
    assert torch.allclose(small.backbone.pos_embed_x, expected, atol=1e-6)
    assert torch.allclose(small.backbone.pos_embed_z, large.backbone.pos_embed_z, atol=1e-6)


def test_chosen_blocks_start_a_shallower_network() -> None:
    large, small = OSTrack(SOURCE), OSTrack(dataclasses.replace(SOURCE, depth=2))
    initialise_from_network(small, pick_blocks(large.state_dict(), (1, 3), SOURCE), SOURCE)
    for new, old in enumerate((1, 3)):
        for key, value in small.backbone.blocks[new].state_dict().items():
            assert torch.equal(value, large.backbone.blocks[old].state_dict()[key])
    with pytest.raises(ValueError, match="block 4 does not exist: source has 4"):
        pick_blocks(large.state_dict(), (1, 4), SOURCE)


@pytest.mark.parametrize("size", [0.05, 0.2, 0.35, 0.6])
def test_a_head_measures_by_the_region_that_it_now_sees(size: float) -> None:
    """Three quarters of the region: the same target is a third larger in it."""
    large = OSTrack(SOURCE)
    small = OSTrack(dataclasses.replace(SOURCE, search_size=192, search_factor=3.0))
    with torch.no_grad():
        large.box_head.conv5_size.weight.zero_()
        large.box_head.conv5_size.bias.fill_(math.log(0.75 * size / (1 - 0.75 * size)))
    assert initialise_from_network(small, large.state_dict(), SOURCE) == len(small.state_dict())
    maps: Maps = small.box_head(torch.zeros(1, SOURCE.embed_dim, 12, 12))
    assert maps.size.min().item() == pytest.approx(size, abs=0.02)


def test_a_narrower_network_starts_near_the_wide_one(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rates of zero, what a run leaves is what it started from."""
    wide = OSTrack(VARIANTS["toy"]).eval()
    wide.load_state_dict(seeded_state(wide, seed=4))
    save_file(wide.state_dict(), tmp_path / "wide.safetensors")
    narrow = dataclasses.replace(VARIANTS["toy"], mlp_width=100, heads=1, head_dim=24)
    monkeypatch.setitem(VARIANTS, "narrow", narrow)
    still = dataclasses.replace(
        config,
        variant="narrow",
        initialise=str(tmp_path / "wide.safetensors"),
        initialise_variant="toy",
        steps=1,
        backbone_rate=0.0,
        head_rate=0.0,
        train_only=("backbone.norm",),
    )
    Trainer(still, CPU).run()
    network = OSTrack(narrow).eval()
    network.load_state_dict(load_file(Path(config.output) / WEIGHTS_FILE))
    batch = next(pair_stream(config, CPU, seed=9))
    template, search = normalise(batch.template), normalise(batch.search)
    untrained = OSTrack(narrow).eval()
    initialise_from_network(untrained, wide.state_dict(), VARIANTS["toy"])
    with torch.no_grad():
        expected = wide.backbone(template, search).search
        near = (network.backbone(template, search).search - expected).square().mean()
        far = (untrained.backbone(template, search).search - expected).square().mean()
    assert near < 0.5 * far


def test_features_are_compared_where_both_networks_kept_them() -> None:
    own, taught = torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    taught[0] = torch.tensor([[2.0, 0.0], [9.0, 9.0], [9.0, 9.0], [0.0, 0.0]])
    loss = feature_imitation(
        Features(own, (torch.tensor([[1]]),)), Features(taught, (torch.tensor([[2]]),))
    )
    assert loss.item() == pytest.approx(1.0)  # position 0: (4 + 0) / 2; position 3: 0


def test_a_pupil_nears_its_teacher(config: TrainingConfig, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.safetensors"
    torch.manual_seed(7)
    save_file(OSTrack(VARIANTS["toy"]).state_dict(), teacher)
    config = dataclasses.replace(
        config,
        teacher=str(teacher),
        teacher_features=100.0,
        steps=30,
        log_every=5,
        backbone_rate=3e-3,
    )
    Trainer(config, CPU).run()
    rows = (Path(config.output) / "log.csv").read_text().splitlines()
    columns = rows[0].split(",")
    values = [dict(zip(columns, map(float, row.split(",")), strict=True)) for row in rows[1:]]
    imitation = [row["total"] - row["focal"] - 2 * row["giou"] - 5 * row["l1"] for row in values]
    assert imitation[-1] < 0.7 * imitation[0]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"template_size": 96}, "takes 96 and 256 px, this training makes 128 and 128 px"),
        ({"search_size": 112}, "at least as large"),
        ({"embed_dim": 64}, "teacher_features needs features of one width"),
    ],
)
def test_a_teacher_that_cannot_look_is_refused(
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
    entries: dict[str, int],
    message: str,
) -> None:
    other = dataclasses.replace(VARIANTS["toy"], name="other", **entries)
    monkeypatch.setitem(VARIANTS, "other", other)
    with pytest.raises(ConfigError, match=message):
        make_config(
            {
                "variant": "toy",
                "banks": list(config.banks),
                "output": config.output,
                "search_size": 128,
                "teacher": "teacher.safetensors",
                "teacher_variant": "other",
                "teacher_features": 1.0,
            }
        )


def test_calibration_recovers_a_known_law() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, len(FEATURES))) * (1, 2, 0.5, 1, 1) + (0, 1, 2, -1, 0)
    law = np.array([1.5, -0.5, 0.8, 0.0, -0.3])
    chance = 1 / (1 + np.exp(-(features @ law - 1.0)))
    calibration = fit_logistic(features, rng.random(4000) < chance, "a law")
    logits = features @ calibration.weights + calibration.intercept
    assert np.abs(1 / (1 + np.exp(-logits)) - chance).mean() < 0.04
    with pytest.raises(ValueError, match="nothing to tell apart"):
        fit_logistic(features, np.ones(4000, bool), "all right")


def test_torch_engine_speaks_the_engine_interface() -> None:
    torch.manual_seed(0)
    network = OSTrack(VARIANTS["ostrack_tiny"]).eval()
    engine = TorchEngine(network)
    template = np.zeros((128, 128, 3), np.uint8)
    prediction = engine.infer(template, np.full((192, 192, 3), 90, np.uint8))
    assert prediction.score_map.shape == (12, 12)
    assert 0 < prediction.width < 1


@pytest.fixture
def exported(config: TrainingConfig, tmp_path: Path) -> Path:
    """A toy network with norms that do something, as the ONNX file that a user has of it."""
    pytest.importorskip("onnx", reason="exporting needs onnx")
    from ostrack_ros.network.export import export_network

    network = OSTrack(VARIANTS["toy"]).eval()
    network.load_state_dict(seeded_state(network, seed=5))
    path = tmp_path / "toy.onnx"
    return export_network(network, "fp16", path, source="toy", source_sha256="0" * 64)


def test_settled_norms_change_nothing_in_training_either(exported: Path) -> None:
    network = OSTrack(VARIANTS["toy"])
    load_network(network, read_weights(exported))
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(16, 3, s, s, generator=generator) for s in (128, 128)]

    def difference() -> float:
        with torch.no_grad():
            evaluated = network.eval()(*inputs).maps
            trained = copy.deepcopy(network).train()(*inputs).maps
        return float((evaluated.size - trained.size).abs().max())

    before = difference()
    with torch.no_grad():
        expected = network.eval()(*inputs).maps.score
    settle_norms(network, [(inputs[0], inputs[1])])
    assert difference() < 1e-4 < before
    with torch.no_grad():
        assert torch.allclose(network.eval()(*inputs).maps.score, expected, atol=1e-4)


def test_training_goes_on_from_an_exported_model(config: TrainingConfig, exported: Path) -> None:
    still = dataclasses.replace(
        config, initialise=str(exported), steps=1, backbone_rate=0.0, head_rate=0.0
    )
    Trainer(still, CPU).run()
    left = load_file(Path(config.output) / WEIGHTS_FILE)
    given = read_weights(exported)
    for key in ("backbone.blocks.0.mlp.fc1.weight", "box_head.conv5_size.weight"):
        assert torch.allclose(left[key], given[key], atol=1e-6), key
    assert not torch.allclose(
        left["box_head.conv2_size.1.running_mean"], torch.zeros(()), atol=1e-6
    )


@pytest.mark.parametrize(
    ("entries", "trained"),
    [
        ({"freeze_blocks": 2}, ("box_head.", "backbone.norm.")),
        (
            {"train_only": ("box_head.conv2_ctr", "box_head.conv5_ctr")},
            ("box_head.conv2_ctr.", "box_head.conv5_ctr."),
        ),
        (
            {"train_only": ("backbone.blocks.*.norm", "box_head.*.1.", "box_head.conv2_ctr")},
            ("backbone.blocks.0.norm", "backbone.blocks.1.norm", "box_head."),
        ),
    ],
)
def test_what_is_frozen_stays_bit_for_bit_in_the_exported_file(
    config: TrainingConfig,
    exported: Path,
    tmp_path: Path,
    entries: dict[str, object],
    trained: tuple[str, ...],
) -> None:
    """Norms too, which also follow the batches. And a repository stores little more than what is
    new."""
    onnx = pytest.importorskip("onnx", reason="exporting needs onnx")
    from ostrack_ros.network.export import export_checkpoint

    part = dataclasses.replace(config, initialise=str(exported), steps=4, **entries)
    Trainer(part, CPU).run()
    again = export_checkpoint(Path(config.output) / WEIGHTS_FILE, "toy", "fp16", tmp_path / "new")
    before, after = (
        {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
        for path in (exported, again)
    )
    assert before.keys() == after.keys()
    changed = {
        name.removeprefix("inner.network.")
        for name in before
        if not np.array_equal(before[name], after[name])
    }
    assert "box_head.conv2_ctr.0.weight" in changed
    assert all(name.startswith(trained) for name in changed), changed


def test_training_only_what_does_not_exist_is_refused(config: TrainingConfig) -> None:
    with pytest.raises(TrainingError, match="no tensor's name begins with head"):
        Trainer(dataclasses.replace(config, train_only=("head",)), CPU)


def test_the_fine_tuning_guide_works(
    bank_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide's own configuration, on footage in GOT-10k's layout; only shorter."""
    guide = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
    section = guide[guide.index("## Fine-tuning on your own footage") :]
    values = yaml.safe_load(section.split("```yaml\n")[1].split("```")[0])
    values |= {"steps": 2, "batch_size": 2, "validate_every": 1, "workers": 0}
    config = tmp_path / "boats.yaml"
    config.write_text(yaml.safe_dump(values))
    for name in ("footage/boat_01", "held_out_footage/boat_02"):
        write_images(tmp_path / name, 5, "{:08d}.jpg")
        (tmp_path / name / "groundtruth.txt").write_text(lines(moving_boxes(5)))
    (tmp_path / "models").symlink_to(REPOSITORY / "models")
    (tmp_path / "runs").mkdir()
    for bank in values["banks"][1:]:
        (tmp_path / bank).symlink_to(bank_folder)

    monkeypatch.chdir(tmp_path)
    assert ostrack(["train", str(config)]) == 0
    run = tmp_path / values["output"]
    assert len(load_file(run / WEIGHTS_FILE)) == len(
        OSTrack(VARIANTS["ostrack_small"]).state_dict()
    )
    with (run / VALIDATION_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["auc"]) <= 1 for row in rows)
