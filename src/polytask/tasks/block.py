"""Blocks: tasks of one stream whose losses are computed in one call.

Tasks of one stackable kind stand side by side as columns, so that 139 of them cost what one costs.
Everything that does not depend on the model is done once per stream: targets are encoded, labels
counted. A step then only gathers rows.

Shapes: N = rows of the stream, B = rows of a batch, K = tasks of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.tasks.base import Kind, Task, TaskSet


@dataclass(frozen=True, eq=False)
class Block:
    """Tasks of one kind, and their labels in one stream.

    kind: of the tasks; where they differ in fields (two regressions), that of the first. The loss
        does not depend on those fields, the encoded target already has them in it.
    target: encoded; (N, K) where the kind stacks, else the one task's own shape. Missing labels
        stay missing.
    counts_NK: labels per row and task, always on the CPU, so that a batch's denominators
        `counts_NK[rows].sum(0)` wait for no device. Bool where a row has one label at most.
    """

    tasks: tuple[str, ...]
    kind: Kind
    target: Tensor
    counts_NK: Tensor

    def loss_sums(self, outputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """Return each task's loss summed over its labels, (K,).

        outputs: per task, B rows; (B, 1) where the kind stacks.
        target: the same B rows of `self.target`.
        """
        if self.kind.stacks:
            output = torch.cat([outputs[task] for task in self.tasks], dim=1)
            return self.kind.loss_sum(output, target)
        return self.kind.loss_sum(outputs[self.tasks[0]], target).reshape(1)

    def to(self, device: torch.device | str) -> Block:
        """Return the block with its target on `device`; the counts stay on the CPU."""
        return replace(self, target=self.target.to(device))


def blocks(tasks: TaskSet, targets: Mapping[str, Tensor]) -> tuple[Block, ...]:
    """Return the blocks of a stream: every task of the set that `targets` labels, in one of them.

    targets: per task its raw target, N rows each. Blocks come in the order of their first task.

    Raises UsageError for a target of no task, and for targets whose rows differ in number.
    """
    groups = _groups(tasks, targets)
    rows = {name: len(target) for name, target in targets.items()}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise UsageError(f"Targets of one stream need the same number of rows; got {told}.")
    return tuple(_block(group, targets) for group in groups)


def losses(
    tasks: TaskSet, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return each task's mean loss over its labels in this batch, for a loop of your own.

    A task without output, without target, or with missing labels only is absent: it is left out,
    not zero-filled. Scalars, in the order of the set.

    outputs: per task what its head returned, B rows. targets: per task its raw target, B rows.

    Raises UsageError for an output or a target of no task.
    """
    for name in outputs:
        tasks.index(name)  # an unknown name raises, with the nearest one
    for name in targets:
        tasks.index(name)
    means: dict[str, Tensor] = {}
    for block in blocks(tasks, {n: t for n, t in targets.items() if n in outputs}):
        sums_K = block.loss_sums(outputs, block.target)
        counts_K = block.counts_NK.sum(0).tolist()
        for task, total, count in zip(block.tasks, sums_K.unbind(), counts_K, strict=True):
            if count:
                means[task] = total / count
    return {name: means[name] for name in tasks.names if name in means}


def _groups(tasks: TaskSet, named: Iterable[str]) -> list[list[Task]]:
    """Return the named tasks, those that stack together in one list."""
    wanted = {tasks.index(name) for name in named}
    groups: list[list[Task]] = []
    stacks: dict[type[Kind], list[Task]] = {}
    for i, task in enumerate(tasks):
        if i not in wanted:
            continue
        group = stacks.get(type(task.kind)) if task.kind.stacks else None
        if group is not None:
            group.append(task)
            continue
        groups.append([task])
        stacks[type(task.kind)] = groups[-1]
    return groups


def _block(group: list[Task], targets: Mapping[str, Tensor]) -> Block:
    kind = group[0].kind
    names = tuple(task.name for task in group)
    if kind.stacks:
        target = torch.stack([task.kind.encode(targets[task.name]) for task in group], dim=1)
        return Block(names, kind, target, kind.present(target).cpu())
    target = kind.encode(targets[names[0]])
    present = kind.present(target).cpu()
    if present.ndim == 1:
        return Block(names, kind, target, present[:, None])
    return Block(names, kind, target, present.flatten(1).sum(1, keepdim=True, dtype=torch.int32))
