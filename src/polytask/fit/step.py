"""One update, in the open: forward, losses with their own denominators, balance, step.

Shapes: K = tasks of a block that are present.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polytask.balance import Again, Balancer, Losses, Rows, Weights, sum_gradients
from polytask.fit import ranks
from polytask.fit.data import Batch, Step
from polytask.share import Loads, SharedModel, Trace
from polytask.tasks import Block


def task_losses(
    model: SharedModel,
    batches: Sequence[Batch],
    counts: Mapping[str, float],
    precision: str,
    loads: Loads | None = None,
) -> tuple[tuple[str, ...], Tensor]:
    """Return the present tasks and their losses (K,): each the sum over its labels here over its
    labels in the update.

    One tensor and not K scalars: taking them apart and adding them up again would cost as much
    as a layer. A model that penalises adds the gradient of its penalty, and of its further
    outputs' losses, and not their value.
    batches: one per table; counts: labels per task in the whole update. A task not in `counts` is
    absent: its head does not run and it has no loss.
    loads: of the whole update, for models that ask for it.
    """
    names: list[str] = []
    sums: list[Tensor] = []
    for batch in batches:
        present = [
            _present(block, target, counts)
            for block, target in zip(batch.blocks, batch.targets, strict=True)
        ]
        asked = [task for block, _ in present for task in block.tasks]
        trace = Trace(loads=loads) if model.penalises and torch.is_grad_enabled() else None
        outputs = _outputs(model, batch, asked, precision, trace)
        for block, target in present:
            if block.tasks:
                names += block.tasks
                sums_K = block.loss_sums(outputs, target)
                if trace is not None:
                    beside_K = _penalty_sums(block, target, trace)
                    for further in trace.further:
                        beside_K = beside_K + block.loss_sums(further, target)
                    # It steers and does not count: methods and records see the task's own loss.
                    sums_K = sums_K + (beside_K - beside_K.detach())
                sums.append(sums_K)
    if not names:
        return (), torch.empty(0)
    together = sums[0] if len(sums) == 1 else torch.cat(sums)
    labels = [counts[task] for task in names]
    # Where all are alike, as with complete labels, one number divides without a tensor of them.
    alike = labels.count(labels[0]) == len(labels)
    losses = together / (labels[0] if alike else together.new_tensor(labels))
    tasks = tuple(dict.fromkeys(names))
    if len(tasks) == len(names):
        return tasks, losses
    # Tables of several batches label the same task: its parts add up.
    at = torch.tensor([tasks.index(task) for task in names], device=losses.device)
    return tasks, losses.new_zeros(len(tasks)).index_add(0, at, losses)


def _outputs(
    model: SharedModel, batch: Batch, asked: Sequence[str], precision: str, trace: Trace | None
) -> dict[str, Tensor]:
    with _autocast(batch.targets[0].device, precision):
        if trace is None:
            return model(batch.inputs, tasks=asked)  # type: ignore[no-any-return]
        return model(batch.inputs, tasks=asked, trace=trace)  # type: ignore[no-any-return]


def update_loads(model: SharedModel, fed: Step, precision: str) -> Loads | None:
    """Return what the penalties of a step's passes need of the whole step; None where nothing.

    A step of one pass learns it on the way. One of several makes them all once before, without
    gradients and with the random numbers they will draw again: a third of the step's cost.
    """
    if not (model.loads and model.penalises):
        return None
    loads = Loads()
    if sum(map(len, fed.micros)) == 1:
        return loads
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices), buffers_kept(model):
        for batch in (batch for batches in fed.micros for batch in batches):
            asked = [task for task in batch.tasks if task in fed.counts]
            _outputs(model, batch, asked, precision, Trace(loads=loads))
    loads.close()
    return loads


def _penalty_sums(block: Block, target: Tensor, trace: Trace) -> Tensor:
    """Return the tasks' penalties (K,) times their labels here.

    They belong to the mean loss, so over the batches of an update each counts by its labels.
    """
    there = block.kind.present(target)
    labels_K = there.sum(0) if block.kind.stacks else there.sum().reshape(1)
    none = torch.zeros((), device=labels_K.device)
    penalty_K = torch.stack([trace.penalties.get(task, none) for task in block.tasks])
    # The mean over no rows, which a process may have of a short batch, is NaN and belongs to none.
    return torch.where(labels_K > 0, labels_K * penalty_K, 0.0)


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()  # a disabled autocast costs ten times as much


def step_losses(model: SharedModel, fed: Step, precision: str) -> tuple[tuple[str, ...], Tensor]:
    """Return the present tasks and their losses (K,) over a whole step, without a graph.

    Over several processes: this one's share of them.
    """
    with torch.no_grad():
        parts = [task_losses(model, batches, fed.counts, precision) for batches in fed.micros]
    if len(parts) == 1:
        return parts[0]
    tasks = tuple(dict.fromkeys(task for names, _ in parts for task in names))
    if not tasks:
        return parts[0]
    losses_K = torch.cat([losses for names, losses in parts if names])
    at = [tasks.index(task) for names, _ in parts for task in names]
    at_K = torch.tensor(at, device=losses_K.device)
    return tasks, losses_K.new_zeros(len(tasks)).index_add(0, at_K, losses_K)


def _present(block: Block, target: Tensor, counts: Mapping[str, float]) -> tuple[Block, Tensor]:
    """Return the block and its batch of targets without the tasks that are absent."""
    columns = [k for k, task in enumerate(block.tasks) if task in counts]
    if len(columns) == len(block.tasks):
        return block, target
    left = replace(block, tasks=tuple(block.tasks[k] for k in columns))
    return left, target[:, columns] if block.kind.stacks else target


def losses_again(model: SharedModel, fed: Step, precision: str, micro: int = 0) -> Again:
    """Return the function that computes a micro-batch's losses again, for methods that look again.

    Of all rows they are those of `task_losses`. Of some rows, each table of the step loses rows of
    its own, and every loss is the mean over the labels in the rows taken. Where the update has
    other micro-batches or processes, whose labels are not known here, it is the sum over those
    labels, divided by the labels of the update times the part of the rows that is taken. Buffers
    (running statistics of batch normalisation) stay as they are; dropout is drawn anew.
    """
    batches = fed.micros[micro]
    alone = len(fed.micros) == 1 and ranks.world() == 1

    def again(rows: Rows, tasks: Sequence[str]) -> Losses:
        counts = {task: fed.counts[task] for task in tasks if task in fed.counts}
        with buffers_kept(model):
            if rows == Rows():
                names, losses_K = task_losses(model, batches, counts, precision)
                return dict(zip(names, losses_K.unbind(), strict=True))
            taken = [_taken(batch, rows) for batch in batches]
            labels = [_labels(batch) for batch in taken]
            if alone:
                present = {task: sum(found.get(task, 0.0) for found in labels) for task in counts}
                there = {task: count for task, count in present.items() if count}
                names, losses_K = task_losses(model, taken, there, precision)
                return dict(zip(names, losses_K.unbind(), strict=True))
            losses: dict[str, Tensor] = {}
            for batch, part, found in zip(batches, taken, labels, strict=True):
                there = {task: count for task, count in counts.items() if found.get(task)}
                if not there:
                    continue
                share = len(part.targets[0]) / len(batch.targets[0])
                there = {task: count * share for task, count in there.items()}
                names, losses_K = task_losses(model, [part], there, precision)
                for task, loss in zip(names, losses_K.unbind(), strict=True):
                    losses[task] = losses[task] + loss if task in losses else loss
            return losses

    return again


def _labels(batch: Batch) -> dict[str, float]:
    """Return how many labels every task has in the batch."""
    counts: dict[str, float] = {}
    for block, target in zip(batch.blocks, batch.targets, strict=True):
        present = block.kind.present(target)
        labels = present.sum(0) if block.kind.stacks else present.sum().reshape(1)
        counts |= dict(zip(block.tasks, labels.tolist(), strict=True))
    return counts


def _taken(batch: Batch, rows: Rows) -> Batch:
    inputs = batch.inputs
    if isinstance(inputs, Tensor):
        return replace(batch, inputs=rows(inputs), targets=tuple(map(rows, batch.targets)))
    taken = {name: rows(value) for name, value in inputs.items()}
    return replace(batch, inputs=taken, targets=tuple(map(rows, batch.targets)))


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back at the end, bit for bit."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)  # unseen by autograd: no backward pass needs the old value


def train_step(
    model: SharedModel,
    balancer: Balancer,
    optimiser: Optimizer,
    fed: Step,
    precision: str = "float32",
    clip: float | None = None,
) -> Weights:
    """Make one update; return the weights of the tasks present, and with them their losses.

    fed: see `Feed.step`; over several processes each is fed its share of the update, and the
    losses and gradients are those of the whole.
    clip: largest norm of all gradients together, None for no clipping.
    A method that observes losses after the update is shown them, in the model's own mode. One
    that observes validation losses is shown them by the loop.

    Raises RunError naming the task whose loss is not finite; nothing is updated then. A balancer
    with nonfinite="skip" leaves the update out instead, and no weight comes back.
    """
    optimiser.zero_grad(set_to_none=True)
    weights: Weights | None = None
    loads = update_loads(model, fed, precision)
    for m, batches in enumerate(fed.micros):
        tasks, losses_K = task_losses(model, batches, fed.counts, precision, loads)
        last = m == len(fed.micros) - 1
        again = None
        if balancer.looks_again or len(fed.micros) > 1:
            again = losses_again(model, fed, precision, m)
        weights = balancer.backward(losses_K, tasks=tasks, accumulate=not last, again=again)
    if clip is not None or ranks.world() > 1:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        sum_gradients(parameters)
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    # Nothing comes back of an update that was left out; there is nothing to compare with then.
    if balancer.observes == "after" and len(weights or ()):
        tasks, losses_K = step_losses(model, fed, precision)
        balancer.observe(losses_K, tasks=tasks)
    assert weights is not None, "an update is fed at least one batch"
    return weights
