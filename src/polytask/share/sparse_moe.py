"""Sparse mixture of experts: a gate sends every row to k of E experts, and no other computes it.

Source: Fedus, Zoph & Shazeer, "Switch Transformers: Scaling to Trillion Parameter Models with
    Simple and Efficient Sparsity", JMLR 2022, https://arxiv.org/abs/2101.03961; the loss over the
    global batch: Qiu et al., "Demons in the Detail: On Implementing Load Balancing Loss for
    Training Specialized Mixture-of-Expert Models", ACL 2025, https://arxiv.org/abs/2501.11873
Differs from the source: worked out from abstracts and memory. The layers stand on the encoder's
    features, without attention or normalisation between them; a "sequence" or a "map" has a row
    per position, padding included. k is any number, with the gate's probabilities as weights, not
    made to sum to 1. The gate has no noise. Capacity limits training alone: an output must not
    depend on the other rows of its batch. The loss is divided by k, so that even is 1 for any k.
    Global counts are exact in `fit`, which makes the passes of an update twice where there are
    several; the source adds them up as they come.
Shapes: R = rows, L = layers, G = gates, E = experts, K = experts of a row, D = width of the
    features, A = asked tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import Gate
from polytask.share.experts import Experts, Gates, Stacked, opened, stack
from polytask.share.routing import counted, imbalance, routed, spread, within
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet

Balancing = Literal["batch", "global", "none"]


class Router(nn.Module):
    """The gate of one layer: tensors for `experts.opened`, for one gate or one per task.

    inputs, experts: D and E. common: whether all tasks read the one gate.
    """

    common: bool = False

    def __init__(self, inputs: int, experts: int) -> None:
        super().__init__()
        self.inputs, self.experts = inputs, experts

    @abstractmethod
    def stack(self, name: str, tasks: Sequence[str]) -> Stacked:
        """Return what `opened` needs for these tasks."""

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters all tasks reach."""

    @abstractmethod
    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters this task alone reaches."""

    @abstractmethod
    def add_task(self, task: str) -> None:
        """Add a task."""


class OneGate(Router):
    """One gate for all tasks: it reads the row and nothing else."""

    common = True

    def __init__(self, inputs: int, experts: int) -> None:
        super().__init__(inputs, experts)
        self.gate = Gates(("every task",), inputs, experts)

    def stack(self, name: str, tasks: Sequence[str]) -> Stacked:
        return self.gate.stack(name, self.gate.readers)

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.gate.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return []

    def add_task(self, task: str) -> None:
        pass  # it reads the gate that is there


class SparseMoE(Trunk):
    """Layer by layer, h = h + sum of p_e(h) * f_e(h) over the k most probable experts e.

    An expert is linear, ReLU, linear; p is the gate's softmax over all experts. The experts not
    chosen for a row do not compute it.

    experts, routers: of each layer, an expert's outputs as wide as its inputs. k: 1 to E.
    capacity: in training, how many times its even share of the batch's choices an expert takes;
    what comes later passes it by, unchanged. None: all. A part of a batch, in a process or a
    micro-batch of its own, has its own even share.
    balance: over which rows choices are counted for the loss E * sum_i f_i p_i: "batch", of one
    pass; "global", of the whole update, see `Loads`; "none": no loss. weight: >= 0, of this loss in
    every task's own; 1 is its value where all is even.
    """

    choices_K: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        experts: Sequence[Experts],
        routers: Sequence[Router],
        *,
        k: int = 1,
        capacity: float | None = None,
        balance: Balancing = "batch",
        weight: float = 0.01,
    ) -> None:
        if not tasks or not experts or len(experts) != len(routers):
            raise UsageError(
                "Sparse MoE: give at least one task, and experts and a router per layer; got "
                f"{len(tasks)} tasks, experts of {len(experts)} layers, {len(routers)} routers."
            )
        first = experts[0]
        super().__init__(first.inputs, first.inputs)
        for part, router in zip(experts, routers, strict=True):
            sizes = (part.inputs, part.width, part.number)
            wanted = (self.inputs, self.inputs, first.number)
            if sizes != wanted or (router.inputs, router.experts) != (self.inputs, first.number):
                raise UsageError(
                    "Sparse MoE: every layer needs as many experts, as wide as their inputs, and a "
                    f"router of these; got {part.extra_repr()} and a router of {router.inputs} "
                    f"inputs to {router.experts} experts."
                )
        if not 1 <= k <= first.number:
            raise UsageError(
                f"Sparse MoE: k is {k}; give 1 to {first.number}, the number of experts."
            )
        if capacity is not None and capacity <= 0:
            raise UsageError(
                f"Sparse MoE: capacity is {capacity}; give a number > 0, 1 for an even share, or "
                "none to take every row."
            )
        if weight < 0:
            raise UsageError(f"Sparse MoE: weight is {weight}; give a number >= 0 (default 0.01).")
        self.capacity, self.balance, self.balance_weight = capacity, balance, weight
        self.experts, self.routers = nn.ModuleList(experts), nn.ModuleList(routers)
        self.register_buffer("choices_K", torch.arange(k), persistent=False)
        self._tasks = tuple(tasks)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        *,
        experts: int = 8,
        k: int = 1,
        layers: int = 1,
        hidden: int = 64,
        capacity: float | None = None,
        balance: Balancing = "batch",
        weight: float = 0.01,
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        experts: of each layer. hidden: width between an expert's two products. k, capacity,
        balance, weight: see the class. towers: of each task's own layers.
        """
        trunk = SparseMoE(
            tasks.names,
            feed_forward(layers, experts, width, hidden),
            [OneGate(width, experts) for _ in range(layers)],
            k=k,
            capacity=capacity,
            balance=balance,
            weight=weight,
        )
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    @property
    def penalises(self) -> bool:
        return self.balance != "none" and self.balance_weight > 0

    @property
    def loads(self) -> tuple[str, ...]:
        return ("counts_LE",) if self.penalises and self.balance == "global" else ()

    def stack(self, tasks: Sequence[str]) -> Stacked:
        stacked: Stacked = {"choices": self.choices_K}
        for layer, (experts, router) in enumerate(self._layers()):
            stacked |= stack(f"experts{layer}", [experts])
            stacked |= router.stack(f"router{layer}", tasks)
        if self._layers()[0][1].common:
            stacked["asked"] = self.choices_K.new_zeros(len(tasks))
        if self.capacity is not None and self.training:
            stacked["capacity"] = torch.tensor(self.capacity, device=self.choices_K.device)
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        given_GRD, layer = rows_RD[None], 0
        counts: list[Tensor] = []
        while f"router{layer}_weight" in stacked:
            # Rows of their own from the second layer on, where every task has its gate.
            rows = given_GRD[0] if len(given_GRD) == 1 else given_GRD
            probabilities_RGE = opened(stacked, f"router{layer}", rows)
            experts = probabilities_RGE.shape[2]
            weights_RGK, chosen_RGK = probabilities_RGE.topk(len(stacked["choices"]), dim=2)
            counts.append(counted(chosen_RGK, experts))
            if "capacity" in stacked:
                weights_RGK = weights_RGK * within(chosen_RGK, experts, stacked["capacity"])
            if seen is not None:
                seen[f"probabilities_RGE {layer}"] = probabilities_RGE
                seen[f"weights_RGE {layer}"] = spread(weights_RGK, chosen_RGK, experts)
            added_GRD = routed(stacked, f"experts{layer}", rows, weights_RGK, chosen_RGK)
            given_GRD, layer = given_GRD + added_GRD, layer + 1
        if seen is not None:
            seen["counts_LE"] = torch.stack(counts)
        asked = stacked.get("asked")
        return given_GRD if asked is None else given_GRD.expand(len(asked), -1, -1)

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        names = tuple(f"expert {e}" for e in range(self._layers()[0][0].number))
        owners = (None,) * len(names)
        return [
            Gate(
                layer,
                (None,) if router.common else tuple(tasks),
                names,
                owners,
                seen[f"weights_RGE {layer}"],
            )
            for layer, (_, router) in enumerate(self._layers())
        ]

    def penalties(
        self, tasks: Sequence[str], seen: Seen, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return each task's part: choices counted over all tasks, probabilities of its gate."""
        if not self.penalises:
            return {}
        every = [
            imbalance(seen[f"probabilities_RGE {layer}"], counts_E)
            for layer, counts_E in enumerate(seen["counts_LE"])
        ]
        penalty_G = self.balance_weight * torch.stack(every).sum(0)
        return dict(zip(tasks, penalty_G.expand(len(tasks)).unbind(), strict=True))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the experts' parameters, and those of the gates that all tasks reach."""
        of_gates = [p for _, router in self._layers() for p in router.shared_parameters()]
        return [*self.experts.parameters(), *of_gates]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of gates that this task alone reaches."""
        return [p for _, router in self._layers() for p in router.task_parameters(task)]

    def add_task(self, task: str) -> None:
        for _, router in self._layers():
            router.add_task(task)
        self._tasks = (*self._tasks, task)

    def _layers(self) -> list[tuple[Experts, Router]]:
        found = []
        for experts, router in zip(self.experts, self.routers, strict=True):
            assert isinstance(experts, Experts)
            assert isinstance(router, Router)
            found.append((experts, router))
        return found


def feed_forward(layers: int, experts: int, width: int, hidden: int) -> list[Experts]:
    """Return each layer's experts: linear, ReLU, linear, as wide as their inputs."""
    if layers < 1:
        raise UsageError(f"Sparse experts: layers is {layers}; give at least 1.")
    return [Experts(experts, width, (hidden,), out=width) for _ in range(layers)]
