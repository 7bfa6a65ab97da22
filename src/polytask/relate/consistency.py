"""consistency-diversity: sources whose features point as the target's do, until they cover it.

Source: Xu et al., "Towards Few-Shot Adaptation of Foundation Models via Multitask Finetuning",
    ICLR 2024, https://arxiv.org/abs/2402.15017
Differs from the source: its text and code were not at hand, only a summary: sort by the cosine of
    mean features, add while the coverage grows by a factor of 1 + p. Coverage is defined here, as
    the part of the target's features that the sources' features reach, a ridge in it.
Shapes: N = rows, F = features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError


@dataclass(frozen=True)
class Chosen:
    """sources: chosen, the most consistent first. consistency: of all sources, cosine to the
    target. coverage: of the target after each chosen source, in [0, 1]."""

    sources: tuple[str, ...]
    consistency: dict[str, float]
    coverage: tuple[float, ...]


def consistency_diversity(
    target_NF: Tensor, sources: Mapping[str, Tensor], *, growth: float = 0.05
) -> Chosen:
    """Return the sources to train on for a target, by features of a pretrained model.

    target_NF: features (N, F) of the target's few rows. sources: name -> (N, F) each.
    growth: p >= 0: the next source in the order of consistency is added while it multiplies the
        coverage by 1 + p at least; the first one always is.
    """
    if not sources:
        raise UsageError("consistency_diversity needs at least one source; none was given.")
    if growth < 0:
        raise UsageError(f"consistency_diversity: growth is {growth}; give a value >= 0.")
    every = {"the target": target_NF, **sources}
    flat = {n: f.detach().to("cpu", torch.float64) for n, f in every.items()}
    for name, given in flat.items():
        if given.ndim != 2 or given.shape[1] != target_NF.shape[1] or not len(given):
            raise UsageError(
                f"consistency_diversity: the features of {name} have shape {tuple(given.shape)}; "
                f"give (N, {target_NF.shape[1]}), N >= 1."
            )
        if not bool(given.isfinite().all()):
            raise DataError(f"consistency_diversity: features of {name} are not all finite.")
    moment = {name: given.T @ given / len(given) for name, given in flat.items()}
    centre = {name: given.mean(0) for name, given in flat.items()}
    wanted_FF, towards_F = moment.pop("the target"), centre.pop("the target")
    consistency = {
        name: float(torch.cosine_similarity(towards_F, mean_F, dim=0))
        for name, mean_F in centre.items()
    }
    order = sorted(sources, key=lambda name: -consistency[name])
    ridge_FF = wanted_FF.diagonal().mean() * torch.eye(len(wanted_FF), dtype=torch.float64)
    if not bool(ridge_FF.any()):
        raise DataError("consistency_diversity: the target's features are all 0.")
    reached_FF = torch.zeros_like(wanted_FF)
    chosen: list[str] = []
    coverage: list[float] = []
    for name in order:
        reached_FF = reached_FF + moment[name]
        part_FF = torch.linalg.solve(reached_FF + ridge_FF, reached_FF)
        covers = float((wanted_FF @ part_FF).trace() / wanted_FF.trace())
        if coverage and covers < (1 + growth) * coverage[-1]:
            break
        chosen.append(name)
        coverage.append(covers)
    return Chosen(tuple(chosen), consistency, tuple(coverage))
