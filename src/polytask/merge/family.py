"""Models tuned apart from one base, as the methods with data see them: one task each, any module.

What the models share is merged. The rest, such as heads, stays each task's own. Models run through
`torch.func.functional_call`, in evaluation mode, with the tensors a method proposes.

Shapes: T = tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polytask.errors import UsageError
from polytask.tasks import TaskSet

Inputs = Tensor | Mapping[str, Tensor]
"""What a model reads: one tensor, or named tensors. Dim 0 is rows."""

Tensors = dict[str, Tensor]
"""Tensors by the name they have in a model's state."""


def wide(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, any other as it is: what searches work in."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(frozen=True)
class Merged:
    """What a method with data found; `Family.build` makes models of it.

    shared: the merged tensors. own: per task, those of its own tensors that were changed.
    before: per task, the name of one of its modules and a module that is put before it.
    learned: what was searched, such as coefficients. losses: the objective of every round.
    notes: one line each on what a method could not merge in its own way.
    """

    shared: Tensors
    own: Mapping[str, Tensors] = field(default_factory=dict)
    before: Mapping[str, tuple[str, nn.Module]] = field(default_factory=dict)
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


class Family:
    """A base and one tuned model per task of `tasks`.

    base: any module; its own outputs are never asked for, so it needs no heads of the tasks.
    tuned: task -> module. Called with inputs, each returns its task's output, or a mapping that
        holds it. A model with `shared_parameters` (as in `share`) is asked for its task alone.
    own: names, or beginnings of names up to a dot, of tensors that stay each task's own. None: what
        the models with `shared_parameters` do not list there, and otherwise what the base lacks or
        has in another shape.

    Float buffers that all have (running statistics) are averaged, never scaled: a variance minus a
    variance is none. Other buffers stay the base's.

    Models in half precision are merged and searched in float32, and run in their own precision.

    Memory: the base and the models are not copied. `deltas` holds T copies of what is shared.

    Raises UsageError where a task has no model, or where nothing is shared.
    """

    def __init__(
        self,
        base: nn.Module,
        tuned: Mapping[str, nn.Module],
        tasks: TaskSet,
        own: Sequence[str] | None = None,
    ) -> None:
        missing = [task.name for task in tasks if task.name not in tuned]
        extra = [name for name in tuned if name not in tasks.names]
        if missing or extra:
            raise UsageError(
                f"A family needs one tuned model per task; without a model: {missing}, models of "
                f"no task: {extra}. Give tuned={{task: model}} for exactly {list(tasks.names)}."
            )
        self.tasks = tasks
        self._models = {task.name: _view(tuned[task.name]) for task in tasks}
        parameters = {name: dict(m.named_parameters()) for name, m in self._models.items()}
        at_base = {name: p.detach() for name, p in base.named_parameters()}
        hidden = _hidden(self._models, own)
        names = [
            name
            for name, p in at_base.items()
            if p.is_floating_point()
            and not any(hides(name) for hides in hidden)
            and all(name in ps and ps[name].shape == p.shape for ps in parameters.values())
        ]
        if not names:
            raise UsageError(
                "The tuned models share no parameter with the base: none has the same name and "
                "shape in all of them. Give models of one architecture, and in own= only heads."
            )
        self.base: Tensors = {name: at_base[name] for name in names}
        self._tuned = {task: {n: ps[n].detach() for n in names} for task, ps in parameters.items()}
        self._own = {
            task: {n: p.detach() for n, p in ps.items() if n not in self.base}
            for task, ps in parameters.items()
        }
        self.buffers = _buffers(base, self._models)
        self._deltas: Tensors | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what is merged."""
        return tuple(self.base)

    def shared(self, task: str) -> Tensors:
        """Return the shared tensors as they are in one task's tuned model."""
        return dict(self._tuned[task])

    def own(self, task: str) -> Tensors:
        """Return the tensors that stay this task's own, as they were tuned."""
        return dict(self._own[task])

    @property
    def deltas(self) -> Tensors:
        """The task vectors: tuned minus base, (T, ...) each, tasks in their order; see `wide`."""
        if self._deltas is None:
            self._deltas = {
                name: torch.stack(
                    [wide(self._tuned[task][name]) - wide(base) for task in self.tasks.names]
                )
                for name, base in self.base.items()
            }
        return self._deltas

    def mean(self) -> Tensors:
        """Return the average of the tuned models."""
        return moved(self.base, {name: delta.mean(0) for name, delta in self.deltas.items()})

    def output(
        self, task: str, shared: Tensors, inputs: Inputs, own: Tensors | None = None
    ) -> Tensor:
        """Return a task's output, with these shared tensors and, where given, own ones.

        Raises UsageError where the model's answer does not hold the task.
        """
        tensors = {**self.buffers, **shared, **(own or {})}
        return self._call(self._models[task], tensors, task, inputs)

    def tuned_output(self, task: str, inputs: Inputs) -> Tensor:
        """Return a task's output by its own tuned model, as it came."""
        return self._call(self._models[task], {}, task, inputs)

    def seen(self, task: str, module: str, tensors: Tensors | None, inputs: Inputs) -> Tensor:
        """Return what a module inside a task's model reads.

        tensors: shared ones; None for the tuned model as it came.
        """
        model = self._models[task]
        try:
            inside = model.get_submodule(module)
        except AttributeError as error:
            raise UsageError(
                f"The model of {task!r} has no module {module!r}; name one of its modules, such as "
                f"{', '.join(repr(name) for name, _ in list(model.named_children())[:4])}."
            ) from error
        caught: list[Tensor] = []
        handle = inside.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            if tensors is None:
                self.tuned_output(task, inputs)
            else:
                self.output(task, tensors, inputs)
        finally:
            handle.remove()
        if len(caught) != 1:
            raise UsageError(
                f"The module {module!r} of {task!r} ran {len(caught)} times in one pass; name one "
                "that runs once, such as the head."
            )
        return caught[0]

    def head(self, task: str) -> str:
        """Return the name of a task's head in its model, "" where the model does not say."""
        model = self._models[task]
        finds = getattr(model, "head", None)
        if callable(finds) and not isinstance(finds, nn.Module):
            head = finds(task)
            return next((name for name, m in model.named_modules() if m is head), "")
        return "head" if isinstance(finds, nn.Module) else ""

    def hooked(self, task: str) -> nn.Module:
        """Return a task's model for hooks to be put on, its tensors those of the tuned model."""
        return self._models[task]

    def build(self, task: str, merged: Merged) -> nn.Module:
        """Return a model of this task with the merged tensors: a copy, in evaluation mode."""
        model = copy.deepcopy(self._models[task])
        tensors = {**self.buffers, **merged.shared, **merged.own.get(task, {})}
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if name in tensors:
                    tensor.copy_(tensors[name])
        if task in merged.before:
            name, added = merged.before[task]
            parent, _, child = name.rpartition(".")
            inside = nn.Sequential(copy.deepcopy(added), model.get_submodule(name))
            model.get_submodule(parent)._modules[child] = inside
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return model.eval()

    def models(self, merged: Merged) -> dict[str, nn.Module]:
        """Return `build` of every task."""
        return {task: self.build(task, merged) for task in self.tasks.names}

    @staticmethod
    def _call(model: nn.Module, tensors: Tensors, task: str, inputs: Inputs) -> Tensor:
        asked: dict[str, Any] = {"tasks": (task,)} if _asks(model) else {}
        output = functional_call(model, tensors, (inputs,), asked)
        if isinstance(output, Mapping):
            if task not in output:
                raise UsageError(
                    f"The model of {task!r} answers with {list(output)}, which lacks the task; let "
                    "it return the output itself, or name it after the task."
                )
            output = output[task]
        found: Tensor = output
        return found


def moved(base: Tensors, changes: Tensors) -> Tensors:
    """Return base + changes: added in the changes' precision, in the base's at the end."""
    return {name: (wide(tensor) + changes[name]).to(tensor.dtype) for name, tensor in base.items()}


def _asks(model: nn.Module) -> bool:
    return callable(getattr(model, "shared_parameters", None))


def _view(model: nn.Module) -> nn.Module:
    """Return the model in evaluation mode, on the same storage, without gradients of its own."""
    same: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
    }
    same |= {id(b): b.detach() for b in model.buffers()}
    return copy.deepcopy(model, same).eval()


def _hidden(
    models: Mapping[str, nn.Module], own: Sequence[str] | None
) -> list[Callable[[str], bool]]:
    """Return what says that a tensor of this name is a task's own."""
    if own is not None:
        begin = tuple(own)
        return [lambda name: any(name == o or name.startswith(f"{o}.") for o in begin)]
    found: list[Callable[[str], bool]] = []
    for model in models.values():
        if _asks(model):
            shared = {id(p) for p in model.shared_parameters()}  # type: ignore[operator]
            mine = frozenset(n for n, p in model.named_parameters() if id(p) not in shared)
            found.append(mine.__contains__)
    return found


def _buffers(base: nn.Module, models: Mapping[str, nn.Module]) -> Tensors:
    """Return the buffers that all have: averaged where they are floats that differ."""
    each_has = [dict(model.named_buffers()) for model in models.values()]
    joint: Tensors = {}
    for name, buffer in base.named_buffers():
        found = [buffers[name] for buffers in each_has if name in buffers]
        if len(found) < len(each_has) or any(b.shape != buffer.shape for b in found):
            continue
        joint[name] = buffer.detach()
        if buffer.is_floating_point() and any(not torch.equal(b, buffer) for b in found):
            joint[name] = torch.stack(found).mean(0)
    return joint
