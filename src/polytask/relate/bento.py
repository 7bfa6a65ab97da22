"""BenTo: the few tasks of a collection that stand for all, by what they transfer to each other.

Source: Zhao et al., "BenTo: Benchmark Task Reduction with In-Context Transferability", ICLR 2025,
    https://arxiv.org/abs/2410.13804; code: tianyi-lab/BenTo
Differs from the source: the released spectral form keeps all T eigenvectors, which form a rotation:
    all tasks are then equally far apart, and the choice is by chance. Here it keeps `components`
    of them, without the constant one.
Shapes: T = tasks, F = numbers per task.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.relate.base import Affinity
from polytask.relate.facility import Kept, facility_location


def bento(affinity: Affinity, keep: int, *, components: int = 0) -> Kept:
    """Return `keep` tasks that stand for all, and how well every other one is represented.

    affinity: [i, j]: how well j is done after, or with examples of, i; the diagonal counts where
        it is known. Tasks are alike that help all others alike: rows are compared after centring
        every column. keep: 1 to T.
    components: 0: likeness is 1.5 times the largest distance less the distance; k >= 1: distances
        in the first k eigenvectors of that likeness's normalised Laplacian.

    Raises DataError where a value between two tasks is missing (see `Affinity.filled`).
    """
    T = len(affinity.tasks)
    if not 1 <= keep <= T:
        raise UsageError(f"bento: keep is {keep}; give 1 to {T} of the {T} tasks.")
    if not 0 <= components < T:
        raise UsageError(f"bento: components is {components}; give 0 to {T - 1}.")
    values_TT = affinity.known()
    own_T = affinity.values_TT.diagonal()
    if not bool(own_T.isnan().any()):
        values_TT = values_TT + torch.diag(own_T)
    else:  # as if a task did to itself what others do to it on average
        values_TT = values_TT + torch.diag(values_TT.sum(0) / (T - 1))
    likeness_TT = _likeness(values_TT - values_TT.mean(0))
    if components:
        likeness_TT = _likeness(_spectral(likeness_TT, components))
    return facility_location(affinity.tasks, likeness_TT, keep)


def _likeness(points_TF: Tensor) -> Tensor:
    """Return 1.5 times the largest distance less the distance."""
    distance_TT = torch.cdist(points_TF, points_TF, compute_mode="donot_use_mm_for_euclid_dist")
    largest = distance_TT.max()
    if float(largest) == 0:
        raise DataError("bento: all tasks transfer the same; there is nothing to choose by.")
    return 1.5 * largest - distance_TT


def _spectral(likeness_TT: Tensor, components: int) -> Tensor:
    """Return the tasks in the Laplacian's eigenvectors of smallest eigenvalue but the first."""
    off_TT = likeness_TT.clone().fill_diagonal_(0)
    root_T = off_TT.sum(1).rsqrt()
    laplacian_TT = torch.eye(len(off_TT)).double() - root_T[:, None] * off_TT * root_T
    vectors_TT: Tensor = torch.linalg.eigh(laplacian_TT).eigenvectors
    return vectors_TT[:, 1 : components + 1]
