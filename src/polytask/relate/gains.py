"""Gains of groups, measured or predicted: what each member gained over training alone.

Shapes: T = tasks, G = groups that were tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polytask.errors import DataError, UsageError
from polytask.relate.base import NAN, Affinity, Groups, check_tasks


@dataclass(frozen=True, eq=False)
class Gains:
    """A table of groups.

    member_GT: bool, which tasks are in each group. gain_GT: float64, each member's gain over its
        model of its own, higher is better; NaN outside of the group and where it is not known.
    A task alone gains 0; groups of one need not be listed.
    """

    tasks: tuple[str, ...]
    member_GT: Tensor
    gain_GT: Tensor

    def __post_init__(self) -> None:
        check_tasks(self.tasks, "A table of gains")
        member_GT = torch.as_tensor(self.member_GT).bool().clone()
        gain_GT = torch.as_tensor(self.gain_GT).to(torch.float64).clone()
        if member_GT.ndim != 2 or member_GT.shape[1] != len(self.tasks):
            raise UsageError(
                f"Gains: member_GT has shape {tuple(member_GT.shape)}; give (G, {len(self.tasks)})."
            )
        if gain_GT.shape != member_GT.shape:
            raise UsageError(
                f"Gains: gain_GT has shape {tuple(gain_GT.shape)}, member_GT "
                f"{tuple(member_GT.shape)}; give the same."
            )
        if bool(gain_GT.isinf().any()):
            raise DataError("Gains: a gain is infinite; use NaN for what is unknown.")
        if not bool(member_GT.any(1).all()):
            raise DataError("Gains: a group has no member.")
        gain_GT[~member_GT] = NAN
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "member_GT", member_GT)
        object.__setattr__(self, "gain_GT", gain_GT)

    def __len__(self) -> int:
        return len(self.member_GT)

    def only(self, which_G: Tensor) -> Gains:
        """Return some of the groups: a mask or their numbers."""
        return replace(self, member_GT=self.member_GT[which_G], gain_GT=self.gain_GT[which_G])

    def pairs(self) -> Affinity:
        """Return the gains of pairs as an affinity: [i, j] is what j gained beside i.

        A pair that is listed several times counts with its mean.
        """
        T = len(self.tasks)
        sum_TT, count_TT = torch.zeros(T, T).double(), torch.zeros(T, T).double()
        for g in (self.member_GT.sum(1) == 2).nonzero().flatten().tolist():
            i, j = self.member_GT[g].nonzero().flatten().tolist()
            for source, target in ((i, j), (j, i)):
                gain = self.gain_GT[g, target]
                if not bool(gain.isnan()):
                    sum_TT[source, target] += gain
                    count_TT[source, target] += 1
        values_TT = sum_TT / count_TT  # 0/0 is NaN: not known
        return Affinity(self.tasks, values_TT, torch.full((T, T), NAN), "pairs of groups")

    def measured(self, groups: Groups) -> Tensor:
        """Return each task's gain (T,) in the group that serves it: 0 alone, NaN if not listed."""
        at = {tuple(row): g for g, row in enumerate(self.member_GT.int().tolist())}
        gains = []
        for t, task in enumerate(self.tasks):
            group = groups.of(task)
            row = tuple(int(name in group) for name in self.tasks)
            known = float(self.gain_GT[at[row], t]) if row in at else NAN
            gains.append(0.0 if len(group) == 1 else known)
        return torch.tensor(gains, dtype=torch.float64)


def member_of(tasks: Sequence[str], groups: Sequence[Sequence[str]]) -> Tensor:
    """Return member_GT, bool, of groups given by names."""
    return torch.tensor([[task in group for task in tasks] for group in groups]).bool()
