"""Sharing: inputs -> one output per asked task, and which parameters are shared.

A model receives built modules, not recipes for them. Everything else (losses, balance, data) is
somebody else's business.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from polytask.errors import unknown

Inputs = Tensor | Mapping[str, Tensor]
Features = Tensor | Mapping[str, Tensor]


class SharedModel(nn.Module):
    """A model of several tasks."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """The names of its tasks, in order."""

    @abstractmethod
    def forward(self, inputs: Inputs, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return one output per asked task; None asks for all. Runs only what was asked."""

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that tasks share: those a task added to the model would reach too.

        So a model of one task has shared parameters as well, and the same loop trains both.
        """

    @abstractmethod
    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters only this task reaches."""

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """Return the shared parameters that one modality alone goes through, by its name.

        Empty for models that do not tell modalities apart, which are most.
        """
        return {}

    def _asked(self, tasks: Sequence[str] | None) -> tuple[str, ...]:
        if tasks is None:
            return self.tasks
        for name in tasks:
            if name not in self.tasks:
                known = f"This model's tasks are: {', '.join(self.tasks)}."
                raise unknown("task", name, self.tasks, known)
        return tuple(tasks)
