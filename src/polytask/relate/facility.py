"""Facility location: the few tasks that stand best for all, chosen one after the other.

Shapes: T = tasks, A = tasks chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """A smaller collection of tasks, and how well it stands for the rest.

    tasks: all T. kept: A names, in the order chosen: the first few are a collection too.
    stands_for: of each task, the kept one most like it. covered: of each task, that likeness as a
        share of its likeness to itself: 1 for what is kept. coverage: their mean after each choice.
    """

    tasks: tuple[str, ...]
    kept: tuple[str, ...]
    stands_for: tuple[str, ...]
    covered: tuple[float, ...]
    coverage: tuple[float, ...]


def facility_location(tasks: tuple[str, ...], similarity_TT: Tensor, keep: int) -> Kept:
    """Return `keep` tasks that greedily maximise sum_i max_{j kept} s_ij; at least 1 - 1/e of it.

    similarity_TT: >= 0, largest on the diagonal. Of equal choices the earlier task.
    """
    own_T = similarity_TT.diagonal()
    best_T = torch.zeros_like(own_T)
    chosen: list[int] = []
    coverage = []
    for _ in range(keep):
        gain_T = (similarity_TT - best_T[:, None]).clamp_min(0).sum(0)
        gain_T[chosen] = -1.0
        chosen.append(int(gain_T.argmax()))
        best_T = torch.maximum(best_T, similarity_TT[:, chosen[-1]])
        coverage.append(float((best_T / own_T).mean()))
    most_T = similarity_TT[:, chosen].argmax(1)
    # a task that is kept stands for itself, also where another is as like
    names = [tasks[t] if t in chosen else tasks[chosen[int(most_T[t])]] for t in range(len(tasks))]
    covered = tuple((best_T / own_T).tolist())
    return Kept(tasks, tuple(tasks[t] for t in chosen), tuple(names), covered, tuple(coverage))
