"""MTAdamW: AdamW whose moments survive steps that are of one task each.

Source: Li et al., "Uni-Perceiver v2: A Generalist Model for Large-Scale Vision and Vision-Language
    Tasks", CVPR 2023, https://arxiv.org/abs/2211.09808 (task-balanced gradient normalisation)
Differs from the source: evidence is the abstract and a description of the update by others, which
    has no bias correction; here it is Adam's. For parameters that not every task reaches (heads)
    a task's share is taken among those that do, which is derived: with the share of all steps a
    head's step would grow by the root of 1 / share, for no reason.
Shapes: K = tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from polytask.errors import RunError, UsageError, unknown
from polytask.mix.base import StreamOptimiser


class MTAdamW(StreamOptimiser):
    """AdamW for steps of one task: say whose by `at(task)` before each `step()`.

    The gradient of a task k is divided by its norm over all parameters and multiplied by its
    weight, g; then moments move by g and g^2 over the share of steps that are of k:

        m <- b1 m + (1 - b1) g / s_k        v <- b2 v + (1 - b2) g^2 / s_k

    So both estimate the sum over tasks, whatever the order and the frequency of their steps, and
    no task is drowned by one of larger gradients. A parameter without a gradient keeps its moments
    and its value. Where a task's gradient is 0 throughout it stays 0.

    params: as for torch.optim.AdamW. shares: of the steps, > 0, by task; they need not sum to 1.
    weights: how much each task counts, >= 0; None: all 1. lr, betas, eps, weight_decay: AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        shares: Mapping[str, float],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not shares or not all(0 < share < math.inf for share in shares.values()):
            raise UsageError(
                f"MTAdamW: shares are {dict(shares)}; give each task its share of the steps, > 0."
            )
        weights = dict.fromkeys(shares, 1.0) if weights is None else weights
        if weights.keys() != shares.keys() or not all(0 <= w < math.inf for w in weights.values()):
            raise UsageError(
                f"MTAdamW: weights are {dict(weights)} for tasks {', '.join(shares)}; give each a "
                "number >= 0."
            )
        if not (lr >= 0 and eps >= 0 and weight_decay >= 0 and all(0 <= b < 1 for b in betas)):
            raise UsageError(
                f"MTAdamW: lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}; give "
                "values >= 0, and betas below 1."
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.tasks = tuple(shares)
        self._shares = [float(share) for share in shares.values()]
        self._weights = [float(weights[task]) for task in self.tasks]
        self._at: int | None = None
        self._reached: dict[Tensor, set[int]] = {}  # what the states say, without reading tensors

    def at(self, task: str) -> None:
        """Say whose gradient the next step takes."""
        if task not in self.tasks:
            raise unknown(
                "task of MTAdamW", task, self.tasks, f"Its tasks: {', '.join(self.tasks)}."
            )
        self._at = self.tasks.index(task)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make the update of the task that `at` said. Raises RunError where nobody said one."""
        if self._at is None:
            raise RunError("MTAdamW: whose step it is was not said; call at(task) before step().")
        k, self._at = self._at, None
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not moved:
            return loss
        norm = torch.stack([p.grad.norm().to(moved[0][1]) for _, p in moved]).norm()
        scale = torch.where(norm > 0, self._weights[k] / norm, 0.0)
        for group, p in moved:
            self._move(p, p.grad * scale.to(p), k, group)
        return loss

    def _move(self, p: Tensor, grad: Tensor, k: int, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
            # Numbers and not flags: torch casts what it loads to the parameter's type.
            state["reached_K"] = torch.zeros(len(self.tasks), device=p.device, dtype=p.dtype)
        elif len(state["reached_K"]) != len(self.tasks):
            raise RunError(
                f"MTAdamW: its state is of {len(state['reached_K'])} tasks, it has "
                f"{len(self.tasks)}; give the tasks it was saved with."
            )
        if p not in self._reached:
            self._reached[p] = {j for j, flag in enumerate(state["reached_K"].tolist()) if flag}
        if k not in self._reached[p]:
            self._reached[p].add(k)
            state["reached_K"][k] = 1
        state["step"] += 1
        share = self._shares[k] / math.fsum(self._shares[j] for j in self._reached[p])
        first, second = group["betas"]
        state["exp_avg"].mul_(first).add_(grad, alpha=(1 - first) / share)
        state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=(1 - second) / share)
        steps = float(state["step"])
        mean = state["exp_avg"] / (1 - first**steps)
        root = (state["exp_avg_sq"] / (1 - second**steps)).sqrt().add_(group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(mean, root, value=-group["lr"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; shares and weights are those it was built with."""
        super().load_state_dict(state_dict)
        self._reached.clear()
