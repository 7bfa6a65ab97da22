"""Each task's gradient in the shared parameters, and the products of these gradients.

This is the one place that runs a backward pass per task, exact and for any model. A faster engine
(one pass, per-layer products) replaces `add_rows` and `gram`; nothing above them would change.

Shapes: K = tasks present, P = shared parameters, flattened and laid end to end; where they are
sharded, the numbers of them that this process holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from polytask.balance.graph import LEAF
from polytask.balance.sharded import copies, is_sharded, local, pieces, placed_like
from polytask.errors import UsageError

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
    losses: Sequence[Tensor],
    shared: Sequence[Tensor],
    rows: Sequence[Tensor],
    retain: bool = False,
) -> set[int]:
    """Add each loss's gradient in the shared parameters to its row; return what was reached.

    rows: one (P,) tensor per loss, changed in place. retain: whether to keep the losses' graph.
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
            loss.backward(retain_graph=retain or k + 1 < len(losses))  # type: ignore[no-untyped-call]
            for i, parameter, at in pieces(shared):
                if parameter.grad is not None:
                    reached.add(i)
                    row_P[at].add_(local(parameter.grad).flatten())
    finally:
        for parameter, grad in zip(shared, before, strict=True):
            parameter.grad = grad
    return reached


def gram(rows_KP: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the products of the rows, (K, K), float64 and exactly symmetric.

    rows_KP: as one tensor, or a tensor (P,) each.
    """
    rows, like = len(rows_KP), rows_KP if isinstance(rows_KP, Tensor) else rows_KP[0]
    columns = like.shape[-1]
    gram_KK = torch.zeros(rows, rows, dtype=torch.float64, device=like.device)
    for start in range(0, columns, CHUNK):
        cut = slice(start, start + CHUNK)
        if isinstance(rows_KP, Tensor):
            wide_KC = rows_KP[:, cut].to(torch.float64)
        else:
            wide_KC = torch.stack([row_P[cut] for row_P in rows_KP]).to(torch.float64)
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


def rows(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return each loss's gradient, (K, P), zeros where it does not reach; leave `.grad` alone.

    The losses keep their graph.
    """
    rows_KP = empty_rows(len(losses), parameters)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for loss, row_P in zip(losses, rows_KP, strict=True):
        found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        put(row_P, parameters, dict(zip(map(id, trained), found, strict=True)))
    return rows_KP


def put(row_P: Tensor, parameters: Sequence[Tensor], found: Mapping[int, Tensor | None]) -> None:
    """Write gradients into a row, by the id of their parameter; what is not found stays."""
    for _, parameter, at in pieces(parameters):
        grad = found.get(id(parameter))
        if grad is not None:
            row_P[at] = grad.flatten()


def leaves(losses: Sequence[Tensor]) -> tuple[list[Tensor], frozenset[str]]:
    """Return the tensors that the losses' graph ends at, and the functions written in Python that
    are part of it: they may run backward passes of their own, which the graph does not show."""
    found: list[Tensor] = []
    functions: set[str] = set()
    stack = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.name() == LEAF:
            found.append(node.variable)  # type: ignore[attr-defined]
            continue
        # Annotations know of no node that is one of these; every Python-written function's is.
        if issubclass(type(node), BackwardCFunction):
            functions.add(node.name())
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return found, frozenset(functions)


def add_weighted(
    losses_K: Tensor, weights_K: Tensor, shared: Sequence[Tensor], retain: bool = False
) -> None:
    """Add the weighted losses' gradient to the shared `.grad`, the unweighted to every other.

    Two passes that together cost one: each computes only what its own parameters need.
    retain: whether to keep the losses' graph.
    """
    found, functions = leaves([losses_K])
    ours = {id(parameter) for parameter in shared}
    reached = [leaf for leaf in found if id(leaf) in ours]
    others = [leaf for leaf in found if id(leaf) not in ours]
    visible = {id(leaf) for leaf in reached}
    if functions and any(p.requires_grad and id(p) not in visible for p in shared):
        raise UsageError(
            "Balancer: shared parameters are hidden inside a function written in Python, such as "
            "activation checkpointing with use_reentrant=True, so a pass cannot be kept to them. "
            "Use torch.utils.checkpoint with use_reentrant=False, or no approximation."
        )
    ones_K = torch.ones_like(losses_K)
    if others:
        losses_K.backward(ones_K, inputs=others, retain_graph=retain or bool(reached))  # type: ignore[no-untyped-call]
    if reached:
        losses_K.backward(weights_K.to(losses_K.dtype), inputs=reached, retain_graph=retain)  # type: ignore[no-untyped-call]


def broken(parameters: Iterable[Tensor]) -> Tensor:
    """Return 1.0 where a parameter's gradient is not finite, else 0.0."""
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    finite = torch.stack([grad.isfinite().all() for grad in grads]).all()
    return 1.0 - finite.to(torch.float32)


@contextlib.contextmanager
def apart(parameters: Sequence[Tensor]) -> Iterator[dict[int, Tensor]]:
    """Put what is added to a `.grad` inside into the mapping, by the id of the parameter.

    It is filled when the block ends; every `.grad` is then what it was before.
    """
    before = [parameter.grad for parameter in parameters]
    found: dict[int, Tensor] = {}
    try:
        for parameter in parameters:
            parameter.grad = None
        yield found
        found |= {id(p): p.grad for p in parameters if p.grad is not None}
    finally:
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad


def add(parameter: Tensor, grad: Tensor) -> None:
    """Add to the parameter's `.grad`."""
    parameter.grad = grad if parameter.grad is None else parameter.grad + grad


def marks(shared: Sequence[Tensor]) -> Tensor:
    """Return numbers that tell the parameters' gradient from another one, (1, M)."""
    zero = torch.zeros((), device=shared[0].device)
    return torch.stack([zero if p.grad is None else p.grad.sum() for p in shared])[None]
