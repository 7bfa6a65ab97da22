"""Cross-stitch networks: every task has a network of its own, and layers exchange activations.

Source: Misra et al., "Cross-stitch Networks for Multi-task Learning", CVPR 2016,
    https://arxiv.org/abs/1604.03539
Differs from the source: the networks stand on the encoder's features, and not on the inputs. The
    source has two tasks and gives a task 0.9 of itself and 0.1 of the other; here the others share
    the 0.1. The values were taken from memory of the paper.
Shapes: R = rows, A = asked tasks, N = tasks that run, W = width of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import key
from polytask.share.experts import Experts, Stacked, product, stack
from polytask.share.per_task import PerTask, among, dicts, with_founders
from polytask.share.trunk import Seen, TrunkModel
from polytask.tasks import TaskSet


class CrossStitch(PerTask):
    """After every layer, task t goes on with sum_j a_tj * h_j, with a trained a per channel.

    All tasks' networks run for one task: it reads them all. A task added later reads those that
    are there; they do not read it.

    tasks: their names. widths: of each network's layers. own: in [0, 1], what a task takes of its
    own layer at first.
    """

    def __init__(
        self, tasks: Sequence[str], inputs: int, *, widths: Sequence[int] = (64,), own: float = 0.9
    ) -> None:
        if not tasks or not 0 <= own <= 1:
            raise UsageError(
                f"Cross-stitch: give at least one task and own in [0, 1]; got {len(tasks)} tasks "
                f"and own {own}."
            )
        super().__init__(inputs, widths[-1] if widths else 0)
        self._own, self._widths = own, tuple(widths)
        self._founders = tuple(tasks)
        self._tasks: tuple[str, ...] = ()
        self.networks = nn.ModuleDict()
        self.stitches = nn.ModuleList(nn.ParameterDict() for _ in widths)
        for task in tasks:
            self.add_task(task)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        widths: tuple[int, ...] = (64,),
        own: float = 0.9,
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        widths: of each task's layers. own: what a task takes of its own layer at first.
        towers: of each task's layers after the last exchange.
        """
        trunk = CrossStitch(tasks.names, width, widths=widths, own=own)
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def parts(self) -> nn.ModuleList:
        return self.stitches

    def stack(self, tasks: Sequence[str]) -> Stacked:
        runs = with_founders(tasks, self._founders)
        stacked = stack("networks", [self._network(task) for task in runs])
        last = len(self._widths) - 1
        for layer, stitch in enumerate(dicts(self.stitches)):
            readers = tasks if layer == last else runs
            rows = [
                among(stitch[key(task)], len(self._founders), runs.index(task), len(runs))
                for task in readers
            ]
            stacked[f"stitch_{layer}"] = torch.stack(rows)
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        rows, layer = rows_RD, 0
        while f"stitch_{layer}" in stacked:
            weight, bias = (stacked[f"networks_{layer}_{n}"] for n in ("weight", "bias"))
            own_NRW = product(rows, weight, bias).relu_()
            rows = torch.einsum("anw,nrw->arw", stacked[f"stitch_{layer}"], own_NRW)
            layer += 1
        return rows

    def add_task(self, task: str) -> None:
        self.networks[key(task)] = Experts(1, self.inputs, self._widths)
        for stitch, width in zip(dicts(self.stitches), self._widths, strict=True):
            stitch[key(task)] = nn.Parameter(first_part(task, self._founders, width, self._own))
        self._tasks = (*self._tasks, task)


def first_part(task: str, founders: Sequence[str], width: int, own: float) -> Tensor:
    """Return what a task takes at first: of each task of the beginning, and last of itself where
    it came later; (tasks, width)."""
    others = len(founders) - (task in founders)
    part = torch.full((others + 1, width), (1 - own) / others if others else 0.0)
    part[founders.index(task) if task in founders else -1] = own if others else 1.0
    return part
