"""What stands between an encoder and the tasks' heads, and models made of the three.

A part lays the parameters the asked tasks need side by side (`stack`) and computes with these
tensors and nothing else. What it computes from is its family's affair: rows of features in
`trunk`, the stages of a picture in `staged`, tokens in `m3vit`.

Shapes: A = asked tasks, R = rows, O = outputs of a head.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from polytask.errors import UsageError, unknown
from polytask.share.base import Features, Gate, SharedModel, Trace, branches_of, key, looking
from polytask.share.experts import Stacked, own
from polytask.tasks import Task

Seen = dict[str, Tensor]
"""What a pass met on the way, by the names the part's own `gates` and `penalties` know."""


class Between(nn.Module):
    """A part of a model: what it is made of, and which of it is whose.

    A task added later reads what is there, and nothing that is there reads it: the outputs of the
    earlier tasks stay what they were, bit for bit.

    stands_on: as of `SharedModel`.
    """

    stands_on: str = "features"

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """The names of its tasks, in order."""

    @abstractmethod
    def stack(self, tasks: Sequence[str]) -> Stacked:
        """Return all that these tasks, at least one, need, in this order."""

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters more than one task reaches, or a task added would."""

    @abstractmethod
    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters only this task reaches."""

    @abstractmethod
    def add_task(self, task: str) -> None:
        """Add a task; outputs of the others stay as they are, bit for bit."""

    @property
    def penalises(self) -> bool:
        """Whether training needs what `penalties` returns."""
        return False

    @property
    def loads(self) -> tuple[str, ...]:
        """The names in `seen` of counts that `penalties` needs of a whole update; see `Loads`."""
        return ()

    def at(self, part: float) -> None:  # most parts need not know
        """Take note that this part of the training is done, 0 to 1."""

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        """Return what a pass saw of the use of experts; empty where there are none."""
        return []

    def penalties(
        self, tasks: Sequence[str], seen: Seen, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return task -> what belongs to its mean loss; see `Trace`."""
        return {}


class BetweenModel(SharedModel):
    """A model of an encoder, a part between, and one head per task; how it runs is its family's.

    trunk: the part between.
    heads: task -> module. Their order is axis T, and they are the part's tasks.
    reads: task -> the name of the feature it reads; a task not named reads "row".
    width: channels that the kind's own head of a task added later is made for.

    Raises UsageError where the heads are not those of the part's tasks.
    """

    traces = True

    def __init__(
        self,
        encoder: nn.Module,
        trunk: Between,
        heads: Mapping[str, nn.Module],
        reads: Mapping[str, str] | None,
        width: int,
    ) -> None:
        super().__init__()
        reads = reads or {}
        if set(trunk.tasks) != set(heads):
            raise UsageError(
                f"{type(trunk).__name__}: its tasks are {', '.join(trunk.tasks)}, but heads came "
                f"for {', '.join(heads) or 'none'}; give one head per task."
            )
        for task in reads:
            if task not in heads:
                raise unknown("task", task, heads, f"The heads are for: {', '.join(heads)}.")
        self.encoder = encoder
        self.trunk = trunk
        self._width = width
        self._tasks = tuple(heads)
        self._reads = {task: reads.get(task, "row") for task in heads}
        self.heads = nn.ModuleDict({key(task): head for task, head in heads.items()})

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    @property
    def penalises(self) -> bool:  # type: ignore[override]  # a fact of the trunk
        return self.trunk.penalises

    @property
    def loads(self) -> bool:  # type: ignore[override]  # a fact of the trunk
        return bool(self.trunk.loads)

    def at(self, part: float) -> None:
        """Tell the part between how far the training is."""
        self.trunk.at(part)

    def head(self, task: str) -> nn.Module:
        """Return the head of one task."""
        return self.heads[key(self._asked((task,))[0])]

    @abstractmethod
    def extract(self, task: str) -> nn.Module:
        """Return a model of one task alone, inputs -> its output, with copies of the weights.

        It holds what the task needs and nothing else, and computes the same bits as this model in
        evaluation mode.
        """

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's parameters, and those of the trunk that tasks share."""
        return [*self.encoder.parameters(), *self.trunk.shared_parameters()]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of this task's part of the trunk and of its head."""
        return [*self.trunk.task_parameters(self._asked((task,))[0]), *self.head(task).parameters()]

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of each part in the encoder's ModuleDict `branches`, if any."""
        return branches_of(self.encoder)

    def add_task(self, task: Task, head: nn.Module | None = None) -> None:
        """Add a task with new weights; asked as before, every other output is the same bits.

        head: None: the kind's own. Give the new `task_parameters` to the optimiser.
        """
        if task.name in self._tasks:
            raise UsageError(f"The model has a task {task.name!r} already; name the new one anew.")
        made = task.kind.head(self._width) if head is None else head
        like = next(self.trunk.parameters())
        self.trunk.add_task(task.name)
        self.heads[key(task.name)] = made
        self._tasks = (*self._tasks, task.name)
        self._reads[task.name] = task.kind.reads
        for module in (self.trunk, made):
            module.to(like.device, like.dtype)

    def share_loads(self, trace: Trace, seen: Seen, read: str) -> None:
        """Put the counts of the whole update where the pass left its own, if the trace has them."""
        if trace.loads is not None:
            for name in self.trunk.loads:
                seen[name] = trace.loads.add(f"{read} {name}", seen[name])

    def _readers(self, asked: Sequence[str]) -> dict[str, list[str]]:
        """Return the asked tasks by the feature they read."""
        readers: dict[str, list[str]] = {}
        for task in asked:
            readers.setdefault(self._reads[task], []).append(task)
        return readers


class Alone(nn.Module):
    """One task's part of a model: copies of the encoder, of the head, and of what was stacked."""

    def __init__(self, model: BetweenModel, task: str) -> None:
        super().__init__()
        with looking(model.trunk):
            stacked = {name: value.clone() for name, value in model.trunk.stack([task]).items()}
        self.encoder = copy.deepcopy(model.encoder)
        self.head = copy.deepcopy(model.head(task))
        self._read = model._reads[task]
        self._names = tuple(stacked)
        for name, value in stacked.items():
            if value.is_floating_point():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @property
    def stacked(self) -> Stacked:
        """The tensors as a pass takes them."""
        if not self._buffers:  # they are all there is
            return cast("Stacked", self._parameters)
        return {name: own(self, name) for name in self._names}


def pick(features: Features, read: str, task: str, encoder: nn.Module) -> Tensor:
    """Return the feature of this name; a lone tensor is any feature."""
    if isinstance(features, Tensor):
        return features
    if read not in features:
        raise UsageError(
            f"The head of {task!r} reads the feature {read!r}, but the encoder "
            f"{type(encoder).__name__} gives {', '.join(map(repr, features))}."
        )
    return features[read]
