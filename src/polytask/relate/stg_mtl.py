"""STG-MTL: groups of tasks whose data maps are alike, with soft membership as loss weights.

Source: Sherif et al., "STG-MTL: Scalable Task Grouping for Multi-Task Learning Using Data Map",
    2023, https://arxiv.org/abs/2307.03374
Differs from the source: clusters of any evidence per task, data maps among it. A group that serves
    no task is left out; its weights are shared out among the others.
Shapes: T = tasks, F = numbers per task, K = groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.relate.base import NAN, Groups, check_budget, check_tasks
from polytask.relate.data_maps import DataMaps


@dataclass(frozen=True, eq=False)
class SoftGroups:
    """Groups, and how much every task weighs in the loss of every group's model.

    weights_KT: float64; each task's sum to 1 over groups. Model k trains on
        sum_t weights_KT[k, t] * loss_t and serves the tasks that weigh most in it.
    """

    groups: Groups
    weights_KT: Tensor


def stg_mtl(
    evidence: DataMaps | tuple[tuple[str, ...], Tensor],
    budget: int,
    *,
    fuzziness: float = 1.07,
    seed: int = 0,
) -> SoftGroups:
    """Return `budget` groups by k-means over the tasks' evidence, and the soft membership.

    evidence: data maps, or task names and numbers of each task (T, ...), all known.
    budget: >= 1; what exceeds T counts as T. fuzziness: m > 1 of fuzzy c-means; the membership is
        softmax_k(-2/(m - 1) * log distance): at 1.07 all but hard.
    seed: of the starts of k-means (the best of 10).

    The groups' value is NaN: clusters say who is alike, not what is gained.
    """
    if isinstance(evidence, DataMaps):
        tasks, numbers = evidence.tasks, evidence.complete()
    else:
        tasks, numbers = tuple(evidence[0]), evidence[1]
    check_tasks(tasks, "stg_mtl")
    if len(numbers) != len(tasks):
        raise UsageError(f"stg_mtl: {len(numbers)} rows of evidence for {len(tasks)} tasks.")
    points_TF = numbers.detach().to("cpu", torch.float64).reshape(len(tasks), -1)
    if not bool(points_TF.isfinite().all()):
        raise DataError("stg_mtl: evidence is not finite; leave out what some tasks do not have.")
    if not fuzziness > 1:
        raise UsageError(f"stg_mtl: fuzziness is {fuzziness}; give a value > 1 (default 1.07).")
    different = len({tuple(point) for point in points_TF.tolist()})
    clusters = min(check_budget(budget, len(tasks), "stg_mtl"), different)
    distance_KT = _distances(points_TF, clusters, seed)
    return soft_groups(tasks, _membership(distance_KT, fuzziness))


def soft_groups(tasks: tuple[str, ...], weights_KT: Tensor) -> SoftGroups:
    """Return the groups in which each task weighs most; those that serve nobody go."""
    serve_T = weights_KT.argmax(0)
    used = list(dict.fromkeys(serve_T.tolist()))
    weights_KT = weights_KT[used] / weights_KT[used].sum(0)
    groups = tuple(
        tuple(tasks[t] for t in (serve_T == k).nonzero().flatten().tolist()) for k in used
    )
    serve = tuple(used.index(k) for k in serve_T.tolist())
    nothing = (NAN,) * len(tasks)
    return SoftGroups(Groups(tasks, groups, serve, nothing, NAN, source="stg-mtl"), weights_KT)


def _distances(points_TF: Tensor, clusters: int, seed: int) -> Tensor:
    """Return the distance of every task to every centre, (K, T)."""
    from sklearn.cluster import KMeans

    # k-means looks at distances alone, and T points span at most T dimensions: far fewer numbers
    found = KMeans(clusters, n_init=10, random_state=seed).fit(points_TF.numpy())
    return torch.cdist(torch.from_numpy(np.asarray(found.cluster_centers_)).double(), points_TF)


def _membership(distance_KT: Tensor, fuzziness: float) -> Tensor:
    """Return softmax over groups of -2/(m - 1) log d; a task at a centre belongs to it alone."""
    log_KT = distance_KT.clamp_min(1e-300).log()
    return torch.softmax(-2 / (fuzziness - 1) * log_KT, dim=0)
