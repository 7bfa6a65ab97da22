"""Fuller: calibrate the tasks at the last shared layer, then bring modality branches to one level.

Source: Huang et al., "FULLER: Unified Multi-modality Multi-task 3D Perception via Multi-level
    Gradient Calibration", ICCV 2023, https://arxiv.org/abs/2307.16617
Differs from the source: its abstract and the caption of its figure 2 were at hand, not its
    equations. They say that the gradients of the task heads are calibrated at the backbone's last
    layer, and that the magnitudes in the modality branches are then brought to one level. Chosen
    here: the calibration of the tasks is any method's, on the gradients at the output of the last
    shared layer (see FeatureLevel); the level of the branches is the mean of their norms.
Shapes: K = tasks present, N = numbers of the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from polytask.balance.base import Balance, State, Update
from polytask.balance.feature_level import FeatureLevel, balanced, passed_down
from polytask.balance.turn import Turn
from polytask.balance.wrapper import Method, check_wrapped, nest
from polytask.errors import UsageError

Branches = Mapping[str, Sequence[nn.Parameter]]


@dataclass(frozen=True)
class Fuller:
    """The method's answer at the features; below them every branch's gradient has one norm.

    With n_b the norm of the update in the parameters of branch b, it is multiplied by
    mean(n) / n_b. A branch that no loss reaches, or whose gradient is zero, stays as it is and does
    not count. The shared parameters outside all branches get the method's update unchanged.

    method: any that FeatureLevel goes around.
    branches: name -> parameters of the part of the encoder that reads this modality; two or more,
        no parameter in two of them. None: those of `Balancer(..., branches=...)`, which `fit`
        takes from `model.branches()`.

    Costs what FeatureLevel does. One process.
    """

    looks_again: ClassVar[bool] = False
    accumulates: ClassVar[bool] = False
    spans_processes: ClassVar[bool] = False

    method: Balance
    branches: Branches | None = None

    def __post_init__(self) -> None:
        check_wrapped("Fuller", self.method)
        if self.branches is not None:
            check_branches(self.branches)

    def methods(self) -> Mapping[str, Method]:
        """Return the method wrapped."""
        return {"method": self.method}

    def start(self, tasks: int) -> State:
        """Return the method's state; raise where it remembers gradients."""
        return FeatureLevel(self.method).start(tasks)

    def update(self, turn: Turn, state: State) -> Update:
        """Add the gradients; return the method's weights."""
        branches = self.branches or turn.branches
        if not branches:
            raise UsageError(
                "Fuller needs the model's modality branches; give Fuller(method, branches={name: "
                "parameters, ...}), or an encoder with a ModuleDict `branches` to fit."
            )
        update, down = balanced(turn, self.method, state)
        assert down is not None, "one process has every task present"
        found = calibrated(passed_down(turn, *down), branches)
        for parameter, grad in found:
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        turn.add_penalty(update)
        turn.said.how += f"; branches {', '.join(branches)} at one level"
        return Update(nest("method", update.state), update.weights_K, note=update.note)


def calibrated(
    grads: Sequence[tuple[Tensor, Tensor]], branches: Branches
) -> list[tuple[Tensor, Tensor]]:
    """Return the parameters' gradients, those of each branch scaled to the branches' mean norm."""
    of_branch = {id(p): name for name, parameters in branches.items() for p in parameters}
    squares: dict[str, Tensor] = {}
    for parameter, grad in grads:
        name = of_branch.get(id(parameter))
        if name is not None:
            square = grad.square().sum(dtype=torch.float64)
            squares[name] = squares[name] + square if name in squares else square
    if not squares:
        raise UsageError(
            "Fuller: no loss reaches a parameter of the branches; give those of the model that "
            "Balancer balances."
        )
    norms = {name: square.sqrt() for name, square in squares.items()}
    there = torch.stack(list(norms.values()))
    level = there.sum() / (there > 0).sum().clamp(min=1)
    scales = {name: torch.where(norm > 0, level / norm, 1.0) for name, norm in norms.items()}
    return [
        (p, grad * scales[of_branch[id(p)]].to(grad.dtype) if id(p) in of_branch else grad)
        for p, grad in grads
    ]


def check_branches(branches: Branches) -> None:
    """Return nothing where the branches can be balanced; else raise UsageError."""
    if len(branches) < 2:
        raise UsageError(f"Fuller: {len(branches)} branches were given; give two or more, by name.")
    seen: dict[int, str] = {}
    for name, parameters in branches.items():
        if not parameters:
            raise UsageError(f"Fuller: branch {name!r} has no parameters.")
        for parameter in parameters:
            if id(parameter) in seen:
                raise UsageError(
                    f"Fuller: branches {seen[id(parameter)]!r} and {name!r} have a parameter in "
                    "common; give each parameter to one branch."
                )
            seen[id(parameter)] = name
