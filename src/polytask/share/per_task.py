"""Trunks with a network per task, whose layers read one another through trained parts.

Shapes: N = tasks that run.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.share.base import key
from polytask.share.experts import Experts
from polytask.share.trunk import Trunk


class PerTask(Trunk):
    """A trunk in which each task of the beginning has a network that all of them read.

    A subclass sets `networks`, of one `Experts` per task, `_founders`, the tasks of the beginning,
    and `_tasks`, all of them. A task added later reads what is there, and nobody reads it.
    """

    networks: nn.ModuleDict
    _founders: tuple[str, ...]
    _tasks: tuple[str, ...]

    @property
    @abstractmethod
    def parts(self) -> nn.ModuleList:
        """Of each layer, by task: the parameters by which the task reads the layer's networks."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return every network of the beginning, and its parts but those of the last layer."""
        networks = [p for task in self._founders for p in self._network(task).parameters()]
        inner = dicts(self.parts)[:-1]
        return networks + [part[key(task)] for part in inner for task in self._founders]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the task's part of the last layer, and all that is its own where it came later."""
        parts = [part[key(task)] for part in dicts(self.parts)]
        if task in self._founders:
            return parts[-1:]
        return [*self._network(task).parameters(), *parts]

    def _network(self, task: str) -> Experts:
        network = self.networks[key(task)]
        assert isinstance(network, Experts)
        return network


def dicts(layers: nn.ModuleList) -> list[nn.ParameterDict]:
    """Return the layers' parameters by task."""
    return [layer for layer in layers if isinstance(layer, nn.ParameterDict)]


def with_founders(tasks: Sequence[str], founders: tuple[str, ...]) -> tuple[str, ...]:
    """Return who runs for these tasks: all of the beginning, and those asked that came later."""
    return (*founders, *(task for task in tasks if task not in founders))


def among(part: Tensor, founders: int, at: int, runs: int) -> Tensor:
    """Return a task's part of everybody that runs, 0 of those it does not read.

    part: of the tasks of the beginning, and last of itself where the task came later. at: where
    the task runs.
    """
    if len(part) == runs:
        return part
    above = [0, 0] * (part.ndim - 1)
    if len(part) == founders:
        return functional.pad(part, (*above, 0, runs - founders))
    mine = functional.pad(part[founders:], (*above, at - founders, runs - at - 1))
    return torch.cat([part[:founders], mine])
