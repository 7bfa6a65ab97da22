"""SkillNet: a task names the skills it needs; their modules run, and one for all, and no other.

Source: Zhang et al., "SkillNet-NLU: A Sparsely Activated Model for General-Purpose Natural Language
    Understanding", 2022, https://arxiv.org/abs/2203.03312
Differs from the source: worked out from the abstract and memory. The layers stand on the encoder's
    features, without the attention between them. Skills are averaged as in the source; the generic
    one counts as one of them. Where no skills are given a task lists one of its own and one that
    all tasks of its kind list; the source's are named by people.
Shapes: R = rows, D = width of the features, A = asked tasks, S = skills that run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share.base import Gate, key
from polytask.share.experts import Experts, Stacked, run, stack
from polytask.share.trunk import Seen, Trunk, TrunkModel
from polytask.tasks import TaskSet

GENERIC = "generic"
"""The skill every task has, listed or not."""


class SkillNet(Trunk):
    """Layer by layer, h = h + mean of f_s(h) over the task's skills and the generic one.

    A skill's module is linear, ReLU, linear on every layer. Who lists a skill alone owns it.

    skills: task -> the skills it lists, any number. layers: at least 1. hidden: width between a
    module's two products.
    """

    def __init__(
        self,
        skills: Mapping[str, Sequence[str]],
        inputs: int,
        *,
        layers: int = 1,
        hidden: int = 64,
    ) -> None:
        if not skills or layers < 1:
            raise UsageError(
                f"SkillNet: give at least one task and one layer; got {len(skills)} tasks and "
                f"{layers} layers."
            )
        super().__init__(inputs, inputs)
        self.layers, self._hidden = layers, hidden
        self.listed: dict[str, tuple[str, ...]] = {}
        self.skills = nn.ModuleDict()
        for task, listed in skills.items():
            self.add_task(task, listed)

    @staticmethod
    def build(
        encoder: nn.Module,
        width: int,
        tasks: TaskSet,
        skills: Mapping[str, Sequence[str]] | None = None,
        *,
        layers: int = 1,
        hidden: int = 64,
        towers: tuple[int, ...] = (),
    ) -> TrunkModel:
        """Return the model on `width` features.

        skills: task -> its skills, for every task; None: one of its own, one of its kind. layers,
        hidden: of the skills' modules. towers: of each task's own layers.
        """
        if skills is None:
            skills = {task.name: (f"of {task.name}", f"kind {task.kind.name}") for task in tasks}
        elif set(skills) != set(tasks.names):
            raise UsageError(
                f"SkillNet: skills are given for {', '.join(skills) or 'no task'}; the tasks are "
                f"{', '.join(tasks.names)}. Give each a list, which may be empty."
            )
        trunk = SkillNet(skills, width, layers=layers, hidden=hidden)
        return TrunkModel.build(encoder, trunk, tasks, towers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.listed)

    def stack(self, tasks: Sequence[str]) -> Stacked:
        runs = tuple(dict.fromkeys(skill for task in tasks for skill in self.of(task)))
        pairs = [(a, skill) for a, task in enumerate(tasks) for skill in self.of(task)]
        stacked = stack("skills0", [self._module(skill, 0) for skill in runs])
        for layer in range(1, self.layers):
            modules = [self._module(skill, layer) for _, skill in pairs]
            stacked |= stack(f"skills{layer}", modules)
        weight = stacked["skills0_0_weight"]
        stacked["part"] = self._parts(tasks, runs).to(weight)
        if self.layers > 1:
            stacked["task"] = torch.tensor([a for a, _ in pairs], device=weight.device)
        return stacked

    @staticmethod
    def mix(stacked: Stacked, rows_RD: Tensor, seen: Seen | None = None) -> Tensor:
        # All tasks read the same rows on the first layer: a skill computes them once.
        part_AS, each_SRD = stacked["part"], run(stacked, "skills0", rows_RD)
        rows_ARD, layer = rows_RD + torch.einsum("as,srd->ard", part_AS, each_SRD), 1
        while f"skills{layer}_0_weight" in stacked:
            task_P = stacked["task"]
            each_PRD = run(stacked, f"skills{layer}", rows_ARD.index_select(0, task_P))
            part_P11 = part_AS.amax(1)[task_P][:, None, None]  # all of a task's are alike
            rows_ARD = rows_ARD.index_add(0, task_P, each_PRD * part_P11)
            layer += 1
        if seen is not None:
            seen["rows"] = rows_RD
        return rows_ARD

    def gates(self, tasks: Sequence[str], seen: Seen) -> list[Gate]:
        names = self.names()
        owners = tuple(self._owner(skill) for skill in names)
        part_AS = self._parts(tasks, names).to(seen["rows"])
        weights_RAS = part_AS.expand(len(seen["rows"]), -1, -1)
        return [
            Gate(layer, tuple(tasks), names, owners, weights_RAS) for layer in range(self.layers)
        ]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the generic skill, and of those that several tasks list."""
        shared = [skill for skill in self.names() if self._owner(skill) is None]
        return [p for skill in shared for p in self.skills[key(skill)].parameters()]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters of the skills that this task alone lists."""
        own = [skill for skill in self.listed[task] if self._owner(skill) == task]
        return [p for skill in own for p in self.skills[key(skill)].parameters()]

    def add_task(self, task: str, skills: Sequence[str] | None = None) -> None:
        """Add a task. skills: those it lists, known or new; None: a new one of its own."""
        listed = (f"of {task}",) if skills is None else tuple(dict.fromkeys(skills))
        for skill in (GENERIC, *listed):
            if key(skill) not in self.skills:
                self.skills[key(skill)] = nn.ModuleList(
                    Experts(1, self.inputs, (self._hidden,), out=self.inputs)
                    for _ in range(self.layers)
                )
        self.listed[task] = tuple(skill for skill in listed if skill != GENERIC)

    def of(self, task: str) -> tuple[str, ...]:
        """Return the skills that run for a task."""
        return (GENERIC, *self.listed[task])

    def names(self) -> tuple[str, ...]:
        """Return every skill's name, the generic one first."""
        return tuple(dict.fromkeys(skill for task in self.listed for skill in self.of(task)))

    def _parts(self, tasks: Sequence[str], runs: Sequence[str]) -> Tensor:
        at = {skill: s for s, skill in enumerate(runs)}
        rows = [[0.0] * len(runs) for _ in tasks]
        for row, task in zip(rows, tasks, strict=True):
            for skill in self.of(task):
                row[at[skill]] = 1 / len(self.of(task))
        return torch.tensor(rows, dtype=torch.float64)

    def _owner(self, skill: str) -> str | None:
        """Return the task that lists a skill alone."""
        listing = [task for task in self.listed if skill in self.of(task)]
        return listing[0] if len(listing) == 1 and skill != GENERIC else None

    def _module(self, skill: str, layer: int) -> Experts:
        layers = self.skills[key(skill)]
        assert isinstance(layers, nn.ModuleList)
        module = layers[layer]
        assert isinstance(module, Experts)
        return module
