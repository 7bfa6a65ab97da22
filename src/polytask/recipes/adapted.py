"""An adapted model with a head per task, as `fit`, `balance` and `mix` train any shared model.

Every row of a batch belongs to one task. Where the inputs say which, in a tensor of their own, a
batch of many tasks runs once; without it each asked task runs on all rows, its own rows of one
larger batch.

Shapes: B = rows, A = asked tasks, T = tasks of the model, F = channels of the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.adapt import Adapted, fingerprint, follow_load
from polytask.adapt import Trace as LayerTrace
from polytask.adapt.smora import SMoRAAdapter
from polytask.errors import RunError, UsageError, unknown
from polytask.share import Features, HardSharing, Inputs, SharedModel, Trace
from polytask.suites import Stream, Suite
from polytask.tasks import Task, TaskSet

TASK = "task"
"""The input that names each row's task: int64, positions in the model's tasks."""

FINGERPRINT = "base_fingerprint"
"""What the state of a model without its base says of it: 32 bytes."""

GIVEN = "given_"
"""What the buffers of what is given of tasks are called, before their names."""


class AdaptedModel(SharedModel):
    """An adapted encoder, and heads of any kind and width.

    adapted: its base turns inputs into features: one tensor, or a mapping; see `HardSharing`.
    heads: of tasks that it is adapted to, as many as you like. reads: as for `HardSharing`.
    given: what adapters need of a row beside its task, by name, where all rows of a task have the
        same: (T, ...), in the order of the heads. LoRAMoE's "type", say.
    serves: task -> the name of the adapter that serves it, where that is another: several tasks may
        have one together.
    embeds: give adapters the base's own "row" of every instance as its "embedding", as MoR1E needs
        one; the base then runs once more, without them.

    What tasks share is everything but the heads: adapters are stacked, one tensor for all tasks, so
    gradients of different tasks lie in different rows of it.

    Its state is what adapting trains: of the frozen base it holds a fingerprint alone, and loading
    it into a model on another base is an error. A SMoRA's bias follows the load of its ranks, see
    `follow_load`, from update to update.
    """

    traces = True

    def __init__(
        self,
        adapted: Adapted,
        heads: Mapping[str, nn.Module],
        reads: Mapping[str, str] | None = None,
        given: Mapping[str, Tensor] | None = None,
        serves: Mapping[str, str] | None = None,
        embeds: bool = False,
    ) -> None:
        super().__init__()
        self._serves = {task: (serves or {}).get(task, task) for task in heads}
        for name in self._serves.values():
            if name not in adapted.names:
                known = f"The model is adapted to: {', '.join(adapted.names)}."
                raise unknown("task", name, adapted.names, known)
        self.adapted = adapted
        self.hard = HardSharing(nn.Identity(), heads, reads)
        self.embeds = embeds
        self._served_T = self._find_served()
        self._follows = any(isinstance(m, SMoRAAdapter) for m in adapted.parts.modules())
        self._load: LayerTrace | None = None
        without_base(self, adapted.base, "adapted.base.")
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
        follows = self._follows and self.training and torch.is_grad_enabled()
        seen = LayerTrace() if trace is not None or follows else None
        if isinstance(inputs, Mapping) and TASK in inputs:
            task_B, rest = inputs[TASK], _without_task(inputs)
            with self.adapted.tasks(self._index(task_B), self._given(task_B, rest), seen):
                outputs = self.hard.read(self.adapted.base(rest), asked)
        elif len(asked) == 1 and not (self.given or self.embeds):
            with self.adapted.task(self._serves[asked[0]], trace=seen):
                outputs = self.hard.read(self.adapted.base(inputs), asked)
        else:
            outputs = self._each(inputs, asked, seen)
        if trace is not None and seen is not None and seen.penalties:
            penalty = torch.stack(list(seen.penalties.values())).sum() / len(asked)
            trace.penalties |= dict.fromkeys(asked, penalty)
        if follows:
            self._load = seen
        return outputs

    def at(self, part: float) -> None:
        """Let a SMoRA's bias follow the load of the last update; told before every update."""
        if self._load is not None:
            follow_load(self.adapted, self._load)
            self._load = None

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
        self._serves[task.name] = task.name
        self.hard.add_task(task, head)
        self._served_T = self._find_served()
        if optimiser is not None:
            optimiser.add_param_group({"params": self.task_parameters(task.name)})
        for name, value in more.items():
            held_T = self._of_tasks(name)
            setattr(self, GIVEN + name, torch.cat([held_T, value[None].to(held_T)]))

    def _of_tasks(self, name: str) -> Tensor:
        """Return what the model was given of its tasks under this name, (T, ...)."""
        return self.get_buffer(GIVEN + name)

    def embedding(self, inputs: Inputs) -> Tensor:
        """Return what the base alone makes of rows, (B, F), of unit length and without a graph."""
        with torch.no_grad(), self.adapted.without():
            features: Features = self.adapted.base(inputs)
        row_BF = features if isinstance(features, Tensor) else features["row"]
        return functional.normalize(row_BF.float(), dim=1)

    def _given(self, task_B: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """Return what it was given of rows' tasks, of rows without one the first task's, and the
        rows' embeddings where adapters need them."""
        held = {name: self._of_tasks(name) for name in self.given}
        rows = {n: v.index_select(0, task_B.clamp(min=0).to(v.device)) for n, v in held.items()}
        return rows | {"embedding": self.embedding(inputs)} if self.embeds else rows

    def _index(self, task_B: Tensor) -> Tensor:
        """Return positions in the adapted model's tasks of positions in this one's."""
        if self._served_T is None:
            return task_B
        at_T = self._served_T.to(task_B.device)
        return torch.where(task_B < 0, -1, at_T[task_B.clamp(min=0)])

    def _find_served(self) -> Tensor | None:
        """Return the position of each task's adapter, (T,); None where they are the tasks' own."""
        served = [self._serves[task] for task in self.tasks]
        own = tuple(served) == self.adapted.names[: len(served)]
        return None if own else self.adapted.index(served)

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
        index_A = self.adapted.index([self._serves[task] for task in asked])
        index_A = index_A.to(next(self.adapted.parts.parameters()).device)
        task_A = torch.tensor([self.tasks.index(task) for task in asked])
        given = self._given(task_A.repeat_interleave(rows), repeated)
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


def without_base(model: nn.Module, base: nn.Module, prefix: str) -> None:
    """Leave a frozen base out of a model's state, but for a fingerprint.

    prefix: of the base's names in that state. What of the base is trained stays in.
    """
    digest: list[Tensor] = []  # made when first asked for: it reads the whole base

    def own() -> Tensor:
        if not digest:
            digest.append(_digest(base))
        return digest[0]

    def leave_out(module: nn.Module, state: dict[str, Tensor], before: str, local: object) -> None:
        trained = {name for name, p in base.named_parameters() if p.requires_grad}
        for name in base.state_dict():
            if name not in trained:
                state.pop(before + prefix + name, None)
        state[before + FINGERPRINT] = own()

    def check(module: nn.Module, state: Mapping[str, Tensor], before: str, *rest: object) -> None:
        found = state.get(before + FINGERPRINT)
        if found is not None and not torch.equal(found.cpu(), own()):
            raise RunError(
                "These weights were trained on another base: its fingerprint is "
                f"{bytes(found.tolist()).hex()[:12]}…, this model's is "
                f"{bytes(own().tolist()).hex()[:12]}…. Start from the weights they were trained on."
            )

    def expected(module: nn.Module, keys: Any) -> None:
        keys.missing_keys[:] = [name for name in keys.missing_keys if prefix not in name]
        own_keys = [name for name in keys.unexpected_keys if name.endswith(FINGERPRINT)]
        for name in own_keys:
            keys.unexpected_keys.remove(name)

    model.register_state_dict_post_hook(leave_out)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(check)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_post_hook(expected)  # type: ignore[no-untyped-call]


def _digest(base: nn.Module) -> Tensor:
    """Return the fingerprint of what of a base is frozen, 32 bytes."""
    trained = [name for name, p in base.named_parameters() if p.requires_grad]
    return torch.tensor(list(bytes.fromhex(fingerprint(base, trained))), dtype=torch.uint8)


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


def naming_tasks(suite: Suite, tasks: Sequence[str]) -> Suite:
    """Return the suite with that input in every stream that labels one task.

    A stream of several tasks stays: each asked task then runs on all of its rows.
    """

    def named(streams: Sequence[Stream]) -> tuple[Stream, ...]:
        return tuple(
            with_tasks(stream, next(iter(stream.targets)), tasks)
            if len(stream.targets) == 1
            else stream
            for stream in streams
        )

    return replace(suite, train=named(suite.train), val=named(suite.val), test=named(suite.test))


def _without_task(inputs: Mapping[str, Tensor]) -> Inputs:
    rest = {name: value for name, value in inputs.items() if name != TASK}
    # A stream of one tensor became a mapping only to hold the tasks.
    return rest["inputs"] if rest.keys() == {"inputs"} else rest


def _repeated(value: Tensor, many: int) -> Tensor:
    return value if many == 1 else value.repeat(many, *[1] * (value.dim() - 1))
