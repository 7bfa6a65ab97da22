"""ESMM: each step's probability given the step before, trained on all rows by their product.

Source: Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click
    Conversion Rate", SIGIR 2018, https://arxiv.org/abs/1804.07931
Differs from the source: any number of steps, where the source has two, click and conversion; the
    embeddings that its networks share are here the encoder. Products are formed in logarithms.
Shapes: B = rows, A = steps that run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share import heads as run_heads
from polytask.share.base import Inputs, SharedModel, branches_of, check_width, key
from polytask.tasks import Binary, Task, TaskSet

CERTAIN = -1e-30
"""The largest logarithm of a probability: its logit is finite, 69."""


class ESMM(SharedModel):
    """Step t's output is the logit of p_1 * ... * p_t, where p_t = sigmoid(head_t(features)).

    The label of a step is 1 where it and all before it happened, over all rows: a click, then a
    click with a conversion. So p_t is the probability among the rows that came through step t-1,
    `conditional`, though it is never trained on these rows alone.

    heads: step -> module from features to (B, 1), first step first.
    """

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not heads:
            raise UsageError("ESMM needs a head for at least one task; none was given.")
        self.encoder = encoder
        self._tasks = tuple(heads)
        self.heads = nn.ModuleDict({key(task): head for task, head in heads.items()})

    @staticmethod
    def build(
        encoder: nn.Module, width: int, tasks: TaskSet, *, towers: tuple[int, ...] = (64,)
    ) -> ESMM:
        """Return the model on `width` features; all tasks are binary, first step first.

        towers: widths of each step's own layers.
        """
        check_width(encoder, width, "ESMM")
        for task in tasks:
            _check(task)
        return ESMM(encoder, {task.name: _head(task, width, towers) for task in tasks})

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def forward(self, inputs: Inputs, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the logit of each asked step and all before it, (B, 1), in the order asked."""
        asked = self._asked(tasks)
        if not asked:
            return {}
        runs = self._up_to(asked)
        logits = dict(zip(runs, funnel(self._heads(inputs, runs)).unbind(), strict=True))
        return {task: logits[task] for task in asked}

    def conditional(self, inputs: Inputs, task: str) -> Tensor:
        """Return the logit of the step given the step before, (B, 1): the conversion of clicks."""
        self._asked((task,))
        return self._heads(inputs, (task,))[0]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's parameters and every head's but the last: later steps use them."""
        own = [p for task in self._tasks[:-1] for p in self.heads[key(task)].parameters()]
        return [*self.encoder.parameters(), *own]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the last step's head; the other steps have nothing that no other uses."""
        (name,) = self._asked((task,))
        return list(self.heads[key(name)].parameters()) if name == self._tasks[-1] else []

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of each part in the encoder's ModuleDict `branches`, if any."""
        return branches_of(self.encoder)

    def add_task(self, task: Task, head: nn.Module | None = None) -> None:
        """Add a step at the end; every other output stays the same bits.

        head: from features to (B, 1); None: one of the last step's form, with new weights.
        """
        if task.name in self._tasks:
            raise UsageError(f"The model has a task {task.name!r} already; name the new one anew.")
        _check(task)
        last = self.heads[key(self._tasks[-1])]
        made = copy.deepcopy(last) if head is None else head
        if head is None:
            for layer in made.modules():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        self.heads[key(task.name)] = made
        self._tasks = (*self._tasks, task.name)

    def extract(self, task: str) -> nn.Module:
        """Return a model of this step's output alone, with copies of all the weights it needs."""
        runs = self._up_to(self._asked((task,)))
        heads = {name: self.heads[key(name)] for name in runs}
        return Funnel(copy.deepcopy(self.encoder), copy.deepcopy(list(heads.values())))

    def _up_to(self, asked: Sequence[str]) -> tuple[str, ...]:
        return self._tasks[: 1 + max(self._tasks.index(task) for task in asked)]

    def _heads(self, inputs: Inputs, runs: Sequence[str]) -> Tensor:
        return in_turn(self.encoder(inputs), [self.heads[key(task)] for task in runs])


class Funnel(nn.Module):
    """Inputs -> the logit that every step in turn happens, (B, 1)."""

    def __init__(self, encoder: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(heads)

    def forward(self, inputs: Inputs) -> Tensor:
        return funnel(in_turn(self.encoder(inputs), list(self.heads)))[-1]


def in_turn(features: Tensor | Mapping[str, Tensor], heads: Sequence[nn.Module]) -> Tensor:
    """Return the heads' outputs, (A, B, 1); heads that are alike run as one."""
    row_BD = features if isinstance(features, Tensor) else features["row"]
    named = {str(a): head for a, head in enumerate(heads)}
    groups = run_heads.alike(named)
    if len(groups) == 1 and groups[0][1]:
        return run_heads.together(heads, row_BD)
    return torch.stack([head(row_BD) for head in heads])


def funnel(logits_AB1: Tensor) -> Tensor:
    """Return the logits of p_1, p_1 p_2, ..., for logits of p_1, p_2, ..."""
    log_p = functional.logsigmoid(logits_AB1).cumsum(0).clamp(max=CERTAIN)
    return log_p - (-log_p.expm1()).log()


def _head(task: Task, width: int, towers: Sequence[int]) -> nn.Module:
    head = task.kind.head(towers[-1] if towers else width)
    return run_heads.with_tower(head, width, towers)


def _check(task: Task) -> None:
    if not isinstance(task.kind, Binary):
        raise UsageError(
            f"ESMM: its tasks are yes or no, each a step on from the one before; {task.name!r} is "
            f"{task.kind.name}. Leave it out, or use another sharing."
        )
