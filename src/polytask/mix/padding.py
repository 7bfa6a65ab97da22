"""Dynamic padding: texts of like length together, no wider than the longest of them.

Shapes: B = texts of a batch, L = their padded length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from polytask.errors import UsageError


def token_batches(lengths: Sequence[int], budget: int, multiple: int = 1) -> list[list[int]]:
    """Return batches of positions in `lengths`, each of at most `budget` tokens padding included.

    Texts are taken by length, equals in their order, as many as fit: no other way of batches of
    like length makes fewer. So the rows of a step become micro-batches; see `task_mean` for their
    loss. multiple: lengths are padded to a multiple of this.
    """
    if multiple < 1:
        raise UsageError(f"token_batches: multiple is {multiple}; give at least 1.")
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        wide = -(-lengths[i] // multiple) * multiple
        if not 1 <= wide <= budget:
            raise UsageError(
                f"Text {i} has {lengths[i]} tokens, {wide} with padding; a batch takes 1 to "
                f"{budget}."
            )
        if not batches or wide * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def pad(texts: Sequence[Tensor], fill: float = 0, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Return the texts as one tensor (B, L, ...) filled up behind their ends, and lengths_B.

    L is the longest length, up to a multiple of `multiple`.
    """
    if not texts:
        raise UsageError("pad: no text came; give at least one.")
    if multiple < 1:
        raise UsageError(f"pad: multiple is {multiple}; give at least 1.")
    lengths_B = torch.tensor([len(text) for text in texts])
    padded = pad_sequence(list(texts), batch_first=True, padding_value=fill)
    missing = -padded.shape[1] % multiple
    if missing:
        shape = (padded.shape[0], missing, *padded.shape[2:])
        padded = torch.cat([padded, padded.new_full(shape, fill)], 1)
    return padded, lengths_B
