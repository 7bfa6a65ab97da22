"""Adapters: changes of low rank merged exactly, without ever forming the matrices they change.

A merged adapter is the weighted sum of its parts' changes, sum_m w_m s_m B_m A_m: their factors,
side by side. Averaging A and B apart, as is often done, is something else. Rank adds up; reduced
to a given rank by the singular values, what is lost is known exactly.

Source: Hu et al., "LoRA", ICLR 2022, https://arxiv.org/abs/2106.09685; Kalajdzievski, rsLoRA, 2023,
    https://arxiv.org/abs/2312.03732; Liu et al., "DoRA", ICML 2024,
    https://arxiv.org/abs/2402.09353, equation 5.
Differs from the source: the sources merge an adapter into its base; merging several adapters with
    each other is this file's. A sum of DoRA changes is a change of low rank and a gain of every
    row of the base, and so a DoRA adapter again. PEFT's `cat` and `svd` combinations form the
    same sum for LoRA, the latter from dense matrices; its default for DoRA refuses.
Shapes: M = adapters, O, I = outputs and inputs of a layer, R = rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.merge.checks import check_weights


@dataclass(frozen=True)
class Change:
    """What an adapter does to a layer: W_0 -> (1 + gain) W_0 + up @ down, b_0 -> b_0 + bias.

    up_OR, down_RI: float64. gain_O: of each row of the base, None where the base stays.
    bias_O: None where it stays.
    """

    up_OR: Tensor
    down_RI: Tensor
    gain_O: Tensor | None = None
    bias_O: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of factors, R."""
        return self.up_OR.shape[1]

    def dense(self, base_OI: Tensor) -> Tensor:
        """Return the changed matrix, (O, I)."""
        whole_OI = base_OI.to(self.up_OR.dtype) + self.up_OR @ self.down_RI
        if self.gain_O is None:
            return whole_OI
        return whole_OI + self.gain_O[:, None] * base_OI


@dataclass(frozen=True)
class MergedChange:
    """A merged change, and the share of its length that reducing the rank lost.

    error: norm of what was left out over the norm of up @ down, in [0, 1]; 0 without reduction.
    """

    change: Change
    error: float


def lora(
    down_RI: Tensor,
    up_OR: Tensor,
    alpha: float,
    rank_stabilised: bool = False,
    bias_O: Tensor | None = None,
) -> Change:
    """Return the change of a LoRA adapter: scale * B A, where A is `down_RI` and B is `up_OR`.

    alpha: the scale is alpha / R; with `rank_stabilised` (rsLoRA), alpha / sqrt(R).
    bias_O: trained with B, and scaled with it.
    """
    down_RI, up_OR = down_RI.to(torch.float64), up_OR.to(torch.float64)
    if down_RI.dim() != 2 or up_OR.dim() != 2 or down_RI.shape[0] != up_OR.shape[1]:
        raise UsageError(
            f"A LoRA adapter has A of shape (R, I) and B of shape (O, R); {tuple(down_RI.shape)} "
            f"and {tuple(up_OR.shape)} came."
        )
    rank = len(down_RI)
    scale = alpha / (math.sqrt(rank) if rank_stabilised else rank)
    return Change(scale * up_OR, down_RI, None, None if bias_O is None else scale * bias_O.double())


def dora(change: Change, magnitude_O: Tensor, base_OI: Tensor) -> Change:
    """Return the change of a DoRA adapter: W_0 -> magnitude * (W_0 + B A) / norm of its rows.

    change: its low-rank part, see `lora`. base_OI: the weight it was trained on.
    """
    gain_O = magnitude_O.to(torch.float64).reshape(-1) / row_norms(change, base_OI)
    return Change(gain_O[:, None] * change.up_OR, change.down_RI, gain_O - 1, change.bias_O)


def row_norms(change: Change, base_OI: Tensor) -> Tensor:
    """Return the norms of the rows of W_0 + up @ down, (O,), from the factors."""
    base_OI = base_OI.to(torch.float64)
    cross_O = (change.up_OR * (base_OI @ change.down_RI.T)).sum(1)
    own_O = (change.up_OR @ (change.down_RI @ change.down_RI.T) * change.up_OR).sum(1)
    return (base_OI.square().sum(1) + 2 * cross_O + own_O).clamp_min(0).sqrt()


def as_dora(change: Change, base_OI: Tensor) -> tuple[Change, Tensor]:
    """Return the low-rank part and the magnitudes, (O,), of the DoRA adapter that is this change.

    A row whose gain is -1 keeps nothing of the base, which DoRA cannot say: UsageError.
    """
    gain_O = torch.ones(len(base_OI), dtype=torch.float64)
    if change.gain_O is not None:
        gain_O = gain_O + change.gain_O
    if bool((gain_O == 0).any()):
        row = int((gain_O == 0).nonzero()[0])
        raise UsageError(
            f"The merged change leaves nothing of row {row} of the base, which no DoRA adapter can "
            "do; use other weights, or merge into the base."
        )
    inner = Change(change.up_OR / gain_O[:, None], change.down_RI, None, change.bias_O)
    return inner, gain_O * row_norms(inner, base_OI)


def summed(changes: Sequence[Change], weights: Sequence[float]) -> Change:
    """Return the weighted sum of the changes of one layer, exactly; ranks add up."""
    shapes = {(len(change.up_OR), change.down_RI.shape[1]) for change in changes}
    if len(shapes) != 1:
        raise UsageError(
            "Adapters of one layer change matrices of one shape; these change "
            f"{', '.join(map(str, sorted(shapes)))}."
        )
    pairs = list(zip(changes, weights, strict=True))
    return Change(
        torch.cat([weight * change.up_OR for change, weight in pairs], 1),
        torch.cat([change.down_RI for change in changes]),
        _sum([weight * change.gain_O for change, weight in pairs if change.gain_O is not None]),
        _sum([weight * change.bias_O for change, weight in pairs if change.bias_O is not None]),
    )


def reduced(change: Change, rank: int) -> MergedChange:
    """Return the nearest change of at most this rank, and what it lost; gain and bias stay.

    The singular values come from the factors' QR decompositions: no (O, I) matrix is formed.
    """
    left_OC, left_CR = torch.linalg.qr(change.up_OR)
    right_IC, right_CR = torch.linalg.qr(change.down_RI.T)
    u_CK, values_K, vh_KC = torch.linalg.svd(left_CR @ right_CR.T, full_matrices=False)
    whole = float(values_K.norm())
    error = float(values_K[rank:].norm()) / whole if whole > 0 else 0.0
    root_K = values_K[:rank].sqrt()
    up_OR = left_OC @ u_CK[:, :rank] * root_K
    down_RI = root_K[:, None] * (vh_KC[:rank] @ right_IC.T)
    return MergedChange(Change(up_OR, down_RI, change.gain_O, change.bias_O), error)


@dataclass(frozen=True)
class AdapterMerge:
    """Merges adapters of one layer into one adapter whose change is the weighted sum of theirs.

    weights: one per adapter; 1 / M each where none are given.
    rank: reduce to at most this rank; None keeps every factor, and is exact.
    """

    weights: tuple[float, ...] = ()
    rank: int | None = None

    def __post_init__(self) -> None:
        check_weights("AdapterMerge", self.weights)
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise UsageError(
                f"AdapterMerge: rank is {self.rank!r}; give a whole number >= 1, or none."
            )

    def weights_of(self, adapters: int) -> tuple[float, ...]:
        """Return one weight per adapter; raise where their number is another."""
        if adapters == 0 or (self.weights and len(self.weights) != adapters):
            raise UsageError(
                f"AdapterMerge: {len(self.weights)} weights for {adapters} adapters; give at least "
                "one adapter, and one weight for each or none."
            )
        return self.weights or (1 / adapters,) * adapters

    def __call__(self, changes: Sequence[Change]) -> MergedChange:
        """Return the merged change of one layer and the error of its reduction."""
        change = summed(changes, self.weights_of(len(changes)))
        if self.rank is None or change.rank <= self.rank:
            return MergedChange(change, 0.0)
        return reduced(change, self.rank)


def _sum(values: list[Tensor]) -> Tensor | None:
    return torch.stack(values).sum(0) if values else None
