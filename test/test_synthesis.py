"""Synthetic pairs: the boxes must be where the objects are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-train.txt)")

from ostrack_ros.training.images import (  # noqa: E402
    CUTOUT_SIDE,
    HULL_POINTS,
    PHOTO_SIDE,
    ImageBank,
)
from ostrack_ros.training.synthesis import (  # noqa: E402
    PairSynthesizer,
    SynthesisSettings,
)

PLAIN = SynthesisSettings(
    absent=0,
    grey=0,
    distractors=0,
    occlusion=0,
    warp=0,
    blur=0,
    low_resolution=0,
    noise=0,
    perspective=0,
    rotation=0,
)
"""Nothing that hides or deforms the target."""


@pytest.fixture
def bank() -> ImageBank:
    """Green discs as cut-outs; grey pictures with one red rectangle each, whose box is known.

    The last three pictures are a track: the rectangle moves.
    """
    side = CUTOUT_SIDE
    axis = torch.arange(side) - (side - 1) / 2
    disc = (axis[None] ** 2 + axis[:, None] ** 2) <= (side / 2) ** 2
    cutout = torch.zeros(1, 4, side, side, dtype=torch.uint8)
    cutout[0, 1][disc] = 255
    cutout[0, 3][disc] = 255
    angles = torch.linspace(0, 2 * torch.pi, HULL_POINTS + 1)[:-1]
    hull = torch.stack([angles.cos(), angles.sin()], 1) * 0.5 + 0.5
    photos = torch.full((5, 3, PHOTO_SIDE, PHOTO_SIDE), 100, dtype=torch.uint8)
    boxes = []
    for index in range(5):
        x, y, w, h = 120 + 30 * index, 150, 60, 80
        photos[index, :, y : y + h, x : x + w] = torch.tensor([255, 0, 0]).view(3, 1, 1)
        boxes.append([x, y, w, h])
    return ImageBank(
        photos=photos,
        photo_sizes=torch.full((5, 2), float(PHOTO_SIDE)),
        cutouts=cutout,
        cutout_sizes=torch.full((1, 2), float(side)),
        cutout_hulls=hull[None],
        object_photos=torch.arange(5),
        object_boxes=torch.tensor(boxes).float(),
        object_tracks=torch.tensor([-1, -1, 7, 7, 7]),
    )


def synthesizer(bank: ImageBank, seed: int = 0, **changes: float) -> PairSynthesizer:
    settings = dataclasses.replace(PLAIN, **changes)
    return PairSynthesizer(bank, settings, torch.Generator().manual_seed(seed))


def extent(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize(("kind", "channel"), [("pasted", 1), ("photo", 0), ("track", 0)])
def test_boxes_enclose_their_objects(bank: ImageBank, kind: str, channel: int) -> None:
    pasted, track = float(kind == "pasted"), float(kind == "track")
    pairs = synthesizer(bank, pasted=pasted, track=track).draw(40)
    others = [c for c in range(3) if c != channel]
    checked = 0
    for index in range(40):
        image = pairs.search[index].numpy().astype(int)
        mask = image[channel] > 40 + image[others].max(0)
        cx, cy, w, h = (pairs.box[index] * 256).tolist()
        low_x, low_y, high_x, high_y = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        if min(low_x, low_y) < 2 or max(high_x, high_y) > 254:
            continue
        np.testing.assert_allclose(
            extent(mask), (low_x, low_y, high_x, high_y), atol=0.07 * max(w, h) + 2
        )
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize(("kind", "channel"), [("pasted", 1), ("photo", 0)])
def test_boxes_follow_a_deformed_outline(bank: ImageBank, kind: str, channel: int) -> None:
    """Discs and rectangles bulge and shrink, so boxes of the undeformed ones would be off."""
    off = {}
    for strength in (0.0, 0.1):
        pairs = synthesizer(
            bank, pasted=float(kind == "pasted"), track=0, warp=1, warp_strength=strength, aspect=0
        ).draw(80)
        others = [c for c in range(3) if c != channel]
        errors, aspects = [], []
        for image, box in zip(
            pairs.search.numpy().astype(int), (pairs.box * 256).tolist(), strict=True
        ):
            cx, cy, w, h = box
            low_x, low_y, high_x, high_y = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
            if min(low_x, low_y) < 2 or max(high_x, high_y) > 254:
                continue
            seen = extent(image[channel] > 40 + image[others].max(0))
            error = np.abs(np.subtract(seen, (low_x, low_y, high_x, high_y))).max()
            errors.append(error / max(w, h))
            aspects.append(np.log((seen[2] - seen[0]) / (seen[3] - seen[1])))
        assert len(errors) >= 20
        off[strength] = (np.mean(errors), np.std(aspects))
    # A photo's box stands for the ellipse in it: its corners bend where nobody follows them.
    assert off[0.1][0] < off[0.0][0] + (0.03 if kind == "pasted" else 0.15)
    assert off[0.1][1] > off[0.0][1] + 0.05


def test_templates_are_centred_and_scaled(bank: ImageBank) -> None:
    pairs = synthesizer(bank, pasted=1.0).draw(20)
    for image in pairs.template.numpy().astype(int):
        low_x, low_y, high_x, high_y = extent(image[1] > 40 + image[[0, 2]].max(0))
        assert (low_x + high_x) / 2 == pytest.approx(64, abs=2)
        assert (low_y + high_y) / 2 == pytest.approx(64, abs=2)
        assert np.sqrt((high_x - low_x) * (high_y - low_y)) == pytest.approx(64, abs=4)


@pytest.mark.parametrize(("kind", "channel"), [("pasted", 1), ("photo", 0), ("track", 0)])
def test_some_distractors_look_like_the_target(bank: ImageBank, kind: str, channel: int) -> None:
    """Cut-outs are green and the objects of pictures red: what lies beside the target shows which
    it was made from."""
    pasted, track = float(kind == "pasted"), float(kind == "track")
    changes = {"pasted": pasted, "track": track, "distractors": 1.0, "center_jitter": 0.0}
    beside = []
    for copies in (1.0, 0.0):
        pairs = synthesizer(bank, copies=copies, **changes).draw(30)
        search = pairs.search.numpy().astype(int)
        for image, box in zip(search, (pairs.box * 256).tolist(), strict=True):
            cx, cy, w, h = box
            x, y = max(0, int(cx - 0.6 * w)), max(0, int(cy - 0.6 * h))
            image[:, y : int(cy + 0.6 * h), x : int(cx + 0.6 * w)] = 0
        like = search[:, channel] > 60 + np.delete(search, channel, 1).max(1)
        beside.append(int(like.any((1, 2)).sum()))
    assert beside[0] >= 15
    assert kind == "pasted" or beside[1] <= 3


def test_absent_targets_are_not_drawn(bank: ImageBank) -> None:
    pairs = synthesizer(bank, pasted=1.0, absent=1.0).draw(20)
    assert not pairs.present.any()
    image = pairs.search.numpy().astype(int)
    assert not (image[:, 1] > 40 + image[:, [0, 2]].max(1)).any()


def test_shapes_ranges_and_seeds(bank: ImageBank) -> None:
    settings = SynthesisSettings()
    draws = [
        PairSynthesizer(bank, settings, torch.Generator().manual_seed(seed)).draw(6)
        for seed in (1, 1, 2)
    ]
    first, again, other = draws
    assert first.template.shape == (6, 3, 128, 128)
    assert first.search.shape == (6, 3, 256, 256)
    assert first.search.dtype == torch.uint8
    assert torch.isfinite(first.box).all()
    assert (first.box[:, 2:] > 0).all()
    assert ((first.box[:, :2] > 0) & (first.box[:, :2] < 1)).all()
    assert torch.equal(first.search, again.search)
    assert not torch.equal(first.search, other.search)


def test_a_split_bank_shares_nothing(bank: ImageBank) -> None:
    bank.cutouts = bank.cutouts.repeat(4, 1, 1, 1)
    bank.cutout_sizes = bank.cutout_sizes.repeat(4, 1)
    bank.cutout_hulls = bank.cutout_hulls.repeat(4, 1, 1)
    train, held_out = bank.split(3)
    assert len(train.photos) + len(held_out.photos) == 5
    assert len(train.cutouts) + len(held_out.cutouts) == 4
    assert len(train.object_boxes) + len(held_out.object_boxes) == 5
    # pictures 0 and 3 are chosen, but 3 belongs to the track that starts with 2, which is not
    assert len(held_out.photos) == 1
    assert set(train.object_tracks.tolist()) == {-1, 7}
    for part in (train, held_out):
        for photo, box in zip(part.object_photos, part.object_boxes.long(), strict=True):
            x, y, w, h = box.tolist()
            assert (part.photos[photo, 0, y : y + h, x : x + w] == 255).all()
