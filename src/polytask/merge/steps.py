"""The steps that merge methods are made of, each an elementwise rule on M stacked tensors.

task_vectors -> trim / drop / rescale -> elect -> agreeing_mean -> moved. None changes what it is
given. Sums over models are taken in the order of the models.

Shapes: M = tuned models, P = elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def task_vectors(base_P: Tensor, tuned_MP: Tensor) -> Tensor:
    """Return how far each tuned model went from the base, (M, P)."""
    return tuned_MP - base_P


def per_model(values: Sequence[float] | Tensor, like_MP: Tensor) -> Tensor:
    """Return one value per model, shaped to multiply (M, P), in its dtype and on its device."""
    values_M = torch.as_tensor(values, dtype=torch.float64, device=like_MP.device)
    return values_M.to(like_MP.dtype).reshape(-1, *[1] * (like_MP.dim() - 1))


def weighted(tau_MP: Tensor, weights: Sequence[float]) -> Tensor:
    """Return every task vector times its model's weight; as they are where there are none."""
    return tau_MP * per_model(weights, tau_MP) if weights else tau_MP


def weighted_sum(values_MP: Tensor, weights: Sequence[float]) -> Tensor:
    """Return sum_m weights[m] values_MP[m], without an (M, P) in between; plain where empty."""
    if not weights:
        return values_MP.sum(0)
    sum_P = values_MP[0] * weights[0]
    for value_P, weight in zip(values_MP[1:], weights[1:], strict=True):
        sum_P.add_(value_P, alpha=weight)
    return sum_P


def mask(tau_MP: Tensor, keep_MP: Tensor) -> Tensor:
    """Return the task vectors where `keep_MP`, and 0 elsewhere, also where tau is not finite."""
    return torch.where(keep_MP, tau_MP, tau_MP.new_zeros(()))


def trim(tau_MP: Tensor, least_M: Tensor) -> Tensor:
    """Return the task vectors without the elements smaller in size than their model's `least_M`."""
    return mask(tau_MP, tau_MP.abs() >= per_model(least_M, tau_MP))


def rescale(tau_MP: Tensor, kept: float) -> Tensor:
    """Return the task vectors over the share of elements kept, which restores their mean.

    kept: in (0, 1]. Exactly 1 / kept, never a ratio of norms or of counts.
    """
    return tau_MP / kept


def elect(tau_MP: Tensor, majority: float) -> Tensor:
    """Return each element's sign, -1 or 1, (P,): that of the sum over models.

    majority: -1 or 1, the sign where the sum is 0.
    """
    sum_P = tau_MP.sum(0)
    sign_P = sum_P.sign()
    return torch.where(sign_P == 0, sum_P.new_full((), majority), sign_P)


def agreeing(tau_MP: Tensor, sign_P: Tensor) -> Tensor:
    """Return where a model goes in the elected direction, (M, P): never where it stands still."""
    return tau_MP * sign_P > 0


def agreeing_mean(tau_MP: Tensor, sign_P: Tensor, weights: Sequence[float] = ()) -> Tensor:
    """Return the mean over the models that go in the elected direction, (P,); 0 where none does.

    weights: one per model, by which the mean is weighed; the task vectors come unweighted.
    """
    agree_MP = agreeing(tau_MP, sign_P)
    sum_P = weighted_sum(mask(tau_MP, agree_MP), weights)
    share_P = weighted_sum(agree_MP.to(tau_MP.dtype), weights)
    return torch.where(share_P == 0, sum_P.new_zeros(()), sum_P / share_P)


def moved(base_P: Tensor, merged_P: Tensor, scale: float) -> Tensor:
    """Return the base, moved by `scale` times the merged task vector."""
    return torch.add(base_P, merged_P, alpha=scale)
