"""Each task's gradient in the shared parameters, and the products of these gradients.

This is the one place that runs a backward pass per task, exact and for any model. A faster engine
(one pass, per-layer products) replaces `add_rows` and `gram`; nothing above them would change.

Shapes: K = tasks present, P = shared parameters, flattened and laid end to end; where they are
sharded, the numbers of them that this process holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.balance.sharded import copies, is_sharded, local, pieces, placed_like

CHUNK = 1 << 14
"""Columns per step of the Gramian: bounds its float64 copy, which stays in cache for few tasks."""


def empty_rows(tasks: int, shared: Sequence[Tensor]) -> Tensor:
    """Return zeros of shape (tasks, P), in the widest dtype among the shared parameters."""
    dtype = shared[0].dtype
    for parameter in shared[1:]:
        dtype = torch.promote_types(dtype, parameter.dtype)
    columns = sum(local(parameter).numel() for parameter in shared)
    return torch.zeros(tasks, columns, dtype=dtype, device=shared[0].device)


def add_rows(
    losses: Sequence[Tensor], shared: Sequence[Tensor], rows: Sequence[Tensor]
) -> set[int]:
    """Add each loss's gradient in the shared parameters to its row; return what was reached.

    rows: one (P,) tensor per loss, changed in place.
    The result holds positions in `shared` of the parameters that at least one loss reaches.
    Every other parameter gets its gradient added to `.grad`, as by `loss.backward()`. The shared
    parameters' own `.grad` is left as it was.
    """
    before = [parameter.grad for parameter in shared]
    reached: set[int] = set()
    try:
        for k, (loss, row_P) in enumerate(zip(losses, rows, strict=True)):
            for parameter in shared:
                parameter.grad = None
            loss.backward(retain_graph=k + 1 < len(losses))  # type: ignore[no-untyped-call]
            for i, parameter, at in pieces(shared):
                if parameter.grad is not None:
                    reached.add(i)
                    row_P[at].add_(local(parameter.grad).flatten())
    finally:
        for parameter, grad in zip(shared, before, strict=True):
            parameter.grad = grad
    return reached


def gram(rows_KP: Tensor) -> Tensor:
    """Return the products of the rows, (K, K), float64 and exactly symmetric."""
    gram_KK = torch.zeros(len(rows_KP), len(rows_KP), dtype=torch.float64, device=rows_KP.device)
    for chunk_KC in rows_KP.split(CHUNK, dim=1):  # type: ignore[no-untyped-call]
        wide_KC = chunk_KC.to(torch.float64)
        gram_KK.addmm_(wide_KC, wide_KC.T)
    return (gram_KK + gram_KK.T) / 2


def gram_parts(rows_KL: Tensor, shared: Sequence[Tensor], processes: int) -> Tensor:
    """Return this process's part of the rows' products, (K, K), float64: parts add up.

    What several processes hold alike is counted in parts of each.
    """
    gram_KK = rows_KL.new_zeros(len(rows_KL), len(rows_KL), dtype=torch.float64)
    for _, parameter, at in pieces(shared):
        gram_KK += gram(rows_KL[:, at]) / copies(parameter, processes)
    return gram_KK


def add_direction(
    direction_P: Tensor, shared: Sequence[Tensor], reached: set[int], processes: int = 1
) -> None:
    """Add the update to the `.grad` of the shared parameters that a loss reached.

    processes: that hold this direction each; the loop sums `.grad` over them, sharded ones aside.
    """
    for i, parameter, at in pieces(shared):
        if i in reached:
            piece = direction_P[at].view(local(parameter).shape).to(parameter.dtype)
            if processes > 1 and not is_sharded(parameter):
                piece = piece / processes
            piece = placed_like(piece, parameter)
            parameter.grad = piece if parameter.grad is None else parameter.grad + piece
