"""The exact Gramian of the tasks' shared gradients, layer by layer, without a K x P Jacobian.

Source: Gram matrices from layer inputs and output gradients: Goodfellow, "Efficient Per-Example
    Gradient Computations", arXiv:1510.01799; "ghost" norms of Li et al., ICLR 2022,
    arXiv:2110.05679. Here the products are between tasks instead of norms of examples.

**What is asked of autograd.** The graph of the losses is read (`graph`), and the gradient of each
layer's *output* is asked for, once per task, instead of each parameter's gradient. Above the cut
(the features all tasks read) a pass costs the heads alone; below it the passes go on from there.
A parameter whose layer is unknown, or small, is asked for itself.

**Per parameter one of five ways**, all exact, chosen by what they cost (`_plan`):
- *ghost*, weights of linear layers: <dW_k, dW_l> = sum of (a a') * (d_k d_l') over positions,
  N^2 I + K N^2 O + K^2 N O products in place of K N I O;
- *looked up*, embeddings: sums over the rows of the table that the batch holds;
- *sums*, biases, normalisation and what is broadcast: per position, then added up per task;
- *formed*, convolutions and the rest: the K gradients of this one layer, their products, and
  they are dropped again;
- *rows*: the K gradients as autograd gives them, kept until the update; every unknown layer.

**Label-sparse.** Where every row of the cut has a gradient from m tasks at most and m is at most
K / 2, the K gradients at the cut are packed into m: row b of stream s carries the s-th task of that
row. The encoder is then passed m times, and products are added to the tasks of their rows.
This holds only where no layer mixes rows. So every node below the cut must be of a sort that can
keep rows apart (`graph.ROW_BY_ROW`), and that it does is tried on the model at hand: the gradient
of half of the rows must be exactly zero at the other rows of every layer. It is tried again after
1, 2, 4, 8, ... steps, and for every new form of the graph.

**The update** needs no second backward pass: the output gradients are kept, their weighted sum
meets each layer's inputs once.

**Precision.** Within a layer in the dtype of the layer, float32 at least; across layers and chunks
in float64. A ghost product loses digits where a task's rows cancel almost wholly; where that
costs more than about 1e-4 of the result the layer's gradients are formed instead.

**Where it does not apply** the caller runs one backward per task (`gradients.add_rows`):
a Python-written autograd function in a graph that does not show all parameters (reentrant
checkpointing), hooks after gradient accumulation, losses that are leaves. Several processes and
micro-batches are the caller's too: both need the sum of the rows themselves.

Shapes: K = tasks present, S = streams, B = rows of the cut, N = positions of a layer, r = N / B,
I, O = inputs and outputs of a linear layer, P = numbers in one parameter, U = looked-up rows,
E = embedding width, Q = numbers in a small parameter.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from polytask.balance import gradients
from polytask.balance.graph import ROW_BY_ROW, Graph, read
from polytask.balance.layers import Embedding, Linear, Small, Use, shape_of, wide

Way = Literal["ghost", "looked up", "sums", "formed", "rows"]

CANCELLED = 1e4
"""Times the dtype's epsilon: a task's squared gradient below that part of the sum of its positions'
own squares has lost too many digits to be trusted from a ghost product."""
MEMORY = 2.0
"""Autograd's K gradients are kept unless the output gradients are smaller by this factor: forming
them from there saves memory and costs one more product."""
BLOCK = 1 << 22
"""Numbers of a temporary of the ghost products."""
BLOCKS = 4
"""Blocks of positions at least: four save three eighths of the products, more make them small."""
FORMS = 256
"""Forms of the graph whose verdict is remembered; texts of many lengths have many."""

Key = TypeVar("Key")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Streams:
    """The output gradients that the encoder is passed with.

    at: the cut they start from; None: the losses themselves.
    given: S gradients of the cut's output; empty without a cut.
    tasks_SB: the task (0 to K - 1) of each row of each stream, K for nobody's; None: stream s is
        task s, in all rows.
    minor: the uses whose positions count rows fastest, as in (L, B, ...).
    """

    tasks: int
    at: Node | None = None
    given: tuple[Tensor, ...] = ()
    tasks_SB: Tensor | None = None
    minor: frozenset[Use] = frozenset()

    def tasks_SN(self, use: Use) -> Tensor:
        """Return the task of each position of a layer, per stream."""
        assert self.tasks_SB is not None
        times = use.shape[0] // self.tasks_SB.shape[1]
        if use in self.minor:
            return self.tasks_SB.repeat(1, times)
        return self.tasks_SB.repeat_interleave(times, dim=1)

    def sum_up(self, weights_K: Tensor, use: Use, d_SN: Tensor) -> Tensor:
        """Return the weighted sum over tasks of a layer's output gradients, (N, ...)."""
        weights_K = weights_K.to(d_SN.dtype)
        if self.tasks_SB is None:
            return torch.einsum("k,k...->...", weights_K, d_SN)
        padded = torch.cat([weights_K, weights_K.new_zeros(1)])  # nobody's rows weigh nothing
        return torch.einsum("sn,sn...->n...", padded[self.tasks_SN(use)], d_SN)


@dataclass
class Products:
    """A step's Gramian, and what its update is made from.

    gram_KK: float64.
    reached: positions of the shared parameters that a loss reaches.
    """

    gram_KK: Tensor
    _weighted: dict[int, Callable[[Tensor], Tensor]]
    _losses: Sequence[Tensor]
    _others: list[Tensor]

    @property
    def reached(self) -> frozenset[int]:
        return frozenset(self._weighted)

    def add(self, weights_K: Tensor, shared: Sequence[nn.Parameter]) -> None:
        """Add the weighted update to the shared `.grad`, and to every other its gradient.

        The others' is that of the unweighted losses, as by `loss.backward()`.
        """
        for i, weighted in self._weighted.items():
            parameter = shared[i]
            piece = weighted(weights_K).view(parameter.shape).to(parameter.dtype)
            parameter.grad = piece if parameter.grad is None else parameter.grad + piece
        self._weighted.clear()
        if self._others:
            torch.autograd.backward(list(self._losses), inputs=self._others)


class PerLayer:
    """Gives each step's Gramian and update, and remembers what it found out about the model.

    said: how the last step was computed, in words.
    held: bytes of output gradients and rows that the last step held.
    """

    def __init__(self) -> None:
        self.said = ""
        self.held = 0
        self._verdicts: dict[tuple[object, ...], _Verdict] = {}
        self._told = False

    def products(self, losses: Sequence[Tensor], shared: Sequence[nn.Parameter]) -> Products | None:
        """Return the products of the losses' gradients; None where this cannot tell them."""
        why = _refusal(losses, shared)
        graph = None if why else read(losses, shared)
        if (
            graph is not None
            and graph.opaque
            and any(p.requires_grad and i not in graph.uses for i, p in enumerate(shared))
        ):
            why = "a Python-written autograd function hides parameters"
        if graph is None or why:
            self._say(f"exact: one backward per task present ({why})", why)
            return None
        for i in graph.uses:
            if shared[i]._backward_hooks:  # they may change the gradient, so they must see it
                graph.uses[i] = None
        with torch.no_grad():
            return self._products(graph, losses, shared)

    def _products(
        self, graph: Graph, losses: Sequence[Tensor], shared: Sequence[nn.Parameter]
    ) -> Products:
        streams = self._streams(graph, losses)
        ways = {i: _plan(uses, shared[i].numel(), streams) for i, uses in graph.uses.items()}
        self._describe(graph, ways, streams)
        kept, rows = _passes(graph, ways, losses, shared, streams)
        self.held = sum(t.numel() * t.element_size() for t in (*kept.values(), *rows.values()))
        tasks = len(losses)
        device = shared[0].device
        gram_KK = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)
        weighted: dict[int, Callable[[Tensor], Tensor]] = {}
        for i, way in ways.items():
            if way == "rows":
                rows_KP = rows[i]
                gram_KK += gradients.gram(rows_KP)
                weighted[i] = _of_rows(rows_KP)
                continue
            uses = graph.uses[i]
            assert uses is not None
            kept_here = [kept[use.node].view(-1, *use.shape) for use in uses]
            layer = _Layer(uses, kept_here, streams)
            if way == "sums":
                sums_KQ = layer.sums()
                gram_KK += gradients.gram(sums_KQ)
                weighted[i] = _of_rows(sums_KQ)
                continue
            gram_KK += layer.gram(way)
            weighted[i] = layer.weighted
        return Products((gram_KK + gram_KK.T) / 2, weighted, losses, graph.others)

    def _streams(self, graph: Graph, losses: Sequence[Tensor]) -> Streams:
        """Return the gradients to pass through the encoder: one per task, or fewer."""
        tasks = len(losses)
        if not graph.cuts:
            return Streams(tasks)
        dense: Streams | None = None
        deepest: dict[int, Node] = {}  # by the number of rows, from the deepest cut on
        for cut in reversed(graph.cuts):
            deepest.setdefault(shape_of(cut)[0], cut)
        known = all(uses is not None for uses in graph.uses.values())
        for cut in deepest.values():
            verdict = self._verdict(graph, cut) if known and tasks > 1 else None
            if dense is not None and (verdict is None or verdict.mixes):
                continue
            given = _down_to(cut, losses)
            dense = dense or Streams(tasks, cut, given)
            if verdict is None or verdict.mixes:
                continue
            there_KB = torch.stack([d.flatten(1).any(1) for d in given])
            streams = int(there_KB.sum(0).amax())
            if streams == 0 or 2 * streams > tasks:
                break  # and in coarser rows there would be more of them
            minor = verdict.minor(graph, cut)
            if minor is not None:
                return _packed(cut, given, there_KB, streams, minor)
        assert dense is not None
        return dense

    def _verdict(self, graph: Graph, cut: Node) -> _Verdict:
        below = graph.below(cut)
        at = {node: n for n, node in enumerate(below)}
        form: tuple[object, ...] = tuple(
            (node.name(), tuple(at.get(child, -1) for child, _ in node.next_functions if child))
            for node in below
        )
        verdict = self._verdicts.get(form)
        if verdict is None:
            if len(self._verdicts) >= FORMS:
                self._verdicts.clear()
            verdict = self._verdicts[form] = _Verdict(not all(map(_may_keep_rows, below)))
        return verdict

    def _describe(self, graph: Graph, ways: dict[int, Way], streams: Streams) -> None:
        counts = ", ".join(f"{way} {n}" for way, n in sorted(Counter(ways.values()).items()))
        if streams.tasks_SB is not None:
            passes = f"label-sparse, {len(streams.tasks_SB)} backward for all tasks"
        elif streams.at is not None:
            passes = "one backward per task present"
        else:
            passes = "one backward per task present, without a cut"
        unknown = sum(uses is None for uses in graph.uses.values())
        why = f"{unknown} parameters in layers it does not know" if unknown else ""
        text = f"exact, per layer: {passes}; parameters by way: {counts}"
        self._say(f"{text} ({why}: their rows are kept)" if why else text, why)

    def _say(self, text: str, why: str) -> None:
        self.said = text
        if why and not self._told:
            self._told = True
            _log.warning("Gramian: %s; gradients of all tasks are formed there.", why)


def _refusal(losses: Sequence[Tensor], shared: Sequence[nn.Parameter]) -> str:
    if any(loss.grad_fn is None for loss in losses):
        return "a loss is itself a parameter"
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in shared):
        return "a shared parameter has a hook after gradient accumulation"
    return ""


# -- rows that stay apart ------------------------------------------------------------------------


class _Verdict:
    """Whether one form of a graph keeps rows apart below its cut, tried out now and then."""

    def __init__(self, mixes: bool) -> None:
        self.mixes = mixes
        self._asked = 0
        self._minor: tuple[bool, ...] = ()

    def minor(self, graph: Graph, cut: Node) -> frozenset[Use] | None:
        """Return the uses whose positions count rows fastest; None where rows are mixed."""
        uses = [use for uses in graph.uses.values() for use in uses or ()]
        self._asked += 1
        if self._asked & (self._asked - 1) == 0:
            found = _try_rows(cut, uses)
            self.mixes = found is None
            self._minor = found or ()
        if self.mixes:
            return None
        return frozenset(use for use, minor in zip(uses, self._minor, strict=True) if minor)


def _may_keep_rows(node: Node) -> bool:
    if node.name() == "GatherBackward0":
        return int(node._saved_dim) != 0  # type: ignore[attr-defined]
    return node.name() in ROW_BY_ROW


def _try_rows(cut: Node, uses: Sequence[Use]) -> tuple[bool, ...] | None:
    """Return, per use, whether positions count rows fastest; None where a layer mixes rows."""
    shape = shape_of(cut)
    rows = shape[0]
    if any(use.shape[0] % rows for use in uses):
        return None
    nodes = list(dict.fromkeys(use.node for use in uses))
    like = cut._input_metadata[0]
    generator = torch.Generator().manual_seed(rows)
    layouts = [{False, True} for _ in uses]
    for _ in range(2):
        half_B = torch.zeros(rows, dtype=torch.bool)
        half_B[torch.randperm(rows, generator=generator)[: (rows + 1) // 2]] = True
        for mask_B in (half_B, ~half_B):
            d = torch.randn(shape, generator=generator)
            d[~mask_B] = 0
            found = dict(
                zip(nodes, _below(cut, d.to(like.device, like.dtype), nodes, []), strict=True)
            )
            for use, left in zip(uses, layouts, strict=True):
                d_N = found[use.node]
                if d_N is None:
                    continue
                there_N = (d_N.reshape(use.shape[0], -1) != 0).any(1).cpu()
                times = len(there_N) // rows
                for minor in tuple(left):
                    mask_N = mask_B.repeat(times) if minor else mask_B.repeat_interleave(times)
                    if bool((there_N & ~mask_N).any()):
                        left.discard(minor)
    if not all(layouts):
        return None
    return tuple(False not in left for left in layouts)


def _packed(
    cut: Node, given: Sequence[Tensor], there_KB: Tensor, streams: int, minor: frozenset[Use]
) -> Streams:
    """Return the tasks' gradients with several tasks' rows in one stream."""
    tasks, rows = there_KB.shape
    before_KB = there_KB.cumsum(0) - 1  # how many tasks of the row came earlier: its stream
    tasks_SB = torch.full((streams, rows), tasks, device=there_KB.device)
    packed = [torch.zeros_like(given[0]) for _ in range(streams)]
    for k, d in enumerate(given):
        for s in range(streams):
            here_B = there_KB[k] & (before_KB[k] == s)
            tasks_SB[s].masked_fill_(here_B, k)
            packed[s] += d * here_B.view(-1, *(1,) * (d.dim() - 1)) if streams > 1 else d
    return Streams(tasks, cut, tuple(packed), tasks_SB, minor)


# -- passes through the graph --------------------------------------------------------------------


def _down_to(cut: Node, losses: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return every loss's gradient at the cut's output."""
    edge = GradientEdge(cut, 0)
    found = [
        torch.autograd.grad(loss, [edge], retain_graph=True, allow_unused=True)[0]
        for loss in losses
    ]
    like = cut._input_metadata[0]
    return tuple(
        torch.zeros(shape_of(cut), dtype=like.dtype, device=like.device) if d is None else d
        for d in found
    )


def _below(
    cut: Node, d: Tensor, nodes: Sequence[Node], leaves: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return the gradients at the outputs of nodes, and of leaves, for one gradient at the cut."""
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        [GradientEdge(cut, 0)],
        _wanted(nodes, leaves),
        grad_outputs=[d],
        retain_graph=True,
        allow_unused=True,
    )
    return found


def _wanted(nodes: Sequence[Node], leaves: Sequence[Tensor]) -> list[Any]:
    # torch takes edges and tensors side by side; its annotations know of lists of one sort.
    return [*(GradientEdge(node, 0) for node in nodes), *leaves]


def _passes(
    graph: Graph,
    ways: dict[int, Way],
    losses: Sequence[Tensor],
    shared: Sequence[nn.Parameter],
    streams: Streams,
) -> tuple[dict[Node, Tensor], dict[int, Tensor]]:
    """Return the output gradients (S, N, ...) per layer, and rows (K, P) of the rest."""
    nodes = list(
        dict.fromkeys(
            use.node for i, way in ways.items() if way != "rows" for use in graph.uses[i] or ()
        )
    )
    by_row = [i for i, way in ways.items() if way == "rows"]
    leaves = [shared[i] for i in by_row]
    count = len(streams.given) or len(losses)
    kept: dict[Node, Tensor] = {}
    rows: dict[int, Tensor] = {}
    for s in range(count if nodes or leaves else 0):
        found: tuple[Tensor | None, ...]
        if streams.at is None:
            wanted = _wanted(nodes, leaves)
            found = torch.autograd.grad(losses[s], wanted, retain_graph=True, allow_unused=True)
        else:
            found = _below(streams.at, streams.given[s], nodes, leaves)
        for node, d_N in zip(nodes, found, strict=False):
            _put(kept, node, s, count, d_N, shape_of(node), shared[0].device)
        for i, grad in zip(by_row, found[len(nodes) :], strict=True):
            flat = None if grad is None else grad.flatten()
            _put(rows, i, s, count, flat, (shared[i].numel(),), shared[0].device)
    return kept, rows


def _put(
    into: dict[Key, Tensor],
    key: Key,
    s: int,
    count: int,
    values: Tensor | None,
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """Put a pass's result where all passes' lie together, zeros where a task reaches nothing."""
    if values is None:
        if key not in into:
            into[key] = torch.zeros(count, *shape, device=device)
        into[key][s] = 0
        return
    values = wide(values)
    before = into.get(key)
    if before is None or before.dtype != values.dtype:
        into[key] = values.new_empty(count, *shape)
        if before is not None:  # zeros, in the dtype that was a guess
            into[key][:s] = before[:s]
    into[key][s] = values


# -- products of a layer -------------------------------------------------------------------------


def _plan(uses: list[Use] | None, numel: int, streams: Streams) -> Way:
    """Return the cheapest exact way for a parameter of `numel` numbers."""
    if uses is None:
        return "rows"
    sparse = streams.tasks_SB is not None
    passes = len(streams.given) or streams.tasks
    outputs = sum(_numel(use) for use in uses)
    if all(isinstance(use, Small) for use in uses):
        # Autograd's own sums cost nothing more, where each pass is one task's.
        return "sums" if sparse else "rows"
    if all(isinstance(use, Embedding) for use in uses):
        return "looked up" if sparse or outputs < numel else "rows"
    if all(isinstance(use, Linear) and use.transposed == uses[0].transposed for use in uses):  # type: ignore[attr-defined]
        sizes = [use.sizes for use in uses if isinstance(use, Linear)]
        positions, outs = sum(n for n, _, _ in sizes), sizes[0][2]
        tasks, own = streams.tasks, positions * numel  # one gradient of the weight
        if sparse:
            ghost = positions**2 * (numel // outs + passes**2 * outs)
            # Forming them takes one such gradient per stream, and the products of the results.
            other = passes * own + tasks**2 * numel
        else:
            ghost = positions**2 * (numel // outs + tasks * outs) + own
            ghost += tasks**2 * positions * outs
            other = tasks * own + tasks**2 * numel
        if ghost < other:
            return "ghost"
    if sparse or (MEMORY * outputs < numel and not any(isinstance(use, Small) for use in uses)):
        return "formed"
    return "rows"


def _numel(use: Use) -> int:
    total = 1
    for size in use.shape:
        total *= size
    return total


def _of_rows(rows_KP: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda weights_K: weights_K.to(rows_KP.dtype) @ rows_KP


class _Layer:
    """One parameter's uses and their output gradients, (S, N, ...) each."""

    def __init__(self, uses: list[Use], kept: list[Tensor], streams: Streams) -> None:
        self.uses, self.kept, self.streams = uses, kept, streams

    def weighted(self, weights_K: Tensor) -> Tensor:
        """Return the parameter's gradient of the weighted losses."""
        return _total(
            [
                use.gradient(self.streams.sum_up(weights_K, use, d_SN)).flatten()
                for use, d_SN in zip(self.uses, self.kept, strict=True)
            ]
        )

    def gram(self, way: Way) -> Tensor:
        """Return the products of the tasks' gradients in this parameter, (K, K), float64."""
        if way == "looked up":
            return self._looked_up()
        if way == "ghost":
            gram_KK = self._ghost()
            if gram_KK is not None:
                return gram_KK
        rows_KP: Tensor | None = None
        for k, grad_P in enumerate(self._formed()):
            if rows_KP is None:
                rows_KP = grad_P.new_empty(self.streams.tasks, len(grad_P))
            rows_KP[k] = grad_P
        assert rows_KP is not None
        return gradients.gram(rows_KP)

    def sums(self) -> Tensor:
        """Return the tasks' gradients, (K, Q), as sums over the positions of each."""
        return _total([self._sums(n) for n in range(len(self.uses))])

    def _sums(self, n: int) -> Tensor:
        use, d_SN = self.uses[n], self.kept[n]
        assert isinstance(use, Small)
        each = [use.each(d_N) for d_N in d_SN]
        if self.streams.tasks_SB is None:
            return torch.stack([part_NQ.sum(0) for part_NQ in each])
        sums_KQ = each[0].new_zeros(self.streams.tasks + 1, each[0].shape[1])
        for part_NQ, tasks_N in zip(each, self.streams.tasks_SN(use), strict=True):
            sums_KQ.index_add_(0, tasks_N, part_NQ)
        return sums_KQ[:-1]

    def _formed(self) -> Iterator[Tensor]:
        """Yield each task's gradient, flattened."""
        sums = {n: self._sums(n) for n, use in enumerate(self.uses) if isinstance(use, Small)}
        maps = [
            None if self.streams.tasks_SB is None else self.streams.tasks_SN(use)
            for use in self.uses
        ]
        for k in range(self.streams.tasks):
            parts = []
            for n, (use, d_SN, tasks_SN) in enumerate(zip(self.uses, self.kept, maps, strict=True)):
                if n in sums:
                    parts.append(sums[n][k].flatten())
                elif tasks_SN is None:
                    parts.append(use.gradient(d_SN[k]).flatten())
                else:
                    for d_N, tasks_N in zip(d_SN, tasks_SN, strict=True):
                        at = (tasks_N == k).nonzero()[:, 0]
                        parts.append(use.gradient(d_N[at], at).flatten())
            yield _total(parts)

    def _looked_up(self) -> Tensor:
        uses = [use for use in self.uses if isinstance(use, Embedding)]
        words, inverse = torch.unique(torch.cat([u.indices_N for u in uses]), return_inverse=True)
        tasks = self.streams.tasks
        table = self.kept[0].new_zeros((tasks + 1) * len(words), self.kept[0].shape[-1])
        sizes = [use.shape[0] for use in uses]
        for use, d_SN, own_N in zip(uses, self.kept, inverse.split(sizes), strict=True):
            d_SN = d_SN * (use.indices_N != use.padding)[:, None]
            for s, d_N in enumerate(d_SN):
                task = s if self.streams.tasks_SB is None else self.streams.tasks_SN(use)[s]
                table.index_add_(0, task * len(words) + own_N, d_N)
        return gradients.gram(table.view(tasks + 1, -1)[:-1])

    def _ghost(self) -> Tensor | None:
        """Return the products from inputs and output gradients; None where too much cancels."""
        inputs_NI = torch.cat([u.inputs_NI for u in self.uses if isinstance(u, Linear)])
        d_SNO = self.kept[0] if len(self.kept) == 1 else torch.cat(self.kept, 1)
        inputs_NI = inputs_NI.to(d_SNO.dtype)
        if self.streams.tasks_SB is None:
            gram_KK, apart_K = _ghost_dense(inputs_NI, d_SNO)
        else:
            tasks_SN = torch.cat([self.streams.tasks_SN(use) for use in self.uses], 1)
            gram_KK, apart_K = _ghost_sparse(inputs_NI, d_SNO, tasks_SN, self.streams.tasks)
        floor_K = apart_K * (CANCELLED * torch.finfo(d_SNO.dtype).eps)
        return None if bool((gram_KK.diagonal() < floor_K).any()) else gram_KK


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape; at least one."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _ghost_dense(inputs_NI: Tensor, d_KNO: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gramian, and each task's sum of its positions' own squares."""
    tasks, _, outs = d_KNO.shape
    half_KK = torch.zeros(tasks, tasks, dtype=torch.float64, device=d_KNO.device)
    for here, later, inner_CM in _blocks(inputs_NI, BLOCK // (tasks * outs)):
        mixed_KCO = d_KNO.new_empty(tasks, len(inner_CM), outs)
        for d_NO, mixed_CO in zip(d_KNO, mixed_KCO, strict=True):
            # One product per task: a batched one takes half as long again on processors.
            torch.mm(inner_CM, d_NO[later], out=mixed_CO)
        products_CKK = torch.bmm(mixed_KCO.transpose(0, 1), d_KNO[:, here].permute(1, 2, 0))
        half_KK += products_CKK.sum(0, dtype=torch.float64)
    norms_KN = torch.linalg.vector_norm(d_KNO, dim=2)
    apart_K = norms_KN.square() @ inputs_NI.square().sum(1)
    return half_KK + half_KK.T, apart_K.to(torch.float64)


def _blocks(inputs_NI: Tensor, size: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield blocks of positions, each with those from its start on, and their inputs' products.

    The products are symmetric and only one side is formed. Those within a block are halved, so
    that a sum over all and its transpose make the whole. size: of a block at most.
    """
    positions = len(inputs_NI)
    size = max(1, min(size, -(-positions // BLOCKS)))
    for start in range(0, positions, size):
        here, later = slice(start, start + size), slice(start, None)
        inner_CM = inputs_NI[here] @ inputs_NI[later].T
        inner_CM[:, : len(inner_CM)] /= 2
        yield here, later, inner_CM


def _ghost_sparse(
    inputs_NI: Tensor, d_SNO: Tensor, tasks_SN: Tensor, tasks: int
) -> tuple[Tensor, Tensor]:
    """Return the Gramian, and each task's sum of its positions' own squares."""
    streams, positions, _ = d_SNO.shape
    # One task more than there are, for the rows that belong to none.
    half_KK = torch.zeros(tasks + 1, tasks + 1, dtype=torch.float64, device=d_SNO.device)
    for here, later, inner_CM in _blocks(inputs_NI, BLOCK // positions):
        for s in range(streams):
            onto_CK = half_KK.new_zeros(len(inner_CM), tasks + 1)
            for t in range(streams):
                products_CM = (d_SNO[s, here] @ d_SNO[t, later].T) * inner_CM
                onto_CK.index_add_(1, tasks_SN[t, later], products_CM.double())
            half_KK.index_add_(0, tasks_SN[s, here], onto_CK)
    gram_KK = half_KK + half_KK.T
    squares_SN = d_SNO.square().sum(2) * inputs_NI.square().sum(1)
    apart_K = gram_KK.new_zeros(tasks + 1)
    apart_K.index_add_(0, tasks_SN.flatten(), squares_SN.flatten().to(torch.float64))
    return gram_KK[:-1, :-1], apart_K[:-1]
