"""TensorPoly: Polytropon whose skills are Kronecker products of a few short vectors, the leaves.

    I  (mixes="skills"):  A_t = sum_k a_tk kron_o leaf_ok
    II (mixes="leaves"):  A_t = kron_o sum_k a_tok leaf_ok

B likewise; a change is alpha / R * B_t A_t. Leaves of N orders have ceil(I^(1/N)) entries for each
of R ranks: 4 * 6 numbers in place of 768.

Source: Su et al., "Mixture of Experts Using Tensor Products", 2024,
    https://arxiv.org/abs/2405.16671, and the authors' code
Differs from the source: as in the code, pairs of leaves go through a layer norm of all ranks'
    entries, trained, which all pairs have together, and the product is cut to the layer's size; so
    the start is no zero change (the text does not say so). The code's form of order 8 leaves the
    norm out; any even order has it here. Its warm-up of the change over 10,000 steps is left out.
Shapes: B = rows of the batch, N = what a row has here, T = tasks, E = skills, D = orders, R = rank,
    L = entries of a leaf, G = groups of routing: D in form II, I, O = inputs and outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Method, uniform
from polytask.adapt.experts import OwnFactors, check_many
from polytask.adapt.low_rank import check_alpha, check_rank
from polytask.adapt.polytropon import skill_scores
from polytask.adapt.selection import Selection, Shares, mixed
from polytask.errors import UsageError


@dataclass(frozen=True)
class TensorPoly(Method):
    """Adapts linear layers. The start is no zero change.

    mixes: "skills" (I), or "leaves" (II), each order with shares of its own. orders: leaves in a
    product, even. alpha: the scale is alpha / rank.
    """

    kinds = ("linear",)

    mixes: Literal["skills", "leaves"] = "skills"
    skills: int = 8
    orders: int = 4
    rank: int = 1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.mixes not in ("skills", "leaves"):
            raise UsageError(f"TensorPoly: mixes is {self.mixes!r}; give 'skills' or 'leaves'.")
        check_many("TensorPoly", "skills", self.skills, 8)
        if type(self.orders) is not int or self.orders < 2 or self.orders % 2:
            raise UsageError(f"TensorPoly: orders is {self.orders!r}; give 2, 4, 6, ...")
        check_rank("TensorPoly", self.rank)
        check_alpha("TensorPoly", self.alpha)

    def build(
        self, layer: Layer, tasks: int, generator: Generator, common: nn.Module | None = None
    ) -> Adapter:
        """Return the layer's leaves, and the routing of T tasks."""
        return TensorPolyAdapter(layer, self, tasks, generator)


class TensorPolyAdapter(OwnFactors):
    """The leaves of A and of B, and the routing."""

    def __init__(
        self, layer: Layer, settings: TensorPoly, tasks: int, generator: Generator
    ) -> None:
        super().__init__(layer)
        self.scale = settings.alpha / settings.rank
        self.leaves_first = settings.mixes == "leaves"
        # The code draws the leaves of both factors by the layer's inputs.
        bound = 1 / math.sqrt(3 * layer.inputs)
        self.down = Leaves(layer.inputs, settings, bound, generator)
        self.up = Leaves(layer.outputs, settings, bound, generator)
        groups = settings.orders if self.leaves_first else 1
        scores = skill_scores(tasks, settings.skills, groups, generator)
        self.selection = Selection(scores, Shares(), layer.path)

    def routing(self) -> Selection:
        """Return the layer's selection."""
        return self.selection

    def factors_by(self, weights_BNGE: Tensor) -> tuple[Tensor, Tensor]:
        def one(leaves: Leaves) -> Tensor:
            if self.leaves_first:
                return leaves.grown(mixed(weights_BNGE, leaves.leaves_EDRL))
            return mixed(weights_BNGE, leaves.grown(leaves.leaves_EDRL))

        return one(self.down), one(self.up)


class Leaves(nn.Module):
    """Leaves of every skill, order and rank, and the norm of their pairs."""

    def __init__(
        self, channels: int, settings: TensorPoly, bound: float, generator: Generator
    ) -> None:
        super().__init__()
        # In whole numbers: a root in floating point may lie just above one.
        entries = next(n for n in range(1, channels + 1) if n**settings.orders >= channels)
        self.channels = channels
        shape = (settings.skills, settings.orders, settings.rank, entries)
        self.leaves_EDRL = uniform(shape, bound, generator)
        self.gain_RP = nn.Parameter(torch.ones(settings.rank, entries**2))
        self.shift_RP = nn.Parameter(torch.zeros(settings.rank, entries**2))

    def grown(self, leaves_XDRL: Tensor) -> Tensor:
        """Return the products over the orders, (X, R, channels); X: skills, or rows."""
        even, odd = leaves_XDRL[:, ::2], leaves_XDRL[:, 1::2]
        pairs = (even.unsqueeze(-1) * odd.unsqueeze(-2)).flatten(-2)
        shape = list(self.gain_RP.shape)
        pairs = functional.layer_norm(pairs, shape, self.gain_RP, self.shift_RP)
        product, *others = pairs.unbind(1)
        for other in others:
            product = (product.unsqueeze(-1) * other.unsqueeze(-2)).flatten(-2)
        return product[..., : self.channels]
