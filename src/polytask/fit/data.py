"""Streams become batches: tensors in memory are sliced, never collated row by row.

Streams whose inputs look alike (same names, shapes and types) are joined into one table when the
run starts, with missing labels where a stream does not label a task. A batch of rows from many
streams is then one slice and one forward pass.

Shapes: N = rows of a table, B = rows of a batch, T = tasks of the run, K = tasks of a block,
S = streams, L = padded length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.fit import ranks
from polytask.mix import Schedule
from polytask.suites import Inputs, Stream
from polytask.tasks import IGNORE, Block, TaskSet, blocks

Lengths = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Batch:
    """Rows of one table. targets: one tensor per block of the table, encoded."""

    inputs: Inputs
    blocks: tuple[Block, ...]
    targets: tuple[Tensor, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task for block in self.blocks for task in block.tasks)


@dataclass(frozen=True)
class Step:
    """What one update is fed: micro-batches, each a batch per table, and the labels in all of them.

    counts: labels per task over the whole update, all processes and micro-batches together.
        A task that is not in it is absent.
    """

    micros: tuple[tuple[Batch, ...], ...]
    counts: dict[str, float]


@dataclass(frozen=True)
class Table:
    """Joined streams.

    ragged: names padded along dim 1; lengths: (N,), on the CPU, None where nothing is padded.
    starts: where each stream's rows begin.
    complete: per block, whether every row has one label of each of its tasks, as is common; then
        a batch's labels need no counting.
    """

    inputs: Inputs
    blocks: tuple[Block, ...]
    ragged: frozenset[str]
    lengths: Tensor | None
    starts: tuple[int, ...]
    complete: tuple[bool, ...]

    @property
    def rows(self) -> int:
        return len(self.blocks[0].target)

    def batch(self, rows_B: Tensor) -> Batch:
        """Return the named rows, ragged tensors cut to the longest of them."""
        device = self.blocks[0].target.device
        at_B = rows_B if device.type == "cpu" else rows_B.to(device, non_blocking=True)
        longest = None
        if self.lengths is not None:
            # At least 1, also for no rows and for rows of no words: encoders need a place.
            longest = max(1, int(self.lengths[rows_B].max())) if len(rows_B) else 1

        def take(name: str, value: Tensor) -> Tensor:
            rows = value.index_select(0, at_B)
            return rows[:, :longest] if longest is not None and name in self.ragged else rows

        if isinstance(self.inputs, Tensor):
            inputs: Inputs = take("inputs", self.inputs)
        else:
            inputs = {name: take(name, value) for name, value in self.inputs.items()}
        targets = tuple(take(block.tasks[0], block.target) for block in self.blocks)
        return Batch(inputs, self.blocks, targets)

    def parted(self, rows_B: Tensor, groups: int) -> tuple[Tensor, ...]:
        """Return the rows in so many parts of like length, some perhaps empty, with as little
        padding as can be; all in one part where nothing is padded."""
        if self.lengths is None or groups == 1:
            return (rows_B,)
        lengths_B, order_B = self.lengths[rows_B].sort(stable=True)
        return torch.split(rows_B[order_B], part_sizes(lengths_B.numpy(), groups))

    def counts(self, rows_B: Tensor) -> dict[str, float]:
        """Return the labels per task in these rows; tasks without any are left out."""
        found: dict[str, float] = {}
        for block, complete in zip(self.blocks, self.complete, strict=True):
            if complete and len(rows_B):
                found.update(dict.fromkeys(block.tasks, float(len(rows_B))))
                continue
            counts_K = block.counts_NK.index_select(0, rows_B).sum(0).tolist()
            found.update((t, n) for t, n in zip(block.tasks, counts_K, strict=True) if n)
        return found


def part_sizes(lengths_B: Lengths, groups: int) -> list[int]:
    """Return the sizes of `groups` runs of rows, sorted by length, that are padded least.

    A run costs its rows times its longest, which is its last; the cheapest runs are found exactly.
    """
    # Rows of one length stay together: so the table below has a place per length, not per row.
    lengths_U, many_U = np.unique(lengths_B, return_counts=True)
    ends = np.concatenate([[0], many_U.cumsum()])  # rows up to each length
    longest = np.concatenate([[0], lengths_U])
    at = np.arange(len(ends))
    widths = np.maximum(ends[:, None] - ends, 0) * longest[:, None]
    costs = np.where(at == 0, 0, np.iinfo(np.int64).max // 2)
    begins = []
    for _ in range(groups):  # one more run than before: up to each length, where it begins
        sums = np.where(at <= at[:, None], costs + widths, np.iinfo(np.int64).max)
        begins.append(sums.argmin(1))
        costs = sums.min(1)
    sizes, end = [], len(lengths_U)
    for begin in reversed(begins):
        sizes.append(int(ends[end] - ends[begin[end]]))
        end = int(begin[end])
    return sizes[::-1]


def table(streams: Sequence[Stream], tasks: TaskSet, device: str = "cpu") -> Table:
    """Join streams of one signature; labels a stream does not have are missing."""
    starts, at = [], 0
    for stream in streams:
        starts.append(at)
        at += len(stream)
    labelled = [t for t in tasks.names if any(t in stream.targets for stream in streams)]
    ragged = frozenset(name for s in streams for name in s.ragged)
    # What is padded has one length, also where a stream that labels positions has short rows alone.
    padded = [value for s in streams for name, value in _named(s) if name in ragged]
    longest = max((value.shape[1] for value in padded), default=0)
    targets: dict[str, Tensor] = {}
    for t in labelled:
        parts = [_signed(_target(s, t, streams)) for s in streams]
        targets[t] = _join(parts, _missing(parts[0]), longest if t in ragged else 0)
    first = streams[0]
    if isinstance(first.inputs, Tensor):
        joined = _join([s.inputs for s in streams if isinstance(s.inputs, Tensor)], 0)
        inputs: Inputs = joined.to(device)
    else:
        inputs = {
            name: _join(
                [s.inputs[name] for s in streams if not isinstance(s.inputs, Tensor)],
                0,
                longest if name in ragged else 0,
            ).to(device)
            for name in first.inputs
        }
    lengths = None
    if ragged:
        lengths = torch.cat([s.lengths for s in streams if s.lengths is not None])
    made = blocks(tasks.only(labelled), targets)
    complete = tuple(bool((block.counts_NK == 1).all()) for block in made)
    on_device = tuple(block.to(device) for block in made)
    return Table(inputs, on_device, ragged, lengths, tuple(starts), complete)


def _target(stream: Stream, task: str, streams: Sequence[Stream]) -> Tensor:
    if task in stream.targets:
        return stream.targets[task]
    like = _signed(next(s.targets[task] for s in streams if task in s.targets))
    return torch.full((len(stream), *like.shape[1:]), _missing(like), dtype=like.dtype)


def _signed(target: Tensor) -> Tensor:
    """Return the target in a type that has a value for "missing": bool and uint8 have none."""
    return target.long() if target.dtype in (torch.bool, torch.uint8) else target


def _missing(target: Tensor) -> float:
    return float("nan") if target.is_floating_point() else IGNORE


def _named(stream: Stream) -> Iterator[tuple[str, Tensor]]:
    """Yield the stream's inputs and targets by name."""
    if isinstance(stream.inputs, Tensor):
        yield "inputs", stream.inputs
    else:
        yield from stream.inputs.items()
    yield from stream.targets.items()


def _join(parts: Sequence[Tensor], fill: float, least: int = 0) -> Tensor:
    """Concatenate rows; dim 1 is padded with `fill` where lengths differ, to `least` at least."""
    if len(parts) == 1 and (parts[0].dim() < 2 or parts[0].shape[1] >= least):
        return parts[0]
    longest = max((p.shape[1] for p in parts if p.dim() > 1), default=0)
    longest = max(longest, least)
    padded = [
        F.pad(p, [0, 0] * (p.dim() - 2) + [0, longest - p.shape[1]], value=fill)
        if p.dim() > 1 and p.shape[1] < longest
        else p
        for p in parts
    ]
    return torch.cat(padded)


def _signature(stream: Stream) -> tuple[object, ...]:
    """Return what two streams must have in common to share a table."""
    inputs = {"inputs": stream.inputs} if isinstance(stream.inputs, Tensor) else stream.inputs
    return (
        isinstance(stream.inputs, Tensor),
        stream.lengths is None,
        tuple(
            (name, value.dtype, tuple(value.shape[2 if name in stream.ragged else 1 :]))
            for name, value in sorted(inputs.items())
        ),
    )


def alike(streams: Sequence[Stream]) -> list[list[int]]:
    """Return the positions of streams that can share a table, group by group."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for s, stream in enumerate(streams):
        groups.setdefault(_signature(stream), []).append(s)
    return list(groups.values())


class Feed:
    """The training rows of a suite, in the order a schedule asks for.

    One `Step` per update: the global batch, cut to this process's rows and into micro-batches.
    length_groups: parts of like length that the padded rows of a micro-batch run in, one after the
        other; each is padded to its own longest row.
    waited: seconds spent making batches so far.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        tasks: TaskSet,
        schedule: Schedule,
        accumulate: int = 1,
        device: str = "cpu",
        length_groups: int = 1,
    ) -> None:
        self.schedule = schedule
        self.accumulate, self.length_groups = accumulate, length_groups
        self.waited = 0.0
        groups = alike(streams)
        self.tables = [table([streams[s] for s in at], tasks, device) for at in groups]
        self._place = {
            s: (g, start)
            for g, at in enumerate(groups)
            for s, start in zip(at, self.tables[g].starts, strict=True)
        }

    def step(self, step: int, cursors_S: Tensor) -> tuple[Step, Tensor]:
        """Return what update number `step` is fed, and the cursors for the next one."""
        begun = time.perf_counter()
        drawn, cursors_S = self.schedule.rows(step, cursors_S)
        parts: list[list[Tensor]] = [[] for _ in self.tables]
        for stream, rows in drawn:
            g, start = self._place[stream]
            parts[g].append(rows + start if start else rows)
        rows_by_table = [torch.cat(p) if len(p) > 1 else p[0] if p else None for p in parts]
        counts: dict[str, float] = {}
        micros: list[list[Batch]] = [[] for _ in range(self.accumulate)]
        for made, rows_B in zip(self.tables, rows_by_table, strict=True):
            if rows_B is None:
                continue
            for task, n in made.counts(rows_B).items():
                counts[task] = counts.get(task, 0.0) + n
            mine_B = ranks.share(rows_B)
            chunks = (mine_B,) if self.accumulate == 1 else mine_B.tensor_split(self.accumulate)
            for m, chunk in enumerate(chunks):
                for part in made.parted(chunk, self.length_groups):
                    # A process may have no row of a short last batch; it still takes part, with
                    # none: all must name the same tasks and make as many forward passes.
                    if len(part) or ranks.world() > 1:
                        micros[m].append(made.batch(part))
        self.waited += time.perf_counter() - begun
        return Step(tuple(tuple(m) for m in micros if m), counts), cursors_S
