"""Backward passes that stop at the layers' outputs: a gradient per stream, and rows of the rest.

Every part of the graph is passed from its cut, where its streams start there, or from the losses.
A loss's gradient in a parameter that is asked for itself is a sum over all parts, so there all of
the loss's parts are passed at once.

Shapes: S = streams of a part, N = positions of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from polytask.balance.layers import shape_of, wide
from polytask.balance.streams import Streams


@dataclass(frozen=True)
class _Pass:
    """One call of autograd: streams (part, number) that are passed together.

    loss: whose gradients these are; None for packed ones. whole: it starts at that loss.
    """

    streams: list[tuple[Streams, int]]
    loss: int | None
    whole: bool


@dataclass
class Passed:
    """What the passes found.

    outputs: layer -> gradients of its output (S, N, ...), in the order of its part's streams.
    rows: parameter -> loss -> the parameter's gradient; a loss that does not reach it is left out.
    """

    outputs: dict[Node, Tensor] = field(default_factory=dict)
    rows: dict[int, dict[int, Tensor]] = field(default_factory=dict)


def run(
    parts: Sequence[Streams],
    losses: Sequence[Tensor],
    nodes: Sequence[Node],
    leaves: Mapping[int, Tensor],
) -> Passed:
    """Return the gradients of layers' outputs, and the losses' own in parameters.

    leaves: parameters asked for themselves, by a number. No part that uses one has packed rows.
    """
    passed = Passed(rows={i: {} for i in leaves})
    of: dict[int, list[Node]] = {id(part): [] for part in parts}
    home = {node: id(part) for part in parts for node in part.part.nodes}
    for node in nodes:
        of[home[node]].append(node)
    for one in _planned(parts, bool(leaves)):
        asked = [(node, part, s) for part, s in one.streams for node in of[id(part)]]
        # torch takes edges and tensors side by side; its annotations know of lists of one sort.
        wanted: list[Any] = [GradientEdge(node, 0) for node, _, _ in asked]
        if one.loss is not None:
            wanted += leaves.values()
        if not wanted:
            continue
        starts: list[Any] = [GradientEdge(p.at, 0) for p, _ in one.streams if p.at is not None]
        given: list[Tensor] | None = [part.given[s] for part, s in one.streams if part.given]
        if one.whole:
            assert one.loss is not None
            starts, given = [losses[one.loss]], None
        found = torch.autograd.grad(starts, wanted, given, retain_graph=True, allow_unused=True)
        for (node, part, s), d_N in zip(asked, found, strict=False):
            _put(passed.outputs, node, s, len(part), d_N)
        if one.loss is None:
            continue
        for i, grad in zip(leaves, found[len(asked) :], strict=True):
            if grad is not None:
                passed.rows[i][one.loss] = wide(grad)
    return passed


def _planned(parts: Sequence[Streams], leaves: bool) -> list[_Pass]:
    """Return the passes; with leaves, one for each loss whose streams are not packed."""
    packed: dict[int, list[tuple[Streams, int]]] = {}
    by_loss: dict[tuple[int, bool], list[tuple[Streams, int]]] = {}
    for part in parts:
        for s in range(len(part)):
            if part.tasks_SB is not None:
                packed.setdefault(s, []).append((part, s))
            else:
                by_loss.setdefault((part.own[s], part.at is None), []).append((part, s))
    if leaves:
        for k, whole in list(by_loss):
            if whole:
                by_loss[k, True] += by_loss.pop((k, False), [])
    return [
        *(_Pass(streams, None, False) for streams in packed.values()),
        *(_Pass(streams, k, whole) for (k, whole), streams in by_loss.items()),
    ]


def _put(into: dict[Node, Tensor], node: Node, s: int, count: int, values: Tensor | None) -> None:
    """Put a pass's result where all passes' lie together, zeros where a task reaches nothing."""
    like = node._input_metadata[0]
    shape = (count, *shape_of(node))
    dtype = torch.promote_types(like.dtype, torch.float32)
    if count == 1:  # as it is, without a copy
        into[node] = (
            torch.zeros(shape, dtype=dtype, device=like.device)
            if values is None
            else wide(values)[None]
        )
        return
    if node not in into:
        into[node] = torch.empty(shape, dtype=dtype, device=like.device)
    into[node][s] = 0 if values is None else values
