"""Packing: several texts in one row, kept apart by their numbers.

Source: first-fit decreasing, Johnson et al., "Worst-Case Performance Bounds for Simple
    One-Dimensional Packing Algorithms", SIAM J. Comput. 3(4), 1974: at most 11/9 of the fewest rows
    and 6/9 of a row more
Differs from the source: nothing known.
Shapes: R = rows, L = capacity, D = pieces of texts in the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polytask.errors import UsageError


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows of positions in `lengths`, each row's lengths adding up to at most `capacity`.

    The longest goes first, each into the first row that has room, equals in their order: the same
    for the same lengths. Time grows as n log n. Raises UsageError for a length that does not fit.
    """
    for i, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise UsageError(
                f"Text {i} has {length} tokens; a row of {capacity} takes 1 to {capacity}. Leave "
                "it out, or cut it."
            )
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    room = [capacity] * (2 * leaves)  # of a node: the most room of a row below it; leaves are rows
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < lengths[i]:
                node += 1
        row = node - leaves
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        room[node] -= lengths[i]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows


@dataclass(frozen=True)
class Packed:
    """Texts packed into rows.

    tokens_RL: filled up behind the last text of a row. documents_RL: the number of the piece a
        token belongs to, -1 for filling. positions_RL: its place in the piece, 0 for filling.
        tasks_RL: the task of its text, -1 for filling.
    bounds: (number of segments + 1,) int32: where pieces and fillings begin when the rows are laid
        end to end, as attention of variable length takes it (cu_seqlens); the last is R * L.
    text_D: the text each piece is of; pieces of one text come in order.
    """

    tokens_RL: Tensor
    documents_RL: Tensor
    positions_RL: Tensor
    tasks_RL: Tensor
    bounds: Tensor
    text_D: Tensor

    def mask(self, *, causal: bool = True) -> Tensor:
        """Return which place sees which: (R, 1, L, L) bool, true within a piece alone.

        Query on dim 2, key on dim 3, as scaled_dot_product_attention takes it. A filling sees
        itself, so that no softmax is over nothing.
        """
        own_RLL = self.documents_RL[:, :, None] == self.documents_RL[:, None, :]
        own_RLL &= (self.documents_RL >= 0)[:, :, None]
        if causal:
            own_RLL = own_RLL.tril()
        own_RLL |= torch.eye(own_RLL.shape[1], dtype=torch.bool, device=own_RLL.device)
        return own_RLL[:, None]

    def unpack(self, values_RL: Tensor) -> list[Tensor]:
        """Return what stands at each text's tokens, in the order and length of the texts.

        values_RL: R and L on the first two dims, such as tokens or a model's outputs.
        """
        flat, documents = values_RL.flatten(0, 1), self.documents_RL.flatten()
        order = documents.argsort(stable=True)[int((documents < 0).sum()) :]
        # Pieces of one text follow each other, so their tokens do, too.
        texts = self.text_D[documents[order]]
        return list(torch.split(flat[order], torch.bincount(texts).tolist()))


def pack(
    texts: Sequence[Tensor],
    capacity: int,
    tasks: Sequence[int] | None = None,
    *,
    longer: Literal["refuse", "cut"] = "refuse",
    fill: int = 0,
) -> Packed:
    """Return the texts packed by first-fit decreasing; every token is in it once.

    texts: token numbers, one dim each, at least one token. tasks: the task of each; None: all 0.
    longer: what a text of more than `capacity` tokens is: refused, or cut into pieces that do not
        see each other. fill: the token behind the last text of a row.
    """
    if not texts:
        raise UsageError("pack: no text came; give at least one.")
    if longer not in ("refuse", "cut"):
        raise UsageError(f"pack: longer is {longer!r}; give 'refuse' or 'cut'.")
    if tasks is not None and len(tasks) != len(texts):
        raise UsageError(f"pack: {len(tasks)} tasks came for {len(texts)} texts; give one each.")
    for i, text in enumerate(texts):
        if text.ndim != 1 or not len(text):
            raise UsageError(
                f"pack: text {i} has shape {tuple(text.shape)}; give one dim of 1 token or more."
            )
    size = max(map(len, texts)) if longer == "refuse" else capacity
    pieces = [(i, part) for i, text in enumerate(texts) for part in torch.split(text, size)]
    rows = first_fit_decreasing([len(part) for _, part in pieces], capacity)
    if tasks is not None and min(tasks) < 0:
        raise UsageError(f"pack: a task is {min(tasks)}; -1 is of filling, give numbers >= 0.")
    shape = len(rows), capacity
    device = texts[0].device
    tokens_RL = torch.full(shape, fill, dtype=texts[0].dtype, device=device)
    documents_RL = torch.full(shape, -1, dtype=torch.int64, device=device)
    positions_RL = torch.zeros(shape, dtype=torch.int64, device=device)
    tasks_RL = torch.full(shape, -1, dtype=torch.int64, device=device)
    bounds = [0]
    for r, row in enumerate(rows):
        at = 0
        for d in row:
            i, part = pieces[d]
            here = slice(at, at + len(part))
            tokens_RL[r, here] = part
            documents_RL[r, here] = d
            positions_RL[r, here] = torch.arange(len(part), device=device)
            tasks_RL[r, here] = 0 if tasks is None else tasks[i]
            at += len(part)
            bounds.append(r * capacity + at)
        if at < capacity:
            bounds.append((r + 1) * capacity)
    return Packed(
        tokens_RL,
        documents_RL,
        positions_RL,
        tasks_RL,
        torch.tensor(bounds, dtype=torch.int32, device=device),
        torch.tensor([i for i, _ in pieces], device=device),
    )
