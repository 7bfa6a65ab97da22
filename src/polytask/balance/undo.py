"""The gradients of an update as they were before it, so that it can be left out as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from polytask.balance import gradients
from polytask.errors import UsageError

REENTRANT = "CheckpointFunctionBackward"
"""Of activation checkpointing that runs backward passes of its own, whose parameters no graph
shows."""


class Undo:
    """Remembers every `.grad` that an update can touch."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[Tensor, Tensor | None]] = {}

    def note(self, losses: Sequence[Tensor], others: Iterable[Tensor]) -> None:
        """Remember the gradients of what these losses reach, and of `others`; call it before."""
        found, functions = gradients.leaves(losses)
        if REENTRANT in functions:
            raise UsageError(
                "Balancer: nonfinite='skip' cannot see the parameters inside activation "
                "checkpointing with use_reentrant=True; use use_reentrant=False."
            )
        for parameter in (*found, *others):
            if id(parameter) not in self._before:
                grad = parameter.grad
                self._before[id(parameter)] = parameter, None if grad is None else grad.clone()

    def restore(self) -> None:
        """Put every `.grad` back as it was."""
        for parameter, grad in self._before.values():
            parameter.grad = grad

    def broken(self) -> Tensor:
        """Return 1.0 where a gradient is not finite now, else 0.0."""
        return gradients.broken(parameter for parameter, _ in self._before.values())
