"""task-vectors: whether tuning on two tasks moves a model in the same direction.

Source: the cosines of task vectors in Ilharco et al., "Editing Models with Task Arithmetic",
    ICLR 2023, https://arxiv.org/abs/2212.04089
Differs from the source: a standard error, from leaving out one tensor at a time.
Shapes: T = tasks, L = tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.relate.base import NAN, Affinity, check_tasks

Weights = Mapping[str, Tensor]


def task_vectors(base: Weights, tuned: Mapping[str, Weights]) -> Affinity:
    """Return the cosine of the tasks' changes from the base, symmetric.

    base: name -> tensor, such as a state dict; only what `base` holds is compared, so leave heads
        out. tuned: task -> the same after tuning on it. Whole numbers and flags are passed over.

    The error says how much a cosine hangs on single tensors; NaN where there is only one. A model
    that did not change has NaN. A similarity, not a help: centre it before grouping.
    """
    tasks = tuple(tuned)
    check_tasks(tasks, "task_vectors")
    names = [name for name, value in base.items() if value.is_floating_point()]
    if not names:
        raise UsageError("task_vectors: the base holds no floating-point tensor.")
    product_LTT = torch.stack([_products(name, base[name], tuned) for name in names])
    whole_TT = product_LTT.sum(0)
    if not bool(whole_TT.isfinite().all()):
        raise DataError("task_vectors: a weight is not finite.")
    values_TT = _cosine(whole_TT)
    L = len(names)
    if L == 1:
        return Affinity(tasks, values_TT, torch.full_like(values_TT, NAN), "task-vectors", False)
    parts_LTT = _cosine(whole_TT - product_LTT)
    off_LTT = parts_LTT - parts_LTT.nanmean(0)
    error_TT = ((L - 1) / L * off_LTT.square().sum(0)).sqrt()
    return Affinity(tasks, values_TT, error_TT, "task-vectors", zero=False)


def _products(name: str, base: Tensor, tuned: Mapping[str, Weights]) -> Tensor:
    changes = []
    for task, weights in tuned.items():
        if name not in weights or weights[name].shape != base.shape:
            came = tuple(weights[name].shape) if name in weights else "nothing"
            raise UsageError(
                f"task_vectors: {name!r} has shape {tuple(base.shape)} in the base and {came} for "
                f"{task!r}; give models of one layout."
            )
        changes.append((weights[name].detach().double() - base.detach().double()).reshape(-1))
    change_TP = torch.stack(changes)
    return (change_TP @ change_TP.T).cpu()


def _cosine(product: Tensor) -> Tensor:
    norm = product.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    scale = norm[..., :, None] * norm[..., None, :]
    return (product / scale).clamp(-1, 1).where(scale > 0, torch.full((), NAN).double())
