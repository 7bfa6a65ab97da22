"""An adapted model with a head per task, as `fit`, `balance` and `mix` train any shared model.

Every row of a batch belongs to one task. Where the inputs say which, in a tensor of their own, a
batch of many tasks runs once; without it each asked task runs on all rows, its own rows of one
larger batch.

Shapes: B = rows, A = asked tasks, T = tasks of the model, F = channels of the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.adapt import Adapted
from polytask.adapt import Trace as LayerTrace
from polytask.errors import UsageError, unknown
from polytask.share import Features, HardSharing, Inputs, SharedModel, Trace
from polytask.suites import Stream
from polytask.tasks import Task, TaskSet

TASK = "task"
"""The input that names each row's task: int64, positions in the model's tasks."""

GIVEN = "given_"
"""What the buffers of what is given of tasks are called, before their names."""


class AdaptedModel(SharedModel):
    """An adapted encoder, and heads of any kind and width.

    adapted: its base turns inputs into features: one tensor, or a mapping; see `HardSharing`.
    heads: of tasks that it is adapted to, as many as you like. reads: as for `HardSharing`.
    given: what adapters need of a row beside its task, by name, where all rows of a task have the
        same: (T, ...), in the order of the heads. LoRAMoE's "type", say, and MoR1E's "embedding".

    What tasks share is everything but the heads: adapters are stacked, one tensor for all tasks, so
    gradients of different tasks lie in different rows of it.
    """

    traces = True

    def __init__(
        self,
        adapted: Adapted,
        heads: Mapping[str, nn.Module],
        reads: Mapping[str, str] | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        for name in heads:
            if name not in adapted.names:
                known = f"The model is adapted to: {', '.join(adapted.names)}."
                raise unknown("task", name, adapted.names, known)
        self.adapted = adapted
        self.hard = HardSharing(nn.Identity(), heads, reads)
        self.given = tuple(given or {})
        for name, value_T in (given or {}).items():
            if not isinstance(value_T, Tensor) or value_T.shape[:1] != (len(heads),):
                came = tuple(value_T.shape) if isinstance(value_T, Tensor) else repr(value_T)
                raise UsageError(
                    f"AdaptedModel: given[{name!r}] is {came}; give a tensor with one row for "
                    f"each of {len(heads)} tasks: {', '.join(heads)}."
                )
            self.register_buffer(GIVEN + name, value_T.detach().clone(), persistent=False)

    @classmethod
    def build(
        cls,
        adapted: Adapted,
        width: int,
        tasks: TaskSet,
        given: Mapping[str, Tensor] | None = None,
    ) -> AdaptedModel:
        """Return the model whose heads are those of the tasks' kinds, for `width` channels."""
        heads = {task.name: task.kind.head(width) for task in tasks}
        return cls(adapted, heads, {task.name: task.kind.reads for task in tasks}, given)

    @property
    def penalises(self) -> bool:  # type: ignore[override]
        """Whether any adapter notes a penalty."""
        return self.adapted.penalises

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.hard.tasks

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The heads by task, as `save_adapted(path, model.adapted, model.heads)` writes them."""
        return {task: self.hard.head(task) for task in self.tasks}

    def forward(
        self,
        inputs: Inputs,
        tasks: Sequence[str] | None = None,
        trace: Trace | None = None,
    ) -> dict[str, Tensor]:
        """Return one output per asked task, in the order asked.

        inputs: with the rows' tasks as `inputs["task"]`, or without. With them, an output's rows
            of other tasks are what the task's head makes of the others' features.
        """
        asked = self._asked(tasks)
        if not asked:
            return {}
        seen = None if trace is None else LayerTrace()
        if isinstance(inputs, Mapping) and TASK in inputs:
            task_B = inputs[TASK]
            with self.adapted.tasks(self._index(task_B), self._given(task_B), seen):
                outputs = self.hard.read(self.adapted.base(_without_task(inputs)), asked)
        elif len(asked) == 1 and not self.given:
            with self.adapted.task(asked[0], trace=seen):
                outputs = self.hard.read(self.adapted.base(inputs), asked)
        else:
            outputs = self._each(inputs, asked, seen)
        if trace is not None and seen is not None and seen.penalties:
            penalty = torch.stack(list(seen.penalties.values())).sum() / len(asked)
            trace.penalties |= dict.fromkeys(asked, penalty)
        return outputs

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return what is trained of the adapters and of the base."""
        return self.adapted.trainable_parameters()

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of this task's head."""
        return self.hard.task_parameters(task)

    def add_task(
        self,
        task: Task,
        head: nn.Module | None = None,
        optimiser: torch.optim.Optimizer | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a task with an adapter and a head; see `Adapted.add_task`, `HardSharing.add_task`.

        given: the new task's row of what the model was given of its tasks.
        """
        more = dict(given or {})
        for name in self.given:
            of_others = self._of_tasks(name).shape[1:]
            if name not in more or more[name].shape != of_others:
                raise UsageError(
                    f"add_task: the model was given {name!r} of its tasks; give that of "
                    f"{task.name!r} too, a tensor of shape {tuple(of_others)}."
                )
        unknown_names = sorted(more.keys() - set(self.given))
        if unknown_names:
            raise UsageError(
                f"add_task: the model was given no {unknown_names[0]!r} of its tasks; leave it out."
            )
        if task.name not in self.adapted.names:
            self.adapted.add_task(task.name, optimiser)
        self.hard.add_task(task, head)
        if optimiser is not None:
            optimiser.add_param_group({"params": self.task_parameters(task.name)})
        for name, value in more.items():
            held_T = self._of_tasks(name)
            setattr(self, GIVEN + name, torch.cat([held_T, value[None].to(held_T)]))

    def _of_tasks(self, name: str) -> Tensor:
        """Return what the model was given of its tasks under this name, (T, ...)."""
        return self.get_buffer(GIVEN + name)

    def _given(self, task_B: Tensor) -> dict[str, Tensor]:
        """Return what it was given of rows' tasks; of rows without one, the first task's."""
        held = {name: self._of_tasks(name) for name in self.given}
        return {n: v.index_select(0, task_B.clamp(min=0).to(v.device)) for n, v in held.items()}

    def _index(self, task_B: Tensor) -> Tensor:
        """Return positions in the adapted model's tasks of positions in this one's."""
        if self.tasks == self.adapted.names[: len(self.tasks)]:
            return task_B
        at_T = self.adapted.index(self.tasks).to(task_B.device)
        return torch.where(task_B < 0, -1, at_T[task_B.clamp(min=0)])

    def _each(
        self, inputs: Inputs, asked: tuple[str, ...], seen: LayerTrace | None
    ) -> dict[str, Tensor]:
        """Return every asked task's output on all rows: one pass of A times the rows."""
        many, repeated = len(asked), inputs
        if isinstance(inputs, Tensor):
            rows, repeated = len(inputs), _repeated(inputs, many)
        else:
            rows = len(next(iter(inputs.values())))
            repeated = {name: _repeated(value, many) for name, value in inputs.items()}
        index_A = self.adapted.index(asked).to(next(self.adapted.parts.parameters()).device)
        task_A = torch.tensor([self.tasks.index(task) for task in asked])
        given = self._given(task_A.repeat_interleave(rows))
        with self.adapted.tasks(index_A.repeat_interleave(rows), given, seen):
            features: Features = self.adapted.base(repeated)
        outputs: dict[str, Tensor] = {}
        for a, task in enumerate(asked):
            at = slice(a * rows, (a + 1) * rows)
            own = (
                features[at]
                if isinstance(features, Tensor)
                else {name: value[at] for name, value in features.items()}
            )
            outputs |= self.hard.read(own, (task,))
        return outputs


def with_tasks(stream: Stream, task: str, tasks: Sequence[str]) -> Stream:
    """Return a stream of one task with the input that names its rows' task.

    tasks: the model's, in order.
    """
    if task not in tasks:
        raise unknown("task", task, tasks, f"The tasks are: {', '.join(tasks)}.")
    named = {"inputs": stream.inputs} if isinstance(stream.inputs, Tensor) else dict(stream.inputs)
    if TASK in named:
        raise UsageError(f"Stream {stream.name!r} has an input {TASK!r} already.")
    named[TASK] = torch.full((len(stream),), list(tasks).index(task))
    return Stream(stream.name, named, stream.targets, stream.ragged, stream.lengths, stream.truth)


def _without_task(inputs: Mapping[str, Tensor]) -> Inputs:
    rest = {name: value for name, value in inputs.items() if name != TASK}
    # A stream of one tensor became a mapping only to hold the tasks.
    return rest["inputs"] if rest.keys() == {"inputs"} else rest


def _repeated(value: Tensor, many: int) -> Tensor:
    return value if many == 1 else value.repeat(many, *[1] * (value.dim() - 1))
