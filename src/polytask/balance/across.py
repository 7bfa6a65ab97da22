"""The Gramian per layer, of a batch that several processes share: products across them included.

A task's gradient is the sum of every process's part of it, so a product of two tasks has terms
between processes: the Gramian of the sum is not the sum of the Gramians. Per parameter one of three
ways, chosen by how many numbers they send, the same in every process:
- linear layers: inputs and output gradients are gathered, where they are fewer than the tasks'
  gradients. Each pair of processes is multiplied in one of the two;
- embeddings: the sums of the rows of the table that each process looked up are gathered, and each
  process multiplies those of some words;
- the rest: this parameter's K gradients are summed over the processes, each multiplies its part of
  the columns, and they are dropped again.
Nothing is sent for the update: each process adds what its own rows give, and the loop sums `.grad`.

Shapes: K = tasks present, T = tasks of the run up to the last present, W = processes, L = layers
that are gathered, H = numbers of a header, S = streams, N = positions, I, O = inputs and outputs,
V = pairs of a word and a task, E = embedding width, C = columns of some parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from polytask.balance import gradients
from polytask.balance.gramian import Products
from polytask.balance.layers import Embedding, Linear
from polytask.balance.products import (
    Group,
    Layer,
    Piece,
    add_products,
    added_up,
    alike,
    by_words,
    cancelled,
    entries,
    grads_of,
)
from polytask.balance.world import World

NOTHING, SUMMED, LINEAR, TABLE = range(4)  # what a process has of a parameter
BUCKET = 1 << 22
"""Numbers of the gradients that are summed in one message, where single ones are fewer."""


def gram(products: Products, at: Sequence[int], shared: Sequence[Tensor], world: World) -> Tensor:
    """Return the products of the gradients of the tasks `at`, float64, in every process alike.

    products: of this process's losses; may be without layers. at: present in any process.
    """
    return _Across(products, at, shared, world).gram()


class _Across:
    def __init__(
        self, products: Products, at: Sequence[int], shared: Sequence[Tensor], world: World
    ) -> None:
        self.at, self.shared, self.world = list(at), shared, world
        self.tasks = max(at) + 1
        self.layers = [products.layers.get(i) for i in range(len(shared))]
        self.tables = {
            i: entries(layer.pieces, self.tasks)
            for i, layer in enumerate(self.layers)
            if layer is not None and _kind(layer) == TABLE
        }
        self.total_TT = self._zeros(self.tasks)

    def gram(self) -> Tensor:
        device = self.shared[0].device
        mine = [self._header(i, layer) for i, layer in enumerate(self.layers)]
        headers_WLH = self.world.gather(torch.tensor(mine, device=device)).tolist()
        linear: list[int] = []
        summed: list[int] = []
        for i in range(len(self.shared)):
            headers = [header[i] for header in headers_WLH]
            kinds = {kind for kind, *_ in headers} - {NOTHING}
            if not kinds:
                continue
            fewer = _numbers(headers) < len(self.at) * self.shared[i].numel()
            if kinds == {LINEAR} and len({h[1] for h in headers if h[0]}) == 1 and fewer:
                linear.append(i)
            elif kinds == {TABLE} and fewer:
                self._add_table(i, headers)
            else:
                summed.append(i)
        summed += self._add_linear(linear, [[h[i] for h in headers_WLH] for i in linear])
        for columns_KC in self._buckets(summed):
            self.world.add_up(columns_KC)
            share = columns_KC.tensor_split(self.world.size, dim=1)[self.world.rank]
            index_K = torch.tensor(self.at, device=device)
            self.total_TT[index_K[:, None], index_K] += gradients.gram(share)
        self.world.add_up(self.total_TT)
        total_TT = (self.total_TT + self.total_TT.T) / 2
        index_K = torch.tensor(self.at, device=device)
        return total_TT[index_K[:, None], index_K]

    def _zeros(self, tasks: int) -> Tensor:
        return torch.zeros(tasks, tasks, dtype=torch.float64, device=self.shared[0].device)

    def _header(self, i: int, layer: Layer | None) -> list[int]:
        """Return what the other processes must know beforehand of what this one has.

        Kind, whether the weight is transposed, positions, streams, whether each is one task's,
        inputs, outputs; of a table: kind, 0, pairs, 1, 0, 1, width.
        """
        kind = NOTHING if layer is None else _kind(layer)
        if layer is None or kind == NOTHING:
            return [NOTHING, 0, 0, 0, 0, 0, 0]
        if kind == TABLE:
            keys_V, sums_VE = self.tables[i]
            return [TABLE, 0, len(keys_V), 1, 0, 1, sums_VE.shape[1]]
        if kind == SUMMED:
            return [SUMMED, 0, 0, 0, 0, 0, 0]
        uses = [piece.use for piece in layer.pieces if isinstance(piece.use, Linear)]
        _, ins, outs = uses[0].sizes
        positions = sum(use.sizes[0] for use in uses)
        streams = max(len(piece.d_SN) for piece in layer.pieces)
        dense = _dense(layer.pieces)
        return [LINEAR, int(uses[0].transposed), positions, streams, int(dense), ins, outs]

    def _dtype(self, i: int) -> torch.dtype:
        return torch.promote_types(self.shared[i].dtype, torch.float32)

    def _add_table(self, i: int, headers: Sequence[Sequence[int]]) -> None:
        longest, width = max(h[2] for h in headers), max(h[6] for h in headers)
        device, dtype = self.shared[i].device, self._dtype(i)
        keys_V = torch.full((longest,), -1, dtype=torch.int64, device=device)
        sums_VE = torch.zeros(longest, width, dtype=dtype, device=device)
        if i in self.tables:
            keys, sums = self.tables.pop(i)
            keys_V[: len(keys)], sums_VE[: len(sums)] = keys, sums.to(dtype)
        keys_V = self.world.gather(keys_V).flatten()
        sums_VE = self.world.gather(sums_VE).flatten(0, 1)
        words_V = keys_V.div(self.tasks, rounding_mode="floor")
        mine_V = (keys_V >= 0) & (words_V % self.world.size == self.world.rank)
        self.total_TT += by_words(*added_up(keys_V[mine_V], sums_VE[mine_V]), self.tasks)

    def _add_linear(
        self, layers: Sequence[int], headers: Sequence[Sequence[Sequence[int]]]
    ) -> list[int]:
        """Add the products of linear layers; return those of which too much cancels."""
        if not layers:
            return []
        halves, squares = [], []
        for i, own in zip(layers, headers, strict=True):
            half_TT = self._zeros(self.tasks + 1)
            squares_T = half_TT.new_zeros(self.tasks + 1)
            mine, others = self._gathered(i, own)
            if mine is not None:
                add_products(half_TT, mine, mine)
                squares_T += mine.squares(self.tasks)
                for other in others:
                    if other.tasks_SN is None or mine.tasks_SN is not None:
                        add_products(half_TT, mine, other)
                    else:
                        add_products(half_TT, other, mine)
            halves.append(half_TT)
            squares.append(squares_T)
        both = torch.cat([torch.stack(halves), torch.stack(squares)[:, None]], dim=1)
        self.world.add_up(both)
        left = []
        for i, layer in zip(layers, both, strict=True):
            gram_TT = (layer[:-1] + layer[:-1].T)[1:, 1:]
            if cancelled(gram_TT, layer[-1, 1:], self._dtype(i)):
                left.append(i)
            elif self.world.rank == 0:  # it is the whole already, and the total will be summed
                self.total_TT += gram_TT
        return left

    def _gathered(
        self, i: int, headers: Sequence[Sequence[int]]
    ) -> tuple[Group | None, list[Group]]:
        """Return this process's inputs and output gradients, and those it has to meet."""
        positions, streams, ins, outs = (max(h[n] for h in headers) for n in (2, 3, 5, 6))
        device, dtype = self.shared[i].device, self._dtype(i)
        layer = self.layers[i]
        mine = _group(layer.pieces, dtype) if layer is not None and layer.pieces else None
        # Per position: inputs, each stream's output gradient, and its task.
        sent_NX = torch.zeros(positions, ins + streams * (outs + 1), dtype=dtype, device=device)
        if mine is not None:
            own_streams, own, _ = mine.d_SNO.shape
            tasks_SN = mine.tasks_SN
            if tasks_SN is None:
                tasks_SN = torch.tensor(mine.own, device=device)[:, None].expand(-1, own)
            sent_NX[:own, :ins] = mine.inputs_NI
            stop = ins + own_streams * outs
            sent_NX[:own, ins:stop] = mine.d_SNO.transpose(0, 1).flatten(1)
            sent_NX[:own, ins + streams * outs :][:, :own_streams] = tasks_SN.T.to(dtype)
        found_WNX = self.world.gather(sent_NX)
        size, rank = self.world.size, self.world.rank
        others = []
        for offset in range(1, size // 2 + 1):
            if 2 * offset == size and rank >= offset:
                break  # the other one of the pair multiplies
            other = (rank + offset) % size
            _, _, own, own_streams, dense, _, _ = headers[other]
            if not own:
                continue
            found_NX = found_WNX[other, :own]
            d_NSO = found_NX[:, ins : ins + own_streams * outs].view(own, own_streams, outs)
            tasks_SN = found_NX[:, ins + streams * outs :][:, :own_streams].T.long()
            others.append(
                Group(
                    found_NX[:, :ins],
                    d_NSO.transpose(0, 1).contiguous(),
                    tuple(tasks_SN[:, 0].tolist()) if dense else (),
                    None if dense else tasks_SN,
                )
            )
        return mine, others

    def _buckets(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Yield this process's part of the tasks' gradients in several parameters, (K, C)."""
        parts: list[Tensor] = []
        for i in positions:
            parameter, layer = self.shared[i], self.layers[i]
            part_KC = torch.zeros(
                len(self.at), parameter.numel(), dtype=self._dtype(i), device=parameter.device
            )
            for task, grad in grads_of(layer).items() if layer is not None else ():
                part_KC[self.at.index(task)] = grad
            if parts and (
                part_KC.dtype != parts[0].dtype
                or sum(p.numel() for p in parts) + part_KC.numel() > BUCKET
            ):
                yield torch.cat(parts, dim=1)
                parts = []
            parts.append(part_KC)
        if parts:
            yield torch.cat(parts, dim=1)


def _kind(layer: Layer) -> int:
    uses = [piece.use for piece in layer.pieces]
    if not uses and not layer.rows:
        return NOTHING
    if layer.rows or not alike(uses):
        return SUMMED
    if isinstance(uses[0], Embedding):
        return TABLE
    return LINEAR if isinstance(uses[0], Linear) else SUMMED


def _numbers(headers: Sequence[Sequence[int]]) -> int:
    """Return how many numbers gathering sends from each process, times the processes."""
    positions, streams, ins, outs = (max(h[n] for h in headers) for n in (2, 3, 5, 6))
    return len(headers) * positions * (ins + streams * (outs + 1))


def _dense(pieces: Sequence[Piece]) -> bool:
    """Return whether every stream is one task's, the same in all pieces."""
    return all(p.tasks_SN is None for p in pieces) and len({p.own for p in pieces}) == 1


def _group(pieces: Sequence[Piece], dtype: torch.dtype) -> Group:
    """Return the pieces laid end to end, with as many streams as any has."""
    uses = [piece.use for piece in pieces if isinstance(piece.use, Linear)]
    inputs_NI = torch.cat([use.inputs_NI for use in uses]).to(dtype)
    if _dense(pieces):
        d_SNO = torch.cat([piece.d_SN for piece in pieces], 1).to(dtype)
        return Group(inputs_NI, d_SNO, pieces[0].own, None)
    streams = max(len(piece.d_SN) for piece in pieces)
    every_d, every_task = [], []
    for piece in pieces:
        missing = streams - len(piece.d_SN)
        every_d.append(torch.nn.functional.pad(piece.d_SN, (0, 0, 0, 0, 0, missing)))
        every_task.append(torch.nn.functional.pad(piece.tasks(), (0, 0, 0, missing), value=-1))
    return Group(inputs_NI, torch.cat(every_d, 1).to(dtype), (), torch.cat(every_task, 1))
