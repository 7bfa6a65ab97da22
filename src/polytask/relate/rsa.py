"""RSA: whether two tasks' models find the same pairs of inputs alike.

Source: Dwivedi & Roig, "Representation Similarity Analysis for Efficient Task Taxonomy & Transfer
    Learning", CVPR 2019, https://arxiv.org/abs/1904.11740
Differs from the source: nothing known: 1 - Pearson between inputs, Spearman between tasks.
Shapes: N = rows, F = features, Q = pairs of rows, T = tasks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.relate.base import Affinity
from polytask.relate.features import on_same_rows
from polytask.relate.jackknife import jackknife


def rsa(features: Mapping[str, Tensor]) -> Affinity:
    """Return the rank correlation of the tasks' dissimilarities between inputs, symmetric.

    features: task -> features (N, F) of the same N >= 20 inputs, F >= 2; widths may differ. Some
        hundred rows are plenty: T times N^2 / 2 numbers are ranked.

    A similarity, not a help: centre it before grouping. A row of equal features gives NaN.
    """
    tasks, flat = on_same_rows(features, "rsa")
    alike_TNN = torch.stack([torch.corrcoef(given) for given in flat])

    def similarity(rows_N: Tensor) -> Tensor:
        upper = torch.triu_indices(len(rows_N), len(rows_N), 1)
        apart_TQ = -alike_TNN[:, rows_N[upper[0]], rows_N[upper[1]]]
        return torch.corrcoef(ranks(apart_TQ))

    values_TT, error_TT = jackknife(alike_TNN.shape[1], similarity, "rsa")
    return Affinity(tasks, values_TT, error_TT, "rsa", zero=False)


def ranks(values_TQ: Tensor) -> Tensor:
    """Return the ranks within each row, equal values sharing their mean rank; NaN rows stay NaN."""
    from scipy.stats import rankdata

    ranked_TQ = torch.from_numpy(rankdata(values_TQ.numpy(), axis=1))
    gone_T1 = values_TQ.isnan().any(1, keepdim=True)
    return ranked_TQ.masked_fill(gone_T1, torch.nan)
