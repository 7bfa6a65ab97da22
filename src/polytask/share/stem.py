"""STEM: embedding tables of every task's own beside a shared one; gates look at all experts.

Source: Su et al., "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation",
    AAAI 2024, https://arxiv.org/abs/2308.13537
Differs from the source: nothing known in the equations; as in the authors' code gates read the sum
    of the task's and the shared embeddings, and the shared gate, which looks at all experts without
    stopping gradients, is omitted at the last level. All tables have the form of the encoder's. A
    gate's last layer has no bias.
Shapes: R = rows, F = fields, V = vectors of a table, d = width of a vector, D = width of a level's
    inputs, S = shared and tasks that run, N = tasks that run, A = asked tasks, E = experts, W =
    width of an expert.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share.base import Gate, check_width, key
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


class STEM(Trunk):
    """h_t = sum_e softmax(gate_t(x_t + x_s))_e f_e, over the experts of all tasks.

    x_t, x_s: the row's fields in the task's table and in the shared one. f_e reads the table of its
    owner. What other tasks' experts give is taken without its gradient, so a table learns from its
    own task alone; with several levels the shared part of a level takes all experts as they are,
    and what is below the last level learns from all tasks.

    For one task the tables and the experts of all run, as the equation demands. A task added later
    is seen by no gate but its own.

    tasks: their names. table: the shared one, (V, d); the tasks' get its form and deviation.
    fields: F. levels: at least 1. shared, own: experts of all tasks and of each, on every level.
    widths: of an expert's layers. gate_widths: of a gate's hidden layers, perhaps none.
    """

    stands_on = "fields"
    also = ("index",)

    def __init__(
        self,
        tasks: Sequence[str],
        table: nn.Embedding,
        fields: int,
        *,
        levels: int = 1,
        shared: int = 1,
        own: int = 1,
        widths: Sequence[int] = (64,),
        gate_widths: Sequence[int] = (64,),
    ) -> None:
        if not tasks or levels < 1 or own < 1:
            raise UsageError(
                "STEM: give at least one task, one level and one expert of each task's own; got "
                f"{len(tasks)} tasks, {levels} levels and {own} experts."
            )
        super().__init__(fields, widths[-1] if widths else 0)
        self._founders, self._tasks = tuple(tasks), tuple(tasks)
        self._spread = float(table.weight.detach().std())
        self.shared_table = table
        self.tables = nn.ModuleDict({key(task): self._table() for task in tasks})
        self.levels = nn.ModuleList(
            _Level(
                tasks,
                self.width if at else fields * table.embedding_dim,
                widths,
                gate_widths,
                shared,
                own,
                at < levels - 1,
            )
            for at in range(levels)
        )

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        levels: int = 1,
        shared: int = 1,
        own: int = 1,
        widths: tuple[int, ...] = (64,),
        gate_widths: tuple[int, ...] = (64,),
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on an encoder of fields, whose table becomes the shared one.

        encoder: with `columns`, a module from inputs to the features "index" and "row", (R, F)
            each, and with `table`, an nn.Embedding; see `suites.fields.Fields`.
        levels, shared, own, widths, gate_widths: of the experts and gates. towers: of each task's
            own layers.
        """
        columns, table = getattr(encoder, "columns", None), getattr(encoder, "table", None)
        if not isinstance(columns, nn.Module) or not isinstance(table, nn.Embedding):
            raise UsageError(
                "STEM: every task has an embedding table, so it takes an encoder of fields, with "
                f"`columns` and `table`; {type(encoder).__name__} has none. Suites of tables give "
                "one: suite.fields()."
            )
        check_width(encoder, width, "STEM")
        trunk = STEM(
            tasks.names,
            table,
            width // table.embedding_dim,
            levels=levels,
            shared=shared,
            own=own,
            widths=widths,
            gate_widths=gate_widths,
        )
        return TrunkModel.build(columns, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def stack(self, tasks: Sequence[str]) -> Stacked:
        runs = (*self._founders, *(task for task in tasks if task not in self._founders))
        tables = [self.shared_table, *(self.tables[key(task)] for task in runs)]
        # Side by side, so that one look-up serves all.
        stacked = {"tables": torch.stack([table.get_parameter("weight") for table in tables], 1)}
        last = len(self.levels) - 1
        for at in range(last + 1):
            readers = tuple(tasks) if at == last else runs
            stacked |= self._level(at).stack(f"level{at}", runs, readers)
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        table_VSd = stacked["tables"]
        fields_RFX = functional.embedding(stacked["index"], table_VSd.flatten(1))
        fields_RFX = fields_RFX * rows_RD[..., None]
        fields_RFSd = fields_RFX.view(*rows_RD.shape, *table_VSd.shape[1:])
        rows_SRD = fields_RFSd.permute(2, 0, 1, 3).flatten(2)
        shared_RD, rows_NRD, at = rows_SRD[0], rows_SRD[1:], 0
        while True:
            given_ARW, shared = _mix_level(stacked, f"level{at}", rows_NRD, shared_RD, seen)
            if shared is None:
                return given_ARW
            shared_RD, rows_NRD, at = shared, given_ARW, at + 1

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        found: list[Gate] = []
        runs = (*self._founders, *(task for task in tasks if task not in self._founders))
        last = len(self.levels) - 1
        for at in range(last + 1):
            level = self._level(at)
            shared, own = level.shared.number, level.number
            common = [f"shared {e}" for e in range(shared)]
            mine = [f"own {e}" for e in range(own)]
            weights_RAE = seen[f"level{at}_weights"]
            for a, reader in enumerate(tasks if at == last else runs):
                others = [task for task in self._founders if task != reader]
                columns = [*range(shared + own), *level.columns(others)]
                owners = [None] * shared + [t for t in (reader, *others) for _ in mine]
                names = [*common, *(name for _ in (reader, *others) for name in mine)]
                weights = weights_RAE[:, a : a + 1, columns]
                found.append(Gate(at, (reader,), tuple(names), tuple(owners), weights))
            weights_R1E = seen.get(f"level{at}_shared_weights")
            if weights_R1E is not None:
                owners = [None] * shared + [t for t in self._founders for _ in mine]
                names = [*common, *(name for _ in self._founders for name in mine)]
                found.append(Gate(at, (None,), tuple(names), tuple(owners), weights_R1E))
        return found

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return what more than one task learns: below the last level, all of the first tasks."""
        last = len(self.levels) - 1
        shared = list(self.shared_table.parameters())
        if last > 0:
            shared += [p for task in self._founders for p in self.tables[key(task)].parameters()]
        for at in range(last + 1):
            level = self._level(at)
            shared += level.shared.parameters()
            if level.shared_gate is not None:
                shared += level.shared_gate.parameters()
            for task in self._founders:
                if at < last:
                    shared += level.own_of(task).parameters()
                if at < last - 1:  # these gates feed experts that the next shared gate takes
                    shared += level.gate_parameters(task)
        return shared

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's table, experts and gates that no other learns."""
        last = len(self.levels) - 1
        newcomer = task not in self._founders
        own = list(self.tables[key(task)].parameters()) if newcomer or last == 0 else []
        for at in range(last + 1):
            level = self._level(at)
            if newcomer or at == last:
                own += level.own_of(task).parameters()
            if newcomer or at >= last - 1:
                own += level.gate_parameters(task)
        return own

    def add_task(self, task: str) -> None:
        """Add a task with a table, and with experts that no other gate looks at."""
        self.tables[key(task)] = self._table()
        for at in range(len(self.levels)):
            self._level(at).add(task)
        self._tasks = (*self._tasks, task)

    def _table(self) -> nn.Embedding:
        table = copy.deepcopy(self.shared_table)
        nn.init.normal_(table.weight, std=self._spread)
        return table

    def _level(self, at: int) -> _Level:
        level = self.levels[at]
        assert isinstance(level, _Level)
        return level


class _Level(nn.Module):
    """Shared experts, own of each task, a gate per task, perhaps a shared gate.

    A task's gate is over the shared experts, its own, and those of all tasks of the beginning, in
    this order; among the last its own are closed, as they stand before.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        inputs: int,
        widths: Sequence[int],
        gate_widths: Sequence[int],
        shared: int,
        own: int,
        shared_gate: bool,
    ) -> None:
        super().__init__()
        self.number, self._founders, self._gate_widths = own, tuple(tasks), tuple(gate_widths)
        self.shared = Experts(shared, inputs, widths)
        self.own, self.hidden = OwnExperts(), OwnExperts()
        before_gate = gate_widths[-1] if gate_widths else inputs
        self.gates = Gates((), before_gate, shared + own + own * len(tasks), {})
        for task in tasks:
            self._add(task)
        self.lay()
        self.shared_gate: nn.ModuleDict | None = None
        if shared_gate:
            last = nn.Linear(before_gate, shared + own * len(tasks), bias=False)
            self.shared_gate = nn.ModuleDict({"last": last})
            if gate_widths:
                self.shared_gate["hidden"] = Experts(1, inputs, gate_widths)

    def add(self, task: str) -> None:
        self._add(task)
        self.lay()

    def lay(self) -> None:
        """See `OwnExperts`."""
        self.own.lay()
        self.hidden.lay()

    def _add(self, task: str) -> None:
        shared = self.shared
        self.own[key(task)] = Experts(self.number, shared.inputs, shared.widths)
        if self._gate_widths:
            self.hidden[key(task)] = Experts(1, shared.inputs, self._gate_widths)
        self.gates.add(task, self.columns([task]))

    def columns(self, tasks: Sequence[str]) -> list[int]:
        """Return where a gate has these tasks' experts among those of the beginning."""
        first = self.shared.number + self.number
        at = [self._founders.index(task) for task in tasks if task in self._founders]
        return [first + t * self.number + e for t in at for e in range(self.number)]

    def own_of(self, task: str) -> Experts:
        return self.own.of([task])[0]

    def gate_parameters(self, task: str) -> list[nn.Parameter]:
        hidden = self.hidden[key(task)].parameters() if self._gate_widths else []
        return [*hidden, *self.gates.parameters_of(task)]

    def stack(self, name: str, runs: Sequence[str], readers: Sequence[str]) -> Stacked:
        stacked = stack(f"{name}_shared", [self.shared])
        stacked |= stack(f"{name}_own", self.own.of(runs))
        stacked |= self.gates.stack(f"{name}_gates", readers)
        if self._gate_widths:
            stacked |= stack(f"{name}_hidden", self.hidden.of(readers))
        if self.shared_gate is not None:
            stacked[f"{name}_shared_gate"] = self.shared_gate["last"].get_parameter("weight")
            if self._gate_widths:
                hidden = _experts(self.shared_gate["hidden"])
                stacked |= stack(f"{name}_shared_hidden", [hidden])
        if tuple(runs) != tuple(readers):
            at = [runs.index(task) for task in readers]
            stacked[f"{name}_readers"] = torch.tensor(at, device=self.shared.weights[0].device)
        return stacked


def _experts(module: nn.Module) -> Experts:
    assert isinstance(module, Experts)
    return module


def _mix_level(
    stacked: Stacked, name: str, rows_NRD: Tensor, shared_RD: Tensor, seen: Seen | None
) -> tuple[Tensor, Tensor | None]:
    """Return what the readers' gates take (A, R, W), and what the shared gate takes (R, W)."""
    shared_ERW = run(stacked, f"{name}_shared", shared_RD)
    own = len(stacked[f"{name}_own_0_weight"]) // len(rows_NRD)
    own_SRW = run(stacked, f"{name}_own", rows_NRD.repeat_interleave(own, 0))
    readers = stacked.get(f"{name}_readers")
    read_ARD, read_SRW = rows_NRD, own_SRW
    if readers is not None:
        read_ARD = rows_NRD[readers]
        read_SRW = own_SRW.view(-1, own, *own_SRW.shape[1:])[readers].flatten(0, 1)
    hidden_ARD = run(stacked, f"{name}_hidden", read_ARD + shared_RD)
    weights_RAE = opened(stacked, f"{name}_gates", hidden_ARD)
    mine = len(shared_ERW) + own
    founders_SRW = own_SRW[: weights_RAE.shape[2] - mine]
    given_ARW = Mixture(weights_RAE[..., :mine], shared_ERW, read_SRW).rows()
    given_ARW = given_ARW + mixed(weights_RAE[..., mine:], founders_SRW.detach())
    if seen is not None:
        seen[f"{name}_weights"] = weights_RAE
    gate_ED = stacked.get(f"{name}_shared_gate")
    if gate_ED is None:
        return given_ARW, None
    hidden_RD = shared_RD
    if f"{name}_shared_hidden_0_weight" in stacked:
        hidden_RD = run(stacked, f"{name}_shared_hidden", shared_RD)[0]
    weights_R1E = functional.linear(hidden_RD, gate_ED).softmax(-1)[:, None]
    if seen is not None:
        seen[f"{name}_shared_weights"] = weights_R1E
    every_ERW = torch.cat([shared_ERW, founders_SRW])
    return given_ARW, mixed(weights_R1E, every_ERW)[0]
