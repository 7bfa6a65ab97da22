"""An optimiser's own step, made on copies: the optimiser and its parameters stay as they are."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Stepping:
    """Steps on copies of some of an optimiser's parameters, in memory that is used again.

    Momentum, adaptive scales and weight decay act as they would; other parameters are not in it.
    Hooks on the step and schedulers are not called. It holds a copy of the parameters and of the
    optimiser's state of them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, shared: Sequence[Tensor]) -> None:
        self.optimizer, self.shared = optimizer, shared
        self._copies: list[Tensor | None] = [None for _ in shared]
        self._states: list[dict[str, Any]] = [{} for _ in shared]

    def on_nothing(self) -> list[Tensor]:
        """Return the parameters as they would be after a step on gradients of 0; see `on`."""
        return self.on([torch.zeros_like(one) for one in self.shared])

    def on(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the parameters as they would be after a step on these gradients alone.

        A parameter without a gradient stays. They are overwritten by the next call.
        """
        of = {id(parameter): n for n, parameter in enumerate(self.shared)}
        copies: list[Tensor] = [
            _own(parameter.detach(), None if held is None else held.detach()).requires_grad_()
            for parameter, held in zip(self.shared, self._copies, strict=True)
        ]
        self._copies = [*copies]
        for one, grad in zip(copies, grads, strict=True):
            one.grad = grad
        optimizer = self.optimizer
        made = object.__new__(type(optimizer))
        # A scheduler puts its own `step` on the instance, and hooks may count steps: both stay.
        made.__dict__.update({k: v for k, v in optimizer.__dict__.items() if k != "step"})
        for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
            setattr(made, hooks, OrderedDict())
        made.state = defaultdict(dict)
        for parameter, state in optimizer.state.items():
            if (n := of.get(id(parameter))) is not None:
                held = self._states[n]
                self._states[n] = {k: _own(v, held.get(k)) for k, v in state.items()}
                made.state[copies[n]] = self._states[n]
        made.param_groups = []
        for group in optimizer.param_groups:
            mine = [copies[of[id(p)]] for p in group["params"] if id(p) in of]
            if mine:
                rest = {key: _own(value) for key, value in group.items() if key != "params"}
                fused = {"fused": True} if self._fuses(group) else {}
                made.param_groups.append({**rest, **fused, "params": mine})
        made.step()
        return [one.detach() for one in copies]

    def _fuses(self, group: Mapping[str, Any]) -> bool:
        """Return whether torch has the step of a group in one pass, where nobody chose a form."""
        return (
            type(self.optimizer) in FUSED
            and group.get("foreach") is None
            and group.get("fused") is None
            and not group.get("capturable")
            and not group.get("differentiable")
            and all(p.is_cpu and p.dtype is torch.float32 for p in group["params"])
        )


FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Whose steps torch makes in one pass on a CPU: the same up to rounding, a third of the time."""


def _own(value: Any, held: object = None) -> Any:
    """Return a copy; of a tensor in the memory of the one held, where it fits."""
    if not isinstance(value, Tensor):
        return copy.copy(value)
    if (
        isinstance(held, Tensor)
        and (held.shape, held.dtype, held.device) == (value.shape, value.dtype, value.device)
        and held.stride() == value.stride()
    ):
        return held.copy_(value)
    return value.clone()
