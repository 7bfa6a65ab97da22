"""lasso-relevance: the few sources whose heads make up the target's, weighed by an L1 penalty.

Source: Wang et al., "Improved Active Multi-Task Representation Learning via Lasso", ICML 2023,
    https://arxiv.org/abs/2306.02556
Differs from the source: known from its text. The penalty is a share of the smallest one at which
    nothing is left, so that it means the same on any scale.
Shapes: M = sources, K = width of the representation.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.relate.relevance import check_heads


def lasso_relevance(heads_KM: Tensor, target_K: Tensor, *, penalty: float = 0.1) -> Tensor:
    """Return nu (M,): argmin 1/2 |heads nu - target|^2 + lam |nu|_1. Draw samples by |nu|.

    heads_KM: the sources' heads on one representation of width K; target_K: the target's.
    penalty: lam as a share of max |heads^T target|, in (0, 1).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    heads_KM, target_K = check_heads(heads_KM, target_K, "lasso_relevance")
    if not 0 < penalty < 1:
        raise UsageError(f"lasso_relevance: penalty is {penalty}; give a share between 0 and 1.")
    most = float((heads_KM.T @ target_K).abs().max())
    if most == 0:
        return torch.zeros(heads_KM.shape[1], dtype=torch.float64)
    K = len(target_K)
    model = Lasso(alpha=penalty * most / K, fit_intercept=False, max_iter=100_000, tol=1e-8)
    with warnings.catch_warnings():
        # more sources than K leave flat directions, in which descent never quite ends
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(heads_KM.numpy(), target_K.numpy())
    return torch.from_numpy(model.coef_).double()
