"""attributions: whether the models of two tasks look at the same parts of an input.

Source: Song et al., "Deep Model Transferability from Attribution Maps", NeurIPS 2019,
    https://arxiv.org/abs/1909.11902
Differs from the source: gradient x input and saliency, without epsilon-LRP; known here from its
    abstract and its method's description, its code was not at hand.
Shapes: N = rows, ... = the input's shape, T = tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from polytask.errors import DataError, UsageError
from polytask.relate.base import Affinity
from polytask.relate.features import on_same_rows
from polytask.relate.jackknife import LEAST


def attribute(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    form: Literal["gradient x input", "saliency"] = "gradient x input",
) -> Tensor:
    """Return what each entry of each input (N, ...) means for the model's output of that row.

    model: inputs (N, ...) -> outputs (N, ...), rows independent (put it into evaluation mode). Of
        several outputs the largest counts, such as the class chosen.
    form: the output's gradient times the input, or its absolute value alone.
    """
    if form not in ("gradient x input", "saliency"):
        raise UsageError(f"attribute: form is {form!r}; give 'gradient x input' or 'saliency'.")
    given = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        output_N = model(given).reshape(len(given), -1).amax(1)
        (grad,) = torch.autograd.grad(output_N.sum(), given)
    return grad * inputs if form == "gradient x input" else grad.abs()


def attributions(maps: Mapping[str, Tensor]) -> Affinity:
    """Return the mean cosine of two tasks' attributions of the same inputs, symmetric.

    maps: task -> attributions (N, ...) of the same N >= 20 inputs, all of one shape: see
        `attribute`. Rows without any attribution in one of two tasks count for neither.

    A similarity, not a help: centre it before grouping.
    """
    tasks, flat = on_same_rows(maps, "attributions")
    shapes = {tuple(given.shape) for given in maps.values()}
    if len(shapes) > 1:
        raise UsageError(f"attributions: maps are to have one shape; got {sorted(shapes)}.")
    if len(flat[0]) < LEAST:
        raise DataError(f"attributions: {len(flat[0])} rows are too few; give at least {LEAST}.")
    unit_TNF = functional.normalize(torch.stack(flat), dim=2)
    there_TN = unit_TNF.any(2)
    cosine_TTN = torch.einsum("inf,jnf->ijn", unit_TNF, unit_TNF)
    both_TTN = there_TN[:, None] & there_TN[None]
    count_TT = both_TTN.sum(2)
    mean_TT = cosine_TTN.sum(2) / count_TT
    off_TTN = (cosine_TTN - mean_TT[..., None]).where(both_TTN, torch.zeros(()).double())
    variance_TT = off_TTN.square().sum(2) / (count_TT - 1)
    error_TT = (
        (variance_TT / count_TT).sqrt().where(count_TT > 1, torch.full((), math.nan).double())
    )
    return Affinity(tasks, mean_TT, error_TT, "attributions", zero=False)
