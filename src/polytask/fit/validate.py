"""A model's metrics on one split, task by task.

Shapes: B = rows of a chunk.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.share import SharedModel
from polytask.suites import Inputs, Stream
from polytask.tasks import Task, TaskSet

if TYPE_CHECKING:
    from torchmetrics import Metric as TorchMetric


class Meters:
    """The metrics of some tasks, built once and reset for every validation.

    primary_only: measure the primary metric alone, as training does.
    """

    def __init__(self, tasks: TaskSet, primary_only: bool = False) -> None:
        self.tasks = tasks
        self._meters: dict[str, dict[str, TorchMetric]] = {
            task.name: {
                metric.name: metric.build()
                for metric in (task.kind.metrics()[:1] if primary_only else task.kind.metrics())
            }
            for task in tasks
        }

    def reset(self) -> None:
        for meters in self._meters.values():
            for meter in meters.values():
                meter.reset()

    def update(self, task: Task, output: Tensor, target: Tensor) -> None:
        prediction, truth = task.kind.scores(output, target)
        if len(truth):
            for meter in self._meters[task.name].values():
                meter.update(prediction, truth)

    def compute(self) -> dict[str, dict[str, float]]:
        """Return every metric's value; NaN where a task had no label or the metric no value."""
        return {
            task: {
                name: float(meter.compute()) if meter.update_called else math.nan
                for name, meter in meters.items()
            }
            for task, meters in self._meters.items()
        }


class LeftOut:
    """Each task's primary metric on all rows, and on all but one of `parts` parts of them.

    Takes the place of `Meters` in `validate`; every `parts`-th row of a stream is of one part. How
    a difference of two models' values varies over what is left out tells its error, see
    `evaluate.paired_error`.
    """

    def __init__(self, tasks: TaskSet, parts: int = 20) -> None:
        if parts < 2:
            raise UsageError(f"LeftOut: parts is {parts}; an error takes at least 2, 20 are usual.")
        self.tasks, self.parts = tasks, parts
        self._all = Meters(tasks, primary_only=True)
        self._without = [Meters(tasks, primary_only=True) for _ in range(parts)]
        self._seen = dict.fromkeys(tasks.names, 0)

    def reset(self) -> None:
        self._all.reset()
        for meters in self._without:
            meters.reset()
        self._seen = dict.fromkeys(self._seen, 0)

    def update(self, task: Task, output: Tensor, target: Tensor) -> None:
        self._all.update(task, output, target)
        part_B = (torch.arange(len(target)) + self._seen[task.name]) % self.parts
        self._seen[task.name] += len(target)
        for part, meters in enumerate(self._without):
            kept_B = part_B != part
            meters.update(task, output[kept_B], target[kept_B])

    def compute(self) -> dict[str, dict[str, float]]:
        """Return per task the metric of all rows, as "all", and of all but part 0, 1, ..."""
        values = {task: {"all": value} for task, value in self._primary(self._all).items()}
        for part, meters in enumerate(self._without):
            for task, value in self._primary(meters).items():
                values[task][str(part)] = value
        return values

    def _primary(self, meters: Meters) -> dict[str, float]:
        return primary(meters.compute(), self.tasks)


def validate(
    model: SharedModel,
    streams: Sequence[Stream],
    meters: Meters | LeftOut,
    batch_size: int = 512,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, dict[str, float]]:
    """Return each task's metrics over the streams that label it. The model's mode is kept.

    batch_size: rows of a forward pass; the metrics do not depend on it.
    A task without a label, and a metric without a value (AUROC of one class), give NaN.
    """
    meters.reset()
    with evaluating(model), torch.no_grad():
        for stream in streams:
            _stream(model, stream, meters, batch_size, device, precision)
    return meters.compute()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; then every module's own mode again, as a layer may be frozen."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def _stream(
    model: SharedModel,
    stream: Stream,
    meters: Meters | LeftOut,
    batch_size: int,
    device: str,
    precision: str,
) -> None:
    tasks = [task for task in meters.tasks if task.name in stream.targets]
    if not tasks:
        return
    names = tuple(task.name for task in tasks)
    # Outputs of one row are kept and scored at once, which is cheaper; maps and sequences are
    # scored chunk by chunk, because together they would not fit.
    kept: dict[str, list[Tensor]] = {t.name: [] for t in tasks if t.kind.reads == "row"}
    for rows, longest, inputs in chunks(stream, batch_size, device):
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(inputs, tasks=names)
        for task in tasks:
            output = outputs[task.name].float() if precision == "bf16" else outputs[task.name]
            if task.name in kept:
                kept[task.name].append(output)
            else:
                target = stream.targets[task.name][rows]
                if longest is not None and task.name in stream.ragged:
                    target = target[:, :longest]
                meters.update(task, output.cpu(), target)
    for task in tasks:
        if kept.get(task.name):
            meters.update(task, torch.cat(kept[task.name]).cpu(), stream.targets[task.name])


def predict(
    model: SharedModel,
    stream: Stream,
    tasks: Sequence[str] | None = None,
    batch_size: int = 4096,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Return the outputs for every row of a stream, labelled or not, on the CPU.

    tasks: None: all of the model's. They must be tasks with one output per row. The model's mode
    is kept.
    """
    names = model.tasks if tasks is None else tuple(tasks)
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    with evaluating(model), torch.no_grad():
        for _, _, inputs in chunks(stream, batch_size, device):
            for name, output in model(inputs, tasks=names).items():
                kept[name].append(output.cpu())
    return {name: torch.cat(outputs) for name, outputs in kept.items()}


def chunks(
    stream: Stream, batch_size: int, device: str
) -> Iterator[tuple[slice, int | None, Inputs]]:
    """Yield the stream's rows in order: which, how long the longest is, and their inputs.

    The length is None where nothing is padded.
    """
    for at in range(0, len(stream), batch_size):
        rows = slice(at, at + batch_size)
        longest = None if stream.lengths is None else max(1, int(stream.lengths[rows].max()))
        yield rows, longest, _slice(stream.inputs, rows, stream.ragged, longest, device)


def _slice(
    inputs: Inputs, rows: slice, ragged: Sequence[str], longest: int | None, device: str
) -> Inputs:
    def cut(name: str, value: Tensor) -> Tensor:
        part = value[rows]
        return (part[:, :longest] if longest is not None and name in ragged else part).to(device)

    if isinstance(inputs, Tensor):
        return cut("inputs", inputs)
    return {name: cut(name, value) for name, value in inputs.items()}


def primary(values: Mapping[str, Mapping[str, float]], tasks: TaskSet) -> dict[str, float]:
    """Return each task's primary metric from what `validate` returned."""
    return {task.name: values[task.name][task.primary.name] for task in tasks}
