"""texts: sets that write words differently agree, and what is held out leaves training."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.suites.base import Split
from polytask.suites.texts import Row, Sets, apart, key, streams, tokens, without
from polytask.suites.vocabulary import PAD, UNKNOWN

RUN = 32


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's good .", ["it", "'s", "good", "."]),
        ("it 's good.", ["it", "'s", "good", "."]),
        ("does n't", ["does", "n't"]),
        ("does n 't", ["does", "n't"]),
        ("doesn't", ["does", "n't"]),
        ("Béart , u.s. so-so", ["beart", ",", "u.s", ".", "so-so"]),
        ("", []),
    ],
)
def test_sets_that_cut_words_differently_end_with_the_same(text: str, words: list[str]) -> None:
    assert tokens(text) == words


def test_the_same_text_has_the_same_key_however_it_is_written() -> None:
    assert key("It's a Crème brûlée -- isn't it ?") == key("it 's a creme brulee is n't it")
    assert key("a dull film") != key("a dull films")
    assert key(" ? !") == ""


LONG = "an endless string of words that goes on and on without ever coming to a point"


def test_held_out_texts_leave_training_whole_or_in_part() -> None:
    train = {
        "a": [Row(0, "A dull film."), Row(1, "a fine film"), Row(1, f"well , {LONG} .")],
        "b": [Row(0, LONG[:RUN]), Row(0, "?")],
    }
    held = {"c": [Row(1, "a dull film")], "d": [Row(0, LONG), Row(0, "!")]}
    kept, removed = without(train, held, run=RUN)
    # LONG[:RUN] has spaces, so fewer letters than a run: too short to tell from chance.
    assert kept == {"a": [Row(1, "a fine film")], "b": [Row(0, LONG[:RUN]), Row(0, "?")]}
    assert removed == {"a": 2, "b": 0}


LETTERS = st.lists(st.text("ab", max_size=14), max_size=6)


@given(train=LETTERS, held=LETTERS, run=st.integers(1, 9))
def test_shared_runs_are_those_that_brute_force_finds(
    train: list[str], held: list[str], run: int
) -> None:
    """Two letters only, so that runs of every length are shared, cross and repeat."""
    runs = {text[i : i + run] for text in held for i in range(len(text) - run + 1)}
    expected = [
        text
        for text in train
        if (not text or text not in held)
        and not any(text[i : i + run] in runs for i in range(len(text) - run + 1))
    ]
    kept, lost = without(
        {"a": [Row(0, text) for text in train]}, {"b": [Row(0, text) for text in held]}, run=run
    )
    assert [row.text for row in kept["a"]] == expected
    assert lost == {"a": len(train) - len(expected)}


def test_train_gives_way_to_both_and_validation_to_test() -> None:
    splits: dict[Split, Sets] = {
        "train": {"a": [Row(0, "one"), Row(0, "two")], "b": [Row(1, "three"), Row(1, "four")]},
        "val": {"a": [Row(0, "Two!"), Row(1, "five")], "b": [Row(0, "six")]},
        "test": {"a": [Row(1, "FIVE"), Row(0, "five")], "b": [Row(1, "three")]},
    }
    parts, notes = apart(splits, run=RUN)
    assert parts == {
        "train": {"a": [Row(0, "one")], "b": [Row(1, "four")]},
        "val": {"a": [Row(0, "Two!")], "b": [Row(0, "six")]},
        "test": splits["test"],
    }
    assert notes == (
        "Removed from train because held out in some set: a 1, b 1.",
        "Removed from validation because in the test split of some set: a 1, b 0.",
    )


def test_streams_know_the_words_of_train_up_to_the_cut() -> None:
    splits: dict[Split, Sets] = {
        "train": {"a": [Row(0, "good good bad never")], "b": [Row(1, "bad luck good never")]},
        "val": {"a": [Row(1, "luck luck luck")]},
        "test": {"b": [Row(0, "never bad good bad"), Row(1, "luck")]},
    }
    made = streams(splits, longest=3, least=2)
    assert made.words.numbers == {"good": 2, "bad": 3}  # "never" stands behind the cut
    assert made.cut == 3
    assert [s.name for s in made.splits["train"]] == ["a", "b"]
    (val,), (test,) = made.splits["val"], made.splits["test"]
    assert val.inputs["tokens"].tolist() == [[UNKNOWN] * 3]
    assert test.inputs["tokens"].tolist() == [[UNKNOWN, 3, 2], [UNKNOWN, PAD, PAD]]
    assert test.lengths.tolist() == [3, 1]
    assert test.ragged == ("tokens",)
    assert {name: t.tolist() for name, t in test.targets.items()} == {"b": [0, 1]}
