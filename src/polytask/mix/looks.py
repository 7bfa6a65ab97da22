"""What methods remember of the losses they were shown.

Shapes: S = streams, W = looks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.mix.base import State


def unseen(streams: int, looks: int) -> State:
    """Return the state before the first look."""
    return {"losses_WS": torch.full((looks, streams), torch.nan, dtype=torch.float64)}


def seen(losses_S: Tensor, state: State) -> State:
    """Return the state with one look more, the oldest dropped; oldest first.

    A stream that was not looked at (NaN) keeps its last loss.
    """
    past_WS = state["losses_WS"]
    new_S = torch.where(losses_S.isnan(), past_WS[-1], losses_S.to(torch.float64))
    return {"losses_WS": torch.cat([past_WS[1:], new_S[None]])}


def known(losses_S: Tensor) -> Tensor:
    """Return the losses with those never seen at the mean of the others; NaN where none was."""
    return torch.where(losses_S.isnan(), losses_S.nanmean(), losses_S)
