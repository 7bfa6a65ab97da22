"""camvid: pixel labels as in the source, and the distance derived from them by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from polytask.errors import MissingExtra
from polytask.suites import camvid as room
from polytask.suites import load
from polytask.suites.base import Suite
from polytask.suites.camvid import FURTHEST, HEIGHT, WIDTH, edge_distance
from polytask.tasks import IGNORE

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load("camvid")


@pytest.fixture(autouse=True)
def data(request: pytest.FixtureRequest) -> None:
    """Skip the tests of the real suite where its files are absent."""
    if "suite" in request.fixturenames:
        require: Callable[..., Path] = request.getfixturevalue("require_data")
        require("camvid_small")


def test_distance_is_to_the_nearest_pixel_of_another_label() -> None:
    """Against the definition, pixel by pixel."""
    labels_HW = np.random.RandomState(0).randint(0, 3, (4, 5)).repeat(6, 0).repeat(6, 1)
    places = np.stack(np.indices(labels_HW.shape), -1).reshape(-1, 2).astype(float)
    flat = labels_HW.ravel()
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    apart[flat[:, None] == flat[None]] = np.inf
    expected = np.minimum(apart.min(1), FURTHEST).reshape(labels_HW.shape)
    assert expected.max() > 5
    np.testing.assert_allclose(edge_distance(labels_HW), expected, rtol=1e-6)


def test_distance_is_cut_and_the_frame_is_no_edge() -> None:
    labels_HW = np.zeros((40, 50), dtype=np.uint8)
    labels_HW[:, 49] = 1
    distance_HW = edge_distance(labels_HW)
    assert distance_HW[0, 48] == distance_HW[20, 49] == 1
    assert distance_HW[20, 39] == 10
    assert distance_HW[20, 0] == FURTHEST
    assert (edge_distance(np.zeros((3, 4), dtype=np.uint8)) == FURTHEST).all()


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"camvid needs.*'polytask\[images\]'"):
        room._read(room.files.CAMVID[0])


def test_sizes_are_those_of_the_source(suite: Suite) -> None:
    assert [len(suite.split(split)[0]) for split in SPLITS] == [367, 101, 233]
    assert suite.tasks.names == ("segments", "edge_distance")
    names = suite.tasks.named("segments").kind.names
    assert len(names) == 11
    assert (names[0], names[3], names[10]) == ("Sky", "Road", "Bicyclist")
    for split in SPLITS:
        (made,) = suite.split(split)
        assert made.inputs.shape == (len(made), 3, HEIGHT, WIDTH)
        assert made.inputs.dtype == torch.uint8


def test_no_picture_is_in_two_splits(suite: Suite) -> None:
    seen = [
        {picture.numpy().tobytes() for picture in suite.split(split)[0].inputs} for split in SPLITS
    ]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 701


def test_both_tasks_are_missing_at_the_same_pixels(suite: Suite) -> None:
    for split in SPLITS:
        (made,) = suite.split(split)
        labels, distance = made.targets["segments"], made.targets["edge_distance"]
        missing = labels == IGNORE
        assert torch.equal(missing, distance.isnan())
        assert 0.01 < missing.float().mean() < 0.06
        assert labels[~missing].unique().tolist() == list(range(11))
        assert float(distance[~missing].min()) == 1.0
        assert float(distance[~missing].max()) == FURTHEST


def test_labels_lie_where_the_things_are(suite: Suite) -> None:
    """Sky is above the road and brighter: pictures and labels belong together, upright."""
    (made,) = suite.test
    height_H = torch.arange(HEIGHT, dtype=torch.float32)[:, None].expand(HEIGHT, WIDTH)
    sky, road = (made.targets["segments"] == number for number in (0, 3))
    height_NHW = height_H.expand_as(made.targets["segments"])
    assert height_NHW[sky].mean() < 30 < 60 < height_NHW[road].mean()
    brightness_NHW = made.inputs.float().mean(1)
    assert brightness_NHW[sky].mean() > 1.5 * brightness_NHW[road].mean()


def test_the_encoder_feeds_both_heads_and_learns(suite: Suite) -> None:
    """Steps on 12 pictures lower both losses far below those of a constant."""
    torch.manual_seed(0)
    rows = suite.train[0].take(torch.arange(0, 367, 31))
    encoder = suite.encoder()
    heads = torch.nn.ModuleDict({t.name: t.kind.head(suite.width) for t in suite.tasks})
    optimiser = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-2)
    history = []
    for _ in range(25):
        features = encoder(rows.inputs)["map"]
        losses = []
        for task in suite.tasks:
            target = task.kind.encode(rows.targets[task.name])
            loss, count = task.kind.loss(heads[task.name](features), target)
            losses.append(loss / count)
        history.append([float(loss.detach()) for loss in losses])
        optimiser.zero_grad()
        sum(losses).backward()
        optimiser.step()
    labels = rows.targets["segments"]
    shares = labels[labels != IGNORE].bincount().double()
    shares = shares[shares > 0] / shares.sum()
    distance = suite.tasks.named("edge_distance").kind.encode(rows.targets["edge_distance"])
    constant = [-float((shares * shares.log()).sum()), float(distance[~distance.isnan()].var())]
    assert history[-1][0] < 0.8 * constant[0]
    assert history[-1][1] < 0.8 * constant[1]
