"""Task-aware gating: which experts compute a row depends on the task that asks.

Source: Gupta et al., "Sparsely Activated Mixture-of-Experts are Robust Multi-Task Learners", 2022,
    https://arxiv.org/abs/2204.07689
Differs from the source: worked out from the abstract and the names of its three gates. The layers
    are those of `SparseMoE`, on the encoder's features. The gate that reads a task's embedding is
    linear, like the others: it holds a part for the row and a part for the embedding, so that a
    task leans towards experts by as much for every row. A choice is counted for the balancing loss
    over all tasks together, or each task would have to use all experts alike.
Shapes: R = rows, E = experts, D = width of the features, A = asked tasks, V = width of an
    embedding, U = experts that run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.errors import UsageError, unknown
from polytask.share.base import Gate, key
from polytask.share.experts import Experts, Gates, Stacked, own, run, stack
from polytask.share.sparse_moe import Balancing, Router, SparseMoE, feed_forward
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet


class TaskGating:
    """The recipe `task-gating`: `FixedExperts`, or a `SparseMoE` with one of the routers below."""

    stands_on = "features"

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        form: Literal["gates", "embedding", "fixed"] = "gates",
        experts: int = 8,
        k: int | None = None,
        layers: int = 1,
        hidden: int = 64,
        embedding: int | None = None,
        capacity: float | None = None,
        balance: Balancing | None = None,
        weight: float | None = None,
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        form: "gates", one per task; "embedding", one that reads the row and the task's embedding;
        "fixed", task i has expert i modulo the experts' number. hidden: width between an expert's
        two products. embedding: width of a task's embedding, 8 where none is given. k (1 where none
        is given), capacity, balance ("batch") and weight (0.01): see `SparseMoE`. towers: of each
        task's own layers.

        Raises UsageError for a setting that the form does not have.
        """
        others = {"k": k, "capacity": capacity, "balance": balance, "weight": weight}
        unread = {} if form == "embedding" else {"embedding": embedding}
        for name, value in (unread | (others if form == "fixed" else {})).items():
            if value is not None:
                raise UsageError(
                    f"Task gating: {name} is {value}, which the form {form!r} does not have; leave "
                    "it out, or give another form."
                )
        stacks = feed_forward(layers, experts, width, hidden)
        if form == "fixed":
            assigned = {task: i % experts for i, task in enumerate(tasks.names)}
            return TrunkModel.build(encoder, FixedExperts(assigned, stacks), tasks, towers)
        routers: list[Router] = [
            TaskGates(tasks.names, width, experts)
            if form == "gates"
            else EmbeddingGate(tasks.names, width, experts, 8 if embedding is None else embedding)
            for _ in range(layers)
        ]
        trunk = SparseMoE(
            tasks.names,
            stacks,
            routers,
            k=1 if k is None else k,
            capacity=capacity,
            balance="batch" if balance is None else balance,
            weight=0.01 if weight is None else weight,
        )
        return TrunkModel.build(encoder, trunk, tasks, towers)


class TaskGates(Router):
    """A gate per task."""

    def __init__(self, tasks: Sequence[str], inputs: int, experts: int) -> None:
        super().__init__(inputs, experts)
        self.gating = Gates(tasks, inputs, experts)

    def stack(self, name: str, tasks: Sequence[str]) -> Stacked:
        return self.gating.stack(name, tasks)

    def shared_parameters(self) -> list[nn.Parameter]:
        return []

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return self.gating.parameters_of(task)

    def add_task(self, task: str) -> None:
        self.gating.add(task)


class EmbeddingGate(Router):
    """One gate for all tasks that reads the row and the task's embedding: W [x; v_t].

    embedding: width of v_t, at least 1.
    """

    def __init__(self, tasks: Sequence[str], inputs: int, experts: int, embedding: int) -> None:
        if embedding < 1:
            raise UsageError(f"Task gating: embedding is {embedding}; give a width of at least 1.")
        super().__init__(inputs, experts)
        self.width = embedding
        self.linear = nn.Linear(inputs + embedding, experts, bias=False)
        self.embeddings = nn.ParameterDict()
        for task in tasks:
            self.add_task(task)

    def stack(self, name: str, tasks: Sequence[str]) -> Stacked:
        sizes = [self.inputs, self.width]
        weight_ED, weight_EV = torch.split(own(self.linear, "weight"), sizes, dim=1)
        task_AV = torch.stack([self.embeddings[key(task)] for task in tasks])
        # What the row adds is the same for all tasks: it is computed once.
        return {f"{name}_weight": weight_ED[:, None], f"{name}_bias": task_AV @ weight_EV.T}

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.linear.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return [self.embeddings[key(task)]]

    def add_task(self, task: str) -> None:
        self.embeddings[key(task)] = nn.Parameter(torch.randn(self.width))


class FixedExperts(Trunk):
    """Layer by layer, h = h + f_e(h) with the same expert e for all rows of a task.

    Tasks of one expert share all of it, others nothing but the encoder. For the tasks asked, their
    experts alone run, each once.

    assigned: task -> the position of its expert on every layer. experts: of each layer.
    """

    def __init__(self, assigned: Mapping[str, int], experts: Sequence[Experts]) -> None:
        if not assigned or not experts:
            raise UsageError(
                "Task gating: give at least one task and the experts of at least one layer; got "
                f"{len(assigned)} tasks and {len(experts)} layers."
            )
        first = experts[0]
        super().__init__(first.inputs, first.inputs)
        self.number = first.number
        for part in experts:
            if (part.inputs, part.width, part.number) != (self.inputs, self.inputs, self.number):
                raise UsageError(
                    "Task gating: every layer needs as many experts, as wide as their inputs; got "
                    f"{part.extra_repr()}."
                )
        self.experts = nn.ModuleList(experts)
        self.assigned: dict[str, int] = {}
        for task, expert in assigned.items():
            self.add_task(task, expert)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.assigned)

    def stack(self, tasks: Sequence[str]) -> Stacked:
        runs = sorted({self.assigned[task] for task in tasks})
        device = next(self.parameters()).device
        run_U = torch.tensor(runs, device=device)
        stacked = {
            name: weight.index_select(0, run_U)
            for layer, experts in enumerate(self._layers())
            for name, weight in stack(f"experts{layer}", [experts]).items()
        }
        at = [runs.index(self.assigned[task]) for task in tasks]
        stacked["expert"] = torch.tensor(at, device=device)
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        rows, layer = rows_RD, 0
        while f"experts{layer}_0_weight" in stacked:
            rows = rows + run(stacked, f"experts{layer}", rows)
            layer += 1
        if seen is not None:
            seen["rows"] = rows_RD
        return rows.index_select(0, stacked["expert"])

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        at_A = torch.tensor([self.assigned[task] for task in tasks])
        taken_AE = nn.functional.one_hot(at_A, self.number).to(seen["rows"])
        weights_RAE = taken_AE.expand(len(seen["rows"]), -1, -1)
        names = tuple(f"expert {e}" for e in range(self.number))
        owners = (None,) * self.number
        return [
            Gate(layer, tuple(tasks), names, owners, weights_RAE)
            for layer in range(len(self.experts))
        ]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the experts' parameters."""
        return list(self.experts.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return nothing: any expert may be another task's too."""
        return []

    def add_task(self, task: str, expert: int | None = None) -> None:
        """Add a task. expert: its position; None: the next one, in turn."""
        if expert is None:
            expert = len(self.assigned) % self.number
        if not 0 <= expert < self.number:
            known = f"There are experts 0 to {self.number - 1}."
            raise unknown("expert", str(expert), map(str, range(self.number)), known)
        self.assigned[task] = expert

    def _layers(self) -> list[Experts]:
        return [part for part in self.experts if isinstance(part, Experts)]
