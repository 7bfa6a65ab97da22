"""AITM: tasks in the order of their steps; each weighs what the step before hands on.

Source: Xi et al., "Modeling the Sequential Dependence among Audience Multi-step Conversions with
    Multi-task Learning in Targeted Display Advertising", KDD 2021, https://arxiv.org/abs/2105.08489
Differs from the source: the tasks' networks stand on the encoder's features, without dropout of
    their own. Each task has its own attention, where published code for two tasks has the one it
    needs. The calibrator is a mean over rows, because the cross entropies are means.
Shapes: R = rows, A = asked tasks, W = width of a network, 2 = own and handed on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError
from polytask.share.base import key
from polytask.share.experts import Experts, Stacked, run, stack
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import Binary, TaskSet


class AITM(Trunk):
    """h_t = attention over {network_t(x), relu(linear(h_{t-1}))}; the first task has its network.

    The order of the tasks is that of the steps: what ends in a click, then in a purchase. For one
    task, it and those before it run. The hand-over goes task by task, as the equations demand; all
    else is one product for all tasks.

    tasks: their names, first step first. widths: of each network's layers. calibrate: >= 0, of the
    penalty on a probability above that of the step before, for tasks that are yes or no.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        inputs: int,
        *,
        widths: Sequence[int] = (128, 64, 32),
        calibrate: float = 0.6,
    ) -> None:
        if not tasks or calibrate < 0:
            raise UsageError(
                f"AITM: give at least one task and calibrate >= 0; got {len(tasks)} tasks and "
                f"calibrate {calibrate}."
            )
        super().__init__(inputs, widths[-1] if widths else 0)
        self.calibrate, self._widths = calibrate, tuple(widths)
        self._tasks: tuple[str, ...] = ()
        self.networks, self.transfers = nn.ModuleDict(), nn.ModuleDict()
        for task in tasks:
            self.add_task(task)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        widths: tuple[int, ...] = (128, 64, 32),
        calibrate: float = 0.6,
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features; all tasks are binary, first step first.

        widths: of each task's network. calibrate: of the penalty. towers: of each task's layers
        after the hand-over.
        """
        for task in tasks:
            if not isinstance(task.kind, Binary):
                raise UsageError(
                    f"AITM: its tasks are yes or no, each a step on from the one before; "
                    f"{task.name!r} is {task.kind.name}. Leave it out, or use another sharing."
                )
        trunk = AITM(tasks.names, width, widths=widths, calibrate=calibrate)
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    @property
    def penalises(self) -> bool:
        return self.calibrate > 0

    def stack(self, tasks: Sequence[str]) -> Stacked:
        runs = self._tasks[: 1 + max(self._tasks.index(task) for task in tasks)]
        stacked = stack("networks", [self._network(task) for task in runs])
        if len(runs) > 1:
            hands = [self._transfer(task) for task in runs[1:]]
            stacked["hand"] = torch.stack([one.hand.weight for one in hands])
            stacked["hand_bias"] = torch.stack([one.hand.bias for one in hands])
            stacked["attention"] = torch.stack([one.attention.weight for one in hands])
        if tuple(tasks) != runs:
            at = [runs.index(task) for task in tasks]
            stacked["asked"] = torch.tensor(at, device=self._network(runs[0]).weights[0].device)
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        own = run(stacked, "networks", rows_RD).unbind()
        steps = [own[0]]
        for t, own_RW in enumerate(own[1:]):
            handed_RW = functional.linear(steps[-1], stacked["hand"][t], stacked["hand_bias"][t])
            both_2RW = torch.stack([own_RW, handed_RW.relu()])
            query, keys, value = functional.linear(both_2RW, stacked["attention"][t]).chunk(3, -1)
            score_2R1 = (query * keys).sum(-1, keepdim=True) / math.sqrt(own_RW.shape[-1])
            steps.append((score_2R1.softmax(0) * value).sum(0))
        given_ARW = torch.stack(steps)
        asked = stacked.get("asked")
        return given_ARW if asked is None else given_ARW.index_select(0, asked)

    def penalties(
        self, tasks: Sequence[str], seen: Seen, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return what each asked task is more probable than the one before it, if asked too."""
        found: dict[str, Tensor] = {}
        for before, task in zip(self._tasks, self._tasks[1:], strict=False):
            if before in tasks and task in tasks:
                above = outputs[task].sigmoid() - outputs[before].sigmoid()
                found[task] = self.calibrate * above.relu().mean()
        return found

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of every task but the last: later ones read them."""
        return [p for task in self._tasks[:-1] for p in self._of(task)]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the last task's parameters; the other tasks have none that no other reads."""
        return self._of(task) if task == self._tasks[-1] else []

    def add_task(self, task: str) -> None:
        """Add a task as the last step; what the last one had alone it now shares."""
        self.networks[key(task)] = Experts(1, self.inputs, self._widths)
        if self._tasks:
            self.transfers[key(task)] = _Transfer(self.width)
        self._tasks = (*self._tasks, task)

    def _of(self, task: str) -> list[nn.Parameter]:
        own = list(self._network(task).parameters())
        return own if task == self._tasks[0] else [*own, *self._transfer(task).parameters()]

    def _network(self, task: str) -> Experts:
        network = self.networks[key(task)]
        assert isinstance(network, Experts)
        return network

    def _transfer(self, task: str) -> _Transfer:
        transfer = self.transfers[key(task)]
        assert isinstance(transfer, _Transfer)
        return transfer


class _Transfer(nn.Module):
    """What a task makes of the one before: hand (W -> W), attention (W -> query, key, value)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hand = nn.Linear(width, width)
        self.attention = nn.Linear(width, 3 * width, bias=False)
