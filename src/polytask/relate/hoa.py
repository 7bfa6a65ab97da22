"""HOA: the gain of any group, from pairs: a task gains the mean of what the other members give it.

Source: Standley et al., "Which Tasks Should Be Learned Together in Multi-task Learning?",
    ICML 2020, https://arxiv.org/abs/1905.07553, the higher-order approximation
Differs from the source: it averages gains over training alone, where the source averages losses
    of pairs; for gains relative to one task's own loss the two are the same.
Shapes: T = tasks, G = groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.relate.base import Affinity
from polytask.relate.gains import Gains


def hoa(affinity: Affinity, member_GT: Tensor, alone: float = 0.0) -> Gains:
    """Return the expected gains of these groups.

    member_GT: bool. A task alone gains `alone`. Raises DataError where a value is missing.
    """
    member_GT = torch.as_tensor(member_GT).bool()
    if member_GT.ndim != 2 or member_GT.shape[1] != len(affinity.tasks):
        raise UsageError(
            f"hoa: member_GT has shape {tuple(member_GT.shape)}; give (G, {len(affinity.tasks)})."
        )
    values_TT = affinity.known()  # its diagonal is 0
    others_G = member_GT.sum(1, keepdim=True) - 1
    gain_GT = (member_GT.double() @ values_TT) / others_G.clamp_min(1)
    gain_GT = gain_GT.where(others_G > 0, torch.full((), alone).double())
    return Gains(affinity.tasks, member_GT, gain_GT)
