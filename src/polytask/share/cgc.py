"""CGC: every task has experts of its own beside the shared ones, and gates over both.

Source: Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model
    for Personalized Recommendations", RecSys 2020, https://doi.org/10.1145/3383313.3412236
Differs from the source: experts and gates read the encoder's features, whatever the encoder.
Shapes: R = rows, D = width of the inputs, A = asked tasks, S = own experts of the tasks that run,
    E = experts, W = width of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share.base import Gate, key
from polytask.share.experts import (
    Experts,
    Gates,
    OwnExperts,
    Stacked,
    opened,
    run,
    stack,
)
from polytask.share.mixture import Mixture, mixed
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet


class Level(nn.Module):
    """One level of experts: shared, own of each task, a gate per task, perhaps a shared gate.

    Gates are over the shared experts and the task's own, in this order. The shared gate, where
    there is one, is over the shared experts and those of all tasks of the beginning.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        inputs: int,
        widths: Sequence[int],
        shared: int,
        own: int,
        shared_gate: bool,
    ) -> None:
        super().__init__()
        if not tasks or shared < 1 or own < 1:
            raise UsageError(
                "CGC: a level needs a task, a shared expert and an expert of each task's own; got "
                f"{len(tasks)} tasks, {shared} shared experts and {own} of each task's own."
            )
        self._number = own
        self.shared = Experts(shared, inputs, widths)
        self.own = OwnExperts()
        self.gates = Gates((), inputs, shared + own)
        for task in tasks:
            self._add(task)
        self.own.lay()
        experts = shared + own * len(tasks)
        self.shared_gate = nn.Linear(inputs, experts, bias=False) if shared_gate else None

    def add(self, task: str) -> None:
        """Add a task's experts and its gate; the shared gate does not see them."""
        self._add(task)
        self.own.lay()

    def _add(self, task: str) -> None:
        shared = self.shared
        self.own[key(task)] = Experts(self._number, shared.inputs, shared.widths)
        self.gates.add(task)

    def own_of(self, task: str) -> Experts:
        return self.own.of([task])[0]

    def stack(self, name: str, runs: Sequence[str], readers: Sequence[str]) -> Stacked:
        """Return what is needed to run these tasks' experts, for these tasks' gates.

        readers: among `runs`. A shared gate needs all tasks of the beginning at the head of it.
        """
        stacked = stack(f"{name}_shared", [self.shared])
        stacked |= stack(f"{name}_own", self.own.of(runs))
        stacked |= self.gates.stack(f"{name}_gates", readers)
        if self.shared_gate is not None:
            stacked[f"{name}_shared_gate"] = self.shared_gate.weight
        if tuple(runs) != tuple(readers):
            at = [runs.index(task) for task in readers]
            stacked[f"{name}_readers"] = torch.tensor(at, device=self.shared.weights[0].device)
        return stacked


def mix_level(
    stacked: Stacked, name: str, rows: Tensor, shared_RD: Tensor, seen: Seen | None
) -> tuple[Mixture, Tensor | None]:
    """Return what the readers' gates take (A, R, W), and what the shared gate takes (R, W).

    rows: inputs of the tasks that run, (R, D) where all have the same, else (N, R, D).
    """
    readers = stacked.get(f"{name}_readers")
    shared_ERW = run(stacked, f"{name}_shared", shared_RD)
    gates = stacked[f"{name}_gates_weight"]
    number = gates.shape[0] - len(shared_ERW)
    each = rows if rows.ndim == 2 else rows.repeat_interleave(number, 0) if number > 1 else rows
    own_SRW = run(stacked, f"{name}_own", each)
    own_rows, own_read = rows, own_SRW
    if readers is not None:
        own_rows = rows if rows.ndim == 2 else rows.index_select(0, readers)
        own_read = own_SRW.view(-1, number, *own_SRW.shape[1:]).index_select(0, readers)
        own_read = own_read.flatten(0, 1)
    weights_RAE = opened(stacked, f"{name}_gates", own_rows)
    given = Mixture(weights_RAE, shared_ERW, own_read)
    if seen is not None:
        seen[f"{name}_weights"] = weights_RAE
    gate_ED = stacked.get(f"{name}_shared_gate")
    if gate_ED is None:
        return given, None
    weights_R1E = functional.linear(shared_RD, gate_ED).softmax(-1)[:, None]
    if seen is not None:
        seen[f"{name}_shared_weights"] = weights_R1E
    sizes = [len(shared_ERW), gate_ED.shape[0] - len(shared_ERW)]
    of_shared_R1E, of_own_R1S = torch.split(weights_R1E, sizes, 2)
    shared_1RW = mixed(of_shared_R1E, shared_ERW) + mixed(of_own_R1S, own_SRW[: sizes[1]])
    return given, shared_1RW[0]


class CGC(Trunk):
    """h_t = the shared experts and the task's own, mixed by a softmax gate over both.

    tasks: their names. shared, own: how many experts, of all tasks and of each. widths: of an
    expert's layers.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        inputs: int,
        *,
        shared: int = 1,
        own: int = 1,
        widths: Sequence[int] = (64,),
    ) -> None:
        self_level = Level(tasks, inputs, widths, shared, own, shared_gate=False)
        super().__init__(inputs, self_level.shared.width)
        self.level = self_level

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        shared: int = 1,
        own: int = 1,
        widths: tuple[int, ...] = (64,),
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        shared, own: how many experts, of all tasks and of each. widths: of an expert's layers.
        towers: of each task's own layers.
        """
        trunk = CGC(tasks.names, width, shared=shared, own=own, widths=widths)
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.level.gates.readers

    def stack(self, tasks: Sequence[str]) -> Stacked:
        return self.level.stack("level", tasks, tasks)

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Mixture:
        return mix_level(stacked, "level", rows_RD, rows_RD, seen)[0]

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        return own_gates(0, self.level, tasks, seen["level_weights"])

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the shared experts' parameters."""
        return list(self.level.shared.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's experts and of its gate."""
        return [*self.level.own_of(task).parameters(), *self.level.gates.parameters_of(task)]

    def add_task(self, task: str) -> None:
        self.level.add(task)


def own_gates(at: int, level: Level, readers: Sequence[str], weights_RAE: Tensor) -> list[Gate]:
    """Return one record per reader: each gate is over experts of its own."""
    shared = level.shared.number
    names = [f"shared {e}" for e in range(shared)]
    names += [f"own {e}" for e in range(weights_RAE.shape[2] - shared)]
    gates = []
    for a, reader in enumerate(readers):
        owners = (None,) * shared + (reader,) * (len(names) - shared)
        gates.append(Gate(at, (reader,), tuple(names), owners, weights_RAE[:, a : a + 1]))
    return gates
