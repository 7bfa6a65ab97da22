"""label-correlation: whether the labels of two tasks go together on rows that have both.

Source: Pearson's correlation and its error; the cheapest evidence there is, known before any
    training
Differs from the source: nothing known. The sign is dropped by default: tasks whose labels are
    opposite need the same features.
Shapes: N = rows, T = tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.relate.base import NAN, Affinity, check_tasks


def label_correlation(
    tasks: Sequence[str], labels_NT: Tensor, *, signed: bool = False, least: int = 10
) -> Affinity:
    """Return |r| of every two tasks' labels, r where `signed`; symmetric.

    labels_NT: numbers, NaN where there is no label: targets of regression, 0 and 1, or a class
        that orders. least: rows that both tasks label, below which a value is NaN and noted; >= 4.

    The error is (1 - r^2) / sqrt(n - 1). A task whose labels do not vary has NaN. A similarity, not
    a help: centre it before grouping.
    """
    check_tasks(tasks, "label_correlation")
    if labels_NT.ndim != 2 or labels_NT.shape[1] != len(tasks):
        raise UsageError(
            f"label_correlation: labels_NT has shape {tuple(labels_NT.shape)}; give (N, "
            f"{len(tasks)})."
        )
    if least < 4:
        raise UsageError(f"label_correlation: least is {least}; give at least 4 (default 10).")
    labels_NT = labels_NT.detach().to("cpu", torch.float64)
    there_NT = ~labels_NT.isnan()
    # about the tasks' own means first, so that large numbers do not cancel
    filled_NT = (labels_NT - labels_NT.nanmean(0)).where(there_NT, torch.zeros(()).double())
    in_NT = there_NT.double()
    count_TT = in_NT.T @ in_NT
    sum_TT = filled_NT.T @ in_NT  # of i's labels where j has one too
    square_TT = filled_NT.square().T @ in_NT
    product_TT = filled_NT.T @ filled_NT
    covariance_TT = product_TT - sum_TT * sum_TT.T / count_TT
    spread_TT = square_TT - sum_TT.square() / count_TT
    scale_TT = (spread_TT * spread_TT.T).clamp_min(0).sqrt()
    varies_TT = (spread_TT > 1e-12 * square_TT) & (spread_TT > 1e-12 * square_TT).T
    unknown_TT = torch.full((), NAN).double()
    known_TT = varies_TT & (count_TT >= least)
    r_TT = (covariance_TT / scale_TT).clamp(-1, 1).where(known_TT, unknown_TT)
    error_TT = ((1 - r_TT.square()) / (count_TT - 1).clamp_min(1).sqrt()).where(
        known_TT, unknown_TT
    )
    few = int(((count_TT < least) & ~torch.eye(len(tasks), dtype=torch.bool)).sum()) // 2
    notes = (f"{few} pairs have fewer than {least} rows in common and no value",) if few else ()
    values_TT = r_TT if signed else r_TT.abs()
    return Affinity(tuple(tasks), values_TT, error_TT, "label-correlation", False, notes)
