"""An optimiser's own step, made on copies: the optimiser and its parameters stay as they are."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def displaced(
    optimizer: torch.optim.Optimizer, shared: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> list[Tensor]:
    """Return the shared parameters as they would be after a step on these gradients alone.

    Momentum, adaptive scales and weight decay act as they would; other parameters are not in it,
    a parameter without a gradient stays. Hooks on the step and schedulers are not called.
    """
    of = {id(parameter): n for n, parameter in enumerate(shared)}
    copies = [nn_parameter(parameter) for parameter in shared]
    for one, grad in zip(copies, grads, strict=True):
        one.grad = grad
    made = object.__new__(type(optimizer))
    # A scheduler puts its own `step` on the instance, and hooks may count steps: both stay behind.
    made.__dict__.update({k: v for k, v in optimizer.__dict__.items() if k != "step"})
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        setattr(made, hooks, OrderedDict())
    made.state = defaultdict(dict)
    for parameter, state in optimizer.state.items():
        if id(parameter) in of:
            made.state[copies[of[id(parameter)]]] = {k: _own(v) for k, v in state.items()}
    made.param_groups = []
    for group in optimizer.param_groups:
        mine = [copies[of[id(p)]] for p in group["params"] if id(p) in of]
        if mine:
            rest = {key: _own(value) for key, value in group.items() if key != "params"}
            made.param_groups.append({**rest, "params": mine})
    made.step()
    return [one.detach() for one in copies]


def nn_parameter(parameter: Tensor) -> Tensor:
    """Return a leaf of the same values and memory format that trains."""
    return parameter.detach().clone().requires_grad_()


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)
