"""One task more: every stacked tensor gets a row, every parameter stays the object it was."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def grow(module: nn.Module, fresh: nn.Module) -> list[nn.Parameter]:
    """Add the tasks of `fresh`, a module of the same build; return the parameters that grew."""
    grown = []
    for mine, theirs in zip(module.modules(), fresh.modules(), strict=True):
        for name in getattr(mine, "per_task", ()):
            own, added = getattr(mine, name), getattr(theirs, name)
            # The same object with other data: optimisers and groups of parameters keep it, and an
            # optimiser that was not told stops at its next step instead of training a copy.
            longer = torch.cat([own.data, added.detach().to(own)])
            # Another type in between: torch then forgets the node that gathers gradients, which
            # a graph that is still alive would keep at the old shape.
            other = torch.float64 if own.dtype != torch.float64 else torch.float32
            own.data = torch.empty(0, dtype=other, device=own.device)
            own.data = longer
            if isinstance(own, nn.Parameter):
                own.grad = None
                grown.append(own)
    return grown


def grow_optimiser(optimiser: Optimizer, parameter: nn.Parameter) -> None:
    """Give an optimiser's state of a parameter that grew rows of zeros."""
    for name, value in _state(optimiser, parameter):
        short = parameter.shape[0] - value.shape[0]
        padding = value.new_zeros(short, *value.shape[1:])
        optimiser.state[parameter][name] = torch.cat([value, padding])


def _state(optimiser: Optimizer, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    for name, value in list(optimiser.state.get(parameter, {}).items()):
        if isinstance(value, Tensor) and value.dim() and value.shape[1:] == parameter.shape[1:]:
            yield name, value
