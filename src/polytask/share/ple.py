"""PLE: CGC in levels; between them every task, and the shared part, has features of its own.

Source: Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model
    for Personalized Recommendations", RecSys 2020, https://doi.org/10.1145/3383313.3412236
Differs from the source: the first level reads the encoder's features, whatever the encoder. As in
    the source the shared gate of a level sees all experts, and the last level has none; some
    libraries let it see the shared experts alone, or leave it out.
Shapes: R = rows, D = width of the inputs, A = asked tasks, N = tasks that run, W = width of an
    expert.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import Gate
from polytask.share.cgc import Level, mix_level, own_gates
from polytask.share.experts import Stacked
from polytask.share.mixture import Mixture
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet


class PLE(Trunk):
    """Levels of shared and own experts; a task's gate sees its own and the shared ones.

    Below the last level the shared gate sees every task's experts, so all tasks reach them: there
    they count as shared, whosoever name they bear. For one task, the levels below the last run
    all experts, as the equations demand, and only the gates that the task needs.

    tasks: their names. levels: at least 1, which is CGC. shared, own: how many experts of all
    tasks and of each, on every level. widths: of an expert's layers.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        inputs: int,
        *,
        levels: int = 2,
        shared: int = 1,
        own: int = 1,
        widths: Sequence[int] = (64,),
    ) -> None:
        if levels < 1:
            raise UsageError(f"PLE: levels is {levels}; give at least 1 (default 2).")
        super().__init__(inputs, widths[-1] if widths else 0)
        self.levels = nn.ModuleList(
            Level(tasks, self.width if at else inputs, widths, shared, own, at < levels - 1)
            for at in range(levels)
        )
        self._founders = tuple(tasks)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        levels: int = 2,
        shared: int = 1,
        own: int = 1,
        widths: tuple[int, ...] = (64,),
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        shared, own: how many experts of all tasks and of each, on every level. widths: of an
        expert's layers. towers: of each task's own layers.
        """
        trunk = PLE(tasks.names, width, levels=levels, shared=shared, own=own, widths=widths)
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._level(0).gates.readers

    def stack(self, tasks: Sequence[str]) -> Stacked:
        stacked: Stacked = {}
        runs = self._runs(tasks)
        for at in range(len(self.levels)):
            stacked |= self._level(at).stack(f"level{at}", runs[at], runs[at + 1])
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Mixture:
        rows, shared_RD, at = rows_RD, rows_RD, 0
        while True:
            given, shared = mix_level(stacked, f"level{at}", rows, shared_RD, seen)
            if shared is None:
                return given
            rows, shared_RD, at = given.rows(), shared, at + 1

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        found: list[Gate] = []
        runs = self._runs(tasks)
        for at in range(len(self.levels)):
            level = self._level(at)
            found += own_gates(at, level, runs[at + 1], seen[f"level{at}_weights"])
            weights_R1E = seen.get(f"level{at}_shared_weights")
            if weights_R1E is not None:
                per_task = (weights_R1E.shape[2] - level.shared.number) // len(self._founders)
                owners = [None] * level.shared.number
                names = [f"shared {e}" for e in range(level.shared.number)]
                names += [f"own {e}" for _ in self._founders for e in range(per_task)]
                owned = [t for t in self._founders for _ in range(per_task)]
                found.append(Gate(at, (None,), tuple(names), (*owners, *owned), weights_R1E))
        return found

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return what more than one task reaches: below the last level, the experts of all."""
        last = len(self.levels) - 1
        shared: list[nn.Parameter] = []
        for at in range(len(self.levels)):
            level = self._level(at)
            shared += level.shared.parameters()
            if level.shared_gate is not None:
                shared += level.shared_gate.parameters()
            if at < last:
                for task in self._founders:
                    shared += level.own_of(task).parameters()
            if at < last - 1:  # these gates feed experts that the next shared gate reads
                for task in self._founders:
                    shared += level.gates.parameters_of(task)
        return shared

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's last experts and of its last two gates."""
        last = len(self.levels) - 1
        newcomer = task not in self._founders
        own: list[nn.Parameter] = []
        for at in range(len(self.levels)):
            level = self._level(at)
            if newcomer or at == last:
                own += level.own_of(task).parameters()
            if newcomer or at >= last - 1:
                own += level.gates.parameters_of(task)
        return own

    def add_task(self, task: str) -> None:
        """Add a task with experts on every level, which no shared gate sees."""
        for at in range(len(self.levels)):
            self._level(at).add(task)

    def _level(self, at: int) -> Level:
        level = self.levels[at]
        assert isinstance(level, Level)
        return level

    def _runs(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the tasks whose experts run on each level, and at the end those asked."""
        newcomers = tuple(t for t in tasks if t not in self._founders)
        below = (*self._founders, *newcomers)
        return [below] * (len(self.levels) - 1) + [tuple(tasks), tuple(tasks)]
