"""ridge-relevance: how much of the target's head each source's head is, all sources taking part.

Source: Chen et al., "Active Multi-Task Representation Learning", ICML 2022,
    https://arxiv.org/abs/2202.00911
Differs from the source: a small ridge in place of the exact least-norm solution, which it is in
    the limit.
Shapes: M = sources, K = width of the representation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.relate.relevance import check_heads


def ridge_relevance(heads_KM: Tensor, target_K: Tensor, *, penalty: float = 1e-3) -> Tensor:
    """Return nu (M,): argmin |heads nu - target|^2 + lam |nu|^2. Draw samples by nu^2.

    heads_KM: the sources' heads on one representation of width K; target_K: the target's.
    penalty: lam as a share of the largest eigenvalue of heads heads^T, > 0.
    """
    heads_KM, target_K = check_heads(heads_KM, target_K, "ridge_relevance")
    if penalty <= 0:
        raise UsageError(f"ridge_relevance: penalty is {penalty}; give a share > 0.")
    gram_KK = heads_KM @ heads_KM.T
    scale = float(torch.linalg.matrix_norm(gram_KK, 2))
    if scale == 0:
        return torch.zeros(heads_KM.shape[1], dtype=torch.float64)
    ridge_KK = penalty * scale * torch.eye(len(gram_KK), dtype=torch.float64)
    solved_K: Tensor = torch.linalg.solve(gram_KK + ridge_KK, target_K)
    return heads_KM.T @ solved_K
