"""Trunks: what stands between an encoder's features and the tasks' heads.

Most architectures are trunks: features of a row -> features of the row for each asked task. A
trunk knows neither encoder nor heads, so one works on any encoder and inside any module; a
`TrunkModel` joins the three, and flattens positions: a trunk treats every word of a "sequence" and
every pixel of a "map" as a row.

Shapes: B = rows of the batch, R = rows a trunk sees (positions flattened), D = width of the
features, A = asked tasks, W = width of what the trunk gives each task, O = outputs of a head.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from polytask.errors import UsageError, unknown
from polytask.share import heads as run_heads
from polytask.share.base import Features, Gate, Inputs, SharedModel, Trace, branches_of, key
from polytask.share.experts import Stacked
from polytask.tasks import Task, TaskSet

Seen = dict[str, Tensor]
"""What `mix` met on the way, by the names the trunk's own `note` knows."""


class Trunk(nn.Module):
    """Rows (R, D) -> (A, R, W), W features per asked task.

    Two steps: `stack` lays the parameters the asked tasks need side by side, `mix` computes with
    them and with nothing else. So what was not asked is not run, the number of operators does not
    grow with the number of tasks, and what is left for one task is a handful of tensors.

    A task added later reads what is there, and nothing that is there reads it: the outputs of the
    earlier tasks stay what they were, bit for bit.

    inputs, width: D and W.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inputs, self.width = inputs, width

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """The names of its tasks, in order."""

    @abstractmethod
    def stack(self, tasks: Sequence[str]) -> Stacked:
        """Return all that these tasks, at least one, need, in this order."""

    @staticmethod
    @abstractmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        """Return (A, R, W) for the tasks that were stacked.

        seen: takes what `note` needs, where somebody asks for it.
        """

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

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        """Return what `mix` saw of the use of experts; empty where there are none."""
        return []

    def penalties(
        self, tasks: Sequence[str], seen: Seen, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return task -> what belongs to its mean loss; see `Trace`."""
        return {}

    def forward(self, rows_RD: Tensor, tasks: Sequence[str] | None = None) -> Tensor:
        """Return (A, R, W); None asks for all tasks."""
        return self.mix(self.stack(self.tasks if tasks is None else tasks), rows_RD)


class TrunkModel(SharedModel):
    """A model of an encoder, a trunk, and one head per task.

    encoder: inputs -> features: one tensor, or a mapping with some of "row" (B, D),
        "sequence" (B, L, D) and "map" (B, D, H, W).
    heads: task -> module that takes features of the trunk's width. Their order is axis T, and
        they are the trunk's tasks. Heads that are alike run as one, see `heads`.
    reads: task -> the name of the feature it reads; a task not named reads "row".

    Raises UsageError where trunk, heads and encoder (if it tells its `width`) do not fit.
    """

    traces = True

    def __init__(
        self,
        encoder: nn.Module,
        trunk: Trunk,
        heads: Mapping[str, nn.Module],
        reads: Mapping[str, str] | None = None,
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
        told = getattr(encoder, "width", trunk.inputs)
        if told != trunk.inputs:
            raise UsageError(
                f"{type(trunk).__name__} reads features of width {trunk.inputs}, but the encoder "
                f"{type(encoder).__name__} gives {told}; build it with {told} inputs."
            )
        self.encoder = encoder
        self.trunk = trunk
        self._tasks = tuple(heads)
        self._reads = {task: reads.get(task, "row") for task in heads}
        self.heads = nn.ModuleDict({key(task): head for task, head in heads.items()})

    @classmethod
    def build(
        cls, encoder: nn.Module, trunk: Trunk, tasks: TaskSet, towers: Sequence[int] = ()
    ) -> Self:
        """Return the model whose heads are those of the tasks' kinds.

        towers: widths of each task's own layers below its head, linear with ReLU; may be empty.
            Tasks that read a "map" have none.
        """
        heads = {task.name: _head(task, trunk.width, towers) for task in tasks}
        return cls(encoder, trunk, heads, {task.name: task.kind.reads for task in tasks})

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    @property
    def penalises(self) -> bool:  # type: ignore[override]  # a fact of the trunk
        return self.trunk.penalises

    def head(self, task: str) -> nn.Module:
        """Return the head of one task."""
        return self.heads[key(self._asked((task,))[0])]

    def forward(
        self, inputs: Inputs, tasks: Sequence[str] | None = None, trace: Trace | None = None
    ) -> dict[str, Tensor]:
        """Return one output per asked task, in the order asked; no task asked, nothing runs.

        trace: takes the penalties and the use of experts.
        """
        asked = tuple(dict.fromkeys(self._asked(tasks)))
        if not asked:
            return {}
        features = self.encoder(inputs)
        readers: dict[str, list[str]] = {}
        for task in asked:
            readers.setdefault(self._reads[task], []).append(task)
        outputs: dict[str, Tensor] = {}
        for read, names in readers.items():
            feature = pick(features, read, names[0], self.encoder)
            seen: Seen | None = None if trace is None else {}
            given_ARW = self.trunk.mix(
                self.trunk.stack(names), flat(feature, read, self.trunk.inputs), seen
            )
            outputs |= self._heads(names, given_ARW, feature, read)
            if trace is not None and seen is not None:
                trace.gates += self.trunk.gates(names, seen)
                trace.penalties |= self.trunk.penalties(names, seen, outputs)
        return {task: outputs[task] for task in asked}

    def _heads(
        self, names: Sequence[str], given_ARW: Tensor, feature: Tensor, read: str
    ) -> dict[str, Tensor]:
        heads = {task: self.heads[key(task)] for task in names}
        if read == "map":
            each = given_ARW.unbind()
            return {t: heads[t](shaped(y, feature, read)) for t, y in zip(names, each, strict=True)}
        outputs: dict[str, Tensor] = {}
        position = {task: a for a, task in enumerate(names)}
        for group, as_one in run_heads.alike(heads):
            at = [position[task] for task in group]
            if not as_one:
                outputs[group[0]] = heads[group[0]](shaped(given_ARW[at[0]], feature, read))
                continue
            mine = given_ARW if at == list(range(len(names))) else given_ARW[at]
            together_ARO = run_heads.together([heads[task] for task in group], mine)
            for task, output in zip(group, together_ARO.unbind(), strict=True):
                outputs[task] = shaped(output, feature, read)
        return outputs

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
        made = task.kind.head(self.trunk.width) if head is None else head
        like = next(self.trunk.parameters())
        self.trunk.add_task(task.name)
        self.heads[key(task.name)] = made
        self._tasks = (*self._tasks, task.name)
        self._reads[task.name] = task.kind.reads
        for module in (self.trunk, made):
            module.to(like.device, like.dtype)

    def extract(self, task: str) -> nn.Module:
        """Return a model of one task alone, inputs -> its output, with copies of the weights.

        It holds what the task needs and nothing else, and computes the same bits.
        """
        (name,) = self._asked((task,))
        with torch.no_grad():
            stacked = {n: v.clone() for n, v in self.trunk.stack([name]).items()}
        return Extracted(
            copy.deepcopy(self.encoder),
            type(self.trunk),
            stacked,
            self.trunk.inputs,
            copy.deepcopy(self.head(name)),
            self._reads[name],
        )


class Extracted(nn.Module):
    """One task's part of a `TrunkModel`: inputs -> the task's output.

    trunk: the class whose `mix` computes with the stacked tensors.
    """

    def __init__(
        self,
        encoder: nn.Module,
        trunk: type[Trunk],
        stacked: Stacked,
        inputs: int,
        head: nn.Module,
        read: str,
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self._mix, self._inputs, self._read = trunk.mix, inputs, read
        self._as_one = read != "map" and run_heads.alike({"": head})[0][1]
        self._names = tuple(stacked)
        for name, value in stacked.items():
            if value.is_floating_point():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, inputs: Inputs) -> Tensor:
        features = self.encoder(inputs)
        feature = pick(features, self._read, "", self.encoder)
        stacked = {name: getattr(self, name) for name in self._names}
        given_ARW = self._mix(stacked, flat(feature, self._read, self._inputs))
        if self._as_one:  # as in the whole model, where the bits come from
            together_ARO = run_heads.together([self.head], given_ARW)
            return shaped(together_ARO[0], feature, self._read)
        output: Tensor = self.head(shaped(given_ARW[0], feature, self._read))
        return output


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


def flat(feature: Tensor, read: str, width: int) -> Tensor:
    """Return the feature with every position as a row, (R, D)."""
    last = feature.movedim(1, -1) if read == "map" else feature
    if last.shape[-1] != width:
        raise UsageError(
            f"The trunk reads features of width {width}, but the encoder gives {read!r} of shape "
            f"{tuple(feature.shape)}; build the trunk with {last.shape[-1]} inputs."
        )
    return last.reshape(-1, width) if last.ndim != 2 else last


def shaped(rows_RW: Tensor, feature: Tensor, read: str) -> Tensor:
    """Return flattened rows in the shape of the feature they were made from."""
    if feature.ndim == 2:
        return rows_RW
    lead = (feature.movedim(1, -1) if read == "map" else feature).shape[:-1]
    full = rows_RW.reshape(*lead, rows_RW.shape[-1])
    return full.movedim(-1, 1) if read == "map" else full


def _head(task: Task, width: int, towers: Sequence[int]) -> nn.Module:
    if not towers or task.kind.reads == "map":
        return task.kind.head(width)
    return run_heads.with_tower(task.kind.head(towers[-1]), width, towers)
