"""Suites: tasks, the streams that label them in each split, and where the data came from.

A stream is one data set: inputs with rows on dim 0, and targets for one or more tasks. A suite
with one stream is the shared-input case; T streams are the one-data-set-per-task case; anything
between is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.errors import UsageError, unknown
from polytask.tasks import TaskSet

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

Inputs = Tensor | Mapping[str, Tensor]
"""What an encoder takes: one tensor, or named tensors; rows on dim 0 of each."""


@dataclass(frozen=True)
class About:
    """Where a suite comes from: one paragraph a person needs before citing a number."""

    title: str
    source: str
    licence: str
    citation: str
    protocol: str


@dataclass(frozen=True)
class Stream:
    """One data set of one split. A missing label is NaN, or -100 in integer targets.

    inputs: a tensor or named tensors, N rows each.
    targets: per task a tensor of N rows, in the task's own units.
    ragged: names (of inputs and of tasks) padded along dim 1. A batch is cut to the longest of
        its rows, by `lengths`.
    lengths: (N,), how much of dim 1 each row uses; needed where anything is ragged.
    truth: per yes-or-no task the probability (N,) its labels were drawn with, of every row, also
        of those without a label; None where nobody knows it, as of all data that is not simulated.
    """

    name: str
    inputs: Inputs
    targets: Mapping[str, Tensor]
    ragged: tuple[str, ...] = ()
    lengths: Tensor | None = None
    truth: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.targets.values())))

    def take(self, rows_N: Tensor) -> Stream:
        """Return the stream with only these rows (an index tensor)."""
        if isinstance(self.inputs, Tensor):
            inputs: Inputs = self.inputs[rows_N]
        else:
            inputs = {name: value[rows_N] for name, value in self.inputs.items()}
        targets = {name: value[rows_N] for name, value in self.targets.items()}
        lengths = None if self.lengths is None else self.lengths[rows_N]
        truth = None if self.truth is None else {n: p[rows_N] for n, p in self.truth.items()}
        return replace(self, inputs=inputs, targets=targets, lengths=lengths, truth=truth)


@dataclass(frozen=True)
class Pretrained:
    """That a suite's encoder comes with trained weights, and how it is best gone on from.

    where: names of its layers, by what methods of `adapt` go to unless told otherwise:
        "projections" for low-rank changes, "outputs" for what stands behind a sublayer, "words"
        for the embedding that prompts stand before.
        "blocks" for its blocks in order, "feed-forward" for what stands beside those.
    grid, whole, made: learning rate and weight decay of AdamW to choose from, the likeliest first:
        of adapters, of what trains the encoder's own weights, and of networks that make adapters.
        Adapters begin at nothing and want steps that would undo trained weights; a step of a
        network that makes all of them moves each number by many times as much.
    """

    where: Mapping[str, tuple[str, ...]]
    grid: tuple[tuple[float, float], ...] = ((1e-3, 1e-2), (3e-3, 1e-2), (3e-4, 1e-2), (1e-2, 1e-2))
    whole: tuple[tuple[float, float], ...] = (
        (2e-4, 1e-2),
        (5e-5, 1e-2),
        (5e-4, 1e-2),
        (2e-5, 1e-2),
    )
    made: tuple[tuple[float, float], ...] = ((1e-4, 1e-2), (3e-4, 1e-2), (3e-5, 1e-2))


@dataclass(frozen=True)
class Suite:
    """Tasks and their streams, with an encoder to begin with.

    tasks: fitted on the training labels (see `suites.check.fitted`).
    encoder: builds a fresh encoder. It maps inputs to features: a tensor (B, width), or a dict
        with "row" (B, width), "sequence" (B, L, width) or "map" (B, width, H, W), whichever the
        tasks' kinds read.
    width: channels of the features.
    batch_size, epochs: what a run of this suite takes unless told otherwise.
    fields: builds a fresh encoder that only embeds and standardises, for architectures that stand
        on a row's fields; it tells its `width` and its number of `fields`. None where rows have no
        fields, as pictures and words.
    tokens: builds a fresh transformer of pictures, for architectures that stand on its tokens; it
        tells its `width`. None where the inputs are no pictures.
    pretrained: of an encoder whose weights are trained already; None of one that begins anew.
    """

    name: str
    tasks: TaskSet
    train: tuple[Stream, ...]
    val: tuple[Stream, ...]
    test: tuple[Stream, ...]
    encoder: Callable[[], nn.Module]
    width: int
    about: About
    batch_size: int = 128
    epochs: int = 50
    notes: tuple[str, ...] = field(default=())
    fields: Callable[[], nn.Module] | None = None
    tokens: Callable[[], nn.Module] | None = None
    pretrained: Pretrained | None = None

    def stand(self, on: str) -> tuple[nn.Module, int]:
        """Return a fresh encoder and the width of its features.

        on: "features" for the suite's own encoder, "fields" for the one that only embeds and
            standardises, "tokens" for the transformer of pictures.

        Raises UsageError where the suite has no such encoder.
        """
        if on == "features":
            return self.encoder(), self.width
        others = {
            "fields": (self.fields, "its rows are no table's", "tables"),
            "tokens": (self.tokens, "its inputs are no pictures", "pictures"),
        }
        if on not in others:
            every = ("features", *others)
            raise unknown("encoder", on, every, "A suite has features, fields or tokens.")
        make, why, of = others[on]
        if make is None:
            raise UsageError(
                f"Suite {self.name!r} has no {on} to stand on: {why}. Choose "
                f"an architecture that stands on features, or a suite of {of}."
            )
        encoder = make()
        width = encoder.width
        assert isinstance(width, int)
        return encoder, width

    def split(self, name: Split) -> tuple[Stream, ...]:
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def only(self, names: Iterable[str]) -> Suite:
        """Return the suite of the named tasks alone: rows that label none of them are left out."""
        tasks = self.tasks.only(names)
        train, val, test = (
            tuple(s for stream in self.split(name) if (s := _only(stream, tasks)) is not None)
            for name in SPLITS
        )
        return replace(self, tasks=tasks, train=train, val=val, test=test)


def _only(stream: Stream, tasks: TaskSet) -> Stream | None:
    targets = {n: stream.targets[n] for n in tasks.names if n in stream.targets}
    if not targets:
        return None
    labelled_N = torch.zeros(len(stream), dtype=torch.bool)
    for name, target in targets.items():
        kind = tasks.named(name).kind
        labelled_N |= kind.present(kind.encode(target)).reshape(len(stream), -1).any(1)
    ragged = tuple(n for n in stream.ragged if n in targets or n not in stream.targets)
    kept = replace(stream, targets=targets, ragged=ragged)
    if bool(labelled_N.all()):
        return kept
    return kept.take(labelled_N.nonzero().squeeze(1)) if bool(labelled_N.any()) else None
