"""CKA: how alike two tasks' models see the same inputs, whatever turns and scales their features.

Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
    https://arxiv.org/abs/1905.00414; the unbiased estimator: Song et al., JMLR 13, 2012, and
    Nguyen, Raghu & Kornblith, ICLR 2021, https://arxiv.org/abs/2010.15327
Differs from the source: linear kernel alone. Unbiased by default: the plain one tends to 1 for
    features wider than there are rows.
Shapes: N = rows, F = features, T = tasks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.relate.base import Affinity
from polytask.relate.features import on_same_rows
from polytask.relate.jackknife import jackknife


def cka(features: Mapping[str, Tensor], *, unbiased: bool = True) -> Affinity:
    """Return the similarity of the tasks' features, symmetric; 1 is the same but for a turn.

    features: task -> features (N, ...) of the same N >= 20 inputs; widths may differ. Holds T
        matrices of N x N; some hundred rows are plenty.
    unbiased: 0 is what features that have nothing in common have on average; it may be negative.

    A similarity, not a help: centre it before grouping. Constant features give NaN.
    """
    tasks, flat = on_same_rows(features, "cka")
    gram_TNN = torch.stack([given @ given.T for given in flat])

    def similarity(rows_N: Tensor) -> Tensor:
        inner_TNN = _centred(gram_TNN[:, rows_N][:, :, rows_N], unbiased)
        flat_TM = inner_TNN.flatten(1)
        product_TT = flat_TM @ flat_TM.T
        norm_T = product_TT.diagonal().sqrt()
        return product_TT / (norm_T[:, None] * norm_T)

    values_TT, error_TT = jackknife(gram_TNN.shape[1], similarity, "cka")
    return Affinity(tasks, values_TT, error_TT, "cka", zero=False)


def _centred(gram_TNN: Tensor, unbiased: bool) -> Tensor:
    """Return Gram matrices whose inner products are HSIC, up to a factor that all share."""
    if not unbiased:
        mean_TN1 = gram_TNN.mean(2, keepdim=True)
        return gram_TNN - mean_TN1 - mean_TN1.mT + mean_TN1.mean(1, keepdim=True)
    # U-centring: inner products of these are the unbiased estimator
    N = gram_TNN.shape[1]
    off_TNN = gram_TNN.clone()
    off_TNN.diagonal(dim1=1, dim2=2).zero_()
    sum_TN1 = off_TNN.sum(2, keepdim=True) / (N - 2)
    whole_T11 = off_TNN.sum((1, 2), keepdim=True) / ((N - 1) * (N - 2))
    off_TNN = off_TNN - sum_TN1 - sum_TN1.mT + whole_T11
    off_TNN.diagonal(dim1=1, dim2=2).zero_()
    return off_TNN
