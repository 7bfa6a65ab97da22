"""Fuller: calibrate the tasks at the last shared layer, then bring modality branches to one level.

Source: Huang et al., "FULLER: Unified Multi-modality Multi-task 3D Perception via Multi-level
    Gradient Calibration", ICCV 2023, https://arxiv.org/abs/2307.16617
Differs from the source: its abstract and the caption of its figure 2 were at hand, not its
    equations. They say that the gradients of the task heads are calibrated at the backbone's last
    layer, and that the magnitudes in the modality branches are then brought to one level. Chosen
    here: the calibration of the tasks is any method's, on the gradients at the output of the last
    shared layer (see FeatureLevel); the level of the branches is the mean of their norms.
Shapes: as in FeatureLevel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from polytask.balance import gradients
from polytask.balance.base import Balance, State, Update
from polytask.balance.feature_level import FeatureLevel
from polytask.balance.turn import Turn
from polytask.balance.wrapper import Method, check_wrapped
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

    Costs what FeatureLevel does; with several processes, a message as long as the branches'
    parameters more.
    """

    looks_again: ClassVar[bool] = False
    spans_processes: ClassVar[bool] = True

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
        return self._inner.start(tasks)

    def take(self, turn: Turn, state: State) -> None:
        """Take a micro-batch as FeatureLevel does: the norms are those of the whole update."""
        self._inner.take(turn, state)

    def update(self, turn: Turn, state: State) -> Update:
        """Add the gradients; return the method's weights."""
        branches = self.branches or turn.branches
        if not branches:
            raise UsageError(
                "Fuller needs the model's modality branches; give Fuller(method, branches={name: "
                "parameters, ...}), or an encoder with a ModuleDict `branches` to fit."
            )
        with gradients.apart(turn.shared) as found:
            update = self._inner.update(turn, state)
        scales = levelled(turn, found, branches)
        for parameter in turn.shared:
            if id(parameter) in found:
                grad, scale = found[id(parameter)], scales.get(id(parameter))
                gradients.add(parameter, grad if scale is None else grad * scale.to(grad.dtype))
        turn.said.how += f"; branches {', '.join(branches)} at one level"
        return update

    @property
    def _inner(self) -> FeatureLevel:
        return FeatureLevel(self.method)


def levelled(turn: Turn, found: Mapping[int, Tensor], branches: Branches) -> dict[int, Tensor]:
    """Return, by the id of a branch's parameter, what brings its gradient to the mean norm.

    found: this process's part of the gradients, by the same id; the norms are those of the sum.
    """
    of_branch = {id(p): name for name, parameters in branches.items() for p in parameters}
    ours = [parameter for parameter in turn.shared if id(parameter) in of_branch]
    reached = {i for i, parameter in enumerate(ours) if id(parameter) in found}
    grads = [found.get(id(p), p.new_zeros(())).expand(p.shape) for p in ours]
    if ours and turn.world.size > 1:
        reached = turn.world.reached_anywhere(reached, ours)
        whole = torch.cat([grad.flatten() for grad in grads])
        turn.world.add_up(whole)
        grads = list(torch.split(whole, [p.numel() for p in ours]))
    if not reached:
        raise UsageError(
            "Fuller: no loss reaches a parameter of the branches; give those of the model that "
            "Balancer balances."
        )
    squares: dict[str, Tensor] = {}
    for i in sorted(reached):
        name, square = of_branch[id(ours[i])], grads[i].square().sum(dtype=torch.float64)
        squares[name] = squares[name] + square if name in squares else square
    norms = {name: square.sqrt() for name, square in squares.items()}
    there = torch.stack(list(norms.values()))
    level = there.sum() / (there > 0).sum().clamp(min=1)
    scales = {name: torch.where(norm > 0, level / norm, 1.0) for name, norm in norms.items()}
    return {id(ours[i]): scales[of_branch[id(ours[i])]] for i in reached}


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
