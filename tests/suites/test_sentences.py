"""sentences: six streams one encoder reads, and no held-out text in training."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polytask.suites import load
from polytask.suites.base import Split, Suite
from polytask.suites.sentences import LONGEST, RUN, sources, split_by_text
from polytask.suites.texts import Row, Sets, plain, tokens, without
from polytask.suites.vocabulary import PAD, UNKNOWN

SPLITS = ("train", "val", "test")
TASKS = ("mr", "subj", "cr", "mpqa", "trec", "sst2")


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load("sentences")


@pytest.fixture(scope="module")
def parts() -> dict[Split, Sets]:
    """The splits before anything is removed."""
    return split_by_text(*sources())


@pytest.fixture(autouse=True)
def data(request: pytest.FixtureRequest) -> None:
    """Skip the tests of the real suite where its files are absent."""
    if {"suite", "parts"} & set(request.fixturenames):
        require: Callable[..., Path] = request.getfixturevalue("require_data")
        require("sentence_cls")


def test_splits_are_drawn_by_text() -> None:
    whole = {task: [Row(0, f"text {i}") for i in range(100)] for task in ("mr", "subj", "cr")}
    whole["mpqa"] = [Row(1, "Text 7 !")] * 30
    given = {"trec": [Row(0, f"question {i // 2}") for i in range(100)], "sst2": [Row(0, "x")]}
    parts = split_by_text(whole, {"train": given, "val": {"sst2": []}, "test": given})
    assert tuple(parts["train"]) == TASKS
    assert [len(parts[split]["mr"]) for split in SPLITS] == [80, 10, 10]
    for split in SPLITS:
        assert parts[split]["mr"] == parts[split]["subj"] == parts[split]["cr"]
        assert len(parts[split]["mpqa"]) == (30 if Row(0, "text 7") in parts[split]["mr"] else 0)
    assert [len(parts[split]["trec"]) for split in SPLITS] == [90, 10, 100]
    assert not {r.text for r in parts["train"]["trec"]} & {r.text for r in parts["val"]["trec"]}


def test_streams_and_sizes(suite: Suite) -> None:
    for split in SPLITS:
        assert tuple(stream.name for stream in suite.split(split)) == TASKS
        assert all(tuple(stream.targets) == (stream.name,) for stream in suite.split(split))
    test = {stream.name: len(stream) for stream in suite.test}
    assert test["trec"] == 500
    assert test["sst2"] == 1_821
    for task, rows in (("mr", 10_662), ("subj", 10_000), ("cr", 3_775), ("mpqa", 10_606)):
        assert 0.09 < test[task] / rows < 0.11


def test_rows_that_left_are_told(suite: Suite) -> None:
    """Every row of the source is in a split or in the notes' counts."""
    sources = {"mr": 10_662, "subj": 10_000, "cr": 3_775, "mpqa": 10_606, "trec": 5_952}
    sources["sst2"] = 6_920 + 872 + 1_821
    kept = dict.fromkeys(TASKS, 0)
    for split in SPLITS:
        for stream in suite.split(split):
            kept[stream.name] += len(stream)
    told = dict.fromkeys(TASKS, 0)
    for note in suite.notes[:2]:
        for pair in note.split(": ")[1].rstrip(".").split(", "):
            task, count = pair.split(" ")
            told[task] += int(count.replace(",", ""))
    assert {task: kept[task] + told[task] for task in TASKS} == sources
    assert told["mr"] > 1_000  # the leak is real: SST-2 is cut from MR
    assert told["sst2"] > 1_000


def test_no_held_out_text_is_left_in_training(parts: dict[Split, Sets]) -> None:
    """Counted by words, where the suite itself goes by runs of letters."""
    train, _ = without(parts["train"], parts["val"], parts["test"], run=RUN)

    def texts(sets: Sets) -> set[tuple[str, ...]]:
        found = (
            tuple(re.findall("[a-z0-9]+", plain(r.text))) for rows in sets.values() for r in rows
        )
        return set(found) - {()}

    def runs(text: tuple[str, ...]) -> set[tuple[str, ...]]:
        return {text[i : i + 12] for i in range(len(text) - 11)}

    held, before, after = (
        texts(parts["val"]) | texts(parts["test"]),
        *map(texts, (parts["train"], train)),
    )
    assert len(before & held) > 2_000
    assert not after & held
    held_runs = {run for text in held for run in runs(text)}
    assert sum(not held_runs.isdisjoint(runs(text)) for text in before) > 2_000
    assert all(held_runs.isdisjoint(runs(text)) for text in after)


def test_one_encoder_reads_all_streams(suite: Suite) -> None:
    numbers = suite.encoder().embedding.num_embeddings
    for split in SPLITS:
        for stream in suite.split(split):
            tokens_NL = stream.inputs["tokens"]
            assert tuple(stream.inputs) == stream.ragged == ("tokens",)
            assert tokens_NL.dtype == torch.int64
            assert tokens_NL.shape[1] == int(stream.lengths.max()) <= LONGEST
            there_NL = torch.arange(tokens_NL.shape[1]) < stream.lengths[:, None]
            assert torch.equal(tokens_NL != PAD, there_NL)
            assert int(tokens_NL.max()) < numbers
    counts = sum(
        torch.bincount(s.inputs["tokens"].flatten(), minlength=numbers) for s in suite.train
    )
    assert (counts[UNKNOWN + 1 :] >= 2).all()  # every known word is one of train


def test_labels_cover_their_classes(suite: Suite) -> None:
    for split in SPLITS:
        for stream in suite.split(split):
            classes = suite.tasks.named(stream.name).kind.classes
            assert stream.targets[stream.name].unique().tolist() == list(range(classes))


def test_labels_mean_what_their_names_say(suite: Suite, parts: dict[Split, Sets]) -> None:
    """Words that give a class away."""
    train = parts["train"]
    for task, word, name in (
        ("mr", "dull", "negative"), ("sst2", "dull", "negative"), ("cr", "great", "positive"),
        ("mpqa", "support", "positive"), ("trec", "who", "person"), ("trec", "where", "place"),
        ("trec", "abbreviation", "abbreviation"), ("trec", "many", "number"),
        ("subj", "entertaining", "opinion"), ("subj", "father", "plot"),
    ):  # fmt: skip
        labels = torch.tensor([row.label for row in train[task] if word in tokens(row.text)])
        names = suite.tasks.named(task).kind.names
        assert names[labels.mode().values] == name, (task, word)
