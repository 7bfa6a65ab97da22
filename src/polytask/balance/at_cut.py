"""The losses' gradients at a cut of the graph: one backward pass per loss, or one for all of them.

Where linear layers alone read the cut, and each of their outputs is of one loss, a pass of the
summed losses tells each loss's gradient at its own outputs. Its gradient at the cut is that times
the layers' weight, and what is wanted of all of them rarely needs it formed:
- their products: <D_k W, D_l W> = sum of (D'D) * (W W') over the outputs of k and l;
- a weighted sum of them, or one that takes each row of some losses alone: one product.

Shapes: K = losses, N = rows of the cut (dim 0), F = numbers in a row of it, O = outputs of all the
layers that read it, side by side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from polytask.balance import gradients
from polytask.balance.heads import Heads, find_heads
from polytask.balance.layers import saved, shape_of, wide

CANCELLED = 1e-6
"""A loss's squared gradient below that part of the sum of its outputs' own is formed instead."""


class AtCut(ABC):
    """The gradients of K losses at the output of a node.

    how: which passes told them, in words.
    """

    how: ClassVar[str]

    def __init__(self, cut: Node) -> None:
        self.cut = cut
        self.shape = shape_of(cut)
        like = cut._input_metadata[0]
        self.dtype, self.device = like.dtype, like.device
        self.wide = torch.promote_types(like.dtype, torch.float32)

    @abstractmethod
    def each(self) -> list[Tensor]:
        """Return every loss's gradient, as the cut's output, in its dtype."""

    @abstractmethod
    def there(self) -> Tensor:
        """Return in which rows every loss has a gradient, bool (K, N)."""

    @abstractmethod
    def only(self, where_KN: Tensor | None = None) -> Tensor:
        """Return the sum of the gradients, of each loss in the rows given; None: in all."""

    @abstractmethod
    def weighted(self, weights_K: Tensor) -> Tensor:
        """Return the weighted sum of the gradients, float32 at least."""

    def rows(self) -> Tensor:
        """Return the gradients, flattened, (K, N F), float32 at least."""
        each = self.each()
        rows_KX = torch.empty(len(each), math.prod(self.shape), dtype=self.wide, device=self.device)
        for row_X, d in zip(rows_KX, each, strict=True):
            row_X.copy_(d.flatten())
        return rows_KX

    def gram(self) -> Tensor:
        """Return the products of the gradients, (K, K), float64, exactly symmetric."""
        return gradients.gram(self.rows())

    def hooked(self) -> bool:
        """Return whether a hook on the cut's output has changed the gradients, and would again."""
        return False


class Formed(AtCut):
    """Gradients from one backward pass per loss."""

    how = "one backward per head"

    def __init__(self, cut: Node, losses: Sequence[Tensor]) -> None:
        super().__init__(cut)
        edge = GradientEdge(cut, 0)
        found = [
            torch.autograd.grad(loss, [edge], retain_graph=True, allow_unused=True)[0]
            for loss in losses
        ]
        self._each = [self._zeros() if d is None else d for d in found]

    def _zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    def each(self) -> list[Tensor]:
        return self._each

    def there(self) -> Tensor:
        return torch.stack([d.reshape(len(d), -1).any(1) for d in self._each])

    def only(self, where_KN: Tensor | None = None) -> Tensor:
        total = self._zeros()
        for k, d in enumerate(self._each):
            total += d if where_KN is None else d * where_KN[k].view(-1, *(1,) * (d.dim() - 1))
        return total

    def hooked(self) -> bool:
        edge: Any = GradientEdge(self.cut, 0)
        given = self.only()
        (passed,) = torch.autograd.grad([edge], [edge], grad_outputs=[given], retain_graph=True)
        # By its place in memory, so that nobody waits for a device: a hook that changes gradients
        # returns another tensor.
        return passed.data_ptr() != given.data_ptr()

    def weighted(self, weights_K: Tensor) -> Tensor:
        total = self._zeros().to(self.wide)
        for d, weight in zip(self._each, weights_K.to(self.device, self.wide), strict=True):
            total.addcmul_(d.to(self.wide), weight)
        return total


class ByHeads(AtCut):
    """Gradients from one backward pass of all losses, to the outputs of the heads.

    losses: those that `find_heads` was given.
    """

    how = "one backward for all heads"

    def __init__(self, heads: Heads, losses: Sequence[Tensor]) -> None:
        super().__init__(heads.cut)
        self._losses = len(losses)
        edges: list[Any] = [GradientEdge(node, 0) for node in heads.nodes]
        found = torch.autograd.grad(list(losses), edges, retain_graph=True, allow_unused=True)
        read = [(n, d) for n, d in enumerate(found) if d is not None]
        d_NO = torch.cat([d for _, d in read], 1)
        weight_OF = torch.cat([saved(heads.nodes[n], "mat2").T for n, _ in read])
        own = [k for n, _ in read for k in heads.own[n]]
        order = sorted((o for o, k in enumerate(own) if k >= 0), key=lambda o: own[o])
        if order != list(range(len(own))):  # each loss's outputs side by side, nobody's left out
            d_NO, weight_OF = d_NO[:, order], weight_OF[order]
        self._d_NO, self._weight_OF = wide(d_NO), wide(weight_OF)
        own = [own[o] for o in order]
        self._widths = [own.count(k) for k in range(len(losses))]
        self._own_O = torch.tensor(own, dtype=torch.int64, device=self.device)

    def each(self) -> list[Tensor]:
        d_each = torch.split(self._d_NO, self._widths, dim=1)
        weight_each = torch.split(self._weight_OF, self._widths)
        return [self._there(d @ weight) for d, weight in zip(d_each, weight_each, strict=True)]

    def _there(self, d_NF: Tensor) -> Tensor:
        return d_NF.to(self.dtype).view(self.shape)

    def there(self) -> Tensor:
        counts_KN = torch.zeros(self._losses, len(self._d_NO), device=self.device)
        there_ON = (self._d_NO.T != 0).to(counts_KN.dtype)
        return counts_KN.index_add_(0, self._own_O, there_ON) > 0

    def only(self, where_KN: Tensor | None = None) -> Tensor:
        d_NO = self._d_NO
        if where_KN is not None:
            d_NO = d_NO * where_KN[self._own_O].T
        return self._there(d_NO @ self._weight_OF)

    def weighted(self, weights_K: Tensor) -> Tensor:
        weights_O = weights_K.to(self.device, self.wide)[self._own_O]
        return (self._d_NO * weights_O @ self._weight_OF).view(self.shape)

    def gram(self) -> Tensor:
        rows, outs = self._d_NO.shape
        width = self._weight_OF.shape[1]
        if outs**2 * (rows + width) > self._losses**2 * rows * width:
            return super().gram()
        d_NO, weight_OF = self._d_NO.double(), self._weight_OF.double()
        products_OO = (d_NO.T @ d_NO) * (weight_OF @ weight_OF.T)
        onto_KO = products_OO.new_zeros(self._losses, outs)
        onto_KO.index_add_(0, self._own_O, products_OO)
        gram_KK = products_OO.new_zeros(self._losses, self._losses)
        gram_KK.index_add_(1, self._own_O, onto_KO)
        apart_K = products_OO.new_zeros(self._losses)
        apart_K.index_add_(0, self._own_O, products_OO.diagonal())
        if bool((gram_KK.diagonal() < CANCELLED * apart_K).any()):
            return super().gram()
        return (gram_KK + gram_KK.T) / 2


def at_cut(cut: Node, order: Sequence[Node], losses: Sequence[Tensor]) -> AtCut:
    """Return the losses' gradients at the cut, by the fewest passes.

    order: the nodes above the cut at least, consumers before what they consume.
    """
    heads = find_heads([cut], order, losses)
    return Formed(cut, losses) if heads is None else ByHeads(heads, losses)
