"""Sharing: inputs -> one output per asked task, and which parameters are shared.

A model receives built modules, not recipes for them. Everything else (losses, balance, data) is
somebody else's business.

Shapes: R = rows, G = readers, E = what they read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from polytask.errors import UsageError, unknown
from polytask.share.loads import Loads

Inputs = Tensor | Mapping[str, Tensor]
Features = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Gate:
    """What some readers of one level took from each expert.

    readers: G tasks; None is the shared part of the level.
    experts: E names. owners: of each expert, the task whose own it is; None where it is shared.
    weights_RGE: with their graph; rows sum to 1 unless the method says otherwise.
    """

    level: int
    readers: tuple[str | None, ...]
    experts: tuple[str, ...]
    owners: tuple[str | None, ...]
    weights_RGE: Tensor


@dataclass
class Trace:
    """What a forward pass leaves behind besides its outputs, for whoever hands one in.

    penalties: task -> a scalar, with its graph, that belongs to the task's mean loss: a mean over
        this batch's rows, or a term of the parameters alone. Tasks without one are left out.
    gates: of every level, the first one first.
    further: more outputs of every asked task, each time of the form of the outputs themselves:
        their losses are trained beside the outputs' losses.
    loads: handed in, one for a whole update, where penalties are to know how the rows of all its
        processes and micro-batches were spread; None: they know these rows alone.
    """

    penalties: dict[str, Tensor] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    further: list[dict[str, Tensor]] = field(default_factory=list)
    loads: Loads | None = None


class SharedModel(nn.Module):
    """A model of several tasks.

    traces: whether it takes `model(inputs, tasks, trace=Trace())`.
    penalises: whether training needs the gradients of such a trace's penalties, and of its further
        outputs' losses, beside the losses'.
    loads: whether its penalties are those of a whole update only with the trace's `loads`.
    stands_on: which encoder of a suite it is built on unless a recipe says otherwise: "features",
        the suite's own, "fields", the one that only embeds and standardises, or "tokens", a
        transformer of pictures.
    """

    traces: bool = False
    penalises: bool = False
    stands_on: str = "features"
    loads: bool = False

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

    def at(self, part: float) -> None:  # most models need not know
        """Take note that this part of the training is done, 0 to 1; told before every update."""

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """Return the shared parameters that one modality alone goes through, by its name.

        Empty for models that do not tell modalities apart, which are most.
        """
        return {}

    def _asked(self, tasks: Sequence[str] | None) -> tuple[str, ...]:
        if tasks is None:
            return self.tasks
        if len(tasks) == 1 and tasks[0] in self.tasks:  # quick, for whoever asks row by row
            return (tasks[0],)
        every = frozenset(self.tasks)
        for name in tasks:
            if name not in every:
                known = f"This model's tasks are: {', '.join(self.tasks)}."
                raise unknown("task", name, self.tasks, known)
        return tuple(tasks)


@lru_cache(maxsize=4096)
def key(task: str) -> str:
    """Return the name of the task's module; any text is the name of a task."""
    # Module names must hold no dot and be no attribute of nn.ModuleDict ("type", "keys", ...).
    return "task_" + task.replace("%", "%25").replace(".", "%2E")


def check_width(encoder: nn.Module, width: int, reader: str) -> None:
    """Raise UsageError where the encoder tells a `width` that is not the one the reader takes."""
    told = getattr(encoder, "width", width)
    if told != width:
        raise UsageError(
            f"{reader} reads features of width {width}, but the encoder "
            f"{type(encoder).__name__} gives {told}; build it with {told} inputs."
        )


def branches_of(encoder: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each part in the encoder's ModuleDict `branches`, if any."""
    parts = getattr(encoder, "branches", None)
    if not isinstance(parts, nn.ModuleDict):
        return {}
    return {name: list(part.parameters()) for name, part in parts.items()}


def shows(encoder: nn.Module, names: Sequence[str]) -> bool:
    """Return whether the encoder has all attributes and methods of these names.

    Not isinstance of a protocol: from Python 3.12 on it looks past `__getattr__`, so that it sees
    neither the parts of a module nor what a compiled module passes on.
    """
    return all(hasattr(encoder, name) for name in names)


@contextmanager
def looking(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
