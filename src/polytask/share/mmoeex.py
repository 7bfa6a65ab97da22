"""MMoEEx: MMoE in which some experts are open to one task alone, or closed to one task.

Source: Aoki, Tung & Oliveira, "Heterogeneous Multi-task Learning with Expert Diversity",
    IEEE/ACM TCBB 2022, https://arxiv.org/abs/2106.10595
Differs from the source: a closed expert's logit is -inf, so that its weight is 0; the published
    code zeroes the gate's column, which makes the logit 0 and leaves the expert its share of the
    softmax. The source's two-step (MAML) optimisation is no matter of the architecture and is not
    here.
Shapes: R = rows, D = width of the features, E = experts, A = asked tasks, W = width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.errors import UsageError, unknown
from polytask.share.base import Gate, key
from polytask.share.experts import Experts, Gates, Stacked, opened, run, stack
from polytask.share.mixture import Mixture
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet


class MMoEEx(Trunk):
    """h_t = the experts open to the task, mixed by its softmax gate over them alone.

    shared: experts that more than one task may use; with `closed`, not each of them every task.
    own: task -> its exclusive experts; tasks without any are left out. Shared ones stand first on
        axis E, then those of `own`, in its order.
    closed: task -> shared experts closed to it (exclusion).
    """

    def __init__(
        self,
        tasks: Sequence[str],
        shared: Experts,
        own: Mapping[str, Experts],
        closed: Mapping[str, Sequence[int]],
    ) -> None:
        super().__init__(shared.inputs, shared.width)
        for task in (*own, *closed):
            if task not in tasks:
                raise unknown("task", task, tasks, f"The tasks are: {', '.join(tasks)}.")
        self.shared = shared
        self.own = nn.ModuleDict({key(task): experts for task, experts in own.items()})
        self._keepers = tuple(own)
        owners = [task for task, experts in own.items() for _ in range(experts.number)]
        self._owners: tuple[str | None, ...] = (None,) * shared.number + tuple(owners)
        self.gating = Gates(
            tasks,
            shared.inputs,
            len(self._owners),
            {task: [*closed.get(task, ()), *self._others(task)] for task in tasks},
        )

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        experts: int = 8,
        restricted: float = 0.5,
        kind: Literal["exclusivity", "exclusion"] = "exclusivity",
        widths: tuple[int, ...] = (64,),
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        experts: how many in all. restricted: part of them, in [0, 1), each assigned to a task that
            torch's generator draws. kind: "exclusivity" opens such an expert to that task alone;
            "exclusion" closes it to that task alone.
        """
        if not 0 <= restricted < 1:
            raise UsageError(
                f"MMoEEx: restricted is {restricted}; give a part in [0, 1), so that an expert is "
                "left that every task may use."
            )
        count = int(experts * restricted)
        drawn = torch.randint(len(tasks), (count,)).tolist()
        assigned: dict[str, list[int]] = {}
        for expert, t in enumerate(drawn):
            assigned.setdefault(tasks.names[t], []).append(expert)
        if kind == "exclusion":
            trunk = MMoEEx(tasks.names, Experts(experts, width, widths), {}, assigned)
        else:
            shared = Experts(experts - count, width, widths)
            own = {t: Experts(len(mine), width, widths) for t, mine in assigned.items()}
            trunk = MMoEEx(tasks.names, shared, own, {})
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.gating.readers

    def stack(self, tasks: Sequence[str]) -> Stacked:
        # In the order of axis E, whatever the order asked in.
        groups = [self.shared] + [self._own(t) for t in self._keepers if t in tasks]
        stacked = stack("experts", groups) | self.gating.stack("gates", tasks)
        columns = self._columns(tasks)
        if len(columns) < len(self._owners):
            stacked["columns"] = torch.tensor(columns, device=self.shared.weights[0].device)
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Mixture:
        experts_ERW = run(stacked, "experts", rows_RD)
        weights_RAE = opened(stacked, "gates", rows_RD)
        if "columns" in stacked:  # experts of tasks nobody asked for: their weight is 0 and they
            weights_RAE = weights_RAE.index_select(2, stacked["columns"])  # do not run
        if seen is not None:
            seen["weights_RAE"] = weights_RAE
        return Mixture(weights_RAE, experts_ERW)

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        columns = self._columns(tasks)
        names = tuple(f"expert {e}" for e in columns)
        owners = tuple(self._owners[e] for e in columns)
        return [Gate(0, tuple(tasks), names, owners, seen["weights_RAE"])]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the experts that are nobody's own."""
        return list(self.shared.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's gate and of its own experts."""
        own = self._own(task).parameters() if task in self._keepers else []
        return [*self.gating.parameters_of(task), *own]

    def add_task(self, task: str) -> None:
        """Add a task: every shared expert is open to it, and it has none of its own."""
        self.gating.add(task, self._others(task))

    def _own(self, task: str) -> Experts:
        experts = self.own[key(task)]
        assert isinstance(experts, Experts)
        return experts

    def _others(self, task: str) -> list[int]:
        return [e for e, owner in enumerate(self._owners) if owner not in (None, task)]

    def _columns(self, tasks: Sequence[str]) -> list[int]:
        return [e for e, owner in enumerate(self._owners) if owner is None or owner in tasks]
