"""core-set: rows that are far, in the shared features, from all that is labelled.

Source: Sener & Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
    ICLR 2018, https://arxiv.org/abs/1708.00489
Differs from the source: the greedy k-centre choice, without its mixed-integer refinement.
Shapes: N = rows, F = features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError


def core_set(features_NF: Tensor, labelled_N: Tensor, count: int) -> tuple[int, ...]:
    """Return `count` rows, in order: each the farthest from what is labelled or chosen so far.

    features_NF: of the shared encoder, so that one choice serves all tasks. labelled_N: bool. With
        none labelled the first is the row nearest to the mean. All rows where fewer are left.
        Of equal ones the earlier. The largest distance left is at most twice the least possible.
    """
    features_NF = features_NF.detach().to("cpu", torch.float64).reshape(len(features_NF), -1)
    labelled_N = labelled_N.detach().cpu().bool()
    if labelled_N.shape != features_NF.shape[:1] or count < 1:
        raise UsageError(
            f"core_set: {tuple(labelled_N.shape)} flags for {len(features_NF)} rows, count {count};"
            " give one flag for each row and a count >= 1."
        )
    if not bool(features_NF.isfinite().all()):
        raise DataError("core_set: features are not all finite.")
    far_N = torch.full((len(features_NF),), torch.inf, dtype=torch.float64)
    near_MF = features_NF[labelled_N]
    for part in torch.split(near_MF, 1024) if len(near_MF) else ():
        far_N = torch.minimum(far_N, torch.cdist(features_NF, part).amin(1))
    chosen: list[int] = []
    far_N[labelled_N] = -1.0
    for _ in range(min(count, int((~labelled_N).sum()))):
        if not chosen and not bool(labelled_N.any()):
            n = int((features_NF - features_NF.mean(0)).square().sum(1).argmin())
        else:
            n = int(far_N.argmax())
        chosen.append(n)
        far_N = torch.minimum(far_N, (features_NF - features_NF[n]).square().sum(1).sqrt())
        far_N[n] = -1.0
        far_N[labelled_N] = -1.0
    return tuple(chosen)
