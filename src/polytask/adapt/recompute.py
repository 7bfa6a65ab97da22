"""The rows of a forward pass that is made again during backward, as checkpointing does.

By then another batch may be current, or none. Every adapted layer leaves its rows on the autograd
node of its output; a pass made again asks the node that backward is at for the last one before it.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any

import torch
from torch import Tensor

from polytask.adapt.base import Rows
from polytask.errors import RunError

KEY = "polytask.adapt.rows"


def in_backward() -> bool:
    """Return whether this runs inside a backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


def leave(output: Tensor, rows: Rows) -> None:
    """Leave the rows on the node of an adapted layer's output."""
    if output.grad_fn is not None:
        output.grad_fn.metadata[KEY] = rows


def rows_before() -> Rows:
    """Return the rows of the pass that is being made again.

    Raises RunError where they cannot be told: with use_reentrant=True the first pass leaves no
    nodes.
    """
    node: Any = torch._C._current_autograd_node()  # type: ignore[attr-defined]
    turn, seen = count(), {node}
    # Nodes are numbered as they were made: the highest number is the last made before.
    heap = [(-node._sequence_nr(), next(turn), node)] if node is not None else []
    reentrant = node is not None and node.name() == "CheckpointFunctionBackward"
    while heap and not reentrant:
        _, _, node = heapq.heappop(heap)
        rows = node.metadata.get(KEY)
        if rows is not None:
            # A pass made again leaves no trace: penalties and weights are those of the first.
            return Rows(rows.index_B, rows.given)
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                heapq.heappush(heap, (-after._sequence_nr(), next(turn), after))
    raise RunError(
        "An adapted layer runs again during backward, and which tasks its rows had cannot be told. "
        "Checkpoint with use_reentrant=False."
    )
