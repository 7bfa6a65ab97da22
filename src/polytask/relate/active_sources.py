"""active-sources: learn a linear representation from sources, sampling those that the target needs.

Source: Chen et al., "Active Multi-Task Representation Learning", ICML 2022,
    https://arxiv.org/abs/2202.00911; with lasso: Wang et al., ICML 2023,
    https://arxiv.org/abs/2306.02556
Differs from the source: known from their texts. The representation is fitted by alternating least
    squares, started from the leading singular vectors of each source's own regression. Samples are
    kept from round to round; the source draws anew.
Shapes: N = rows, I = inputs, K = width, M = sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.relate.lasso_relevance import lasso_relevance
from polytask.relate.relevance import allocate
from polytask.relate.ridge_relevance import ridge_relevance

Draw = Callable[[int, int], tuple[Tensor, Tensor]]
"""(source, how many) -> inputs (N, I) and targets (N,), new ones at every call."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """basis_IK: orthonormal. heads_KM, target_K: on it. relevance_M: of the last round.
    counts: samples drawn of each source, all rounds together."""

    basis_IK: Tensor
    heads_KM: Tensor
    target_K: Tensor
    relevance_M: Tensor
    counts: tuple[int, ...]

    def predict(self, inputs_NI: Tensor) -> Tensor:
        """Return the target (N,) of new rows."""
        return inputs_NI.double() @ (self.basis_IK @ self.target_K)


def active_sources(
    draw: Draw,
    target: tuple[Tensor, Tensor],
    sources: int,
    budgets: Sequence[int],
    *,
    width: int,
    relevance: Literal["lasso", "ridge", "none"] = "lasso",
    penalty: float | None = None,
    floor: int = 1,
    sweeps: int = 30,
) -> Sampled:
    """Return the representation and the target's head after one round for each budget.

    draw: gives samples of a source. target: the few rows (N, I), (N,) there are, N > width.
    sources: M. budgets: samples to draw in each round, all sources together; the first round draws
        of all alike, later ones by relevance ("none": of all alike always).
    width: K, of the representation. penalty: of the relevance; None: its default.
    floor: samples of every source in every round, at least. sweeps: of least squares.

    Inputs are taken as they are: add a constant one where targets have an offset.
    """
    if relevance not in ("lasso", "ridge", "none"):
        raise UsageError(f"active_sources: relevance is {relevance!r}; lasso, ridge or none.")
    if sources < 1 or width < 1 or not budgets or sweeps < 1:
        raise UsageError("active_sources: give sources, width, sweeps >= 1 and a budget a round.")
    inputs_NI, target_N = target[0].double(), target[1].double()
    if len(inputs_NI) <= width:
        raise DataError(
            f"active_sources: {len(inputs_NI)} rows of the target cannot fix {width} numbers; give "
            "more rows or a smaller width."
        )
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(sources)]
    counts = torch.zeros(sources, dtype=torch.long)
    nu_M = torch.ones(sources, dtype=torch.float64)
    power = {"lasso": 1.0, "ridge": 2.0, "none": 1.0}[relevance]
    for budget in budgets:
        for m, count in enumerate(allocate(nu_M, budget, floor=floor, power=power)):
            if count:
                x, y = draw(m, count)
                kept[m].append((x.double(), y.double()))
                counts[m] += count
        rows = [_joined(parts, m) for m, parts in enumerate(kept)]
        basis_IK, heads_KM = representation(rows, width, sweeps)
        target_K = _least_squares(inputs_NI @ basis_IK, target_N)
        if relevance == "lasso":
            nu_M = lasso_relevance(heads_KM, target_K, penalty=0.1 if penalty is None else penalty)
        elif relevance == "ridge":
            nu_M = ridge_relevance(heads_KM, target_K, penalty=1e-3 if penalty is None else penalty)
    return Sampled(basis_IK, heads_KM, target_K, nu_M, tuple(counts.tolist()))


def representation(
    rows: Sequence[tuple[Tensor, Tensor]], width: int, sweeps: int = 30
) -> tuple[Tensor, Tensor]:
    """Return B (I, K), orthonormal, and heads (K, M) that minimise sum_m |Y_m - X_m B w_m|^2.

    rows: of each source (N, I) and (N,), float64. Alternating least squares, a small ridge in it.
    """
    moments = [(x.T @ x, x.T @ y) for x, y in rows]
    inputs = len(moments[0][0])
    if width > inputs:
        raise UsageError(f"representation: width {width} exceeds the {inputs} inputs.")
    ridge = 1e-6 * float(sum(gram.diagonal().mean() for gram, _ in moments)) / len(moments)
    eye_II = torch.eye(inputs, dtype=torch.float64)
    counts = torch.tensor([len(y) for _, y in rows], dtype=torch.float64)
    # each source's own ridge regression; those of many rows say more
    own_IM = torch.stack([torch.linalg.solve(g + (ridge + g.diagonal().mean()) * eye_II, c)
                          for g, c in moments], 1)  # fmt: skip
    basis_IK = torch.linalg.svd(own_IM * counts.sqrt(), full_matrices=False).U[:, :width]
    if basis_IK.shape[1] < width:  # fewer sources than width: any directions for the rest
        basis_IK = torch.linalg.qr(torch.cat([basis_IK, eye_II], 1)).Q[:, :width]
    eye_KK = torch.eye(width, dtype=torch.float64)
    for _ in range(sweeps):
        heads_KM = _heads(basis_IK, moments, ridge * eye_KK)
        # vec(B): sum_m (w w^T) kron G_m
        system = sum(torch.kron(heads_KM[:, m].outer(heads_KM[:, m]), gram)
                     for m, (gram, _) in enumerate(moments))  # fmt: skip
        right = sum(heads_KM[:, m].outer(c).reshape(-1) for m, (_, c) in enumerate(moments))
        assert isinstance(system, Tensor)
        assert isinstance(right, Tensor)
        system = system + ridge * torch.eye(inputs * width, dtype=torch.float64)
        solved_KI = torch.linalg.solve(system, right).reshape(width, inputs)
        basis_IK = torch.linalg.qr(solved_KI.T).Q
    return basis_IK, _heads(basis_IK, moments, ridge * eye_KK)


def _heads(basis_IK: Tensor, moments: Sequence[tuple[Tensor, Tensor]], ridge_KK: Tensor) -> Tensor:
    grams_MKK = torch.stack([basis_IK.T @ gram @ basis_IK for gram, _ in moments])
    sides_MK = torch.stack([basis_IK.T @ side for _, side in moments])
    heads_MK: Tensor = torch.linalg.solve(grams_MKK + ridge_KK, sides_MK)
    return heads_MK.T


def _least_squares(x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = torch.linalg.lstsq(x, y[:, None]).solution
    return found[:, 0]


def _joined(parts: Sequence[tuple[Tensor, Tensor]], source: int) -> tuple[Tensor, Tensor]:
    if not parts:
        raise DataError(
            f"active_sources: no sample of source {source} was drawn; raise the floor or the first "
            "budget."
        )
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
