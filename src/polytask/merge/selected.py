"""Task vectors as TIES leaves them before it averages: trimmed, and where signs agree.

Shapes: T = tasks, P = entries of the whole model.
"""

from __future__ import annotations

import torch

from polytask.errors import UsageError
from polytask.merge.family import Tensors
from polytask.merge.steps import elect, mask, ranked, trim


def selected(deltas: Tensors, density: float) -> Tensors:
    """Return each task vector with its largest entries whose sign is the elected one, else 0.

    The largest `density` of each task's entries over the whole model stay; the sign elected for
    an entry is that of their sum, and where that is 0 the one that most entries elected.
    """
    if not 0 < density <= 1:
        raise UsageError(f"A density of {density}; give the part to keep, in (0, 1].")
    flat_TP = torch.cat([delta.flatten(1) for delta in deltas.values()], 1)
    entries = flat_TP.shape[1]
    least_T = flat_TP.abs().kthvalue(entries - ranked(entries, density) + 1, dim=1).values
    flat_TP = trim(flat_TP, least_T)
    majority = 1.0 if float(flat_TP.sum(0).sign().sum()) >= 0 else -1.0
    flat_TP = mask(flat_TP, flat_TP * elect(flat_TP, majority) > 0)
    sizes = [delta[0].numel() for delta in deltas.values()]
    parts = torch.split(flat_TP, sizes, 1)
    return {
        name: part.reshape(delta.shape)
        for (name, delta), part in zip(deltas.items(), parts, strict=True)
    }
