"""Masks: what a task lets through of features that all tasks share, between 0 and 1.

Shapes: B = rows of the batch, I, P, M, C = channels of the features, of what came before, in
between, of the mask, H, W = height and width, R = B * H * W positions, A = asked tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share.base import key
from polytask.share.experts import Stacked, product
from polytask.share.staged import picture, positions, side_by_side

GROUP = 8
"""Channels normalised together; all of them where their number is no multiple. Never over the
batch: half a batch on each of two processes must be one batch, and a task asked alone the task
asked with others."""


class Masks(nn.Module):
    """mask_t = sigmoid(N(W_t relu(N(V_t [u, before])))), a mask per task, by 1x1 convolutions.

    N: normalisation over `GROUP` channels and all positions of a row, with a gain and a shift per
    channel and task.
    """

    def __init__(self, inputs: int, before: int, hidden: int, outputs: int) -> None:
        super().__init__()
        if min(inputs, hidden, outputs) < 1 or before < 0:
            raise UsageError(
                "Masks: channels must be at least 1 (0 of what came before); got "
                f"{inputs} inputs, {before} before, {hidden} between and {outputs} outputs."
            )
        self.sizes = (inputs + before, hidden, outputs)
        self.each = nn.ModuleDict()

    def add(self, task: str) -> None:
        """Add a task's mask."""
        self.each[key(task)] = Mask(*self.sizes)

    def parameters_of(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of one task's mask."""
        return list(self.each[key(task)].parameters())

    def stack(self, name: str, tasks: Sequence[str]) -> Stacked:
        """Return these tasks' masks side by side."""
        return side_by_side(name, [self.each[key(task)] for task in tasks])


class Mask(nn.Module):
    """The parameters of one task's mask."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        for layer, i, o in ((0, inputs, hidden), (1, hidden, outputs)):
            weight = torch.empty(i, o).uniform_(-1 / math.sqrt(i), 1 / math.sqrt(i))
            self.register_parameter(f"weight_{layer}", nn.Parameter(weight))
            self.register_parameter(f"gain_{layer}", nn.Parameter(torch.ones(1, o)))
            self.register_parameter(f"shift_{layer}", nn.Parameter(torch.zeros(1, o)))


def mask(stacked: Stacked, name: str, u_BIHW: Tensor, before_ARP: Tensor | None = None) -> Tensor:
    """Return each task's mask (A, R, C) of shared features and of what came before, the task's
    own."""
    weight_AXM = stacked[f"{name}_weight_0"]
    inputs = u_BIHW.shape[1]
    # In two products: features that all tasks share are not laid beside each task's own.
    hidden_ARM = product(positions(u_BIHW), weight_AXM[:, :inputs])
    if before_ARP is not None:
        hidden_ARM = torch.baddbmm(hidden_ARM, before_ARP, weight_AXM[:, inputs:])
    hidden_ARM = normed(stacked, f"{name}_{{}}_0", hidden_ARM, u_BIHW).relu_()
    mask_ARC = product(hidden_ARM, stacked[f"{name}_weight_1"])
    return normed(stacked, f"{name}_{{}}_1", mask_ARC, u_BIHW).sigmoid_()


def normed(stacked: Stacked, name: str, rows_ARC: Tensor, like: Tensor) -> Tensor:
    """Return the rows normalised within each picture, times gain, plus shift; see `Masks`."""
    plain = group_norm(picture(rows_ARC, like))
    rows = positions(plain).view(rows_ARC.shape)
    return torch.addcmul(stacked[name.format("shift")], rows, stacked[name.format("gain")])


def group_norm(
    x_BCHW: Tensor, gain_C: Tensor | None = None, shift_C: Tensor | None = None
) -> Tensor:
    """Return the picture normalised in groups of channels; see `GROUP`."""
    return functional.group_norm(x_BCHW, groups_of(x_BCHW.shape[1]), gain_C, shift_C)


def groups_of(channels: int) -> int:
    """Return how many groups these channels are normalised in; see `GROUP`."""
    return channels // GROUP if channels % GROUP == 0 else 1
