"""From raw streams to a Suite: the checks every suite passes, then kinds fitted on train.

Whatever is wrong with the data is found here, before any training, and named by split, stream
and column.

Shapes: N = rows of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from polytask.errors import DataError
from polytask.suites.base import SPLITS, About, Pretrained, Split, Stream, Suite
from polytask.tasks import IGNORE, Task, TaskSet


def make_suite(
    *,
    name: str,
    tasks: TaskSet,
    train: Iterable[Stream],
    val: Iterable[Stream],
    test: Iterable[Stream],
    encoder: Callable[[], nn.Module],
    width: int,
    about: About,
    batch_size: int = 128,
    epochs: int = 50,
    notes: tuple[str, ...] = (),
    fields: Callable[[], nn.Module] | None = None,
    tokens: Callable[[], nn.Module] | None = None,
    pretrained: Pretrained | None = None,
) -> Suite:
    """Return the Suite of these parts, checked, with its tasks fitted on the training labels.

    Raises DataError as `fitted` does.
    """
    splits = {"train": tuple(train), "val": tuple(val), "test": tuple(test)}
    return Suite(
        name=name,
        tasks=fitted(tasks, **splits),
        encoder=encoder,
        width=width,
        about=about,
        batch_size=batch_size,
        epochs=epochs,
        notes=notes,
        fields=fields,
        tokens=tokens,
        pretrained=pretrained,
        **splits,
    )


def fitted(
    tasks: TaskSet, train: Sequence[Stream], val: Sequence[Stream], test: Sequence[Stream]
) -> TaskSet:
    """Return the tasks with kinds fitted on the training labels of every stream that has them.

    Raises DataError for: a stream without rows or with differing row counts; streams whose
    inputs differ in names, columns or type; non-finite inputs; a target that is no task; a task
    with no label in a split; and whatever a kind refuses (one class, a class unseen in train).
    """
    splits: dict[Split, Sequence[Stream]] = dict(zip(SPLITS, (train, val, test), strict=True))
    for split, streams in splits.items():
        names = [stream.name for stream in streams]
        if len(set(names)) != len(names):
            raise DataError(f"Streams of {split} must have differing names; got {names}.")
        for stream in streams:
            _check_rows(stream, split)
            _check_inputs(stream, split)
            for target in stream.targets:
                tasks.index(target)  # an unknown name raises, with the nearest one
    _check_same_inputs([(split, stream) for split, part in splits.items() for stream in part])
    return TaskSet(_fit(task, splits) for task in tasks)


def _fit(task: Task, splits: Mapping[Split, Sequence[Stream]]) -> Task:
    labels: dict[Split, list[Tensor]] = {
        split: [stream.targets[task.name] for stream in streams if task.name in stream.targets]
        for split, streams in splits.items()
    }
    for split in SPLITS:
        if not labels[split]:
            raise DataError(
                f"Task {task.name!r}: no stream of {split} has targets for it; every split "
                "needs one."
            )
    kind = task.kind.fit(_joined(labels["train"], task.name), task.name)
    for split in SPLITS:
        for target in labels[split]:
            kind.check(target, task.name, split)
        if not any(bool(kind.present(kind.encode(target)).any()) for target in labels[split]):
            raise DataError(
                f"Task {task.name!r}: every label of {split} is missing; give it some, or leave "
                "the task out."
            )
    return replace(task, kind=kind)


def _joined(targets: Sequence[Tensor], task: str) -> Tensor:
    """Return the targets of several streams as one; a shorter dim 1 is padded as missing."""
    if len(targets) == 1:
        return targets[0]
    if len({(target.dtype, target.ndim, target.shape[2:]) for target in targets}) > 1:
        raise DataError(
            f"Task {task!r}: its targets must have one type and size in every stream; got "
            + ", ".join(f"{target.dtype} {tuple(target.shape)}" for target in targets)
            + "."
        )
    if targets[0].ndim >= 2:
        longest = max(target.shape[1] for target in targets)
        missing = float("nan") if targets[0].is_floating_point() else IGNORE
        behind = (0, 0) * (targets[0].ndim - 2)  # pad names the last dimension first
        targets = [pad(t, (*behind, 0, longest - t.shape[1]), value=missing) for t in targets]
    return torch.cat(list(targets))


def _parts(stream: Stream) -> dict[str, Tensor]:
    """Return the inputs by name; a lone tensor is called "inputs"."""
    inputs = stream.inputs
    return {"inputs": inputs} if isinstance(inputs, Tensor) else dict(inputs)


def _check_rows(stream: Stream, split: Split) -> None:
    where = f"Stream {stream.name!r} of {split}"
    parts = _parts(stream)
    if not parts or not stream.targets:
        raise DataError(f"{where} needs at least one input and one target; it lacks one of them.")
    rows = {f"input {name}": len(value) for name, value in parts.items()}
    rows |= {f"target {name}": len(value) for name, value in stream.targets.items()}
    if stream.lengths is not None:
        rows["lengths"] = len(stream.lengths)
    rows |= {f"truth of {name}": len(value) for name, value in (stream.truth or {}).items()}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise DataError(f"{where} must have the same rows everywhere; got {told}.")
    if len(stream) == 0:
        raise DataError(f"{where} has no rows; it needs at least one.")
    if stream.ragged and stream.lengths is None:
        raise DataError(f"{where} pads {', '.join(stream.ragged)} but has no lengths.")
    for name, truth_N in (stream.truth or {}).items():
        if not bool(((truth_N >= 0) & (truth_N <= 1)).all()):
            raise DataError(f"{where} has true probabilities of {name!r} outside 0 and 1.")
    for name in stream.ragged:
        if name not in parts and name not in stream.targets:
            raise DataError(f"{where} pads {name!r}, which is neither an input nor a target.")


def _check_inputs(stream: Stream, split: Split) -> None:
    for name, value in _parts(stream).items():
        # A sum is finite only if every term is; it spares a mask as large as the data. It can
        # overflow where every term is finite, so only the mask decides.
        if not value.is_floating_point() or bool(value.sum(dtype=torch.float64).isfinite()):
            continue
        bad = ~value.isfinite()
        if not bool(bad.any()):
            continue
        place = bad.nonzero()[0].tolist()
        column = f", column {place[1]}" if value.ndim == 2 else ""
        raise DataError(
            f"Stream {stream.name!r} of {split}: {int(bad.sum())} values of input {name!r} are "
            f"not finite, the first in row {place[0]}{column}; fill or drop them (only targets "
            "may be missing)."
        )


def _check_same_inputs(streams: Sequence[tuple[Split, Stream]]) -> None:
    """One encoder reads every stream: names, types and sizes after the rows must agree."""
    if not streams:
        return
    first_split, first = streams[0]
    for split, stream in streams[1:]:
        expected, found = _form(first), _form(stream)
        if expected != found:
            differing = sorted(
                name for name in expected | found if expected.get(name) != found.get(name)
            )
            raise DataError(
                f"Stream {stream.name!r} of {split} and stream {first.name!r} of {first_split} "
                "must have the same inputs, as one encoder reads both; they differ in "
                + "; ".join(
                    f"{name}: {found.get(name, 'absent')} and {expected.get(name, 'absent')}"
                    for name in differing
                )
                + "."
            )


def _form(stream: Stream) -> dict[str, str]:
    form = {}
    for name, value in _parts(stream).items():
        sizes = ["rows", *map(str, value.shape[1:])]
        if name in stream.ragged:
            sizes[1] = "length"
        form[name] = f"{str(value.dtype).removeprefix('torch.')} ({', '.join(sizes)})"
    return form
