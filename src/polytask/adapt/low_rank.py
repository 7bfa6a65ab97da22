"""Changes of low rank: what every method with factors shares.

Shapes: B = rows of the batch, N = what a row has here, T = tasks, R = rank, I, O = inputs and
outputs, V = entries of an embedding, P = places of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from polytask.adapt.base import Kind, Layer, Method, Rows, normal, uniform
from polytask.errors import UsageError

KINDS: tuple[Kind, ...] = ("linear", "conv", "embedding")
"""The layers whose weight is a matrix, and so has changes of low rank."""


class Factored(Method):
    """A method whose changes are products of thin factors, of linear layers and convolutions."""

    kinds = ("linear", "conv")

    def refuses(self, layer: Layer) -> str:
        """Return why a layer has no change of low rank, "" where it has."""
        return refuses(layer)


@dataclass(frozen=True)
class LowRank(Method):
    """Settings of one pair of factors per task.

    alpha: the scale is alpha / rank; with `stabilised` (rsLoRA), alpha / sqrt(rank).
    dropout: of the factors' input, in training.
    """

    rank: int = 8
    alpha: float = 8.0
    stabilised: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        who = type(self).__name__
        check_rank(who, self.rank)
        check_alpha(who, self.alpha)
        check_dropout(who, self.dropout)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)

    def refuses(self, layer: Layer) -> str:
        """Return why a layer has no change of low rank, "" where it has."""
        return refuses(layer, self.dropout)


def check_rank(who: str, rank: int) -> None:
    """Raise UsageError where a rank is none."""
    if type(rank) is not int or rank < 1:
        raise UsageError(f"{who}: rank is {rank!r}; give a whole number >= 1 (default 8).")


def check_alpha(who: str, alpha: float) -> None:
    """Raise UsageError where a scale is not finite."""
    if not math.isfinite(alpha):
        raise UsageError(f"{who}: alpha is {alpha}; give a finite number (default 8).")


def check_dropout(who: str, dropout: float) -> None:
    """Raise UsageError where a dropout is none."""
    if not 0 <= dropout < 1:
        raise UsageError(f"{who}: dropout is {dropout}; give a number in [0, 1) (default 0).")


def refuses(layer: Layer, dropout: float = 0.0) -> str:
    """Return why a layer has no change of low rank, "" where it has."""
    groups = int(getattr(layer.module, "groups", 1))
    if layer.kind == "conv" and groups != 1:
        return f"its {groups} groups make its weight no matrix of all channels"
    if layer.kind == "embedding" and dropout:
        return "its input are numbers of entries, which dropout cannot be of"
    return ""


def down_shape(layer: Layer, rank: int) -> tuple[int, ...]:
    """Return the shape of a down factor: (R, I), (R, I, k, ...), or (V, R) of an embedding."""
    if layer.kind == "embedding":
        return (layer.inputs, rank)
    return (rank, *layer.weight_OI().shape[1:])


def draw(
    layer: Layer, lead: Sequence[int], rank: int, generator: Generator
) -> tuple[nn.Parameter, nn.Parameter]:
    """Return down and up factors, (*lead, ...) each, whose product is 0.

    Down is Kaiming-uniform with a = sqrt 5, as `nn.Linear` draws, and up is 0. Of an embedding
    down is 0 and up N(0, 1), as in LoRA's own code: every entry then learns at once.
    """
    shape, up = down_shape(layer, rank), (*lead, rank, layer.outputs)
    if layer.kind == "embedding":
        return nn.Parameter(torch.zeros(*lead, *shape)), normal(up, 0.0, 1.0, generator)
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return uniform((*lead, *shape), bound, generator), nn.Parameter(torch.zeros(up))


def reduced(layer: Layer, x: Tensor, down_TRI: Tensor, rows: Rows) -> Tensor:
    """Return each row's input through its task's down factor: (B, N, R), of convolutions
    (B, n, R, P)."""
    if layer.kind == "embedding":
        # One look-up for all tasks: entry v of task t is entry t V + v of the tables together.
        at_BN = x + rows.at_B[:, None] * down_TRI.shape[1]
        return functional.embedding(at_BN, down_TRI.flatten(0, 1))
    return reduced_by(layer, x, rows.take(down_TRI, x))


def reduced_by(layer: Layer, x: Tensor, down_BRI: Tensor) -> Tensor:
    """Return each row's input through a down factor of its own; see `reduced`. No embeddings."""
    if layer.kind != "conv":
        # The small factor first: its product is several times as fast (benchmarks/adapt.py).
        return torch.bmm(down_BRI, x.mT).mT
    module: Any = layer.module
    rows, many, channels = x.shape[:3]
    # Rows become groups of one convolution, and the pictures of a row its batch.
    together = x.transpose(0, 1).reshape(many, rows * channels, *x.shape[3:])
    padding: Any = module.padding
    if module.padding_mode != "zeros":
        sides = module._reversed_padding_repeated_twice
        together, padding = functional.pad(together, sides, mode=module.padding_mode), 0
    convolve = functional.conv1d if x.dim() == 4 else functional.conv2d
    small = convolve(
        together, down_BRI.flatten(0, 1), None, module.stride, padding, module.dilation, rows
    )
    return small.view(many, rows, down_BRI.shape[1], -1).transpose(0, 1)


def plus_up(y: Tensor, small: Tensor, up_BRO: Tensor, scale: float = 1.0) -> Tensor:
    """Return y + scale * the up factors of each row times what `reduced` returned.

    Written into y where no gradient is recorded.
    """
    if y.dim() == 3:
        # Mixed precision asks for one dtype, which autocast sees to by itself.
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            small = small if small.dtype == y.dtype else small.to(y.dtype)
            return y.baddbmm_(small, up_BRO, alpha=scale)
        return torch.baddbmm(y, small, up_BRO, alpha=scale)
    grown = torch.matmul(up_BRO.mT.unsqueeze(1), small)  # (B, n, O, P)
    return y + scale * grown.view(y.shape)


def product(layer: Layer, down: Tensor, up_RO: Tensor) -> Tensor:
    """Return the matrix of two factors, in the shape of `layer.weight_OI()` and float64."""
    down, up_RO = down.detach().double(), up_RO.detach().double()
    if layer.kind == "embedding":
        return up_RO.t() @ down.t()
    return (up_RO.t() @ down.flatten(1)).view(up_RO.shape[1], *down.shape[1:])
