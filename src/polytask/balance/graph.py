"""The autograd graph of a step's losses: who reaches the shared parameters, and through what.

A *cut* is a node that every path from a loss to a shared parameter goes through: the encoder's
features, say. Above it a backward pass costs the heads alone, below it the encoder.

Shapes: B = dim 0 of a cut's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from polytask.balance.layers import ALIASES, Site, Use, recognise, shape_of

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


@dataclass
class Graph:
    """The part of the autograd graph that this step's losses reach.

    uses: position among the shared parameters -> its uses, None where one of them is unknown.
    others: every leaf that is no shared parameter.
    cuts: nodes with one output that all paths to shared parameters' layers go through, the nearest
        to the losses first; the last may be such a layer itself.
    opaque: true where a Python-written function may run a backward pass of its own inside.
    """

    uses: dict[int, list[Use] | None]
    others: list[Tensor]
    cuts: list[Node]
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
    sites: dict[Node, list[Site]] = {}
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
                sites.setdefault(child, []).append(Site(node, argument, False))
    found = {i: _sites(leaves[i], sites) for i in sorted(leaves)}
    uses = {i: _uses(found[i], tuple(shared[i].shape)) for i in found}
    users = {site.node for own in found.values() for site in own}
    return Graph(uses, others, _cuts(order, roots, users), opaque, order)


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


def _sites(leaf: Node, sites: dict[Node, list[Site]]) -> list[Site]:
    """Return where a leaf's values are consumed, looking through transposes and casts."""
    found: list[Site] = []
    stack = [(leaf, False)]
    while stack:
        node, turned = stack.pop()
        for site in sites.get(node, []):
            turns = ALIASES.get(site.node.name())
            if turns is None:
                found.append(Site(site.node, site.argument, turned))
            else:
                stack.append((site.node, turned != turns))
    return found


def _uses(sites: list[Site], shape: tuple[int, ...]) -> list[Use] | None:
    uses = [recognise(site, shape) for site in sites]
    known = [use for use in uses if use is not None]
    return known if len(known) == len(uses) else None


def _cuts(order: list[Node], roots: Sequence[Node | None], users: set[Node]) -> list[Node]:
    leads = set(users)  # nodes on a way to a layer that uses a shared parameter
    for node in reversed(order):
        if any(child in leads for child, _ in node.next_functions):
            leads.add(node)
    entering: dict[Node, int] = {}
    crossing = 0  # edges from nodes already passed to nodes still to come
    for root in roots:
        if root in leads:
            entering[root] = entering.get(root, 0) + 1
            crossing += 1
    cuts: list[Node] = []
    for node in order:
        if node not in leads:
            continue
        single = len(node._input_metadata) == 1
        if entering[node] == crossing and single and shape_of(node):
            cuts.append(node)
        if node in users:
            break  # nothing that comes later lies on the way to this one
        crossing -= entering[node]
        for child, _ in node.next_functions:
            if child in leads:
                assert child is not None
                entering[child] = entering.get(child, 0) + 1
                crossing += 1
    return cuts
