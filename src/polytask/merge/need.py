"""What a merge needs: memory, disk and passes, known before it starts.

Shapes: R = rows of a piece, the models and the base.
"""

from __future__ import annotations

from dataclasses import dataclass

from polytask.merge.base import GRAIN, Merge, Surveyor
from polytask.merge.mapped import HELD
from polytask.merge.options import Options
from polytask.merge.plan import Plan

PIECES = 4 << 20
"""Bytes that the pieces of all models and threads hold together, in float64: about what the caches
hold."""

WORK = 4
"""Copies of a piece that a method makes at most while it merges one."""

WIDEST = 8
"""Bytes of a float64."""

FIXED = 14 << 20
"""Bytes for what does not grow: the interpreter's own, stacks of threads, small tensors."""

SURVEY = 6 << 20
"""Bytes per model and thread of what a survey counts, and of their copies while passes end."""

PER_TENSOR = 1000
"""Bytes that the plan holds of a tensor, for each model."""


MAPPED = 12
"""Files, counted once for each thread, that are looked at where they lie; more are read."""


@dataclass(frozen=True)
class Need:
    """chunk: elements of a piece, a multiple of GRAIN. memory: bytes above what the process holds
    before, at most. mapped: whether kernels look at files where they lie, which takes memory for
    each. passes over the inputs are the method's business."""

    chunk: int
    threads: int
    piece_bytes: int
    scratch_bytes: int
    memory: int
    mapped: bool


def need_of(plan: Plan, methods: tuple[Merge, ...], options: Options) -> Need:
    """Return what the merge needs. methods: all that take part."""
    threads, chunk = options.threads, options.chunk
    rows = len(plan.labels)
    if chunk is None:
        chunk = max(GRAIN, PIECES // (threads * rows * WIDEST) // GRAIN * GRAIN)
    piece = rows * chunk * WIDEST
    scratch = chunk * WIDEST
    mapped = threads * rows <= MAPPED
    # What is mapped is let go before torch sees to a piece, which makes copies.
    working = max(WORK * piece, rows * HELD if mapped else 0)
    memory = FIXED + threads * (piece + working + scratch)
    memory += len(plan.items) * rows * PER_TENSOR
    if any(isinstance(method, Surveyor) for method in methods):
        memory += threads * rows * SURVEY
    if any(method.reach == "tensor" for method in methods):
        largest = max(item.entry.numel for item in plan.items if item.merged)
        memory += threads * rows * largest * WIDEST * (1 + WORK)
    return Need(chunk, threads, piece, scratch, memory, mapped)
