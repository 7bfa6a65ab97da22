"""The suites on real data: sizes, splits, what they hide from the inputs, repeatability.

Counts are those of the sources' documentation; digits2 needs no file and is always tested.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.suites import SPLITS, Stream, Suite, load, suite_row
from polytask.suites import census as census_module
from polytask.suites import digits2 as digits2_module
from polytask.suites.splits import frozen_random, random_split
from polytask.tasks import Binary, Multiclass, Regression

NAMES = (
    "digits2", "tox21", "sider", "clintox", "census", "clicks", "clicked", "sarcos", "school",
)  # fmt: skip
SIZES = {
    "digits2": (5000, 1000, 2000),
    "tox21": (5476, 782, 1565),  # 7,831 less 8 whose SMILES did not parse
    "sider": (999, 143, 285),
    "clintox": (1036, 148, 296),  # 1,484 less 4
    "census": (72000, 8000, 19762),
    "clicks": (72000, 8000, 19762),
    "clicked": (72000, 8000, 19762),
    "sarcos": (3114, 445, 890),
    "school": (9216, 2301, 3845),
}
TASKS = {
    "digits2": 4, "tox21": 12, "sider": 27, "clintox": 2, "census": 3, "sarcos": 7, "school": 139,
    "clicks": 3, "clicked": 3,
}  # fmt: skip

loaded = cache(load)
EVERY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def suite(name: str, require_data: Callable[..., Path]) -> Suite:
    require_data(*map(str, suite_row(name).files))
    return loaded(name)


@pytest.fixture
def named(require_data: Callable[..., Path]) -> Callable[[str], Suite]:
    def get(name: str) -> Suite:
        require_data(*map(str, suite_row(name).files))
        return loaded(name)

    return get


def tensors(stream: Stream) -> Iterator[Tensor]:
    yield from stream.targets.values()
    yield from [stream.inputs] if isinstance(stream.inputs, Tensor) else stream.inputs.values()


def digest(suite: Suite) -> str:
    total = hashlib.sha256()
    for split in SPLITS:
        for stream in suite.split(split):
            for tensor in tensors(stream):
                total.update(tensor.numpy().tobytes())
    return total.hexdigest()


@EVERY
def test_rows_and_tasks_are_those_of_the_source(name: str, suite: Suite) -> None:
    sizes = tuple(sum(len(stream) for stream in suite.split(split)) for split in SPLITS)
    assert sizes == SIZES[name]
    assert len(suite.tasks) == TASKS[name]
    streams = 139 if name == "school" else 1
    assert all(len(suite.split(split)) == streams for split in SPLITS)


@EVERY
def test_a_second_load_gives_the_same_bits(name: str, suite: Suite) -> None:
    again = load(name)
    assert digest(again) == digest(suite)
    assert again.tasks == suite.tasks


@EVERY
def test_a_reader_is_told_where_it_comes_from(name: str, suite: Suite) -> None:
    about = suite.about
    assert all((about.title, about.source, about.licence, about.citation, about.protocol))
    assert suite.notes


@EVERY
def test_the_encoder_and_the_heads_fit_the_streams(name: str, suite: Suite) -> None:
    torch.manual_seed(0)
    encoder = suite.encoder()
    for split in SPLITS:
        stream = suite.split(split)[0].take(torch.arange(5))
        features = encoder(stream.inputs)
        assert features.shape == (5, suite.width)
        for task, target in stream.targets.items():
            kind = suite.tasks.named(task).kind
            total, count = kind.loss(kind.head(suite.width)(features), kind.encode(target))
            assert bool(total.isfinite().all())
            assert bool((count >= 0).all())


@EVERY
def test_every_task_can_be_measured_in_every_split(name: str, suite: Suite) -> None:
    for split in SPLITS:
        for stream in suite.split(split):
            for task, target in stream.targets.items():
                labels = target[~target.isnan()] if target.is_floating_point() else target
                assert len(labels.unique()) > 1, (split, task)


def test_a_random_split_takes_every_row_once() -> None:
    rows = random_split(1003, val=0.1, test=0.2, random=frozen_random(3))
    assert [len(rows[split]) for split in SPLITS] == [702, 100, 201]
    assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(1003))
    assert all(bool((part.diff() > 0).all()) for part in rows.values())


def test_the_random_split_is_the_one_results_were_published_with() -> None:
    """NumPy may change what a seed gives; scores on another split are not comparable."""
    rows = random_split(1000, val=0.1, test=0.2, random=frozen_random(0))
    sums = {
        split: hashlib.sha256(part.numpy().tobytes()).hexdigest()[:16]
        for split, part in rows.items()
    }
    assert sums == {
        "train": "359733765177c57b",
        "val": "f5ab8f3fee0212c0",
        "test": "2e9888daff994313",
    }


def test_digits2_is_the_one_results_were_published_with(named: Callable[[str], Suite]) -> None:
    assert digest(named("digits2"))[:16] == "1a18d27d7619bb9e"


# digits2


def drawn_from(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Build digits2, recording which source digits each split is drawn from."""
    used: list[set[int]] = []
    draw = digits2_module.draw

    def recording(*arguments: object) -> object:
        pictures = draw(*arguments)  # type: ignore[arg-type]
        used.append({*pictures.left_N.tolist(), *pictures.right_N.tolist()})
        return pictures

    monkeypatch.setattr(digits2_module, "draw", recording)
    digits2_module.digits2()
    return used


def test_no_source_digit_is_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val, test = drawn_from(monkeypatch)
    assert not train & val
    assert not train & test
    assert not val & test
    assert len(train | val | test) > 1700  # of 1,797: nearly all are used


def test_a_picture_of_two_blocks_has_the_targets_one_can_count() -> None:
    """Two full squares: overlap is a matter of arithmetic, and ink is clipped, not doubled."""
    digits = np.ones((1, 8, 8))
    drawn = digits2_module.draw(digits, np.array([0]), 50, frozen_random(0))
    assert drawn.pixels_NHW.max() == 1.0
    union_N = drawn.pixels_NHW.sum((1, 2))
    np.testing.assert_allclose(drawn.overlap_N, (128 - union_N) / 64)
    columns_N = (drawn.pixels_NHW.max(1) > 0).sum(1)
    np.testing.assert_array_equal(columns_N, 8 + drawn.offset_N)


def test_digits2_spans_its_ranges(named: Callable[[str], Suite]) -> None:
    suite = named("digits2")
    targets = suite.train[0].targets
    assert [type(task.kind) for task in suite.tasks] == [Multiclass] * 2 + [Regression] * 2
    assert targets["left"].unique().tolist() == list(range(10))
    assert targets["offset"].unique().tolist() == [2, 3, 4, 5, 6]
    assert 0 <= targets["overlap"].min() < 0.01
    assert 0.3 < targets["overlap"].max() <= 1
    pictures = suite.train[0].inputs
    assert isinstance(pictures, Tensor)
    assert pictures.shape[1:] == (1, 10, 14)
    assert (pictures.min(), pictures.max()) == (0, 1)


# molecules


def test_missing_assays_stay_missing(named: Callable[[str], Suite]) -> None:
    labels = torch.stack(
        [torch.cat([named("tox21").split(s)[0].targets[t] for s in SPLITS]) for t in
         named("tox21").tasks.names]
    )  # fmt: skip
    assert float(labels.isnan().float().mean()) == pytest.approx(0.171, abs=0.001)


@pytest.mark.parametrize("name", ["tox21", "sider", "clintox"])
def test_labels_and_fingerprints_keep_their_rows(name: str, suite: Suite, data_root: Path) -> None:
    """Every (fingerprint, labels) pair of the suite is one of the source's, counted by hand."""
    folder = data_root / "moleculenet"
    arrays = np.load(folder / f"{name}_ecfp4_1024.npz", allow_pickle=False)
    with gzip.open(folder / f"{name}.csv.gz", "rt") as text:
        header, *rows = csv.reader(text)
    columns = [i for i, column in enumerate(header) if column not in ("smiles", "mol_id")]
    expected = sorted(
        bits.tobytes() + "".join(row[i][:1] or "-" for i in columns).encode()
        for bits, row, valid in zip(arrays["fp"], rows, arrays["valid"], strict=True)
        if valid
    )
    found = []
    for split in SPLITS:
        stream = suite.split(split)[0]
        assert isinstance(stream.inputs, Tensor)
        packed = np.packbits(stream.inputs.numpy().astype(bool), axis=1)
        labels = torch.stack(list(stream.targets.values()), 1).tolist()
        signs = {0.0: "0", 1.0: "1"}
        found += [
            bits.tobytes() + "".join(signs.get(label, "-") for label in row).encode()
            for bits, row in zip(packed, labels, strict=True)
        ]
    assert sorted(found) == expected
    assert all(isinstance(task.kind, Binary) for task in suite.tasks)


# census


def test_census_hides_what_the_targets_are_made_of() -> None:
    inputs = {*census_module.NUMERIC, *census_module.CATEGORICAL}
    hidden = {"income_50k", "marital_stat", "education", "instance_weight"}
    assert inputs | hidden == set(census_module.COLUMNS)
    assert not inputs & hidden


def test_census_rows_are_the_source_rows(
    named: Callable[[str], Suite], require_data: Callable[..., Path]
) -> None:
    root = require_data("census_income_kdd/columns.txt") / "census_income_kdd"
    assert tuple((root / "columns.txt").read_text().split()) == census_module.COLUMNS
    test = named("census").test[0]
    assert not isinstance(test.inputs, Tensor)
    with gzip.open(root / "census-income.test.gz", "rt") as text:
        rows = list(csv.DictReader(text, census_module.COLUMNS, skipinitialspace=True))[80_000:]
    degrees = ("Bachelors", "Masters", "Prof school", "Doctorate")
    expected = {
        "income": [row["income_50k"] == "50000+." for row in rows],
        "never_married": [row["marital_stat"] == "Never married" for row in rows],
        "degree": [row["education"].startswith(degrees) for row in rows],
    }
    for task, answers in expected.items():
        assert test.targets[task].bool().tolist() == answers
    numeric = test.inputs["numeric"]
    assert numeric[:, 0].tolist() == [float(row["age"]) for row in rows]
    gains = torch.tensor([float(row["capital_gains"]) for row in rows]).log1p()
    assert torch.equal(numeric[:, census_module.NUMERIC.index("capital_gains")], gains)


def test_a_category_unseen_in_training_has_code_0() -> None:
    codes, size = census_module._codes(["b", "a", "c", "a"], torch.tensor([0, 1]))
    assert codes.tolist() == [2, 1, 0, 1]
    assert size == 3


def test_no_training_category_has_code_0(named: Callable[[str], Suite]) -> None:
    train = named("census").train[0].inputs
    assert not isinstance(train, Tensor)
    assert train["categorical"].min() == 1


# sarcos, school


def test_sarcos_keeps_inputs_and_torques_together(
    named: Callable[[str], Suite], data_root: Path
) -> None:
    from scipy.io import loadmat

    source = loadmat(data_root / "sarcos_4449" / "sarcos_inv_test.mat")["sarcos_inv_test"]
    rows = []
    for split in SPLITS:
        stream = named("sarcos").split(split)[0]
        assert isinstance(stream.inputs, Tensor)
        rows.append(torch.cat([stream.inputs, torch.stack(list(stream.targets.values()), 1)], 1))
    found = torch.cat(rows).numpy()
    expected = source.astype(np.float32)
    np.testing.assert_array_equal(*(x[np.lexsort(x.T)] for x in (found, expected)))


def test_a_school_has_its_own_stream_and_60_percent_to_train(
    named: Callable[[str], Suite], data_root: Path
) -> None:
    from scipy.io import loadmat

    suite = named("school")
    cells = loadmat(data_root / "school" / "school.mat")
    for i, name in enumerate(suite.tasks.names):
        parts = [suite.split(split)[i] for split in SPLITS]
        assert all(part.name == name and list(part.targets) == [name] for part in parts)
        rows = len(cells["Y"][0, i])
        assert abs(len(parts[0]) - 0.6 * rows) <= 1
        scores = sorted(torch.cat([part.targets[name] for part in parts]).tolist())
        assert scores == sorted(cells["Y"][0, i].ravel().tolist())
