"""Layers read from the autograd graph: what a layer got, and its gradient for any output gradient.

A `Use` is one place where a parameter enters the computation. It knows the layer's inputs, which
autograd kept for its own backward pass anyway, so that the parameter's gradient follows from the
gradient of the layer's output alone: for all rows, or for some.

Autograd's graph is read rather than modules hooked, because it cannot be wrong about what reaches
a parameter: `functional.linear` on somebody's weight, a layer used twice, a weight cast by autocast
are nodes of the graph like any other. Every node that is not known here is said to be unknown, and
its parameters are then left to autograd.

Shapes: N = positions (dim 0 of what the layer returns), I, O = inputs and outputs of a linear
layer, C = channels, E = embedding width, V = vocabulary, Q = parameters of a small layer,
G = linear layers stacked in one parameter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

VIEWS = ("ViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0")
"""Nodes that keep a parameter's numbers in their order."""


def turns(node: Node, before: Node, turned: bool) -> bool | None:
    """Return whether a node only swaps a parameter's last two dimensions, or hands its numbers on
    in their order (False); None: it is a layer, or anything else.

    before: the node whose output it takes. turned: whether its dimensions are swapped there.
    """
    name, out, given = node.name(), shape_of(node), shape_of(before)
    if name == "TBackward0":
        return True
    if name == "TransposeBackward0":
        swapped = {signed(saved(node, dim)) % len(out) for dim in ("dim0", "dim1")}
        return True if swapped == {len(out) - 2, len(out) - 1} else None
    # `matmul` expands what is as large already; a first dimension of 1 is one of rows to come.
    if name == "ToCopyBackward0" or (name == "ExpandBackward0" and out == given and out[0] > 1):
        return False
    return False if name in VIEWS and (out == given or not turned) else None


def signed(value: int) -> int:
    """Return a number that autograd may show without its sign."""
    return (value + 2**63) % 2**64 - 2**63


def saved(node: Node, name: str) -> Any:
    """Return what autograd kept for the node, a tensor without its graph."""
    value = getattr(node, f"_saved_{name}")
    return value.detach() if isinstance(value, Tensor) else value


def shape_of(node: Node) -> tuple[int, ...]:
    """Return the shape of the node's first output in the forward pass."""
    return tuple(node._input_metadata[0].shape)


def wide(values: Tensor) -> Tensor:
    """Return the values in a dtype that products can be formed in: at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Use(ABC):
    """One place where a parameter enters the computation.

    node: the layer, whose output's gradient tells the parameter's.
    shape: of that output, the dimensions before the last `trailing` ones as one: (N, ...).
    lead: those dimensions.
    """

    def __init__(self, node: Node, trailing: int | None = None) -> None:
        out = shape_of(node)
        lead = 1 if trailing is None else len(out) - trailing
        self.node = node
        self.lead = out[:lead]
        self.shape = (math.prod(out[:lead]), *out[lead:])

    def numel(self) -> int:
        """Return how many numbers the output holds."""
        return math.prod(self.shape)

    def let_go(self) -> None:
        """Keep of the graph only what `gradient` needs; a second time does nothing.

        For layers whose gradients may be formed after the graph is gone; those of the others are
        formed at once.
        """
        raise AssertionError(f"{type(self).__name__}: its gradients must be formed at once")

    @abstractmethod
    def gradient(self, d_N: Tensor, at: Tensor | None = None) -> Tensor:
        """Return the parameter's gradient for output gradients d_N (N, ...).

        at: positions the rows of d_N stand at, int64, ascending; None: every one in order.
        """


class Linear(Use):
    """A weight in a matrix product: (N, I) times its transpose, (O, I), or itself, (I, O).

    sizes: N, I, O.
    """

    def __init__(self, node: Node, transposed: bool) -> None:
        super().__init__(node)
        self.transposed = transposed
        self._name = "mat1" if node.name() == "AddmmBackward0" else "self"
        self._inputs_NI: Tensor | None = None
        rows, outputs = self.shape
        # Without a look at the inputs, which under activation checkpointing computes them.
        self.sizes = rows, int(getattr(node, f"_saved_{self._name}_sym_sizes")[1]), outputs

    @property
    def inputs_NI(self) -> Tensor:
        """The inputs. Read once: under activation checkpointing each look computes them anew."""
        if self._inputs_NI is None:
            self._inputs_NI = wide(saved(self.node, self._name))
        return self._inputs_NI

    def let_go(self) -> None:
        self._inputs_NI = self.inputs_NI
        vars(self).pop("node", None)

    def gradient(self, d_N: Tensor, at: Tensor | None = None) -> Tensor:
        return self.product(self.inputs_NI if at is None else self.inputs_NI[at], d_N)

    def product(self, inputs_NI: Tensor, d_NO: Tensor) -> Tensor:
        """Return the weight's gradient for these inputs."""
        return d_NO.T @ inputs_NI if self.transposed else inputs_NI.T @ d_NO


class Stacked(Use):
    """Weights of linear layers side by side, (G, I, O) or transposed, in a batched product.

    Each is a layer with positions of its own; a position of the whole counts through the first
    layer's, then the second's. The inputs may be the same for all.

    stack: G. sizes: N of one layer, I, O.
    shape: of the weights as they arrive, (G, I, O).
    """

    def __init__(self, node: Node, transposed: bool, shape: tuple[int, ...]) -> None:
        super().__init__(node, trailing=1)
        self.transposed = transposed
        self._name = "batch1" if node.name() == "BaddbmmBackward0" else "self"
        self._inputs_GNI: Tensor | None = None
        self.stack, rows = self.lead
        _, ins, outs = shape
        self.sizes = rows, ins, outs

    @property
    def inputs_GNI(self) -> Tensor:
        """The inputs. Read once: under activation checkpointing each look computes them anew."""
        if self._inputs_GNI is None:
            self._inputs_GNI = wide(saved(self.node, self._name))
        return self._inputs_GNI

    def let_go(self) -> None:
        self._inputs_GNI = self.inputs_GNI
        vars(self).pop("node", None)

    def layers(self) -> Iterator[tuple[Tensor, slice]]:
        """Yield each layer's inputs, (N, I), and its positions among those of all."""
        rows = self.sizes[0]
        for g, inputs_NI in enumerate(self.inputs_GNI):
            yield inputs_NI, slice(g * rows, (g + 1) * rows)

    def gradient(self, d_N: Tensor, at: Tensor | None = None) -> Tensor:
        if at is None:
            return self._product(self.inputs_GNI, d_N.reshape(self.stack, *self.sizes[::2]))
        # One batched product, zeros elsewhere, would cost each task as much as all have together.
        rows, start, grads = self.sizes[0], 0, []
        counts = torch.bincount(at.div(rows, rounding_mode="floor"), minlength=self.stack)
        for inputs_NI, count in zip(self.inputs_GNI, counts.tolist(), strict=True):
            here = slice(start, start + count)
            grads.append(self._product(inputs_NI[at[here] % rows], d_N[here]))
            start += count
        return torch.stack(grads)

    def _product(self, inputs: Tensor, d: Tensor) -> Tensor:
        return d.mT @ inputs if self.transposed else inputs.mT @ d


class StackedBias(Use):
    """Biases of linear layers side by side, (G, 1, O), added to an output (G, N, O)."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, trailing=1)
        self.stack, self.rows = self.lead

    def gradient(self, d_N: Tensor, at: Tensor | None = None) -> Tensor:
        if at is None:
            return d_N.reshape(self.stack, self.rows, -1).sum(1)
        layers = at.div(self.rows, rounding_mode="floor")
        return d_N.new_zeros(self.stack, d_N.shape[1]).index_add_(0, layers, d_N)


class Convolution(Use):
    """The weight of a convolution of any number of dimensions, transposed or in groups."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._inputs: Tensor | None = None

    def gradient(self, d_N: Tensor, at: Tensor | None = None) -> Tensor:
        if self._inputs is None:
            self._inputs = wide(saved(self.node, "input"))
        inputs = self._inputs if at is None else self._inputs[at]
        _, grad, _ = torch.ops.aten.convolution_backward(
            d_N,
            inputs,
            wide(saved(self.node, "weight")),
            None,
            saved(self.node, "stride"),
            saved(self.node, "padding"),
            saved(self.node, "dilation"),
            saved(self.node, "transposed"),
            saved(self.node, "output_padding"),
            saved(self.node, "groups"),
            [False, True, False],
        )
        weight: Tensor = grad
        return weight


class Embedding(Use):
    """A table of which rows are looked up."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, trailing=1)
        self.words = int(saved(node, "weight_sym_argsize_0"))
        padding = int(saved(node, "padding_idx"))
        # Never gets a gradient. Autograd shows -1, for none, without its sign.
        self.padding = padding if padding < self.words else -1
        indices: Tensor = saved(node, "indices")
        self.indices_N = indices.flatten()

    def let_go(self) -> None:
        vars(self).pop("node", None)

    def gradient(self, d_N: Tensor, at: Tensor | None = None) -> Tensor:
        return self.scattered(self.indices_N if at is None else self.indices_N[at], d_N)

    def scattered(self, indices_N: Tensor, d_NE: Tensor) -> Tensor:
        """Return the table's gradient for these rows looked up."""
        d_NE = d_NE * (indices_N != self.padding)[:, None]
        return d_NE.new_zeros(self.words, d_NE.shape[1]).index_add_(0, indices_N, d_NE)


class Small(Use):
    """A parameter whose gradient is a sum over positions of something as large as the output."""

    def __init__(
        self, node: Node, each: Callable[[Node, Tensor], Tensor], trailing: int | None = None
    ) -> None:
        super().__init__(node, trailing)
        self._each = each

    def each(self, d_N: Tensor) -> Tensor:
        """Return every position's own part of the gradient, (N, Q)."""
        return self._each(self.node, d_N)

    def gradient(self, d_N: Tensor, at: Tensor | None = None) -> Tensor:
        assert at is None, "sums are taken over all positions"
        return self.each(d_N).sum(0)


def _whole(node: Node, d_N: Tensor) -> Tensor:
    """Added to every position as it is."""
    return d_N.flatten(1)


def _times(other: str) -> Callable[[Node, Tensor], Tensor]:
    """Return the rule of a parameter that every position of `other` is multiplied by."""

    def each(node: Node, d_N: Tensor) -> Tensor:
        factor: Tensor = saved(node, other)
        each_N: Tensor = d_N * factor.expand(shape_of(node)).reshape(d_N.shape)
        return each_N.flatten(1)

    return each


def _channels(node: Node, d_N: Tensor) -> Tensor:
    """Bias along the channels, dim 1."""
    return d_N.flatten(2).sum(2)


def _layer_norm_scale(node: Node, d_N: Tensor) -> Tensor:
    inputs, mean = wide(saved(node, "input")), saved(node, "result1")
    normed: Tensor = (inputs - mean) * saved(node, "result2")
    return (d_N * normed.reshape(d_N.shape)).flatten(1)


def _group_norm_scale(node: Node, d_N: Tensor) -> Tensor:
    inputs = wide(saved(node, "input"))
    mean_NG, rstd_NG = saved(node, "result1"), saved(node, "result2")
    groups = inputs.reshape(*mean_NG.shape, -1)
    normed = (groups - mean_NG[..., None]) * rstd_NG[..., None]
    return _channels(node, d_N * normed.reshape(inputs.shape))


@dataclass(frozen=True)
class Site:
    """Where a parameter enters a node: as which argument, whether transposed, of which shape."""

    node: Node
    argument: int
    transposed: bool
    shape: tuple[int, ...]


def recognise(site: Site) -> Use | None:
    """Return the use of a parameter at this site; None where it is unknown."""
    node, argument, shape = site.node, site.argument, site.shape
    name, out = node.name(), shape_of(node)
    if name == "AddmmBackward0" and argument == 2:
        return Linear(node, site.transposed) if saved(node, "alpha") == 1 else None
    if name == "MmBackward0" and argument == 1:
        return Linear(node, site.transposed)
    if name == "BmmBackward0" and argument == 1:
        return Stacked(node, site.transposed, shape)
    if name == "BaddbmmBackward0" and argument == 2:
        return Stacked(node, site.transposed, shape) if saved(node, "alpha") == 1 else None
    if site.transposed:
        return None
    if name == "ConvolutionBackward0" and argument == 1:
        return Convolution(node)
    if name == "ConvolutionBackward0" and argument == 2:
        return Small(node, _channels)
    if name == "EmbeddingBackward0":
        usual = not (saved(node, "scale_grad_by_freq") or saved(node, "sparse"))
        return Embedding(node) if usual else None
    if name == "NativeGroupNormBackward0":
        return Small(node, _group_norm_scale if argument == 1 else _channels)
    if name == "NativeLayerNormBackward0":
        each = _layer_norm_scale if argument == 1 else _whole
        trailing = len(saved(node, "normalized_shape"))
        return Small(node, each, trailing) if trailing < len(out) else None
    added = name == "ExpandBackward0" or (
        (name in ("AddmmBackward0", "BaddbmmBackward0") and argument == 0 and _plain(node, "beta"))
        or (name == "AddBackward0" and (argument == 0 or _plain(node, "alpha")))
    )
    if added and len(out) == 3 and shape == (out[0], 1, out[2]) and name != "ExpandBackward0":
        return StackedBias(node)
    # What is left is spread over the rows: a parameter must not hold the rows' own dimension.
    own = shape[1:] if len(shape) == len(out) and shape[:1] == (1,) else shape
    if not 0 < len(own) < len(out) or own != out[len(out) - len(own) :]:
        return None
    if added:
        return Small(node, _whole, len(own))
    if name == "MulBackward0":
        return Small(node, _times("other" if argument == 0 else "self"), len(own))
    return None


def _plain(node: Node, factor: str) -> bool:
    """Return whether a node's factor is 1."""
    return bool(saved(node, factor) == 1)
