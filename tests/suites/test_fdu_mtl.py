"""fdu_mtl: the source's reviews by domain, its test split, and no held-out review in training."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polytask.errors import DataError, MissingExtra
from polytask.suites import load, suite_row
from polytask.suites.base import Split, Suite
from polytask.suites.fdu_mtl import LEAST, LONGEST, RUN, VALIDATION, _sources, split
from polytask.suites.texts import Row, Sets, apart, plain, streams
from polytask.suites.vocabulary import PAD, UNKNOWN

SPLITS = ("train", "val", "test")
DOMAINS = suite_row("fdu_mtl").tasks
TRAIN = dict(zip(DOMAINS, (
    1_600, 1_600, 1_500, 1_600, 1_597, 1_600, 1_598, 1_600, 1_600, 1_600, 1_570, 1_600, 1_515,
    1_600, 1_600, 1_600,
), strict=True))  # fmt: skip
"""Rows of the source's train, counted in its files."""


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load("fdu_mtl")


@pytest.fixture(scope="module")
def sources() -> dict[Split, Sets]:
    """Train and test as they are, before anything is split or removed."""
    return _sources()


@pytest.fixture(scope="module")
def parts(sources: dict[Split, Sets]) -> dict[Split, Sets]:
    """What the suite is made of, by a way of its own."""
    return apart(split(sources), run=RUN)[0]


@pytest.fixture(autouse=True)
def data(request: pytest.FixtureRequest) -> None:
    """Skip the tests of the real suite where its file is absent."""
    if {"suite", "sources", "parts"} & set(request.fixturenames):
        require: Callable[..., Path] = request.getfixturevalue("require_data")
        require("fdu_mtl/fdu_mtl.parquet")


def test_validation_is_the_end_of_train() -> None:
    rows = [Row(i % 2, f"review {i}") for i in range(VALIDATION + 7)]
    parts = split({"train": {"a": rows}, "test": {"a": rows[:1]}})
    assert parts == {
        "train": {"a": rows[:7]}, "val": {"a": rows[7:]}, "test": {"a": rows[:1]},
    }  # fmt: skip
    assert tuple(parts) == SPLITS


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"fdu_mtl needs.*'polytask\[tables\]'"):
        _sources()


def test_the_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTASK_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"fdu_mtl/fdu_mtl\.parquet is missing.*ccsasuke/man"):
        load("fdu_mtl")


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTASK_DATA", str(tmp_path))
    (tmp_path / "fdu_mtl").mkdir()
    (tmp_path / "fdu_mtl" / "fdu_mtl.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"is not the one fdu_mtl/fdu_mtl\.parquet should be"):
        load("fdu_mtl")


def test_rows_are_those_of_the_source(sources: dict[Split, Sets]) -> None:
    assert tuple(sources["train"]) == tuple(sources["test"]) == DOMAINS
    assert {domain: len(rows) for domain, rows in sources["train"].items()} == TRAIN
    assert all(len(rows) == 400 for rows in sources["test"].values())
    for sets in sources.values():
        for rows in sets.values():
            assert {row.label for row in rows} == {0, 1}


def test_streams_and_sizes(suite: Suite) -> None:
    for name in SPLITS:
        assert tuple(stream.name for stream in suite.split(name)) == DOMAINS
        assert all(tuple(stream.targets) == (stream.name,) for stream in suite.split(name))
    assert all(len(stream) == 400 for stream in suite.test)
    assert sum(map(len, suite.train)) == 21_217
    assert sum(map(len, suite.val)) == 3_110
    assert all(0.8 * VALIDATION < len(stream) <= VALIDATION for stream in suite.val)


def test_rows_that_left_are_told(suite: Suite) -> None:
    """Every row of the source's train is in train, in validation, or in the notes' counts."""
    told = dict.fromkeys(DOMAINS, 0)
    for note in suite.notes[:2]:
        for pair in note.split(": ")[1].rstrip(".").split(", "):
            task, count = pair.split(" ")
            told[task] += int(count.replace(",", ""))
    kept = {a.name: len(a) + len(b) for a, b in zip(suite.train, suite.val, strict=True)}
    assert {task: kept[task] + told[task] for task in DOMAINS} == TRAIN
    assert told["magazines"] > 200  # the leak is real: many reviews stand in train and in test
    assert told["mr"] == told["imdb"] == 0


def test_no_held_out_review_is_left_in_training(
    sources: dict[Split, Sets], parts: dict[Split, Sets]
) -> None:
    """Counted by words, where the suite itself goes by runs of letters."""

    def texts(sets: Sets) -> set[tuple[str, ...]]:
        found = (
            tuple(re.findall("[a-z0-9]+", plain(r.text))) for rows in sets.values() for r in rows
        )
        return set(found) - {()}

    held = {"val": texts(parts["val"]), "test": texts(sources["test"])}
    assert len(texts(sources["train"]) & held["test"]) > 300
    for name in ("val", "test"):
        assert not texts(parts["train"]) & held[name]
    assert not held["val"] & held["test"]


def test_labels_are_balanced(suite: Suite) -> None:
    for name in SPLITS:
        for stream in suite.split(name):
            labels = stream.targets[stream.name]
            assert labels.unique().tolist() == [0, 1]
            # The copies of video and magazines are mostly unfavourable; train without them is not.
            assert 0.41 < labels.float().mean() < 0.59, (name, stream.name)


def test_labels_mean_what_their_names_say(suite: Suite, sources: dict[Split, Sets]) -> None:
    """Words that give a class away, in every domain."""
    for domain, rows in sources["train"].items():
        kind = suite.tasks.named(domain).kind
        for word, name in (("waste", "negative"), ("excellent", "positive")):
            if domain == "mr" and word == "waste":
                word = "dull"
            labels = torch.tensor([row.label for row in rows if word in row.text.split()])
            assert kind.names[labels.mode().values] == name, (domain, word)


def test_one_encoder_reads_all_streams(suite: Suite) -> None:
    numbers = suite.encoder().embedding.num_embeddings
    for name in SPLITS:
        for stream in suite.split(name):
            tokens_NL = stream.inputs["tokens"]
            assert tuple(stream.inputs) == stream.ragged == ("tokens",)
            assert tokens_NL.shape[1] == int(stream.lengths.max()) <= LONGEST
            there_NL = torch.arange(tokens_NL.shape[1]) < stream.lengths[:, None]
            assert torch.equal(tokens_NL != PAD, there_NL)
            assert int(tokens_NL.max()) < numbers


def test_the_vocabulary_is_of_train_alone(suite: Suite) -> None:
    """Every number occurs in train at least twice; val and test have unknown words."""
    numbers = suite.encoder().embedding.num_embeddings
    counts = sum(
        torch.bincount(s.inputs["tokens"].flatten(), minlength=numbers) for s in suite.train
    )
    assert (counts[UNKNOWN + 1 :] >= 2).all()
    for name in ("val", "test"):
        assert all((s.inputs["tokens"] == UNKNOWN).any() for s in suite.split(name))


def test_a_second_build_gives_the_same_bits(suite: Suite, parts: dict[Split, Sets]) -> None:
    again = streams(parts, longest=LONGEST, least=LEAST)
    for name in SPLITS:
        for one, other in zip(suite.split(name), again.splits[name], strict=True):
            assert torch.equal(one.inputs["tokens"], other.inputs["tokens"])
            assert torch.equal(one.targets[one.name], other.targets[other.name])


def test_the_default_encoder_learns(suite: Suite) -> None:
    """Two passes over five domains of train are far above chance on their validation rows."""
    torch.manual_seed(0)
    picked = [stream for stream in suite.train if stream.name in DOMAINS[3:8]]
    kinds = {stream.name: suite.tasks.named(stream.name).kind for stream in picked}
    encoder = suite.encoder()
    heads = torch.nn.ModuleDict({n: kind.head(suite.width) for n, kind in kinds.items()})
    optimiser = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-2, fused=True)
    for _ in range(2):
        batches = [(s, rows) for s in picked for rows in torch.randperm(len(s)).split(64)]
        for i in torch.randperm(len(batches)).tolist():
            stream, rows_B = batches[i]
            rows = stream.take(rows_B)
            inputs = {"tokens": rows.inputs["tokens"][:, : int(rows.lengths.max())]}
            output = heads[rows.name](encoder(inputs))
            loss, count = kinds[rows.name].loss(output, rows.targets[rows.name])
            optimiser.zero_grad()
            (loss.sum() / count.sum()).backward()
            optimiser.step()
    encoder.eval()
    held = [stream for stream in suite.val if stream.name in kinds]
    with torch.no_grad():
        right = [heads[s.name](encoder(s.inputs)).argmax(1) == s.targets[s.name] for s in held]
    assert torch.cat(right).float().mean() > 0.75
