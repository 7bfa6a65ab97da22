"""Preset weights on convex problems whose optimum is known: how much of the gap to it is left.

    python experiments/balance/preset.py

Plan: README.md beside this file.

Shapes: K = tasks, P = dimensions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import store
import torch
from torch import Tensor

from polytask.balance import MGDA, AlignedMTL, Balance, CAGrad, Fixed, PCGrad, Signal

PROBLEMS = tuple(range(10))
TASKS, DIMENSIONS = 3, 20
LR, UPDATES = 0.1, 20_000
CURVATURES = (0.1, 1.0)


class Problem(NamedTuple):
    """f_k(x) = (x - c_k)' A_k (x - c_k) / 2 and the preset weights of their sum."""

    curvature_KPP: Tensor
    centre_KP: Tensor
    start_P: Tensor
    weights_K: Tensor

    def losses(self, x_P: Tensor) -> Tensor:
        apart_KP = x_P - self.centre_KP
        return 0.5 * torch.einsum("kp,kpq,kq->k", apart_KP, self.curvature_KPP, apart_KP)

    def gradients(self, x_P: Tensor) -> Tensor:
        return torch.einsum("kpq,kq->kp", self.curvature_KPP, x_P - self.centre_KP)

    def objective(self, x_P: Tensor) -> float:
        return float(self.weights_K @ self.losses(x_P))

    def optimum(self) -> Tensor:
        weighted_KPP = self.weights_K[:, None, None] * self.curvature_KPP
        right_P = torch.einsum("kpq,kq->p", weighted_KPP, self.centre_KP)
        return torch.linalg.solve(weighted_KPP.sum(0), right_P)


def problem(seed: int) -> Problem:
    """Return the problem of this number."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    low, high = torch.tensor(CURVATURES, dtype=torch.float64).log10().tolist()
    spread_P = torch.logspace(low, high, DIMENSIONS, dtype=torch.float64)
    basis_KPP = torch.linalg.qr(normal(TASKS, DIMENSIONS, DIMENSIONS)).Q
    curvature_KPP = basis_KPP @ torch.diag(spread_P) @ basis_KPP.mT
    # A uniform Dirichlet draw is exponential draws over their sum.
    draws_K = -torch.rand(TASKS, generator=random, dtype=torch.float64).log()
    return Problem(
        curvature_KPP=curvature_KPP,
        centre_KP=normal(TASKS, DIMENSIONS),
        start_P=3 * normal(DIMENSIONS),
        weights_K=TASKS * draws_K / draws_K.sum(),
    )


def descend(method: Balance, given: Problem) -> float:
    """Return the share of the initial gap that is left after the updates, in %."""
    state = method.start(TASKS)
    index_K = torch.arange(TASKS)
    x_P = given.start_P
    for step in range(UPDATES):
        grads_KP = given.gradients(x_P)
        signal = Signal(given.losses(x_P), index_K, TASKS, step, gram_KK=grads_KP @ grads_KP.T)
        update = method(signal, state)
        state = update.state
        x_P = x_P - LR * (update.weights_K.to(x_P.dtype) @ grads_KP)
    best = given.objective(given.optimum())
    return 100 * (given.objective(x_P) - best) / (given.objective(given.start_P) - best)


def methods(given: Problem) -> dict[str, Balance]:
    """Return what is compared, those that can be told the preset weights with them."""
    preset = tuple(given.weights_K.tolist())
    return {
        "aligned-mtl": AlignedMTL(preference=preset),
        "fixed": Fixed(weights=preset),
        "pcgrad": PCGrad(seed=0),
        "cagrad": CAGrad(),
        "mgda": MGDA(),
    }


def main() -> None:
    torch.set_num_threads(1)
    left: dict[str, list[float]] = {}
    for seed in PROBLEMS:
        given = problem(seed)

        def run(given: Problem = given) -> dict[str, Any]:
            return {name: descend(method, given) for name, method in methods(given).items()}

        for name, share in store.kept(f"preset/{seed}", run).items():
            left.setdefault(name, []).append(share)
    settings = {
        "tasks": TASKS, "dimensions": DIMENSIONS, "curvatures": CURVATURES,
        "lr": LR, "updates": UPDATES,
    }  # fmt: skip
    store.write("preset", {"seeds": PROBLEMS, "settings": settings, "gap_left_percent": left})


if __name__ == "__main__":
    main()
