"""Rules of grouping, and what watches a run.

Shapes: T = tasks, K = groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polytask.errors import DataError
from polytask.relate import Affinity, Groups, Watch, hoa, member_of
from polytask.testing.parts import hold


def check_grouping(rule: Callable[[Affinity, int], Groups], seed: int = 0) -> None:
    """Return nothing if a rule of grouping keeps the contract of `polytask.relate`.

    rule: an affinity and a budget of models -> groups. seed: of the made-up affinities.

    Tried on tasks that help, hurt and do nothing, of scales from 1e-9 to 1e9, with budgets from one
    model to more than there are tasks. Raises AssertionError that names the broken rule.
    """
    generator = torch.Generator().manual_seed(seed)
    for tasks in (2, 3, 7):
        drawn_TT = torch.randn(tasks, tasks, generator=generator).double()
        kinds = {"mixed": drawn_TT, "helping": drawn_TT.abs(), "hurting": -drawn_TT.abs(),
                 "flat": 0 * drawn_TT, "tiny": 1e-9 * drawn_TT, "huge": 1e9 * drawn_TT}  # fmt: skip
        names = tuple(f"task {t}" for t in range(tasks))
        unknown_TT = torch.full((tasks, tasks), torch.nan)
        for kind, values_TT in kinds.items():
            affinity = Affinity(names, values_TT, unknown_TT)
            for budget in (1, 2, tasks, tasks + 3):
                where = f"{kind} tasks, {budget} models for {tasks}"
                _check_groups(rule, affinity, budget, where)
        holes_TT = drawn_TT.clone()
        holes_TT[0, 1] = torch.nan
        try:
            rule(Affinity(names, holes_TT, unknown_TT), 2)
        except DataError:
            continue
        _groups(False, f"{tasks} tasks", "a value is missing and it raises no DataError")


def _check_groups(
    rule: Callable[[Affinity, int], Groups], affinity: Affinity, budget: int, where: str
) -> None:
    before = affinity.values_TT.clone()
    found = rule(affinity, budget)
    _groups(torch.equal(affinity.values_TT, before), where, "it changed the affinity")
    _groups(found.tasks == affinity.tasks, where, f"it is of the tasks {found.tasks}")
    _groups(len(found.groups) <= budget, where, f"it uses {len(found.groups)} models")
    idle = set(range(len(found.groups))) - set(found.serve)
    _groups(not idle, where, f"groups {sorted(idle)} serve nobody")
    expected_KT = hoa(affinity, member_of(found.tasks, found.groups)).gain_GT
    for t, (k, value) in enumerate(zip(found.serve, found.value, strict=True)):
        close = math.isclose(value, float(expected_KT[k, t]), rel_tol=1e-6, abs_tol=1e-15)
        _groups(close or math.isnan(value), where, f"a value is {value}, not {expected_KT[k, t]}")
    _groups(rule(affinity, budget).groups == found.groups, where, "a second call finds others")


def _groups(holds: bool, where: str, otherwise: str) -> None:
    hold(holds, where, otherwise, "a rule of grouping")


def check_watch(
    make: Callable[
        [torch.nn.Module, Sequence[Tensor], torch.optim.Optimizer, tuple[str, ...]], Watch
    ],
    seed: int = 0,
) -> None:
    """Return nothing if a watch keeps the contract of `polytask.relate.Watch`.

    make: model, shared parameters, optimiser, task names -> the watch, looking at every step.
    seed: of the made-up model. Tried on one with batch-norm and dropout, over a few steps of Adam.

    Raises AssertionError that names the broken rule.
    """
    with torch.random.fork_rng(devices=[]):
        plain, watched, resumed = (_Watched(make if m else None, seed) for m in (0, 1, 1))
        for one in (plain, watched, resumed):
            torch.manual_seed(seed)
            for step in range(6):
                if one is resumed and step == 3:
                    one.restart(make)
                one.step()
            one.random = torch.get_rng_state()
    first, second = watched.watch, resumed.watch
    assert first is not None
    assert second is not None
    _watch(isinstance(first, Watch), "it lacks a member of Watch")
    _watch(torch.equal(plain.random, watched.random), "it moves the random state")
    for name, value in plain.model.state_dict().items():
        same = torch.equal(value, watched.model.state_dict()[name])
        _watch(same, f"a watched run ends otherwise, first seen in {name!r}")
    _watch(first.affinity().tasks == watched.names, "its affinity is of other tasks")
    _watch(first.affinity() == second.affinity(), "taken up from its state it goes another way")


class _Watched:
    """A small model in training, with a watch or without."""

    def __init__(self, make: Callable[..., Watch] | None, seed: int) -> None:
        torch.manual_seed(seed)
        self.names = ("task 0", "task 1", "task 2")
        self.trunk = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Tanh(), torch.nn.Dropout(0.2)
        )
        self.heads = torch.nn.ModuleList(torch.nn.Linear(6, 1) for _ in self.names)
        self.model = torch.nn.ModuleList([self.trunk, self.heads])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.random = torch.get_rng_state()
        self.watch: Watch | None = None
        if make is not None:
            self.restart(make)

    def restart(self, make: Callable[..., Watch]) -> None:
        before = self.watch
        self.watch = make(self.model, list(self.trunk.parameters()), self.optimizer, self.names)
        if before is not None:
            self.watch.load_state_dict(before.state_dict())

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {
            name: (head(features)[:, 0] - x[:, t]).square().mean()
            for t, (name, head) in enumerate(zip(self.names, self.heads, strict=True))
        }

    def step(self) -> None:
        x = torch.randn(16, 4)
        losses = self.losses(x)
        if self.watch is not None:
            self.watch.observe(losses, again=lambda: self.losses(x))
        self.optimizer.zero_grad()
        torch.autograd.backward(list(losses.values()))
        self.optimizer.step()


def _watch(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"The contract of a watch is broken: {otherwise}.")
