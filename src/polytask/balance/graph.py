"""The autograd graph of a step's losses: who reaches the shared parameters, and through what.

A *part* is what one forward pass through the encoder left: no node of it leads to another part's,
parameters aside. With one data set per task there are several, with shared inputs one.
A *cut* of a part is a node that every path from a loss to the part's layers goes through: the
encoder's features, say. Above it a backward pass costs the heads alone, below it the encoder.

Shapes: K = losses, B = dim 0 of a cut's output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from polytask.balance.layers import Site, Use, recognise, shape_of, turns

LEAF = "torch::autograd::AccumulateGrad"

ROW_BY_ROW = frozenset(
    f"{name}Backward{variant}"
    for variant in range(3)
    for name in (
        # element by element
        "Relu", "LeakyRelu", "Gelu", "Silu", "Mish", "Elu", "Tanh", "Sigmoid", "Softplus",
        "Hardtanh", "Hardswish", "Hardsigmoid", "Exp", "Log", "Sqrt", "Rsqrt", "Pow", "Neg", "Abs",
        "Clamp", "ClampMin", "ClampMax", "Add", "Sub", "Rsub", "Mul", "Div", "Where", "MaskedFill",
        "NativeDropout", "ToCopy", "Clone",
        # other views of the same numbers
        "View", "UnsafeView", "ReshapeAlias", "Alias", "T", "Transpose", "Permute", "Expand",
        "Squeeze", "Unsqueeze", "Slice", "Select", "Narrow", "Cat", "Stack", "Split", "UnsafeSplit",
        "SplitWithSizes", "Unbind", "ConstantPadNd",
        # sums over something else than the rows
        "Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "Embedding", "Mean", "Sum", "Amax", "Max",
        "Softmax", "SafeSoftmax", "ScaledDotProductFlashAttentionForCpu",
        "ScaledDotProductFlashAttention", "ScaledDotProductEfficientAttention",
        "NativeLayerNorm", "NativeGroupNorm", "MaxPool2DWithIndices", "MaxPool3DWithIndices",
        "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "UpsampleNearest2D",
        "UpsampleBilinear2D", "UpsampleBicubic2D",
    )
)  # fmt: skip
"""Nodes that, along the dimensions usually given to them, keep rows apart. That they do so in the
model at hand is tried out; see `streams`. Batch normalisation is none of them, nor is anything
whose rows depend on the data, such as indexing."""

FEW = 4
"""Numbers per loss, in a vector, that losses are still made of: a task's sums over its streams."""


@dataclass
class Part:
    """Nodes that lead to uses of shared parameters and, those aside, to no other part.

    tasks: losses (0 to K - 1) a path leads here from.
    doors: nodes above it that hold few numbers. A loss that enters has a gradient at one of them;
        the graph alone cannot tell, where losses were one tensor on their way.
    """

    tasks: tuple[int, ...]
    doors: tuple[Node, ...]
    nodes: dict[Node, None] = field(repr=False)  # consumers before what they consume
    roots: tuple[Node, ...] = field(repr=False)  # nodes of losses in it
    users: set[Node] = field(repr=False)

    @cached_property
    def cuts(self) -> list[Node]:
        """Nodes with one output that all paths to the part's layers go through, the nearest to the
        losses first; the last may be such a layer itself."""
        entering = dict.fromkeys(self.nodes, 0)
        crossing = 0  # edges from nodes already passed to nodes still to come
        above = (child for door in self.doors for child, _ in door.next_functions)
        for child in (*self.roots, *above):
            if child in entering:
                assert child is not None
                entering[child] += 1
                crossing += 1
        cuts: list[Node] = []
        for node in self.nodes:
            single = len(node._input_metadata) == 1
            if entering[node] == crossing and single and shape_of(node):
                cuts.append(node)
            if node in self.users:
                break  # nothing that comes later lies on the way to this one
            crossing -= entering[node]
            for child, _ in node.next_functions:
                if child in entering:
                    assert child is not None
                    entering[child] += 1
                    crossing += 1
        return cuts


@dataclass
class Graph:
    """What this step's losses reach.

    uses: position among the shared parameters -> its uses, None where one of them is unknown.
    others: every leaf that is no shared parameter.
    opaque: true where a Python-written function may run a backward pass of its own inside.
    """

    uses: dict[int, list[Use] | None]
    others: list[Tensor]
    parts: list[Part]
    opaque: bool
    order: list[Node] = field(repr=False)  # consumers before what they consume

    def below(self, cut: Node) -> list[Node]:
        """Return the nodes between the cut, itself left out, and the leaves."""
        seen, stack = {cut}, [cut]
        while stack:
            for child, _ in stack.pop().next_functions:
                if child is not None and child not in seen and child.name() != LEAF:
                    seen.add(child)
                    stack.append(child)
        seen.discard(cut)
        return [node for node in self.order if node in seen]


def read(losses: Sequence[Tensor], shared: Sequence[nn.Parameter | Tensor]) -> Graph:
    """Return the graph of the losses."""
    roots = [loss.grad_fn for loss in losses]
    assert all(root is not None for root in roots)
    order = _topological([root for root in roots if root is not None])
    position = {id(parameter): i for i, parameter in enumerate(shared)}
    sites: dict[Node, list[tuple[Node, int]]] = {}
    leaves: dict[int, Node] = {}
    others: list[Tensor] = []
    opaque = False
    for node in order:
        if node.name() == LEAF:
            leaf: Tensor = node.variable  # type: ignore[attr-defined]
            if id(leaf) in position:
                leaves[position[id(leaf)]] = node
            else:
                others.append(leaf)
            continue
        opaque |= isinstance(node, BackwardCFunction)
        for argument, (child, _) in enumerate(node.next_functions):
            if child is not None:
                sites.setdefault(child, []).append((node, argument))
    found = {i: _sites(leaves[i], sites) for i in sorted(leaves)}
    uses = {i: _uses(found[i]) for i in found}
    users = {site.node for own in found.values() for site in own}
    return Graph(uses, others, _parts(order, roots, users), opaque, order)


def _topological(roots: list[Node]) -> list[Node]:
    done: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in roots]
    while stack:
        node, left = stack.pop()
        if left:
            done.append(node)
            continue
        if node in seen:
            continue
        seen.add(node)
        stack.append((node, True))
        stack += [(n, False) for n, _ in node.next_functions if n is not None and n not in seen]
    done.reverse()
    return done


def _sites(leaf: Node, sites: dict[Node, list[tuple[Node, int]]]) -> list[Site]:
    """Return where a leaf's values are consumed, looking through views, transposes and casts."""
    found: list[Site] = []
    stack = [(leaf, False)]
    while stack:
        node, turned = stack.pop()
        for user, argument in sites.get(node, []):
            turn = turns(user, node, turned)
            if turn is None:
                found.append(Site(user, argument, turned, shape_of(node)))
            else:
                stack.append((user, turned != turn))
    return found


def _uses(sites: list[Site]) -> list[Use] | None:
    uses = [recognise(site) for site in sites]
    known = [use for use in uses if use is not None]
    return known if len(known) == len(uses) else None


def _parts(order: list[Node], roots: Sequence[Node | None], users: set[Node]) -> list[Part]:
    leads = set(users)  # nodes on a way to a layer that uses a shared parameter
    for node in reversed(order):
        if any(child in leads for child, _ in node.next_functions):
            leads.add(node)
    order = [node for node in order if node in leads]
    above = _above(order, users, len(roots))
    of = _joined([node for node in order if node not in above])
    nodes: dict[Node, dict[Node, None]] = {}
    for node, first in of.items():
        nodes.setdefault(first, {})[node] = None
    doors: dict[Node, dict[Node, None]] = {first: {} for first in nodes}
    reached: dict[Node, frozenset[Node]] = {}  # the parts a node leads to, by the graph alone
    for node in reversed(order):
        if node not in above:
            continue
        found: set[Node] = set()
        for child, _ in node.next_functions:
            if child in of:
                doors[of[child]][node] = None
                found.add(of[child])
            elif child in above:
                found |= reached[child]
        reached[node] = frozenset(found)
    tasks: dict[Node, list[int]] = {first: [] for first in nodes}
    inside: dict[Node, list[Node]] = {first: [] for first in nodes}
    for k, root in enumerate(roots):
        assert root is not None
        if root in of:
            inside[of[root]].append(root)
        for first in [of[root]] if root in of else reached.get(root, ()):
            tasks[first].append(k)
    return [
        Part(tuple(tasks[first]), tuple(doors[first]), own, tuple(inside[first]), users)
        for first, own in nodes.items()
    ]


def _above(order: list[Node], users: set[Node], losses: int) -> set[Node]:
    """Return the nodes between the losses and the first that holds more than a few per loss."""
    below: set[Node] = set(users)
    above: set[Node] = set()
    for node in order:
        if node not in below and _small(node, FEW * losses):
            above.add(node)
        else:
            below.update(child for child, _ in node.next_functions if child is not None)
    return above


def _small(node: Node, most: int) -> bool:
    sizes = [tuple(output.shape) for output in node._input_metadata]
    return all(len(size) < 2 and math.prod(size) <= most for size in sizes)


def _joined(nodes: list[Node]) -> dict[Node, Node]:
    """Return, per node, one that stands for all that edges join it to."""
    parent = {node: node for node in nodes}

    def find(node: Node) -> Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for node in nodes:
        for child, _ in node.next_functions:
            if child in parent:
                assert child is not None
                parent[find(child)] = find(node)
    return {node: find(node) for node in nodes}
