"""Methods that ask a tensor only for the lengths and angles of its models, and then mix them.

Shapes: M = models, P = elements of one piece, G = some of them, Q = pairs of models, each with
    itself and those after it, J, K = some of them, A = ACROSS, R = runs, S = steps of a
    run, E = R * A.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from polytask.merge.base import (
    GRAIN,
    Look,
    Mixture,
    Over,
    Place,
    Products,
    State,
    Surveyor,
)
from polytask.merge.rounding import all_finite

ACROSS = 16
"""Sums of a pair's products that are carried along: as many as registers hold."""

RUN = 512
"""Elements whose products are added up from 0 on; a divisor of GRAIN."""

AT_ONCE = 1 << 18
"""Products that are formed together, at most: 2 MiB."""


class Angles(Surveyor):
    """A mix of base and models, per tensor, by their inner products, in float64.

    The products are those of the models; where the base takes part, of how far they went from it,
    in float32 as in other methods, so that products are exact. Of RUN elements and a pair of
    models, those at elements k, k + ACROSS, k + 2 ACROSS, ... are added in this order; then the
    sums of each RUN, and in the end, by halves, those of a pair. So a tensor gives the same to the
    last bit however it is cut, and on every machine; a product of matrices would add in the order
    that suits it.
    """

    @abstractmethod
    def mix(self, gram_MM: Tensor) -> tuple[float, tuple[float, ...]]:
        """Return what the base is multiplied by, and each model. gram_MM: the inner products."""

    @property
    @final
    def over(self) -> Over:
        """Each tensor by itself."""
        return "tensor"

    @final
    def begin(self, models: int, dtype: torch.dtype) -> State:
        """Return the empty state."""
        return {}

    @final
    def settled(self, state: State) -> bool:
        """Return True after one pass."""
        return "gram_MM" in state

    @final
    def blank(self, state: State) -> State:
        """Return no sum yet; the number of models comes with the first piece."""
        return {}

    @final
    def look(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State, sums: State) -> None:
        """Add the inner products of one piece."""
        sums_QA = sums_of(sums, len(tuned_MP)).numpy()
        for start in range(0, tuned_MP.shape[1], GRAIN):
            vectors_MG = tuned_MP[:, start : start + GRAIN]
            if self.needs_base:
                vectors_MG = _changes(base_P[start : start + GRAIN], vectors_MG)
            _add(vectors_MG, sums_QA)

    @final
    def looks(self, state: State) -> Look:
        """Return what `look` adds: inner products."""
        return Products(of_changes=self.needs_base)

    @final
    def settle(self, state: State, sums: State) -> State:
        """Return the inner products."""
        sum_QA = sums["sums_QA"].numpy()
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so
            while (half := sum_QA.shape[1] // 2) > 0:
                sum_QA = sum_QA[:, :half] + sum_QA[:, half:]
        models = round(math.sqrt(2 * len(sum_QA)) - 0.5)
        gram_MM = torch.empty(models, models, dtype=torch.float64)
        i_Q, j_Q = torch.triu_indices(models, models)
        gram_MM[i_Q, j_Q] = gram_MM[j_Q, i_Q] = torch.from_numpy(sum_QA[:, 0])
        return {"gram_MM": gram_MM}

    @final
    def mixture(self, models: int, state: State) -> Mixture:
        """Return the mix."""
        of_base, of_tuned = self.mix(state["gram_MM"])
        return Mixture(of_tuned, base=of_base)

    @final
    def piece(self, base_P: Tensor, tuned_MP: Tensor, at: Place, state: State) -> Tensor:
        """Return the mixed piece, (P,)."""
        return self.mixture(len(tuned_MP), state)(
            base_P if self.needs_base else base_P[:0], tuned_MP
        )


def _changes(base_G: Tensor, tuned_MG: Tensor) -> Tensor:
    """Return how far models went, (M, G): in float64 where float32 has no room for it."""
    changes_MG = tuned_MG - base_G
    if all_finite(changes_MG):
        return changes_MG
    return tuned_MG.double() - base_G.double()


def _add(vectors_MG: Tensor, sums_QA: NDArray[np.float64]) -> None:
    """Add the products of each vector with itself and those after it, run by run."""
    models, length = vectors_MG.shape
    runs, steps = -(-length // RUN), RUN // ACROSS
    if length % RUN:  # 0 adds nothing
        vectors_MG = functional.pad(vectors_MG, (0, runs * RUN - length))
    # The steps of a run come first: what is added then lies in long stretches.
    all_SMRA = vectors_MG.reshape(models, runs, steps, ACROSS).permute(2, 0, 1, 3).contiguous()
    all_SME = all_SMRA.to(torch.float64).view(steps, models, runs * ACROSS)
    first = 0
    for products_SJE in _products(all_SME):
        numbers_SJE = products_SJE.cpu().numpy()
        sums_JE = numbers_SJE[0]
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so
            for numbers_JE in numbers_SJE[1:]:
                sums_JE += numbers_JE
            sums_JRA = sums_JE.reshape(len(sums_JE), runs, ACROSS)
            those_JA = sums_QA[first : first + len(sums_JE)]
            sums_JRA[:, 0] += those_JA
            those_JA[:] = np.add.accumulate(sums_JRA, axis=1)[:, -1]
        first += len(those_JA)


def _products(all_SME: Tensor) -> Iterator[Tensor]:
    """Yield the products of each vector with itself and those after it, many at once, (S, J, E), in
    memory that is used again."""
    steps, models, length = all_SME.shape
    most = max(1, min(models * (models + 1) // 2, AT_ONCE // (steps * length)))
    room_SKE = all_SME.new_empty(steps, most, length)
    filled = 0
    for i in range(models):
        for begin in range(i, models, most):
            end = min(models, begin + most)
            if filled + end - begin > most:
                yield room_SKE[:, :filled]
                filled = 0
            out_SJE = room_SKE[:, filled : filled + end - begin]
            torch.mul(all_SME[:, begin:end], all_SME[:, i : i + 1], out=out_SJE)
            filled += end - begin
    yield room_SKE[:, :filled]


def sums_of(sums: State, models: int) -> Tensor:
    """Return what the products of each pair of models add up to, (Q, ACROSS); 0 at first."""
    if "sums_QA" not in sums:
        pairs = models * (models + 1) // 2
        sums["sums_QA"] = torch.zeros(pairs, ACROSS, dtype=torch.float64)
    return sums["sums_QA"]


def cosine(gram: Sequence[Sequence[float]], i: int, j: int) -> float:
    """Return the cosine between vectors i and j, in [-1, 1]; 0 where one of them is 0.

    gram: their inner products, as `tolist` gives them.
    """
    lengths = math.sqrt(gram[i][i]), math.sqrt(gram[j][j])
    if 0 in lengths:
        return 0.0
    return max(-1.0, min(1.0, gram[i][j] / lengths[0] / lengths[1]))
