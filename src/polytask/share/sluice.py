"""Sluice networks: tasks exchange subspaces of their layers, and mix all layers at the end.

Source: Ruder et al., "Latent Multi-task Architecture Learning", AAAI 2019,
    https://arxiv.org/abs/1705.08142
Differs from the source: the exchange, the mixture of layers, the penalty and how they begin follow
    the authors' code. The networks are linear layers with ReLU on the encoder's features, where the
    source has recurrent ones on words and penalises two of their matrices. There is always a
    mixture of layers, and always two subspaces, which are switches there. Its code multiplies the
    two halves of a matrix over the units of a subspace; here it is over the inputs, so that the
    penalty is 0 where the two read orthogonal directions.
Shapes: R = rows, D = width of the features, L = layers, A = asked tasks, N = tasks that run,
    W = width of a layer, H = W / 2, of a subspace; 2 = subspaces of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import key
from polytask.share.experts import Experts, Stacked, product, stack
from polytask.share.per_task import PerTask, among, dicts, with_founders
from polytask.share.trunk import Seen, TrunkModel
from polytask.tasks import TaskSet


class Sluice(PerTask):
    """Subspace i of task t goes on with the sum of alpha * subspace over all tasks' subspaces;
    the task's features are the sum over layers of beta_tl * h_tl.

    All tasks' networks run for one task: it reads them all. A task added later reads those of the
    beginning; they do not read it.

    tasks: their names. layers: at least 1. width: of each, even. own: in [0, 1], what a subspace
    takes of itself at first, the rest coming evenly from the others; None: from all alike.
    orthogonality: >= 0, of the penalty on the squared products of a task's two subspaces' weights,
    of every layer.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        inputs: int,
        *,
        layers: int = 2,
        width: int = 64,
        own: float | None = None,
        orthogonality: float = 0.1,
    ) -> None:
        if not tasks or layers < 1 or width < 2 or width % 2 or not 0 <= (own or 0) <= 1:
            raise UsageError(
                "Sluice: give at least one task and one layer, an even width, and own in [0, 1]; "
                f"got {len(tasks)} tasks, {layers} layers, width {width}, own {own}."
            )
        if orthogonality < 0:
            raise UsageError(f"Sluice: orthogonality is {orthogonality}; give a value >= 0.")
        super().__init__(inputs, width)
        self.layers, self.orthogonality, self._own = layers, orthogonality, own
        self._founders = tuple(tasks)
        self._tasks: tuple[str, ...] = ()
        self.networks = nn.ModuleDict()
        self.exchanges = nn.ModuleList(nn.ParameterDict() for _ in range(layers))
        self.mixtures = nn.ParameterDict()
        for task in tasks:
            self.add_task(task)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        layers: int = 2,
        layer_width: int = 64,
        own: float | None = None,
        orthogonality: float = 0.1,
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        layers, layer_width: of each task's network. own, orthogonality: of the exchange. towers:
        of each task's layers after it.
        """
        trunk = Sluice(
            tasks.names,
            width,
            layers=layers,
            width=layer_width,
            own=own,
            orthogonality=orthogonality,
        )
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def parts(self) -> nn.ModuleList:
        return self.exchanges

    @property
    def penalises(self) -> bool:
        return self.orthogonality > 0

    def stack(self, tasks: Sequence[str]) -> Stacked:
        runs = with_founders(tasks, self._founders)
        stacked = stack("networks", [self._network(task) for task in runs])
        for layer, exchange in enumerate(dicts(self.exchanges)):
            readers = tasks if layer == self.layers - 1 else runs
            parts = [
                among(exchange[key(task)], len(self._founders), runs.index(task), len(runs))
                for task in readers
            ]
            stacked[f"exchange_{layer}"] = torch.stack(parts)
        stacked["mixture"] = torch.stack([self.mixtures[key(task)] for task in tasks])
        stacked["asked"] = torch.tensor(
            [runs.index(task) for task in tasks], device=self.mixtures[key(tasks[0])].device
        )
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        rows, given = rows_RD, []
        layers = stacked["mixture"].shape[1]
        for layer in range(layers):
            weight, bias = (stacked[f"networks_{layer}_{n}"] for n in ("weight", "bias"))
            own_NRW = product(rows, weight, bias).relu_()
            half_NR2H = own_NRW.view(*own_NRW.shape[:2], 2, own_NRW.shape[2] // 2)
            part_AN22 = stacked[f"exchange_{layer}"]  # to subspace i, from task n's subspace j
            rows = torch.einsum("anij,nrjh->arih", part_AN22, half_NR2H).flatten(2)
            given.append(rows if layer == layers - 1 else rows.index_select(0, stacked["asked"]))
        if seen is not None:
            for layer in range(layers):
                seen[f"weight_{layer}"] = stacked[f"networks_{layer}_weight"][stacked["asked"]]
        return torch.einsum("al,larw->arw", stacked["mixture"], torch.stack(given))

    def penalties(
        self, tasks: Sequence[str], seen: Seen, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        total_A = torch.zeros(())
        for layer in range(self.layers):
            first_AIH, second_AIH = seen[f"weight_{layer}"].chunk(2, dim=-1)
            products_AHH = torch.bmm(first_AIH.mT, second_AIH)
            total_A = total_A.to(products_AHH) + products_AHH.square().sum((1, 2))
        return dict(zip(tasks, (self.orthogonality * total_A).unbind(), strict=True))

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the task's last exchange and its mixture of layers, and all that is its own where
        it came later."""
        return [*super().task_parameters(task), self.mixtures[key(task)]]

    def add_task(self, task: str) -> None:
        self.networks[key(task)] = Experts(1, self.inputs, (self.width,) * self.layers)
        for exchange in dicts(self.exchanges):
            # Of all tasks' subspaces: `own` of itself, the rest evenly of the others.
            read = len(self._founders) + (task not in self._founders)
            own = 1 / (2 * read) if self._own is None else self._own
            part_N22 = torch.full((read, 2, 2), (1 - own) / (2 * read - 1))
            at = self._founders.index(task) if task in self._founders else -1
            part_N22[at] += torch.eye(2) * (own - part_N22[at])
            exchange[key(task)] = nn.Parameter(part_N22)
        self.mixtures[key(task)] = nn.Parameter(_mostly_last(self.layers))
        self._tasks = (*self._tasks, task)


def _mostly_last(layers: int) -> Tensor:
    """Return the mixture of layers at first: 0.9 of the last, the rest evenly of the others."""
    if layers == 1:
        return torch.ones(1)
    part_L = torch.full((layers,), 0.1 / (layers - 1))
    part_L[-1] = 0.9
    return part_L
