"""Experts of low rank: what the methods that route over them share.

Two ways of routing. Outputs are mixed where weights may differ by token: `plus_spread` puts all
experts' factors side by side, so that y + scale * sum_e w_e B_e A_e x is exact and two products,
whatever the number of experts; where few are chosen and nothing is trained, only those are
multiplied. Parameters are mixed where a row has one weight for each expert: `selection.mixed` gives
the row factors of its own, and `OwnFactors` applies them.

Shapes: B = rows of the batch, N = what a row has here, E = experts, K = experts chosen, R = rank,
S = ranks one after another, X = tokens of all rows, G = groups, I, O = inputs and outputs of a
layer.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from polytask.adapt.base import Adapter, Layer, Rows
from polytask.adapt.low_rank import plus_up, product, reduced_by
from polytask.adapt.selection import Few, Selection, mixed, of_task, spread_over
from polytask.errors import UsageError

FEW = 4
"""At most 1 of so many experts is chosen where the chosen alone are multiplied: with more, all at
once are as fast."""

PIECE = 512
"""Tokens that are added to at a time there, so that what is added never leaves the cache."""


def check_many(who: str, name: str, value: int, default: int) -> None:
    """Raise UsageError where a setting is no count."""
    if type(value) is not int or value < 1:
        raise UsageError(
            f"{who}: {name} is {value!r}; give a whole number >= 1 (default {default})."
        )


def check_top(who: str, top: int, experts: int, of: str) -> None:
    """Raise UsageError where not so many experts can be chosen."""
    if type(top) is not int or not 1 <= top <= experts:
        raise UsageError(f"{who}: top is {top!r}; give a whole number from 1 to {of}, {experts}.")


def reduced_common(layer: Layer, x: Tensor, down_RI: Tensor) -> Tensor:
    """Return every row's input through one down factor: (B, N, R), of convolutions (B, n, R, P)."""
    if layer.kind == "linear":
        # A fifth faster, step and all, than the batched product below with a batch of one.
        return functional.linear(x, down_RI.to(x.dtype))
    # All rows are one row of a batch, and what they have is that row's.
    together = x.reshape(1, -1, *x.shape[2:])
    small = reduced_by(layer, together, down_RI.to(x.dtype).unsqueeze(0))
    return small.reshape(*x.shape[:2], *small.shape[2:])


def plus_common(y: Tensor, small: Tensor, up_RO: Tensor, scale: float = 1.0) -> Tensor:
    """Return y + scale * one up factor times what `reduced` or `reduced_common` returned."""
    together, seen = (v.reshape(1, -1, *v.shape[2:]) for v in (y, small))
    return plus_up(together, seen, up_RO.to(y.dtype).unsqueeze(0), scale).reshape(y.shape)


def plus_spread(
    y: Tensor,
    made: Tensor,
    up_SO: Tensor,
    weights_BNGE: Tensor | Few,
    rows: Rows,
    scale: float = 1.0,
) -> Tensor:
    """Return y + scale * the sum of what experts make, each times its weight; linear layers.

    made: (B, N, E * R), what `reduced_common` returned for all experts' down factors; or (B, N, R),
    that of one down factor, which all experts have. Rows without a task stay y's, bit for bit.
    """
    if isinstance(weights_BNGE, Few):
        few = weights_BNGE
        if _spares(y, made, up_SO, few):
            return _plus_few(y, made, up_SO, few, rows, scale)
        weights_BNGE = few.dense()
    weights_BNGE = rows.only(weights_BNGE, 0.0)
    if made.shape[-1] != len(up_SO):
        experts = weights_BNGE.shape[-1]
        made = made.unsqueeze(-2).expand(*made.shape[:-1], experts, made.shape[-1]).flatten(-2)
    return plus_common(y, spread_over(weights_BNGE, made), up_SO, scale)


def _spares(y: Tensor, made: Tensor, up_SO: Tensor, few: Few) -> bool:
    """Return whether the chosen experts by themselves are faster than all at once."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or y.device.type != "cpu":
        return False
    plain = y.dtype == made.dtype == up_SO.dtype == few.weights.dtype and y.dtype.itemsize >= 4
    of_tokens = few.chosen.shape[:-1] == (*y.shape[:2], 1)
    return plain and of_tokens and FEW * few.chosen.shape[-1] <= few.experts


def _plus_few(y: Tensor, made: Tensor, up_SO: Tensor, few: Few, rows: Rows, scale: float) -> Tensor:
    """Return `plus_spread` by the rows of the up factors that are the chosen experts', into y."""
    rank = len(up_SO) // few.experts
    weights_XK1 = rows.only(few.weights, 0.0).reshape(-1, few.chosen.shape[-1], 1)
    first_XK1 = few.chosen.reshape(weights_XK1.shape) * rank
    at_XS = (first_XK1 + torch.arange(rank)).flatten(1)
    made_XS = made.reshape(-1, made.shape[-1])
    if made.shape[-1] == len(up_SO):
        own_XKR = made_XS.gather(1, at_XS).view(*weights_XK1.shape[:2], rank)
    else:  # what all experts read
        own_XKR = made_XS.unsqueeze(1)
    own_XS = (own_XKR * weights_XK1).flatten(1)
    flat_XO = y.reshape(-1, y.shape[-1])
    pieces = (torch.split(t, PIECE) for t in (flat_XO, at_XS, own_XS))
    for part_XO, at, own in zip(*pieces, strict=True):
        part_XO.add_(
            functional.embedding_bag(at, up_SO, per_sample_weights=own, mode="sum"), alpha=scale
        )
    return flat_XO.view(y.shape)


def mixed_by_group(weights_BNGE: Tensor, values_E: Tensor, axis: int) -> Tensor:
    """Return `mixed` values whose `axis` is cut into G parts, each with weights of its own.

    values_E: (E, ...), axis counted with E. Returns (B, ...), joined again.
    """
    groups = weights_BNGE.shape[2]
    if groups == 1:
        return mixed(weights_BNGE, values_E)
    shape = values_E.shape
    parted = values_E.reshape(*shape[:axis], groups, -1, *shape[axis + 1 :]).movedim(axis, 1)
    return mixed(weights_BNGE, parted).movedim(1, axis).flatten(axis, axis + 1)


class OwnFactors(Adapter):
    """Factors that each row mixes of experts by its task: what their adapters have together."""

    folds = True
    scale: float

    @abstractmethod
    def routing(self) -> Selection:
        """Return the selection, of `TaskScores`."""

    @abstractmethod
    def factors_by(self, weights_BNGE: Tensor) -> tuple[Tensor, Tensor]:
        """Return down and up factors of each row, (B, R, I) or (B, R, I, k, ...), and (B, R, O)."""

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        down_BRI, up_BRO = self.factors_by(self.routing()(rows))
        small = reduced_by(self.layer, x, down_BRI.to(x.dtype))
        return plus_up(y, small, rows.only(up_BRO, 0.0).to(y.dtype), self.scale)

    def change(
        self, task: int, weight_OI: Tensor, bias_O: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        down_1RI, up_1RO = self.factors_by(of_task(self.routing(), task)[None, None])
        return self.scale * product(self.layer, down_1RI[0], up_1RO[0]), None


def thin_svd(down_ERI: Tensor, up_ERO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular values and vectors of up^T down of each expert, in float64.

    (E, O, R), (E, R) and (E, R, I), largest first; from the factors' QR decompositions, so no
    (O, I) matrix is formed. Of a matrix of zeros the vectors are any.
    """
    left_EOC, left_ECR = torch.linalg.qr(up_ERO.detach().double().mT)
    right_EIC, right_ECR = torch.linalg.qr(down_ERI.detach().double().mT)
    u_ECR, values_ER, v_ERC = torch.linalg.svd(left_ECR @ right_ECR.mT, full_matrices=False)
    return left_EOC @ u_ECR, values_ER, v_ERC @ right_EIC.mT
