"""The output gradients an encoder has to be passed with: one per task, or fewer.

Four things save passes, all without a change to the result:
- linear heads are passed once for all losses (`at_cut`), as far as the features they read;
- a part of the graph that one loss reaches (one data set per task, each with a forward pass of its
  own) is passed once, with that loss; every part together costs one backward;
- a part is passed for the losses that enter it alone. Where losses were one tensor on their way,
  the graph shows all of them at all parts; then their gradients at the last nodes that hold a
  number per loss tell who enters, exactly;
- **label-sparse**: where every row of a part's cut has a gradient from m tasks at most and m is at
  most half of the part's tasks, the tasks' gradients at the cut are packed into m: row b of stream
  s carries the s-th task of that row.

Packing holds only where no layer mixes rows. So every node below the cut must be of a sort that
can keep rows apart (`graph.ROW_BY_ROW`), and that it does is tried on the model at hand: the
gradient of half of the rows must be exactly zero at the other rows of every layer. It is tried
again after 1, 2, 4, 8, ... steps, for every new form of the graph, and where a batch's sizes leave
open how its positions count rows. What was found is `state`: a run that is resumed with it tries at
the steps at which it would have tried.

Shapes: K = losses, S = streams of a part, B = rows of its cut, N = positions of a layer,
F = forms of the graph.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from polytask.balance.at_cut import AtCut, ByHeads, Formed
from polytask.balance.graph import ROW_BY_ROW, Graph, Part
from polytask.balance.heads import find_heads
from polytask.balance.layers import Use, shape_of

FORMS = 256
"""Forms of the graph whose verdict is remembered; texts of many lengths have many."""


@dataclass(frozen=True)
class Streams:
    """The output gradients that one part is passed with.

    own: the loss (0 to K - 1) each stream is of; of all that enter, where rows are packed.
    at: the cut they start from; None: the losses themselves.
    given: gradients of the cut's output, one per stream; empty without a cut.
    tasks_SB: the loss of each row of each stream, K for nobody's; None: a stream is one loss's.
    rounds: use -> how often its positions count through all rows: B of them in (L, B, ...), say,
        are L rounds. Where it is left out, once: (B, L, ...).
    """

    part: Part
    own: tuple[int, ...]
    at: Node | None = None
    given: tuple[Tensor, ...] = ()
    tasks_SB: Tensor | None = None
    rounds: Mapping[Use, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.own) if self.tasks_SB is None else len(self.tasks_SB)

    def tasks_SN(self, use: Use) -> Tensor | None:
        """Return the loss of each position of a layer, per stream; None as in `tasks_SB`."""
        if self.tasks_SB is None:
            return None
        rounds = self.rounds.get(use, 1)
        times = use.shape[0] // self.tasks_SB.shape[1] // rounds
        return self.tasks_SB.repeat_interleave(times, dim=1).repeat(1, rounds)


class Packer:
    """Gives each step's streams, and remembers which graphs keep rows apart."""

    def __init__(self) -> None:
        self._verdicts: dict[int, _Verdict] = {}

    def streams(self, graph: Graph, losses: Sequence[Tensor]) -> list[Streams]:
        """Return each part's streams; a part that no loss enters has none and is left out."""
        known = all(uses is not None for uses in graph.uses.values())
        entering = _entering(graph.parts, losses)
        return [
            self._of(graph, part, tasks, losses, known)
            for part, tasks in zip(graph.parts, entering, strict=True)
            if tasks
        ]

    def state(self) -> dict[str, Tensor]:
        """Return what was found out about graphs, as tensors; nothing where nothing was.

        forms: int64 (F, 4): a form's digest, how often it was asked for, whether it mixes rows,
            and how many of its uses follow in layouts.
        layouts: int64, per use: bit n is set where layout n is possible, see `_layouts`.
        """
        if not self._verdicts:
            return {}
        lines = [(f, v.asked, int(v.mixes), len(v.found)) for f, v in self._verdicts.items()]
        found = [layouts for verdict in self._verdicts.values() for layouts in verdict.found]
        return {
            "forms": torch.tensor(lines, dtype=torch.int64).reshape(-1, 4),
            "layouts": torch.tensor(found, dtype=torch.int64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self._verdicts = {}
        if "forms" not in state:
            return
        found = state["layouts"].tolist()
        for form, asked, mixes, count in state["forms"].tolist():
            own, found = tuple(found[:count]), found[count:]
            self._verdicts[form] = _Verdict(bool(mixes), asked, own)

    def _of(
        self,
        graph: Graph,
        part: Part,
        tasks: tuple[int, ...],
        losses: Sequence[Tensor],
        known: bool,
    ) -> Streams:
        if len(tasks) == 1 or not known:
            return Streams(part, tasks)
        entering = [losses[k] for k in tasks]
        deepest: dict[int, Node] = {}  # by the number of rows, from the deepest cut on
        for cut in reversed(part.cuts):
            deepest.setdefault(shape_of(cut)[0], cut)
        cuts = list(deepest.values())
        heads = find_heads(part.cuts, graph.order, entering)
        by_heads = None if heads is None else ByHeads(heads, entering)
        start: AtCut | None = by_heads
        if by_heads is not None:  # one pass tells all gradients there
            cuts = list(dict.fromkeys((by_heads.cut, *cuts)))
        for cut in cuts:
            verdict = self._verdict(graph, cut)
            if verdict.mixes:
                continue
            at = Formed(cut, entering) if by_heads is None or cut is not by_heads.cut else by_heads
            if at.hooked():
                continue
            start = start or at
            rows = shape_of(cut)[0]
            if rows < 2:  # a process's share of a short batch may be no row at all
                break  # and whether one row stays apart from others cannot be tried
            there_KB = at.there()
            streams = int(there_KB.sum(0).amax())
            if streams == 0:
                break
            if 2 * streams > len(tasks):
                if rows == max(deepest):
                    break  # in coarser rows there would be more of them
                continue  # dim 0 may be something else here, such as the layers of a stack
            uses = [u for own in graph.uses.values() for u in own or () if u.node in part.nodes]
            rounds = verdict.rounds(cut, uses)
            if rounds is not None:
                packed, tasks_SB = _packed(at, there_KB, streams, tasks, len(losses))
                return Streams(part, tasks, cut, packed, tasks_SB, rounds)
        if start is None:
            return Streams(part, tasks)
        return Streams(part, tasks, start.cut, tuple(start.each()))

    def _verdict(self, graph: Graph, cut: Node) -> _Verdict:
        below = graph.below(cut)
        at = {node: n for n, node in enumerate(below)}
        digest = hashlib.blake2b(digest_size=8)  # one that is the same in every process
        for node in below:
            children = (at.get(child, -1) for child, _ in node.next_functions if child)
            sizes = (str(min(size, 2)) for size in shape_of(node))  # of 1 all rows look alike
            line = f"{node.name()} {','.join(map(str, children))} {'x'.join(sizes)};"
            digest.update(line.encode())
        form = int.from_bytes(digest.digest(), "big", signed=True)
        verdict = self._verdicts.get(form)
        if verdict is None:
            if len(self._verdicts) >= FORMS:
                self._verdicts.clear()
            verdict = self._verdicts[form] = _Verdict(not all(map(_may_keep_rows, below)))
        return verdict


class _Verdict:
    """Whether one form of a graph keeps rows apart below its cut, tried out now and then.

    asked: how often. found: per use, the layouts that the last trial left possible, as bits.
    """

    def __init__(self, mixes: bool, asked: int = 0, found: tuple[int, ...] = ()) -> None:
        self.mixes, self.asked, self.found = mixes, asked, found

    def rounds(self, cut: Node, uses: Sequence[Use]) -> dict[Use, int] | None:
        """Return how often each use's positions count through the rows; None: rows are mixed."""
        self.asked += 1
        rows = shape_of(cut)[0]
        if self.asked & (self.asked - 1) == 0 or any(len(r) != 1 for r in self._left(rows, uses)):
            found = _try_rows(cut, uses)
            self.mixes = found is None
            self.found = found or ()
        if self.mixes:
            return None
        # Where a trial leaves several there were no gradients, which fit with any.
        return {use: min(left) for use, left in zip(uses, self._left(rows, uses), strict=True)}

    def _left(self, rows: int, uses: Sequence[Use]) -> list[set[int]]:
        """Return, per use, the rounds that are possible at the sizes of this batch."""
        return [
            {rounds for n, rounds in _layouts(use, rows).items() if bits & 1 << n}
            for use, bits in zip(uses, self.found, strict=True)
        ]


# -- who enters ----------------------------------------------------------------------------------


def _entering(parts: Sequence[Part], losses: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Return, per part, the losses that have a gradient in it."""
    led: dict[int, list[int]] = {}  # loss -> the parts the graph leads it to
    for p, part in enumerate(parts):
        for k in part.tasks:
            led.setdefault(k, []).append(p)
    entering = [set(part.tasks) for part in parts]
    asked: dict[tuple[int, ...], list[GradientEdge]] = {}
    for k, several in led.items():
        if len(several) == 1:
            continue
        edges = asked.get(tuple(several))
        if edges is None:
            doors = dict.fromkeys(door for p in several for door in parts[p].doors)
            edges = [GradientEdge(d, n) for d in doors for n in range(len(d._input_metadata))]
            asked[tuple(several)] = edges
        found = torch.autograd.grad(losses[k], edges, retain_graph=True, allow_unused=True)
        there = [(e.node, d.flatten()) for e, d in zip(edges, found, strict=True) if d is not None]
        flags = (torch.cat([d for _, d in there]) != 0).tolist()  # one wait for the device
        open_: set[Node] = set()
        for node, d in there:
            if any(flags[: len(d)]):
                open_.add(node)
            flags = flags[len(d) :]
        for p in several:
            if open_.isdisjoint(parts[p].doors):
                entering[p].discard(k)
    return [tuple(sorted(tasks)) for tasks in entering]


# -- rows that stay apart ------------------------------------------------------------------------


def _may_keep_rows(node: Node) -> bool:
    if node.name() == "GatherBackward0":
        return int(node._saved_dim) != 0  # type: ignore[attr-defined]
    return node.name() in ROW_BY_ROW


def _layouts(use: Use, rows: int) -> dict[int, int]:
    """Return the ways in which positions may count rows: number -> rounds through all of them.

    0: each row's positions follow each other, (B, L, ...); 1: rows are counted fastest, (L, B, ...)
    as one dimension too; n: they are all in dimension n - 1, such as 1 in a stack of layers.
    """
    if use.shape[0] % rows:
        return {}
    found = {0: 1, 1: use.shape[0] // rows}
    for dim in range(1, len(use.lead)):
        if use.lead[dim] % rows == 0:
            found[dim + 1] = math.prod(use.lead[:dim])
    return found


def _try_rows(cut: Node, uses: Sequence[Use]) -> tuple[int, ...] | None:
    """Return, per use, the layouts that are possible, as bits; None where a layer mixes rows."""
    shape = shape_of(cut)
    rows = shape[0]
    if any(use.shape[0] % rows for use in uses):
        return None
    nodes = list(dict.fromkeys(use.node for use in uses))
    like = cut._input_metadata[0]
    generator = torch.Generator().manual_seed(rows)
    layouts = [_layouts(use, rows) for use in uses]
    for _ in range(2):
        half_B = torch.zeros(rows, dtype=torch.bool)
        half_B[torch.randperm(rows, generator=generator)[: (rows + 1) // 2]] = True
        for mask_B in (half_B, ~half_B):
            d = torch.randn(shape, generator=generator)
            d[~mask_B] = 0
            found = dict(zip(nodes, _at(nodes, cut, d.to(like.device, like.dtype)), strict=True))
            for use, left in zip(uses, layouts, strict=True):
                d_N = found[use.node]
                if d_N is None:
                    continue
                there_N = (d_N.reshape(use.shape[0], -1) != 0).any(1).cpu()
                for n, rounds in list(left.items()):
                    times = len(there_N) // rows // rounds
                    mask_N = mask_B.repeat_interleave(times).repeat(rounds)
                    if bool((there_N & ~mask_N).any()):
                        del left[n]
    if not all(layouts):
        return None
    return tuple(sum(1 << n for n in left) for left in layouts)


def _packed(
    at: AtCut, there_KB: Tensor, streams: int, own: Sequence[int], nobody: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return gradients with several losses' rows in one, and the loss of each row of each."""
    before_KB = there_KB.cumsum(0) - 1  # how many losses of the row came earlier: its stream
    tasks_SB = torch.full((streams, there_KB.shape[1]), nobody, device=there_KB.device)
    packed = []
    for s in range(streams):
        here_KB = there_KB & (before_KB == s)
        for k, here_B in zip(own, here_KB, strict=True):
            tasks_SB[s].masked_fill_(here_B, k)
        packed.append(at.only(here_KB if streams > 1 else None))
    return tuple(packed), tasks_SB


def _at(nodes: Sequence[Node], cut: Node, d: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients at the outputs of nodes for one gradient at the cut."""
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        [GradientEdge(cut, 0)],
        [GradientEdge(node, 0) for node in nodes],
        grad_outputs=[d],
        retain_graph=True,
        allow_unused=True,
    )
    return found
