"""The rows of a forward pass that is made again during backward, as checkpointing does.

By then another batch may be current, or none. Autograd numbers its nodes in the order they are
made, so the node that backward is at when a pass is made again tells when the first one was: each
context of tasks remembers the numbers at its beginning and end.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any

import torch

from polytask.adapt.base import Rows
from polytask.errors import RunError

MOST = 256
"""Contexts remembered: forward passes that may lie between one and its backward."""


REENTRANT = "CheckpointFunctionBackward"


class Span:
    """Which nodes were made while rows were current: numbers [begin, end), of one thread."""

    def __init__(self, rows: Rows) -> None:
        # A pass made again leaves no trace: penalties and weights are those of the first.
        self.rows = Rows(rows.index_B, rows.given, None, rows.aside, rows.all_here)
        self.thread = threading.get_ident()
        self.begin: int = torch._C._autograd._get_sequence_nr()
        self.end: float = math.inf

    def close(self) -> None:
        """Note that the context ends here."""
        self.end = torch._C._autograd._get_sequence_nr()


def in_backward() -> bool:
    """Return whether this runs inside a backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


def rows_before(spans: deque[Span]) -> Rows:
    """Return the rows of the pass that is being made again. Raises RunError where unknown."""
    node: Any = torch._C._current_autograd_node()
    number = node._sequence_nr()
    around = [span for span in spans if span.begin <= number < span.end]
    # Nested contexts: the inner one, which began last.
    inner = max(around, key=lambda span: span.begin, default=None)
    # A checkpoint inside of a reentrant one makes its nodes during backward, when a context that is
    # still open may be another pass's.
    nested = inner is None or (inner.end == math.inf and node.name() == REENTRANT)
    if inner is not None and not nested and len({span.thread for span in around}) == 1:
        return inner.rows
    raise RunError(
        "An adapted layer runs again during backward, and which tasks its rows had cannot be told. "
        "Checkpoint with use_reentrant=False, call backward from the thread of the forward pass, "
        f"and at most {MOST} passes after it."
    )
