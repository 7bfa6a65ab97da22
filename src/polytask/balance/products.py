"""Products of the tasks' gradients in one parameter, from its inputs and output gradients.

Per parameter one of five ways, all exact:
- *ghost*, weights of linear layers: <dW_k, dW_l> = sum of (a a') * (d_k d_l') over positions,
  N^2 I + K N^2 O + K^2 N O products in place of K N I O, and N^2 (I + O) where each position is
  one task's; of a stack of them (batched products), layer by layer;
- *looked up*, embeddings: sums over the rows of the table that the batch holds;
- *sums*, biases, normalisation and what is broadcast: per position, then added up per task;
- *formed*, convolutions and the rest: the gradients of this one parameter, their products, and
  they are dropped again;
- *rows*: the gradients as autograd gives them, kept until the update; every unknown layer.

Within a parameter in its dtype, float32 at least; across parameters and chunks in float64. A ghost
product loses digits where a task's rows cancel almost wholly; where that costs more than about
1e-4 of the result the gradients are formed instead.

Shapes: T = tasks, S = streams of a use, N = positions (C, M: of blocks), I, O = inputs and outputs
of a linear layer, P = numbers in the parameter, W = pairs of a task and a looked-up row,
V = such rows, E = embedding width, Q = numbers in a small parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polytask.balance import gradients
from polytask.balance.layers import Embedding, Linear, Small, Stacked, Use

Way = Literal["ghost", "looked up", "sums", "formed", "rows"]

CANCELLED = 1e4
"""Times the dtype's epsilon: a task's squared gradient below that part of the sum of its positions'
own squares has lost too many digits to be trusted from a ghost product."""
FEW_TASKS = 4
"""A word that at most this part of the tasks hold is multiplied pair by pair, the others as a table
of words and tasks."""
BLOCK = 1 << 22
"""Numbers of a temporary of the ghost products."""
BLOCKS = 4
"""Blocks of positions at least: four save three eighths of the products, more make them small."""


@dataclass(frozen=True)
class Piece:
    """The gradients of one use's output.

    d_SN: (S, N, ...), one or more streams.
    own: the task of each stream.
    tasks_SN: the task of each position instead, -1 for nobody's; None where `own` tells.
    """

    use: Use
    d_SN: Tensor
    own: tuple[int, ...]
    tasks_SN: Tensor | None = None

    def of(self, task: int) -> list[tuple[Tensor, Tensor | None]]:
        """Return a task's output gradients, with the positions they stand at; None: all."""
        if self.tasks_SN is None:
            return [(d_N, None) for d_N, k in zip(self.d_SN, self.own, strict=True) if k == task]
        if task not in self.own:
            return []
        places = [(tasks_N == task).nonzero()[:, 0] for tasks_N in self.tasks_SN]
        return [(d_N[at], at) for d_N, at in zip(self.d_SN, places, strict=True)]

    def tasks(self) -> Tensor:
        """Return the task of each position, (S, N)."""
        return _each(self.own, self.tasks_SN, self.d_SN)

    def summed(self, weights_T: Tensor) -> Tensor:
        """Return the weighted sum over tasks of the output gradients, (N, ...)."""
        weights_T = weights_T.to(self.d_SN.dtype)
        if self.tasks_SN is None:
            return torch.einsum("s,sn...->n...", weights_T[list(self.own)], self.d_SN)
        padded = torch.cat([weights_T.new_zeros(1), weights_T])  # nobody's rows weigh nothing
        return torch.einsum("sn,sn...->n...", padded[self.tasks_SN + 1], self.d_SN)


def _each(own: Sequence[int], tasks_SN: Tensor | None, d_SN: Tensor) -> Tensor:
    """Return the task of each position, (S, N)."""
    if tasks_SN is not None:
        return tasks_SN
    return torch.tensor(own, device=d_SN.device)[:, None].expand(-1, d_SN.shape[1])


class Layer:
    """One parameter: the pieces of its uses, or rows that they were turned into.

    like: the parameter, of which nothing but shape, dtype and device is read.
    rows: task -> its gradient, flattened.
    way: of the pieces; there are none where there are rows.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.pieces: list[Piece] = []
        self.rows: dict[int, Tensor] = {}
        self.way: Way = "rows"

    def held(self) -> int:
        """Return the bytes of output gradients and rows."""
        held = [*self.rows.values(), *(piece.d_SN for piece in self.pieces)]
        return sum(t.numel() * t.element_size() for t in held)

    def add_row(self, task: int, grad: Tensor) -> None:
        """Add to a task's gradient; the tensor given is kept, not changed."""
        before = self.rows.get(task)
        self.rows[task] = grad.flatten() if before is None else before + grad.flatten()

    def form(self) -> None:
        """Turn the pieces into rows."""
        pieces, self.pieces = self.pieces, []
        for task, grad_P in _formed(pieces):
            self.add_row(task, grad_P)

    def let_go(self) -> None:
        """Keep nothing of the graph the pieces came from."""
        for piece in self.pieces:
            piece.use.let_go()

    def gram(self, tasks: int) -> Tensor:
        """Return the products of the tasks' gradients, (T, T), float64."""
        if self.pieces and self.way == "looked up":
            return by_words(*entries(self.pieces, tasks), tasks)
        if self.pieces and self.way == "ghost":
            ghost_TT = _ghost(self.pieces, tasks)
            if ghost_TT is not None:
                return ghost_TT
        gram_TT = torch.zeros(tasks, tasks, dtype=torch.float64, device=self.like.device)
        rows = grads_of(self)
        if rows:
            at = torch.tensor(list(rows), device=gram_TT.device)
            gram_TT[at[:, None], at] = gradients.gram(list(rows.values()))
        return gram_TT

    def weighted(self, weights_T: Tensor) -> Tensor:
        """Return the parameter's gradient of the weighted losses, flattened."""
        if not self.pieces:
            found = next(iter(self.rows.values()), self.like)
            total_P = torch.zeros_like(found).flatten()
            for task, row_P in self.rows.items():
                total_P.addcmul_(row_P, weights_T[task].to(row_P.dtype))
            return total_P
        summed = [piece.summed(weights_T) for piece in self.pieces]
        uses = [piece.use for piece in self.pieces]
        first = uses[0]
        if len(uses) > 1 and alike(uses):
            # One product over all positions: a table's gradient is as large as the table.
            if isinstance(first, Linear):
                inputs_NI = torch.cat([use.inputs_NI for use in uses if isinstance(use, Linear)])
                return first.product(inputs_NI, torch.cat(summed)).flatten()
            if isinstance(first, Embedding):
                indices_N = torch.cat([u.indices_N for u in uses if isinstance(u, Embedding)])
                return first.scattered(indices_N, torch.cat(summed)).flatten()
        return _total([use.gradient(d_N).flatten() for use, d_N in zip(uses, summed, strict=True)])


def grads_of(layer: Layer) -> dict[int, Tensor]:
    """Return each task's gradient, flattened; the layer is left as it is."""
    return dict(_formed(layer.pieces)) if layer.pieces else layer.rows


def alike(uses: Sequence[Use]) -> bool:
    """Return whether all uses are embeddings, or linear layers or stacks of them one way round."""
    if all(isinstance(use, Embedding) for use in uses):
        return True
    sorts = {(type(u), u.transposed) for u in uses if isinstance(u, Linear | Stacked)}
    return len(sorts) == 1 and all(isinstance(use, Linear | Stacked) for use in uses)


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape; at least one."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


# -- gradients formed ----------------------------------------------------------------------------


def _formed(pieces: Sequence[Piece]) -> Iterator[tuple[int, Tensor]]:
    """Yield each task that has a part in the pieces, and its gradient, flattened."""
    sums = {n: _sums(piece) for n, piece in enumerate(pieces) if isinstance(piece.use, Small)}
    for task in sorted({task for piece in pieces for task in piece.own}):
        parts = []
        for n, piece in enumerate(pieces):
            if task not in piece.own:
                continue
            if n in sums:
                parts.append(sums[n][task])
            else:
                parts += [piece.use.gradient(d_N, at).flatten() for d_N, at in piece.of(task)]
        yield task, _total(parts)


def _sums(piece: Piece) -> dict[int, Tensor]:
    """Return each task's gradient, flattened, as a sum over its positions."""
    assert isinstance(piece.use, Small)
    each = [piece.use.each(d_N) for d_N in piece.d_SN]
    if piece.tasks_SN is None:
        return {k: part_NQ.sum(0) for k, part_NQ in zip(piece.own, each, strict=True)}
    sums_TQ = each[0].new_zeros(max(piece.own) + 2, each[0].shape[1])
    for part_NQ, tasks_N in zip(each, piece.tasks_SN, strict=True):
        sums_TQ.index_add_(0, tasks_N + 1, part_NQ)
    return {task: sums_TQ[task + 1] for task in piece.own}


# -- embeddings ----------------------------------------------------------------------------------


def entries(pieces: Sequence[Piece], tasks: int) -> tuple[Tensor, Tensor]:
    """Return what is looked up: word * T + task of each pair, and its sum of output gradients."""
    keys, values = [], []
    for piece in pieces:
        assert isinstance(piece.use, Embedding)
        tasks_SN = piece.tasks()
        there_SN = (tasks_SN >= 0) & (piece.use.indices_N != piece.use.padding)
        keys.append((piece.use.indices_N * tasks + tasks_SN)[there_SN])
        values.append(piece.d_SN[there_SN])
    return added_up(torch.cat(keys), torch.cat(values))


def added_up(keys_N: Tensor, d_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different keys, ascending, and what belongs to each, added up."""
    found_W, at = torch.unique(keys_N, return_inverse=True)
    return found_W, d_NE.new_zeros(len(found_W), d_NE.shape[1]).index_add_(0, at, d_NE)


def by_words(found_W: Tensor, sums_WE: Tensor, tasks: int) -> Tensor:
    """Return the products of the tasks' gradients, (T, T), float64, from what `entries` gives."""
    tasks_W, words_W = found_W % tasks, found_W // tasks
    _, words_W, counts_V = torch.unique_consecutive(
        words_W, return_inverse=True, return_counts=True
    )
    few_V = counts_V <= max(1, tasks // FEW_TASKS)
    few_W = few_V[words_W]
    gram_TT = _few(sums_WE[few_W], tasks_W[few_W], words_W[few_W], tasks)
    numbers_V = (~few_V).cumsum(0) - 1
    tasks_W, words_W, sums_WE = tasks_W[~few_W], numbers_V[words_W[~few_W]], sums_WE[~few_W]
    total = int((~few_V).sum())
    size = max(1, BLOCK // (tasks * sums_WE.shape[1]))
    for start in range(0, total, size):
        words = min(size, total - start)
        here_W = (words_W >= start) & (words_W < start + words)
        table = sums_WE.new_zeros(tasks * words, sums_WE.shape[1])
        table[tasks_W[here_W] * words + words_W[here_W] - start] = sums_WE[here_W]
        gram_TT += gradients.gram(table.view(tasks, -1))
    return gram_TT


def _few(sums_WE: Tensor, tasks_W: Tensor, words_W: Tensor, tasks: int) -> Tensor:
    """Return the products of rows of the same word; words ascend, few tasks have each."""
    gram_TT = torch.zeros(tasks, tasks, dtype=torch.float64, device=sums_WE.device)
    squares_W = sums_WE.square().sum(1).to(torch.float64)
    gram_TT.diagonal().index_add_(0, tasks_W, squares_W)
    one_W = torch.arange(len(words_W), device=words_W.device)
    for apart in range(1, len(words_W)):
        one_W = one_W[one_W + apart < len(words_W)]
        one_W = one_W[words_W[one_W] == words_W[one_W + apart]]
        if not len(one_W):
            break
        other_W = one_W + apart
        products_W = (sums_WE[one_W] * sums_WE[other_W]).sum(1).to(torch.float64)
        for at in ((tasks_W[one_W], tasks_W[other_W]), (tasks_W[other_W], tasks_W[one_W])):
            gram_TT.index_put_(at, products_W, accumulate=True)
    return gram_TT


# -- linear layers -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """A piece of a linear layer; or pieces of one form, laid end to end.

    own: the task of each stream; not looked at where tasks_SN tells each position's.
    """

    inputs_NI: Tensor
    d_SNO: Tensor
    own: tuple[int, ...]
    tasks_SN: Tensor | None

    def tasks(self) -> Tensor:
        """Return the task of each position, (S, N)."""
        return _each(self.own, self.tasks_SN, self.d_SNO)

    def squares(self, tasks: int) -> Tensor:
        """Return each task's sum of its positions' own squares, (1 + T,), nobody's first."""
        squares_SN = torch.linalg.vector_norm(self.d_SNO, dim=2).square()
        squares_SN = squares_SN * self.inputs_NI.square().sum(1)
        squares_T: Tensor = squares_SN.new_zeros(tasks + 1, dtype=torch.float64)
        if self.tasks_SN is None:
            own_S = torch.tensor(self.own, device=squares_T.device) + 1
            return squares_T.index_add_(0, own_S, squares_SN.sum(1, dtype=torch.float64))
        tasks_N = self.tasks_SN.flatten() + 1
        return squares_T.index_add_(0, tasks_N, squares_SN.flatten().double())


def _ghost(pieces: Sequence[Piece], tasks: int) -> Tensor | None:
    """Return the products from inputs and output gradients; None where too much cancels."""
    dtype, device = pieces[0].d_SN.dtype, pieces[0].d_SN.device
    # One task more than there are, the first, for the rows that belong to none.
    half_TT = torch.zeros(tasks + 1, tasks + 1, dtype=torch.float64, device=device)
    apart_T = half_TT.new_zeros(tasks + 1)
    # Layers of a stack have no products with each other.
    for layer in zip(*map(_linear, pieces), strict=True):
        groups = _grouped(layer, dtype)
        for n, group in enumerate(groups):
            apart_T += group.squares(tasks)
            for other in groups[n:]:
                if other.tasks_SN is None or group.tasks_SN is not None:
                    add_products(half_TT, group, other)
                else:
                    add_products(half_TT, other, group)
    gram_TT, apart_T = (half_TT + half_TT.T)[1:, 1:], apart_T[1:]
    return None if cancelled(gram_TT, apart_T, dtype) else gram_TT


def _linear(piece: Piece) -> Iterator[Group]:
    """Yield a linear layer's inputs and output gradients, of a stack those of each layer."""
    use, tasks_SN = piece.use, piece.tasks_SN
    if isinstance(use, Linear):
        yield Group(use.inputs_NI, piece.d_SN, piece.own, tasks_SN)
        return
    assert isinstance(use, Stacked)
    for inputs_NI, here in use.layers():
        tasks = None if tasks_SN is None else tasks_SN[:, here]
        yield Group(inputs_NI, piece.d_SN[:, here], piece.own, tasks)


def cancelled(gram_TT: Tensor, apart_T: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a ghost product has lost too many digits.

    apart_T: each task's sum of its positions' own squares. dtype: of the products.
    """
    floor_T = apart_T * (CANCELLED * torch.finfo(dtype).eps)
    return bool((gram_TT.diagonal() < floor_T).any())


def _grouped(pieces: Sequence[Group], dtype: torch.dtype) -> list[Group]:
    """Return the pieces, all those of one stream as one group: blocks of many small ones."""
    single: list[Group] = []
    alike: dict[object, list[Group]] = {}
    for piece in pieces:
        if len(piece.d_SNO) == 1 and len(pieces) > 1:
            single.append(piece)
        else:
            form = piece.own if piece.tasks_SN is None else len(piece.d_SNO)
            alike.setdefault(form, []).append(piece)
    groups = []
    for group in [*alike.values(), *([single] if single else [])]:
        inputs_NI = _end_to_end([piece.inputs_NI for piece in group], 0).to(dtype)
        d_SNO = _end_to_end([piece.d_SNO for piece in group], 1)
        dense = group is not single and group[0].tasks_SN is None
        tasks_SN = None if dense else torch.cat([piece.tasks() for piece in group], 1)
        groups.append(Group(inputs_NI, d_SNO, group[0].own if dense else (), tasks_SN))
    return groups


def _end_to_end(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def add_products(half_TT: Tensor, one: Group, other: Group) -> None:
    """Add the products of two groups' gradients; half of them where the groups are one.

    Where one of the groups has streams of one task, that is `other`.
    """
    outs = one.d_SNO.shape[2]
    if other.tasks_SN is None:
        own = torch.tensor(other.own, device=half_TT.device) + 1
        size = BLOCK // (len(own) * outs)
        for here, later, inner_CM in _blocks(one.inputs_NI, other.inputs_NI, one is other, size):
            mixed_SCO = other.d_SNO.new_empty(len(own), len(inner_CM), outs)
            for d_NO, mixed_CO in zip(other.d_SNO, mixed_SCO, strict=True):
                # One product per task: a batched one takes half as long again on processors.
                torch.mm(inner_CM, d_NO[later], out=mixed_CO)
            d_SCO = one.d_SNO[:, here]
            if one.tasks_SN is None:
                at = torch.tensor(one.own, device=half_TT.device) + 1
                products_SS = d_SCO.flatten(1) @ mixed_SCO.flatten(1).T
                half_TT[at[:, None], own] += products_SS.to(torch.float64)
                continue
            for d_CO, tasks_C in zip(d_SCO, one.tasks_SN[:, here], strict=True):
                products_CS = torch.einsum("co,sco->cs", d_CO, mixed_SCO).to(torch.float64)
                onto_TS = half_TT.new_zeros(len(half_TT), len(own))
                half_TT.index_add_(1, own, onto_TS.index_add_(0, tasks_C + 1, products_CS))
        return
    assert one.tasks_SN is not None
    size = BLOCK // other.d_SNO.shape[1]
    for here, later, inner_CM in _blocks(one.inputs_NI, other.inputs_NI, one is other, size):
        for d_NO, tasks_N in zip(one.d_SNO, one.tasks_SN, strict=True):
            onto_CT = half_TT.new_zeros(len(inner_CM), len(half_TT))
            for e_NO, others_N in zip(other.d_SNO, other.tasks_SN, strict=True):
                products_CM = (d_NO[here] @ e_NO[later].T) * inner_CM
                onto_CT.index_add_(1, others_N[later] + 1, products_CM.double())
            half_TT.index_add_(0, tasks_N[here] + 1, onto_CT)


def _blocks(
    inputs_NI: Tensor, others_MI: Tensor, same: bool, size: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield blocks of positions, each with those of the others, and their inputs' products.

    same: the others are the same. The products are then symmetric and only one side is formed:
        with those from the block's start on. Those within a block are halved, so that a sum over
        all and its transpose make the whole.
    size: of a block at most.
    """
    positions = len(inputs_NI)
    size = max(1, min(size, -(-positions // BLOCKS) if same else positions))
    for start in range(0, positions, size):
        here, later = slice(start, start + size), slice(start if same else 0, None)
        inner_CM = inputs_NI[here] @ others_MI[later].T
        if same:
            inner_CM[:, : len(inner_CM)] /= 2
        yield here, later, inner_CM
