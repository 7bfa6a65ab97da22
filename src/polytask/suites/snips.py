"""snips: what a spoken request wants (intent) and the parts it names (slots).

Source: Coucke et al., "Snips Voice Platform", 2018, arXiv:1805.10190; the split and the tokens
    of Goo et al., NAACL 2018, which all later work on joint intent and slots reports on.
Shapes: N = requests, L = words of the longest one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from polytask.suites import files
from polytask.suites.base import SPLITS, About, Split, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.text_encoders import BiGRU
from polytask.suites.vocabulary import Vocabulary, padded
from polytask.tasks import IGNORE, Multiclass, SequenceLabels, Task, TaskSet

LEAST = 2
"""Occurrences in train that make a word known."""


class Request(NamedTuple):
    """One row of the source: a label of the whole, and one slot label per word."""

    words: list[str]
    slots: list[str]
    intent: str


def snips() -> Suite:
    """Return 14,484 requests with 7 intents and 72 slot labels (39 slots in BIO form)."""
    requests = {
        split: parse(files.read_text(file)) for split, file in zip(SPLITS, files.SNIPS, strict=True)
    }
    train = requests["train"]
    words = Vocabulary.of((request.words for request in train), LEAST)
    intents = tuple(sorted({request.intent for request in train}))
    slots = tuple(sorted({slot for request in train for slot in request.slots}))
    streams = {s: stream(requests[s], words, intents, slots) for s in SPLITS}
    return make_suite(
        name="snips",
        tasks=TaskSet(
            [
                Task("intent", Multiclass(len(intents), intents)),
                Task("slots", SequenceLabels(len(slots), slots)),
            ]
        ),
        train=[streams["train"]],
        val=[streams["val"]],
        test=[streams["test"]],
        encoder=partial(BiGRU, len(words)),
        width=BiGRU(len(words)).width,
        about=About(
            title="SNIPS: intents and slots of requests to a voice assistant",
            source="https://github.com/czhang99/Capsule-NLU, data/snips",
            licence="CC0 1.0",
            citation="Coucke et al. 2018, arXiv:1805.10190; split of Goo et al., NAACL 2018, "
            "doi:10.18653/v1/N18-2118",
            protocol="the source's split: 13,084 train, 700 validation, 700 test",
        ),
        batch_size=64,
        epochs=20,
        notes=(
            f"Words are those that occur {LEAST} times in train ({len(words) - 2:,}); every other "
            "word is one unknown word.",
            *unseen_slots(requests, slots),
        ),
    )


def parse(text: str) -> list[Request]:
    """Return the requests of a file: words, slots and intent, between tabs, one request a line."""
    requests = []
    for line in text.splitlines():
        words, slots, intent = line.split("\t")
        request = Request(words.split(), slots.split(), intent)
        assert len(request.words) == len(request.slots), line  # the file's sum was checked
        requests.append(request)
    return requests


def stream(
    requests: Sequence[Request], words: Vocabulary, intents: Sequence[str], slots: Sequence[str]
) -> Stream:
    """Return the requests as numbers; a slot label that is not in `slots` is missing."""
    intent_of = {name: number for number, name in enumerate(intents)}
    slot_of = {name: number for number, name in enumerate(slots)}
    tokens_NL, lengths_N = words.encode([request.words for request in requests])
    slots_NL, _ = padded([[slot_of.get(s, IGNORE) for s in r.slots] for r in requests], IGNORE)
    intents_N = torch.tensor([intent_of[request.intent] for request in requests])
    return Stream(
        name="requests",
        inputs={"tokens": tokens_NL},
        targets={"intent": intents_N, "slots": slots_NL},
        ragged=("tokens", "slots"),
        lengths=lengths_N,
    )


def unseen_slots(requests: Mapping[Split, Sequence[Request]], slots: Sequence[str]) -> list[str]:
    """Return a note for each split that has slot labels which train never saw."""
    notes = []
    for split, part in requests.items():
        unseen = Counter(s for request in part for s in request.slots if s not in slots)
        if unseen:
            notes.append(
                f"{unseen.total()} slot labels of {split} never occur in train and are missing "
                f"there: {', '.join(sorted(unseen))}."
            )
    return notes
