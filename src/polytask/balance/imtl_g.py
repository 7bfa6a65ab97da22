"""IMTL-G: the update makes the same product with every task's unit gradient.

Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021,
    https://openreview.net/forum?id=IMPnRXEWpvr, section 3.1
Differs from the source: where its weights, which add up to 1, would make the update climb on
    every task, as happens for conflicting gradients of very different lengths, the signs are
    turned and the sum is -1. Where gradients depend on each other, so that the source's linear
    system has no single solution, the least-squares one in unit gradients is taken; TorchJD takes
    that in the gradients as they are, which goes by the losses' units. Where no
    combination has equal products (two opposed gradients) the weights are 0, and a note says so.
    The losses' own scaling, IMTL-L, is another method.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polytask.balance.base import Needs, Signal, State, Update
from polytask.balance.problem import pose
from polytask.balance.solvers import even_products, split


@dataclass(frozen=True)
class IMTLG:
    """Weights with sum 1 or -1 for which the update has the same product with every g_k / |g_k|.

    Weights may be negative. Invariant, but for its length, to the scale of each loss. A task
    whose gradient is zero has the weight 0.
    """

    needs: ClassVar[Needs] = "gramian"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = False

    def start(self, tasks: int) -> State:
        """Return an empty state."""
        return {}

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64."""
        problem = pose(signal, "IMTL-G")
        cosines_KK, norms_K = split(problem.gram_KK)
        # In the length of the shortest gradient, so that no weight overflows.
        shortest = norms_K.min(initial=np.inf, where=norms_K > 0)
        inverse_K = np.divide(shortest, norms_K, out=np.zeros_like(norms_K), where=norms_K > 0)
        weights_K = even_products(cosines_KK, (norms_K > 0).astype(np.float64)) * inverse_K
        total = abs(weights_K.sum())
        if total <= 1e-12 * np.abs(weights_K).sum():
            return problem.update(
                state,
                np.zeros_like(weights_K),
                "no combination has equal products with all gradients; used no update instead",
            )
        return problem.update(state, weights_K / total)
