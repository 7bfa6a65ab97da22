"""fdu_mtl: whether a review is for or against, in 16 domains, each its own stream.

Fourteen kinds of product from Amazon, and two sets of film reviews (`imdb`; `mr`, which are single
sentences): the set that shared-private models of text are compared on. The tasks ask one question
in other words, with 1,100 to 1,400 training reviews each, so sharing has much to give.

The source has the same review more than once, above all among magazines and between train and
test. What is held out is removed from training, see `texts.apart`, so a domain's train is smaller
than in the literature, which trains on copies of test reviews.

Shapes: N = reviews, L = words of the longest one.
"""

from __future__ import annotations

import io
from functools import partial

from polytask.errors import need
from polytask.suites import files
from polytask.suites.base import About, Split, Suite
from polytask.suites.check import make_suite
from polytask.suites.text_encoders import WordBag
from polytask.suites.texts import Row, Sets, apart, streams
from polytask.tasks import Multiclass, Task, TaskSet

LONGEST = 256
"""Words a review is cut after; about 1 in 8 is longer."""
LEAST = 2
"""Occurrences in train that make a word known."""
RUN = 48
"""Letters and digits in a row (about 12 words) that two reviews may not share if one is held out.
Shorter runs are met by chance: of the longest runs shared with test, those of 40 still have
"highly recommend this camera to anyone who wants", and a dozen of 48 to 63 were all copies."""
VALIDATION = 200
"""Reviews at the end of a domain's train that are for validation, as in the literature."""
WIDTH = 64
"""Features of the encoder, from embeddings half as wide. One of twice the size is no better on
validation (85.5 % to 85.1 %, 3,110 reviews) and takes twice the time."""
SENTIMENT = Multiclass(2, ("negative", "positive"))
"""Two classes are told apart by accuracy here, the score the field reports."""


def fdu_mtl() -> Suite:
    """Return 16 streams of reviews: 21,000 to train on, after the leaks are taken out.

    Needs the extra `tables`.
    """
    parts, notes = apart(split(_sources()), run=RUN)
    made = streams(parts, longest=LONGEST, least=LEAST)
    encoder = partial(WordBag, len(made.words), embedding=32, width=WIDTH)
    return make_suite(
        name="fdu_mtl",
        tasks=TaskSet(Task(domain, SENTIMENT) for domain in parts["train"]),
        train=made.splits["train"],
        val=made.splits["val"],
        test=made.splits["test"],
        encoder=encoder,
        width=WIDTH,
        about=About(
            title="FDU-MTL: sentiment of reviews in 16 domains",
            source="https://github.com/ccsasuke/man, data/fdu-mtl (labelled parts)",
            licence="MIT (repository); the reviews are for research use",
            citation="Liu, Qiu & Huang, Adversarial Multi-task Learning for Text Classification, "
            "ACL 2017, arXiv:1704.05742; reviews of Blitzer, Dredze & Pereira, ACL 2007, Maas et "
            "al., ACL 2011, and Pang & Lee, ACL 2005",
            protocol=f"the source's test split, 400 a domain; the last {VALIDATION} rows of a "
            "domain's train as validation (Chen & Cardie, NAACL 2018, arXiv:1802.05694); then no "
            "text of a test split is left in train or validation, and none of a validation split "
            "in train",
        ),
        batch_size=32,
        epochs=15,
        notes=(
            *notes,
            f"Words are those that occur {LEAST} times in train ({len(made.words) - 2:,}); "
            f"{made.cut:,} reviews are cut after {LONGEST} words.",
            "Logistic regression on which words occur has a mean test accuracy of 0.784 for each "
            "domain alone and 0.834 for all at once (these rows, penalty chosen on validation).",
        ),
    )


def split(sources: dict[Split, Sets]) -> dict[Split, Sets]:
    """Return the sets per split: validation is the end of each domain's train."""
    train = sources["train"]
    return {
        "train": {domain: rows[:-VALIDATION] for domain, rows in train.items()},
        "val": {domain: rows[-VALIDATION:] for domain, rows in train.items()},
        "test": sources["test"],
    }


def _sources() -> dict[Split, Sets]:
    """Return train and test of the source, per domain, rows and domains in its order."""
    parquet = need("pyarrow.parquet", "tables", "The suite fdu_mtl")
    (file,) = files.FDU_MTL
    sources: dict[Split, Sets] = {"train": {}, "test": {}}
    for row in parquet.read_table(io.BytesIO(files.read(file))).to_pylist():
        rows = sources[row["split"]].setdefault(row["domain"].lower(), [])
        rows.append(Row(row["label"], row["text"]))
    return sources
