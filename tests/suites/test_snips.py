"""snips is read as the source lays it out, and rare slot labels are missing, not guessed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polytask.suites import load
from polytask.suites.base import Suite
from polytask.suites.snips import Request, parse, stream, unseen_slots
from polytask.suites.vocabulary import PAD, UNKNOWN, Vocabulary
from polytask.tasks import IGNORE

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load("snips")


@pytest.fixture(autouse=True)
def data(request: pytest.FixtureRequest) -> None:
    """Skip the tests of the real suite where its files are absent."""
    if "suite" in request.fixturenames:
        require: Callable[..., Path] = request.getfixturevalue("require_data")
        require("snips")


def test_lines_are_words_slots_and_intent() -> None:
    text = "play a song\tO O B-item\tPlay\nhi\tO\tGreet\n"
    assert parse(text) == [
        Request(["play", "a", "song"], ["O", "O", "B-item"], "Play"),
        Request(["hi"], ["O"], "Greet"),
    ]


def test_a_slot_label_that_train_never_saw_is_missing_and_told() -> None:
    requests = parse("play it now\tO B-item B-when\tPlay\nhi\tO\tGreet\n")
    words, slots = Vocabulary({"play": 2, "it": 3}), ("B-item", "O")
    made = stream(requests, words, ("Greet", "Play"), slots)
    assert made.inputs["tokens"].tolist() == [[2, 3, UNKNOWN], [UNKNOWN, PAD, PAD]]
    assert made.targets["slots"].tolist() == [[1, 0, IGNORE], [1, IGNORE, IGNORE]]
    assert made.targets["intent"].tolist() == [1, 0]
    assert made.lengths is not None
    assert made.lengths.tolist() == [3, 1]
    assert unseen_slots({"train": [], "val": requests, "test": requests[1:]}, slots) == [
        "1 slot labels of val never occur in train and are missing there: B-when."
    ]


def test_sizes_are_those_of_the_source(suite: Suite) -> None:
    assert [len(suite.split(split)[0]) for split in SPLITS] == [13_084, 700, 700]
    assert suite.tasks.names == ("intent", "slots")
    assert len(suite.tasks.named("intent").kind.names) == 7
    assert len(suite.tasks.named("slots").kind.names) == 72
    assert suite.tasks.named("slots").primary.name == "span F1"


def test_words_and_slots_stand_side_by_side(suite: Suite) -> None:
    for split in SPLITS:
        (made,) = suite.split(split)
        tokens_NL, slots_NL = made.inputs["tokens"], made.targets["slots"]
        assert tokens_NL.shape == slots_NL.shape
        there_NL = torch.arange(tokens_NL.shape[1]) < made.lengths[:, None]
        assert torch.equal(tokens_NL != PAD, there_NL)
        assert torch.equal(slots_NL != IGNORE, there_NL)  # this source has no unseen slot
        assert made.ragged == ("tokens", "slots")
        assert int(made.lengths.min()) >= 1
        assert int(made.lengths.max()) == tokens_NL.shape[1]


def test_the_first_test_request_reads_as_in_the_source(suite: Suite) -> None:
    """add sabrina salerno to the grime instrumentals playlist"""
    (made,) = suite.test
    names = suite.tasks.named("slots").kind.names
    assert [names[slot] for slot in made.targets["slots"][0].tolist() if slot != IGNORE] == [
        "O", "B-artist", "I-artist", "O", "O", "B-playlist", "I-playlist", "O",
    ]  # fmt: skip
    assert suite.tasks.named("intent").kind.names[made.targets["intent"][0]] == "AddToPlaylist"


def test_the_vocabulary_is_of_train_alone(suite: Suite) -> None:
    """Every number occurs in train at least twice; val and test have unknown words."""
    counts = torch.bincount(suite.train[0].inputs["tokens"].flatten())
    assert len(counts) == suite.encoder().embedding.num_embeddings
    assert (counts[UNKNOWN + 1 :] >= 2).all()
    for split in SPLITS:
        assert (suite.split(split)[0].inputs["tokens"] == UNKNOWN).any()


def test_the_encoder_feeds_both_heads(suite: Suite) -> None:
    rows = suite.test[0].take(torch.arange(4))
    features = suite.encoder()(rows.inputs)
    for task in suite.tasks:
        output = task.kind.head(suite.width)(features[task.kind.reads])
        loss, count = task.kind.loss(output, task.kind.encode(rows.targets[task.name]))
        assert loss.sum().isfinite()
        assert count.sum() > 0


def test_the_default_encoder_learns(suite: Suite) -> None:
    """Thirty steps on train beat the most frequent intent of test by far."""
    torch.manual_seed(0)
    kind = suite.tasks.named("intent").kind
    encoder, head = suite.encoder(), kind.head(suite.width)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=3e-3)
    for rows_B in torch.randperm(len(suite.train[0]))[: 30 * 64].split(64):
        rows = suite.train[0].take(rows_B)
        inputs = {"tokens": rows.inputs["tokens"][:, : int(rows.lengths.max())]}
        loss, count = kind.loss(head(encoder(inputs)["row"]), rows.targets["intent"])
        optimiser.zero_grad()
        (loss.sum() / count.sum()).backward()
        optimiser.step()
    encoder.eval()
    with torch.no_grad():
        intents_N = head(encoder(suite.test[0].inputs)["row"]).argmax(1)
    target_N = suite.test[0].targets["intent"]
    assert (intents_N == target_N).float().mean() > 0.8
    assert target_N.bincount().max() / len(target_N) < 0.2
