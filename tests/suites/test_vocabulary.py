"""Words get the same numbers on every machine, and nothing that train lacks gets one."""

import torch

from polytask.suites.vocabulary import PAD, UNKNOWN, Vocabulary, padded

TEXTS = [["play", "a", "song"], ["play", "a", "film"], ["a"]]


def test_numbers_go_by_frequency_and_then_by_spelling() -> None:
    assert Vocabulary.of(TEXTS, 1).numbers == {"a": 2, "play": 3, "film": 4, "song": 5}


def test_order_of_texts_does_not_matter() -> None:
    assert Vocabulary.of(TEXTS, 1) == Vocabulary.of(TEXTS[::-1], 1)


def test_rare_words_are_unknown() -> None:
    vocabulary = Vocabulary.of(TEXTS, 2)
    assert vocabulary.numbers == {"a": 2, "play": 3}
    assert len(vocabulary) == 4
    tokens_NL, lengths_N = vocabulary.encode([["play", "song"], ["a"], ["new", "a", "play"]])
    assert tokens_NL.tolist() == [[3, UNKNOWN, PAD], [2, PAD, PAD], [UNKNOWN, 2, 3]]
    assert lengths_N.tolist() == [2, 1, 3]
    assert tokens_NL.dtype == lengths_N.dtype == torch.int64
    assert int(tokens_NL.max()) < len(vocabulary)


def test_long_texts_are_cut_and_empty_ones_become_unknown() -> None:
    tokens_NL, lengths_N = Vocabulary.of(TEXTS, 1).encode([["a", "play", "a"], []], longest=2)
    assert tokens_NL.tolist() == [[2, 3], [UNKNOWN, PAD]]
    assert lengths_N.tolist() == [2, 1]


def test_padded_fills_behind_the_rows() -> None:
    values_NL, lengths_N = padded([[5], [], [7, 8]], -100)
    assert values_NL.tolist() == [[5, -100], [-100, -100], [7, 8]]
    assert lengths_N.tolist() == [1, 0, 2]
