"""The best group for the tasks it serves, when gains are means over pairs (see hoa.py).

For a set S that one model serves, further members h that are only to help add c_h, what h gives S
in sum; the sum of S's gains is (W + sum c_h) / (|S| - 1 + helpers), W being what S gives itself.
So the best helpers are the largest c_h, as long as they raise that mean: no search is needed.

Shapes: T = tasks, S = sets of tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best_groups(
    values_TT: Tensor, served_ST: Tensor, largest: int, alone: float, overlap: bool = True
) -> tuple[Tensor, Tensor]:
    """Return of each set the sum of its tasks' gains in its best group (S,), and that group (S, T).

    values_TT: [i, j] is what i gives j; diagonal 0. served_ST: bool. largest: of members.
    overlap: False: the group is the set itself. Of equal groups the smallest; helpers of equal
        worth in the order of the tasks.
    """
    in_ST = served_ST.double()
    gives_ST = in_ST @ values_TT.T
    own_S = (gives_ST * in_ST).sum(1)
    size_S = served_ST.sum(1)
    most = int((largest - size_S.min()).clamp_min(0)) if overlap else 0
    gives_ST = gives_ST.masked_fill(served_ST, -torch.inf)
    sorted_ST, order_ST = gives_ST.sort(dim=1, descending=True, stable=True)
    total_SH = torch.cat([own_S[:, None], own_S[:, None] + sorted_ST[:, :most].cumsum(1)], 1)
    helpers_H = torch.arange(total_SH.shape[1])
    others_SH = size_S[:, None] - 1 + helpers_H
    mean_SH = total_SH / others_SH.clamp_min(1)
    mean_SH = mean_SH.where(others_SH > 0, torch.full((), alone).double())
    allowed_SH = (size_S[:, None] + helpers_H <= largest) | (helpers_H == 0)
    mean_SH = mean_SH.masked_fill(~allowed_SH, -torch.inf)
    value_S, count_S = mean_SH.max(1)  # the first, so the fewest helpers
    chosen_ST = torch.arange(served_ST.shape[1]) < count_S[:, None]
    group_ST = served_ST.clone().scatter_(1, order_ST, served_ST.gather(1, order_ST) | chosen_ST)
    return value_S, group_ST
