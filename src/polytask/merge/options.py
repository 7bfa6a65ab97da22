"""How a merge is done, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from polytask.errors import UsageError
from polytask.merge.base import GRAIN
from polytask.merge.headers import MERGED

Nonfinite = Literal["refuse", "continue"]
Buffers = Literal["refuse", "base"]
Vocabulary = Literal["base", "union"]

SHARD = 5_000_000_000
"""Bytes; the Hugging Face default."""


@dataclass(frozen=True)
class Options:
    """How a merge is done.

    dtype: of the result; None keeps that of the base, tensor by tensor (without a base, of the
        first model). Merging is done in float32 or float64 and rounded once.
    threads: of the merge; neither they nor `chunk` change the result.
    chunk: elements of a piece, a multiple of 16,384; None for as many as suit the caches.
    nonfinite: what NaN or infinity in an input does: "refuse" it, naming the tensor, or "continue".
    buffers: what tensors of no floating point do that the models do not agree on: "refuse", or
        "base" to copy the base's.
    leave_out: patterns of tensors that are neither read nor written, such as "heads.*".
    vocabulary: how rows of differing vocabularies are aligned, by the models' tokenizers: "base" or
        "union" of the tokens; None where they must lie alike.
    checksums: check files against the SHA-256 in SHA256SUMS or in FILE.sha256, where there is one.
    shard: bytes of one file of the result at most; a larger tensor has a file to itself.
    """

    dtype: torch.dtype | None = None
    threads: int = 1
    chunk: int | None = None
    nonfinite: Nonfinite = "refuse"
    buffers: Buffers = "refuse"
    leave_out: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    checksums: bool = True
    shard: int = SHARD

    def __post_init__(self) -> None:
        _one_of("nonfinite", self.nonfinite, get_args(Nonfinite))
        _one_of("buffers", self.buffers, get_args(Buffers))
        _one_of("vocabulary", self.vocabulary, (*get_args(Vocabulary), None))
        if self.dtype is not None and self.dtype not in MERGED:
            words = ", ".join(str(kind).removeprefix("torch.") for kind in MERGED)
            raise UsageError(f"dtype is {self.dtype}; a merge needs one of {words}.")
        if self.threads < 1:
            raise UsageError(f"threads is {self.threads}; give a whole number >= 1.")
        if self.chunk is not None and (self.chunk < GRAIN or self.chunk % GRAIN):
            raise UsageError(f"chunk is {self.chunk}; give a multiple of {GRAIN} elements.")
        if self.shard < 1:
            raise UsageError(f"shard is {self.shard} bytes; give at least 1.")
        if type(self.leave_out) is not tuple:  # a text would be taken letter by letter
            raise UsageError(f"leave_out is {self.leave_out!r}; give a tuple of patterns.")


def _one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        words = " or ".join(repr(option) for option in known)
        raise UsageError(f"{name} is {value!r}; give {words}.")
