"""Sets of labelled texts become streams: one for each set, with one vocabulary, and no leak.

Sets of texts overlap, with each other and with their own test part, and whoever trains on one then
trains on what is held out in another. `apart` takes out of training what is held out anywhere.

Shapes: N = texts, L = words of the longest one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from polytask.suites.base import SPLITS, Split, Stream
from polytask.suites.vocabulary import Vocabulary


class Row(NamedTuple):
    """One text of the source."""

    label: int
    text: str


Sets = dict[str, list[Row]]
"""Rows per task."""
Seeds = dict[str, list[tuple[str, int]]]
"""Pieces of held-out texts: in which text each occurs, and where."""


class TextStreams(NamedTuple):
    """What texts became. words: the vocabulary; cut: how many texts lost their end."""

    splits: dict[Split, list[Stream]]
    words: Vocabulary
    cut: int


def plain(text: str) -> str:
    """Return the text in small letters without accents: SST has them where MR lost some."""
    text = text.lower()
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFKD", text)
    return "".join(mark for mark in apart if not unicodedata.combining(mark))


def key(text: str) -> str:
    """Return what makes two texts the same: letters and digits, without case or accents.

    The sets cut words differently ("it's", "it 's", "does n 't"), so spaces and signs do not count.
    """
    return re.sub(r"[^a-z0-9]", "", plain(text))


_WORD = re.compile(r"n't|'(?:s|ve|re|d|ll|m)\b|[a-z0-9]+(?:[-.][a-z0-9]+)*|[^\w\s]")


def tokens(text: str) -> list[str]:
    """Return words, clitics and signs, cut the same way in all sets ("does", "n't")."""
    return _WORD.findall(re.sub(r"\s*n\s?'t\b", " n't ", plain(text)))


def apart(splits: Mapping[Split, Sets], *, run: int) -> tuple[dict[Split, Sets], tuple[str, ...]]:
    """Return the splits without leaks, and notes that say how many rows train and val lost.

    No text of test stays in val or train, and none of val in train; see `without`.
    """
    test = splits["test"]
    val, val_lost = without(splits["val"], test, run=run)
    train, train_lost = without(splits["train"], val, test, run=run)
    return {"train": train, "val": val, "test": test}, (
        f"Removed from train because held out in some set: {_told(train_lost)}.",
        f"Removed from validation because in the test split of some set: {_told(val_lost)}.",
    )


def without(sets: Sets, *held: Sets, run: int) -> tuple[Sets, dict[str, int]]:
    """Return the sets without what is held out, and how many rows each lost.

    A row goes if its text equals a held-out one or shares `run` letters and digits in a row with
    one: a text may be a part of another, so equal texts are not all of the leak.
    """
    texts = {key(row.text) for part in held for rows in part.values() for row in rows} - {""}
    seeds = _seeds(texts, run)
    kept: Sets = {}
    for task, rows in sets.items():
        keys = (key(row.text) for row in rows)
        kept[task] = [
            row
            for row, text in zip(rows, keys, strict=True)
            if text not in texts and not _shares(text, seeds, run)
        ]
    return kept, {task: len(rows) - len(kept[task]) for task, rows in sets.items()}


def streams(splits: Mapping[Split, Sets], *, longest: int, least: int) -> TextStreams:
    """Return a stream for each set of each split, named as its task, with numbers of words.

    Texts are cut after `longest` words. A word is known if it occurs `least` times in train.
    """
    words = {
        split: {task: [tokens(row.text) for row in rows] for task, rows in sets.items()}
        for split, sets in splits.items()
    }
    known = Vocabulary.of(
        (text[:longest] for texts in words["train"].values() for text in texts), least
    )
    made: dict[Split, list[Stream]] = {split: [] for split in SPLITS}
    for split, sets in splits.items():
        for task, rows in sets.items():
            tokens_NL, lengths_N = known.encode(words[split][task], longest)
            targets = {task: torch.tensor([row.label for row in rows])}
            inputs = {"tokens": tokens_NL}
            made[split].append(Stream(task, inputs, targets, ("tokens",), lengths_N))
    cut = sum(len(t) > longest for sets in words.values() for ts in sets.values() for t in ts)
    return TextStreams(made, known, cut)


def _pieces(run: int) -> tuple[int, int]:
    """Return the length of a seed, and its step: any run of letters holds a seed that begins at a
    multiple of the step."""
    seed = (run + 1) // 2
    return seed, run - seed + 1


def _seeds(texts: Iterable[str], run: int) -> Seeds:
    """Return some pieces of the texts. All runs of long texts would take most of a gigabyte."""
    seed, step = _pieces(run)
    seeds: Seeds = defaultdict(list)
    for text in texts:
        for at in range(0, len(text) - seed + 1, step):
            seeds[text[at : at + seed]].append((text, at))
    return dict(seeds)


def _shares(text: str, seeds: Seeds, run: int) -> bool:
    seed, _ = _pieces(run)
    return any(
        _common(text, at, held, there) >= run
        for at in range(len(text) - seed + 1)
        for held, there in seeds.get(text[at : at + seed], ())
    )


def _common(one: str, at: int, other: str, there: int) -> int:
    """Return how many letters in a row the texts share around these two places."""
    before = 0
    while before < min(at, there) and one[at - before - 1] == other[there - before - 1]:
        before += 1
    after = 0
    while (
        after < min(len(one) - at, len(other) - there) and one[at + after] == other[there + after]
    ):
        after += 1
    return before + after


def _told(removed: Mapping[str, int]) -> str:
    return ", ".join(f"{task} {count:,}" for task, count in removed.items())
