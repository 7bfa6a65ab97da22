"""The steps that merge methods are made of, each a rule on M stacked tensors.

task_vectors -> trim / drop / rescale -> elect -> agreeing_mean -> moved. None changes what it is
given, unless told to. Sums over models are taken in float64, so that their order shows in no bit
of a float32.
What is not finite stays so, also where a mask drops it.

Written in operations that torch runs many elements at a time; comparisons and `where` take up to
ten times as long.

Shapes: M = tuned models, P = elements.
"""

from __future__ import annotations

import math
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


def weighted_sum(values_MP: Tensor, weights: Sequence[float] = ()) -> Tensor:
    """Return sum_m weights[m] values_MP[m], (P,); each weight 1 where none are given.

    Summed in float64, and given back in the dtype of the values.
    """
    # One after another, where torch's sum takes an order that suits shape and machine. Products and
    # sums are rounded apart: fused into one, which some processors do and others do not, a value
    # beside a tie would round by the machine.
    sum_P = values_MP[0].to(torch.float64, copy=True)
    if weights:
        sum_P *= weights[0]
    for m in range(1, len(values_MP)):
        sum_P += values_MP[m].to(torch.float64) * weights[m] if weights else values_MP[m]
    return sum_P.to(values_MP.dtype)


def mask(tau_MP: Tensor, keep_MP: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the task vectors where `keep_MP`, and 0 elsewhere.

    out: where they are written, if given; it may be `tau_MP` itself.
    """
    keep_MP = keep_MP.view(torch.uint8).to(tau_MP.dtype)  # torch widens bools slowly
    return torch.mul(tau_MP, keep_MP, out=out)


def trim(tau_MP: Tensor, least_M: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the task vectors with 0 for elements smaller in size than their model's `least_M`.

    out: where they are written, if given; it may be `tau_MP` itself.
    """
    trimmed_MP = torch.empty_like(tau_MP) if out is None else out
    for tau_P, below, out_P in zip(tau_MP, below_of(least_M), trimmed_MP, strict=True):
        torch.ops.aten.hardshrink.out(tau_P, below, out=out_P)
    return trimmed_MP


def below_of(least_M: Tensor) -> tuple[float, ...]:
    """Return the largest size that is smaller than each model's least; of 0 itself, 0."""
    return tuple(torch.nextafter(least_M, torch.zeros_like(least_M)).tolist())


def rescale(tau_MP: Tensor, kept: float) -> Tensor:
    """Return the task vectors over the share of elements kept, which restores their mean.

    kept: in (0, 1]. Exactly 1 / kept, never a ratio of norms or of counts.
    """
    return tau_MP / kept


def elect(tau_MP: Tensor, majority: float) -> Tensor:
    """Return each element's sign, -1 or 1, (P,): that of the sum over models.

    majority: -1, 1 or 0, which an element takes whose sum is 0.
    """
    sign_P = weighted_sum(tau_MP).sign()
    return sign_P if majority == 0 else sign_P + majority * (1 - sign_P.abs())


def agreeing(tau_MP: Tensor, sign_P: Tensor) -> Tensor:
    """Return where a model goes in the elected direction, (M, P): never where it stands still."""
    return tau_MP * sign_P > 0


def agreeing_mean(tau_MP: Tensor, sign_P: Tensor, weights: Sequence[float] = ()) -> Tensor:
    """Return the mean over the models that go in the elected direction, (P,); 0 where none does.

    A model that stands still goes in no direction.
    weights: by which the task vectors came multiplied; the mean divides by the sum of their
        sizes instead of the number of models.
    """
    forward_MP = (tau_MP * sign_P).relu_()
    sum_P = weighted_sum(forward_MP)
    sizes = [abs(weight) for weight in weights]
    # The clamp only meets 0: what agrees has at least the least weight.
    least = min((size for size in sizes if size > 0), default=1.0)
    forward_MP.sign_()
    share_P = weighted_sum(forward_MP, sizes) if sizes else forward_MP.sum(0)
    share_P.clamp_(min=least)
    return sum_P.div_(share_P).mul_(sign_P)


def moved(base_P: Tensor, merged_P: Tensor, scale: float) -> Tensor:
    """Return the base, moved by `scale` times the merged task vector."""
    return base_P + merged_P * scale  # not fused, as in weighted_sum


def ranked(elements: int, share: float) -> int:
    """Return how many of so many elements a share of them is: to the nearest, at least one."""
    return max(1, math.floor(elements * share + 0.5))
