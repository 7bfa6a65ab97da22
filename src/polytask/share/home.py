"""HoME: experts in a hierarchy of all tasks, categories of tasks, and single tasks.

Source: Wang et al., "HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou",
    KDD 2025, https://arxiv.org/abs/2408.05430
Differs from the source: worked out from the paper's abstract and a third party's code, unverified
    against the authors'. LayerNorm in place of BatchNorm, whose statistics would make two
    processes with half a batch each differ from one with all of it. Experts have one layer. Gates
    of the second level read the category's features.
Shapes: R = rows, D = width of the inputs, A = asked tasks, C = categories that are needed,
    S = experts side by side, E = experts, W = width of an expert, Q = rank of a feature gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.errors import UsageError, unknown
from polytask.share.base import Gate, key
from polytask.share.experts import (
    Stacked,
    joined,
    opened,
    own,
    product,
)
from polytask.share.mixture import Mixture, mixed
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet

PARTS = ("down", "up", "weight", "bias", "gain", "shift")


class HoME(Trunk):
    """Two levels of experts that read their inputs through feature gates of low rank.

    An expert is swish(norm(linear(x * 2 sigmoid(x B A)))). First level: shared experts and those
    of every category; a category's gate is over the shared and its own, the shared gate over all.
    Second level: task t's gate is over experts of all tasks, of its category, and its own. Beside
    every gate a self gate, a sigmoid for one expert and a softmax for several, adds the reader's
    own experts once more, so that they always get a gradient.

    categories: name -> its tasks; every task in one of them.
    shared, per_category, own: how many experts of all tasks, of each category, of each task.
    width: W. rank: of the feature gates.
    """

    def __init__(
        self,
        categories: Mapping[str, Sequence[str]],
        inputs: int,
        *,
        shared: int = 1,
        per_category: int = 1,
        own: int = 1,
        width: int = 64,
        rank: int = 2,
    ) -> None:
        empty = [name for name, tasks in categories.items() if not tasks]
        if not categories or empty:
            what = f"the category {empty[0]!r} has none" if empty else "there is no category"
            raise UsageError(f"HoME: every category needs a task; {what}. Leave it out.")
        every = [task for tasks in categories.values() for task in tasks]
        if len(set(every)) != len(every):
            twice = sorted({task for task in every if every.count(task) > 1})
            raise UsageError(f"HoME: {', '.join(twice)} is in two categories; name it in one.")
        if min(shared, per_category, own, width, rank, inputs) < 1:
            raise UsageError(
                "HoME: experts of every sort, width and rank must be at least 1; got shared "
                f"{shared}, per_category {per_category}, own {own}, width {width}, rank {rank}."
            )
        super().__init__(inputs, width)
        self._sizes = (shared, per_category, own)
        self._rank = rank
        self._names = tuple(categories)
        self._category: dict[str, str] = {}
        self.shared_first = _Experts(shared, inputs, width, rank)
        self.shared_gate = nn.Linear(inputs, shared + per_category * len(categories), bias=False)
        self.shared_second = _Experts(shared, width, width, rank)
        self.categories = nn.ModuleDict()
        for name in categories:
            self.categories[key(name)] = nn.ModuleDict(
                {
                    "first": _Experts(per_category, inputs, width, rank),
                    "gate": nn.Linear(inputs, shared + per_category, bias=False),
                    "self_gate": nn.Linear(inputs, per_category, bias=False),
                    "second": _Experts(per_category, width, width, rank),
                }
            )
        self.own = nn.ModuleDict()
        for name, tasks in categories.items():
            for task in tasks:
                self.add_task(task, name)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        categories: Mapping[str, Sequence[str]] | None = None,
        *,
        shared: int = 1,
        per_category: int = 1,
        own: int = 1,
        expert_width: int = 64,
        rank: int = 2,
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        categories: name -> its tasks; None: tasks of one kind are a category.
        shared, per_category, own, expert_width, rank: of the experts. towers: of each task's own
        layers.
        """
        if categories is None:
            by_kind: dict[str, list[str]] = {}
            for task in tasks:
                by_kind.setdefault(task.kind.name, []).append(task.name)
            categories = by_kind
        trunk = HoME(
            categories,
            width,
            shared=shared,
            per_category=per_category,
            own=own,
            width=expert_width,
            rank=rank,
        )
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._category)

    def stack(self, tasks: Sequence[str]) -> Stacked:
        needed = [name for name in self._names if name in {self._category[t] for t in tasks}]
        every = [_modules(self.categories[key(name)]) for name in self._names]
        mine = [_modules(self.categories[key(name)]) for name in needed]
        own_of = [_modules(self.own[key(task)]) for task in tasks]
        stacked = _stack("shared_first", [self.shared_first])
        stacked |= _stack("first", [part["first"] for part in every])
        stacked |= _stack("shared_second", [self.shared_second])
        stacked |= _stack("second", [part["second"] for part in mine])
        stacked |= _stack("own", [part["experts"] for part in own_of])
        stacked["shared_gate_weight"] = self.shared_gate.weight[:, None]
        for name, parts in (("first", mine), ("own", own_of)):
            for gate in ("gate", "self_gate"):
                weights = [own(part[gate], "weight") for part in parts]
                stacked[f"{name}_{gate}_weight"] = torch.stack(weights, dim=1)
        device = self.shared_gate.weight.device
        if needed != list(self._names):
            at = [self._names.index(name) for name in needed]
            stacked["needed"] = torch.tensor(at, device=device)
        stacked["category"] = torch.tensor(
            [needed.index(self._category[task]) for task in tasks], device=device
        )
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        shared_ERW = _run(stacked, "shared_first", rows_RD)
        first_SRW = _run(stacked, "first", rows_RD)
        number = stacked["first_self_gate_weight"].shape[0]
        both_ERW = torch.cat([shared_ERW, first_SRW])
        shared_R1E = opened(stacked, "shared_gate", rows_RD)
        shared_RW = mixed(shared_R1E, both_ERW)[0]

        mine_SRW = first_SRW
        if "needed" in stacked:
            per_category = first_SRW.view(-1, number, *first_SRW.shape[1:])
            mine_SRW = per_category[stacked["needed"]].flatten(0, 1)
        weights_RCE = opened(stacked, "first_gate", rows_RD)
        category_CRW = Mixture(weights_RCE, shared_ERW, mine_SRW).rows()
        category_CRW = _with_self(stacked, "first_self_gate", rows_RD, mine_SRW, category_CRW)

        rows_ARW = category_CRW[stacked["category"]]
        global_ERW = _run(stacked, "shared_second", shared_RW)
        second_SRW = _run(stacked, "second", category_CRW.repeat_interleave(number, 0))
        mine = stacked["own_self_gate_weight"].shape[0]
        own_SRW = _run(stacked, "own", rows_ARW.repeat_interleave(mine, 0))
        per_task = second_SRW.view(-1, number, *second_SRW.shape[1:])[stacked["category"]]
        own_AERW = own_SRW.view(-1, mine, *own_SRW.shape[1:])
        closer_SRW = torch.cat([per_task, own_AERW], dim=1).flatten(0, 1)
        weights_RAE = opened(stacked, "own_gate", rows_ARW)
        given_ARW = Mixture(weights_RAE, global_ERW, closer_SRW).rows()
        if seen is not None:
            seen["shared_R1E"], seen["weights_RAE"] = shared_R1E, weights_RAE
            seen["first_RAE"] = weights_RCE[:, stacked["category"]]
        return _with_self(stacked, "own_self_gate", rows_ARW, own_SRW, given_ARW)

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        """Return the softmax gates; self gates come on top of them and are not counted."""
        shared, per_category, mine = self._sizes
        common = [f"shared {e}" for e in range(shared)]
        every = common + [f"{name} {e}" for name in self._names for e in range(per_category)]
        none = (None,) * len(every)
        found = [Gate(0, (None,), tuple(every), none, seen["shared_R1E"])]
        for a, task in enumerate(tasks):
            category = [f"{self._category[task]} {e}" for e in range(per_category)]
            names = (*common, *category)
            weights = seen["first_RAE"][:, a : a + 1]
            found.append(Gate(0, (task,), names, (None,) * len(names), weights))
        for a, task in enumerate(tasks):
            category = [f"{self._category[task]} {e}" for e in range(per_category)]
            names = (*common, *category, *(f"own {e}" for e in range(mine)))
            owners = (None,) * (shared + per_category) + (task,) * mine
            found.append(Gate(1, (task,), names, owners, seen["weights_RAE"][:, a : a + 1]))
        return found

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return all but what is one task's own; a category is open to tasks to come."""
        own_ids = {id(p) for p in self.own.parameters()}
        return [p for p in self.parameters() if id(p) not in own_ids]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the task's experts and gates."""
        return list(self.own[key(task)].parameters())

    def add_task(self, task: str, category: str | None = None) -> None:
        """Add a task to a category; None: the first one."""
        name = self._names[0] if category is None else category
        if name not in self._names:
            known = f"The categories are: {', '.join(self._names)}."
            raise unknown("category", name, self._names, known)
        shared, per_category, mine = self._sizes
        self.own[key(task)] = nn.ModuleDict(
            {
                "experts": _Experts(mine, self.width, self.width, self._rank),
                "gate": nn.Linear(self.width, shared + per_category + mine, bias=False),
                "self_gate": nn.Linear(self.width, mine, bias=False),
            }
        )
        self._category[task] = name


class _Experts(nn.Module):
    """S experts of one layer, each behind its feature gate."""

    def __init__(self, number: int, inputs: int, width: int, rank: int) -> None:
        super().__init__()
        wide, narrow = 1 / math.sqrt(inputs), 1 / math.sqrt(rank)
        self.down = nn.Parameter(torch.empty(number, inputs, rank).uniform_(-wide, wide))
        self.up = nn.Parameter(torch.empty(number, rank, inputs).uniform_(-narrow, narrow))
        self.weight = nn.Parameter(torch.empty(number, inputs, width).uniform_(-wide, wide))
        self.bias = nn.Parameter(torch.empty(number, width).uniform_(-wide, wide))
        self.gain = nn.Parameter(torch.ones(number, width))
        self.shift = nn.Parameter(torch.zeros(number, width))


def _modules(module: nn.Module) -> nn.ModuleDict:
    assert isinstance(module, nn.ModuleDict)
    return module


def _stack(name: str, groups: Sequence[nn.Module]) -> Stacked:
    return {f"{name}_{part}": joined([own(group, part) for group in groups]) for part in PARTS}


def _run(stacked: Stacked, name: str, rows: Tensor) -> Tensor:
    """Return every expert's output (S, R, W) for shared rows (R, D), or of each its own."""
    down, up, weight, bias, gain, shift = (stacked[f"{name}_{part}"] for part in PARTS)
    gate_SRD = 2 * torch.bmm(product(rows, down), up).sigmoid()
    made_SRW = torch.baddbmm(bias[:, None], rows * gate_SRD, weight)
    normed_SRW = functional.layer_norm(made_SRW, made_SRW.shape[-1:])
    return functional.silu(torch.addcmul(shift[:, None], normed_SRW, gain[:, None]))


def _with_self(
    stacked: Stacked, name: str, rows: Tensor, own_SRW: Tensor, given_GRW: Tensor
) -> Tensor:
    """Return what is given with the readers' own experts added by their self gates."""
    weight_EGD = stacked[f"{name}_weight"]
    if weight_EGD.shape[0] > 1:
        weights_RGE = opened(stacked, name, rows)
    else:
        weights_RGE = product(rows, weight_EGD.permute(1, 2, 0)).sigmoid().transpose(0, 1)
    own_GERW = own_SRW.view(len(given_GRW), -1, *own_SRW.shape[1:])
    for e in range(own_GERW.shape[1]):
        weight_GR1 = weights_RGE[..., e : e + 1].transpose(0, 1)
        given_GRW = torch.addcmul(given_GRW, own_GERW[:, e], weight_GR1)
    return given_GRW
