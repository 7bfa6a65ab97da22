"""The exact Gramian of the tasks' shared gradients, layer by layer, without a K x P Jacobian.

Source: Gram matrices from layer inputs and output gradients: Goodfellow, "Efficient Per-Example
    Gradient Computations", arXiv:1510.01799; "ghost" norms of Li et al., ICLR 2022,
    arXiv:2110.05679. Here the products are between tasks instead of norms of examples.

**What is asked of autograd.** The graph of the losses is read (`graph`), and the gradient of each
layer's *output* is asked for instead of each parameter's gradient: once per task, or fewer times
where rows or whole forward passes belong to few tasks (`streams`, `passes`). A parameter whose
layer is unknown, or small, is asked for itself. Which way is cheapest for a parameter (`products`)
is counted in multiplications and bytes, `_plan`.

**The update** needs no second backward pass: the output gradients are kept, their weighted sum
meets each layer's inputs once.

**Micro-batches** of one update are further uses of the same parameters. Of a layer where that is
less than the tasks' gradients, its inputs and output gradients are kept; of every other one the
tasks' gradients. The rest of a micro-batch's graph is let go.

**Where it does not apply** the caller runs one backward per task (`gradients.add_rows`):
a Python-written autograd function in a graph that does not show all parameters (reentrant
checkpointing), hooks after gradient accumulation, losses that are leaves.

Shapes: T = tasks, K = losses of one batch, S = streams, N = positions of a layer, I, O = inputs and
outputs of a linear layer, P = all shared parameters.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from polytask.balance import passes
from polytask.balance.graph import Graph, read
from polytask.balance.layers import Embedding, Linear, Small, Stacked, Use
from polytask.balance.products import Layer, Piece, Way, alike
from polytask.balance.streams import Packer, Streams

MEMORY = 2.0
"""Autograd's own gradients are kept unless the output gradients are smaller by this factor: forming
them from there saves memory and costs one more product."""

_log = logging.getLogger(__name__)


class Products:
    """What the losses of one update left in the shared parameters.

    layers: position of a shared parameter that a loss reaches -> what it holds.
    """

    def __init__(self, device: torch.device) -> None:
        self.layers: dict[int, Layer] = {}
        self._device = device
        self._losses: Sequence[Tensor] = ()
        self._others: list[Tensor] = []

    def gram(self, at: Sequence[int]) -> Tensor:
        """Return the products of the gradients of the tasks `at`, float64, exactly symmetric."""
        tasks = max(at) + 1
        gram_TT = torch.zeros(tasks, tasks, dtype=torch.float64, device=self._device)
        for layer in self.layers.values():
            gram_TT += layer.gram(tasks)
        gram_TT = (gram_TT + gram_TT.T) / 2
        if len(at) == tasks:
            return gram_TT
        index_K = torch.tensor(at, device=self._device)
        return gram_TT[index_K[:, None], index_K]

    def add(
        self,
        at: Sequence[int],
        weights_K: Tensor,
        shared: Sequence[nn.Parameter],
        retain: bool = False,
    ) -> None:
        """Add the weighted update to the shared `.grad`, and to every other its gradient.

        What is held is let go. The others' gradient is that of the unweighted losses, as by
        `loss.backward()`. retain: whether the losses' graph must outlive this.
        """
        weights_T = weights_K.new_zeros(max(at) + 1)
        weights_T[list(at)] = weights_K
        for i in list(self.layers):
            parameter = shared[i]
            piece = self.layers.pop(i).weighted(weights_T).view(parameter.shape)
            piece = piece.to(parameter.dtype)
            parameter.grad = piece if parameter.grad is None else parameter.grad + piece
        self._add_others(retain)

    def let_go(self, retain: bool = False) -> None:
        """Keep nothing of the losses' graph, for micro-batches that others follow.

        Every parameter that is not shared gets its gradient. retain: whether the graph must
        outlive this.
        """
        for layer in self.layers.values():
            layer.let_go()
        self._add_others(retain)  # frees what the layers had to read

    def _add_others(self, retain: bool) -> None:
        if self._others:
            losses = list(self._losses)
            torch.autograd.backward(losses, inputs=self._others, retain_graph=retain)
        self._losses, self._others = (), []

    def rows(self) -> dict[int, dict[int, Tensor]]:
        """Return, per shared parameter reached, each task's gradient, flattened."""
        for layer in self.layers.values():
            layer.form()
        return {i: layer.rows for i, layer in self.layers.items()}

    def held(self) -> int:
        """Return the bytes of output gradients and rows; the layers' inputs are not counted."""
        return sum(layer.held() for layer in self.layers.values())

    def expect(self, losses: Sequence[Tensor], others: list[Tensor]) -> None:
        """Remember which other parameters are to get their gradient, and of what."""
        self._losses, self._others = losses, others


class PerLayer:
    """Gives each step's products, and remembers what it found out about the model.

    said: how the last step was computed, in words.
    dense: whether it took a backward pass for every task.
    """

    def __init__(self) -> None:
        self.said, self.dense = "", True
        self._packer = Packer()
        self._told = False

    def state(self) -> dict[str, Tensor]:
        """Return what was found out, on which the digits of later steps depend, as tensors."""
        return self._packer.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned, bit for bit."""
        self._packer.restore(state)

    def products(
        self,
        losses: Sequence[Tensor],
        shared: Sequence[nn.Parameter],
        at: Sequence[int],
        before: Products | None = None,
        more: bool = False,
        alone: bool = False,
    ) -> Products | None:
        """Return the products of the losses' gradients; None where this cannot tell them.

        at: the tasks' positions. before: of the micro-batches that came before in the update; what
        comes back is the same object, added to. more: another micro-batch will come.
        alone: no other parameter is to get its gradient.
        """
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
        products = before or Products(shared[0].device)
        with torch.no_grad():
            self._take(products, graph, losses, shared, at, more or before is not None)
        products.expect(losses, [] if alone else graph.others)
        if more:
            products.let_go()
        return products

    def _take(
        self,
        products: Products,
        graph: Graph,
        losses: Sequence[Tensor],
        shared: Sequence[nn.Parameter],
        at: Sequence[int],
        parts_of_update: bool,
    ) -> None:
        parts = self._packer.streams(graph, losses)
        of = {node: part for part in parts for node in part.part.nodes}
        uses: dict[int, list[Use] | None] = {}
        for i, found in graph.uses.items():
            products.layers.setdefault(i, Layer(shared[i]))
            # A part that no loss enters has gradients of zero, as has a batch without rows.
            uses[i] = None if found is None else [u for u in found if u.node in of and u.numel()]
        ways = {
            i: plan(found, of, products.layers[i], parts_of_update) for i, found in uses.items()
        }
        self._describe(uses, ways, parts, len(losses), parts_of_update)
        nodes = [use.node for i, way in ways.items() if way != "rows" for use in uses[i] or ()]
        leaves = {i: shared[i] for i, way in ways.items() if way == "rows"}
        passed = passes.run(parts, losses, list(dict.fromkeys(nodes)), leaves)
        where = torch.tensor([*at, -1], device=shared[0].device)  # of nobody's rows: -1
        for i, way in ways.items():
            layer = products.layers[i]
            layer.way = way
            for k, grad in passed.rows.get(i, {}).items():
                layer.add_row(at[k], grad)
            for use in uses[i] or () if way != "rows" else ():
                part = of[use.node]
                tasks_SN = part.tasks_SN(use)
                layer.pieces.append(
                    Piece(
                        use,
                        passed.outputs[use.node].reshape(-1, *use.shape),
                        tuple(at[k] for k in part.own),
                        None if tasks_SN is None else where[tasks_SN],
                    )
                )
            if layer.rows or way == "sums" or (parts_of_update and way == "formed"):
                layer.form()

    def _describe(
        self,
        uses: Mapping[int, list[Use] | None],
        ways: Mapping[int, Way],
        parts: Sequence[Streams],
        losses: int,
        parts_of_update: bool,
    ) -> None:
        counts = ", ".join(f"{way} {n}" for way, n in sorted(Counter(ways.values()).items()))
        most = max(map(len, parts), default=0)
        self.dense = most >= losses
        if not self.dense:
            why_fewer = "separate forwards"
            if any(part.tasks_SB is not None for part in parts):
                why_fewer = "label-sparse"
            how = f"{why_fewer}, {most} backward for all tasks"
        else:
            how = "one backward per task present"
        if parts_of_update:
            how += ", in micro-batches"
        unknown = sum(found is None for found in uses.values())
        why = f"{unknown} parameters in layers it does not know" if unknown else ""
        text = f"exact, per layer: {how}; parameters by way: {counts}"
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


def plan(
    uses: Sequence[Use] | None, of: Mapping[Node, Streams], layer: Layer, parts_of_update: bool
) -> Way:
    """Return the cheapest exact way for a parameter, in multiplications and in memory.

    of: layer -> the streams it is passed with. layer: what earlier micro-batches left.
    """
    if uses is None:
        return "rows"
    numel, before = layer.like.numel(), [(p.use, len(p.d_SN)) for p in layer.pieces]
    parts = list({id(of[use.node]): of[use.node] for use in uses}.values())
    packed = any(part.tasks_SB is not None for part in parts)
    # Streams of one task each through the same layers.
    dense = len(parts) == 1 and not packed and not before
    tasks = len({task for part in parts for task in part.own})
    every = [*before, *((use, len(of[use.node])) for use in uses)]
    outputs = sum(use.numel() for use in uses)
    if all(isinstance(use, Small) for use in uses):
        # Autograd's own sums cost nothing more, where each pass is one task's.
        return "rows" if dense and not packed else "sums"
    held = sum(streams * use.numel() for use, streams in every)  # and the inputs, below
    if not layer.rows and alike([use for use, _ in every]):
        first = uses[0]
        if isinstance(first, Embedding):
            fits = not parts_of_update or held < tasks * numel
            if fits and (outputs < numel or not dense):
                return "looked up"
        else:
            products = [(u, streams) for u, streams in every if isinstance(u, Linear | Stacked)]
            sizes = [(use.sizes, streams) for use, streams in products]
            (_, ins, outs), streams = sizes[0]
            stack = first.stack if isinstance(first, Stacked) else 1
            # Of one layer: those of a stack are alike, and cost the same either way.
            positions, weight = sum(n for (n, _, _), _ in sizes), ins * outs
            own = positions * weight  # one gradient of the weight
            if dense:
                ghost = positions**2 * (ins + streams * outs) + streams**2 * positions * outs + own
                other = streams * own + tasks**2 * weight
            else:
                one_by_one = sum(n * streams for (n, _, _), streams in sizes)
                ghost = positions**2 * ins + one_by_one**2 * outs
                other = one_by_one * weight + tasks**2 * weight
            fits = not parts_of_update or held + stack * positions * ins < tasks * numel
            if ghost < other and fits:
                return "ghost"
    small = any(isinstance(use, Small) for use in uses)
    if packed or (MEMORY * outputs < numel and dense and not small and not parts_of_update):
        return "formed"
    return "rows"
