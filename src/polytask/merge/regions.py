"""Regions of a model: for each task, the entries of the shared tensors that carry its skill.

Shapes: T = tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.merge.family import Family, Merged, Tensors


@dataclass(frozen=True)
class Regions:
    """Which entries belong to which task. kept: by name, (T, ...) of bool, tasks in their order."""

    kept: Tensors

    @property
    def share(self) -> Tensor:
        """The share of all entries that each task's region holds, (T,), float64."""
        sizes = torch.stack([kept.flatten(1).sum(1) for kept in self.kept.values()]).sum(0)
        return sizes.to(torch.float64) / sum(kept[0].numel() for kept in self.kept.values())

    @property
    def overlap(self) -> Tensor:
        """How alike tasks are: the share of row task's region that lies in column task's, (T, T).

        1 on the diagonal; a row of 0 where a task's region is empty.
        """
        common = torch.zeros(0)
        for kept in self.kept.values():
            flat = kept.flatten(1).to(torch.float64)
            common = common.to(flat.device) + flat @ flat.T if len(common) else flat @ flat.T
        return common / common.diagonal()[:, None].clamp(min=1)

    def graft(self, family: Family, task: str) -> Merged:
        """Return the base with one task's change, in its region alone."""
        t = family.tasks.names.index(task)
        return Merged(
            {
                name: base + family.deltas[name][t] * self.kept[name][t]
                for name, base in family.base.items()
            }
        )

    def union(self, family: Family) -> Merged:
        """Return the base with every task's change in its region; the mean where regions meet."""
        shared = {}
        for name, base in family.base.items():
            kept = self.kept[name].to(base.dtype)
            shared[name] = base + (family.deltas[name] * kept).sum(0) / kept.sum(0).clamp(min=1)
        learned = {f"region/{name}": kept for name, kept in self.kept.items()}
        return Merged(shared, learned=learned | {"share": self.share, "overlap": self.overlap})


def most_moved(deltas: Tensors, share: float) -> Regions:
    """Return each task's entries that changed the most: a share of those of the whole model.

    At least one; those as large as the least of them too, but none that did not change.
    """
    sizes_TP = torch.cat([delta.flatten(1).abs() for delta in deltas.values()], 1)
    entries = sizes_TP.shape[1]
    count = max(1, int(share * entries))
    least_T = sizes_TP.kthvalue(entries - count + 1, dim=1).values
    return Regions(
        {
            name: (delta.abs() >= least_T.reshape(-1, *[1] * (delta.dim() - 1))) & (delta != 0)
            for name, delta in deltas.items()
        }
    )
