"""Linear heads: the layers that alone read a cut of the graph, and which loss reads each output.

Shapes: K = losses, O = outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node

from polytask.balance.layers import saved, shape_of, signed


@dataclass(frozen=True)
class Heads:
    """Linear layers that alone read a cut.

    own: per layer, the loss of each of its outputs; -1: of nobody's.
    """

    cut: Node
    nodes: tuple[Node, ...]
    own: tuple[tuple[int, ...], ...]


def find_heads(
    cuts: Sequence[Node], order: Sequence[Node], losses: Sequence[Tensor]
) -> Heads | None:
    """Return the linear layers that alone read one of the cuts, the first that has any.

    cuts, order: consumers before what they consume. None where each cut has another reader, where
    a number that a layer returns is read by several losses, or where a loss is not in `order`.
    """
    readers: dict[Node, list[tuple[Node, int]]] = {cut: [] for cut in cuts}
    above: list[Node] = []
    for node in order:
        if cuts and node is cuts[-1]:
            break
        above.append(node)
        for argument, (child, _) in enumerate(node.next_functions):
            if child in readers:
                assert child is not None
                readers[child].append((node, argument))
    for cut in cuts:
        if readers[cut] and all(_linear(node, argument) for node, argument in readers[cut]):
            nodes = tuple(node for node, _ in readers[cut])
            own = _owners(nodes, above, losses)
            return None if own is None else Heads(cut, nodes, own)
    return None


def _linear(node: Node, argument: int) -> bool:
    """Return whether a node is a linear layer that takes its inputs there."""
    if node.name() == "AddmmBackward0":
        return argument == 1 and bool(saved(node, "alpha") == 1)
    return node.name() == "MmBackward0" and argument == 0


def _owners(
    nodes: Sequence[Node], above: Sequence[Node], losses: Sequence[Tensor]
) -> tuple[tuple[int, ...], ...] | None:
    """Return the loss of each output of the layers, -1 where there is none; None: of several, or a
    loss is not above."""
    if not {loss.grad_fn for loss in losses} <= set(above):
        return None
    by: dict[tuple[Node, int], int] = {}  # an output -> the losses that read it, as bits
    readers: dict[Node, list[Node]] = {}
    for k, loss in enumerate(losses):
        assert loss.grad_fn is not None
        root = loss.grad_fn, loss.output_nr
        by[root] = by.get(root, 0) | 1 << k
    for node in above:
        bits = 0
        for n in range(len(node._input_metadata)):
            bits |= by.get((node, n), 0)
        for child, n in node.next_functions:
            if child is not None:
                by[child, n] = by.get((child, n), 0) | bits
                readers.setdefault(child, []).append(node)
    found = []
    for node in nodes:
        bits_O = _bits(node, by, readers)
        if any(bits & (bits - 1) for bits in bits_O):
            return None
        found.append(tuple(bits.bit_length() - 1 for bits in bits_O))
    return tuple(found)


def _bits(
    node: Node, by: dict[tuple[Node, int], int], readers: dict[Node, list[Node]]
) -> list[int]:
    """Return the losses that read each of the last dimension's numbers of a node, as bits."""
    shape, every = shape_of(node), by.get((node, 0), 0)
    bits_O = [0] * shape[-1]
    for reader in readers.get(node, ()) if every & (every - 1) else ():
        if reader.name() in VIEWS and shape_of(reader)[-1:] == shape[-1:]:
            parts = [range(shape[-1])]
            inner = [_bits(reader, by, readers)]
        else:
            parts = _columns(reader, shape)
            inner = [[by.get((reader, n), 0)] * len(part) for n, part in enumerate(parts)]
        for part, bits in zip(parts, inner, strict=True):
            for o, more in zip(part, bits, strict=True):
                bits_O[o] |= more
    return bits_O if every & (every - 1) else [every] * shape[-1]


VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")


def _columns(node: Node, shape: tuple[int, ...]) -> list[range]:
    """Return which numbers of the last dimension of its input each output of a node reads."""
    every, name = range(shape[-1]), node.name()
    outputs = [tuple(output.shape) for output in node._input_metadata]
    dim = signed(saved(node, "dim")) % len(shape) if name in PARTS else -1
    if dim != len(shape) - 1:
        return [every] * len(outputs)
    if name == "SelectBackward0":
        return [every[signed(saved(node, "index")) :][:1]]
    if name == "UnbindBackward0":
        return [every[o : o + 1] for o in every]
    if name == "SliceBackward0":
        return [every[saved(node, "start") : saved(node, "end") : saved(node, "step")]]
    starts = [sum(size[-1] for size in outputs[:n]) for n in range(len(outputs))]
    return [every[start : start + size[-1]] for start, size in zip(starts, outputs, strict=True)]


PARTS = frozenset(
    f"{name}Backward0" for name in ("Select", "Unbind", "Slice", "Split", "SplitWithSizes")
)
"""Nodes whose outputs are parts of what they read."""
