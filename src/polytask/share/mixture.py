"""Mixtures: what gates take from experts, as rows or straight as numbers of the rows.

Shapes: R = rows, A = asked tasks or other readers, E = experts that all of them read, F = experts
that each reader has to itself, S = A * F, the first reader's first, W = width of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.share.experts import product


@dataclass(frozen=True)
class Mixture:
    """Rows (A, R, W) that are sums of experts' rows, not yet added up.

    weights_RAX: of the experts that all read first, then of the reader's own; X = E + F.
    own_SRW: None where no reader has its own.
    """

    weights_RAX: Tensor
    experts_ERW: Tensor
    own_SRW: Tensor | None = None

    def of(self, at: Sequence[int]) -> Mixture:
        """Return that of some readers."""
        weights_RAX, own_SRW = self.weights_RAX[:, at], self.own_SRW
        if own_SRW is not None:
            own_AFRW = own_SRW.view(self.weights_RAX.shape[1], -1, *own_SRW.shape[1:])
            own_SRW = own_AFRW[at].flatten(0, 1)
        return Mixture(weights_RAX, self.experts_ERW, own_SRW)

    def rows(self) -> Tensor:
        """Return the rows, (A, R, W)."""
        if self.own_SRW is None:
            return mixed(self.weights_RAX, self.experts_ERW)
        weights_RAE, weights_FAR1 = self._parted()
        given_ARW = mixed(weights_RAE, self.experts_ERW)
        own_SRW, own = self.own_SRW, len(weights_FAR1)
        every = own_SRW.view(-1, own, *own_SRW.shape[1:]).unbind(1) if own > 1 else (own_SRW,)
        for own_ARW, weight_AR1 in zip(every, weights_FAR1, strict=True):  # of a reader, a few
            given_ARW = (own_ARW * weight_AR1).add_(given_ARW)
        return given_ARW

    def numbers(self, weight_AW1: Tensor) -> Tensor:
        """Return each reader's rows times a vector of its own, (A, R, 1).

        The vectors go to the experts before anything is added up: as many multiply-adds as for the
        rows, but in one large product, and the rows are never there.
        """
        vectors_WA = weight_AW1[..., 0].T
        if self.own_SRW is None:
            weights_RAE, weights_FAR1 = self.weights_RAX, None
        else:
            weights_RAE, weights_FAR1 = self._parted()
        # Gates last, as their weights lie in memory.
        each_REA = torch.matmul(self.experts_ERW, vectors_WA).transpose(0, 1)
        given_AR1 = (each_REA * weights_RAE.mT).sum(1).T[..., None]
        if self.own_SRW is None or weights_FAR1 is None:
            return given_AR1
        own = len(weights_FAR1)
        each_SR1 = product(self.own_SRW, weight_AW1.repeat_interleave(own, 0))
        each_AFR1 = each_SR1.view(-1, own, *each_SR1.shape[1:])
        return given_AR1 + (each_AFR1 * weights_FAR1.transpose(0, 1)).sum(1)

    def _parted(self) -> tuple[Tensor, Tensor]:
        """Return the weights of the experts that all read, and of each reader's own."""
        shared = self.experts_ERW.shape[0]
        own = self.weights_RAX.shape[2] - shared
        weights_RAE, weights_RAF = torch.split(self.weights_RAX, [shared, own], 2)
        return weights_RAE, weights_RAF.permute(2, 1, 0)[..., None]


FEW = 400
"""Multiply-adds of a batched product below which torch takes it in a plain loop on a CPU
(LinearAlgebra.cpp), three to five times slower than element by element."""


def mixed(weights_RAE: Tensor, experts_ERW: Tensor) -> Tensor:
    """Return what each reader takes from the experts, (A, R, W)."""
    _, readers, experts = weights_RAE.shape
    if readers * experts * experts_ERW.shape[2] < FEW:
        if experts == 1:
            return experts_ERW * weights_RAE.permute(1, 0, 2)
        if readers == 1 and experts <= 8:  # of many, one operator as of any number
            return (experts_ERW * weights_RAE.permute(2, 0, 1)).sum(0, keepdim=True)
    return torch.bmm(weights_RAE, experts_ERW.transpose(0, 1)).transpose(0, 1)
