"""Programs: each task's function, compiled once for each shape of its inputs.

For alternating descent over tasks with inputs, losses and resolutions of their own. One function
compiled for all of them would be guarded anew at every change, and torch gives up compiling it
after a few shapes, in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import FunctionType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from polytask.errors import unknown

Output = TypeVar("Output")


class Programs(Generic[Output]):
    """Calls a task's function, compiled for the shapes at hand.

    functions: by task; what they return is what a call returns, such as the loss of a batch.
    compiler: what compiles a function; None: torch.compile for fixed shapes.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Output]],
        compiler: Callable[[Callable[..., Output]], Callable[..., Output]] | None = None,
    ) -> None:
        self.functions = dict(functions)
        self.compiler = _for_fixed_shapes if compiler is None else compiler
        self._programs: dict[Hashable, Callable[..., Output]] = {}

    def __call__(self, task: str, *inputs: Any) -> Output:
        """Return the task's function of the inputs: tensors, mappings or sequences of them."""
        if task not in self.functions:
            known = ", ".join(self.functions)
            raise unknown("task", task, self.functions, f"The tasks: {known}.")
        key = (task, torch.is_grad_enabled(), _signature(inputs))
        if key not in self._programs:
            self._programs[key] = self.compiler(_copy(self.functions[task]))
        return self._programs[key](*inputs)

    def __len__(self) -> int:
        """Return how many programs there are."""
        return len(self._programs)


def _for_fixed_shapes(function: Callable[..., Output]) -> Callable[..., Output]:
    compiled: Callable[..., Output] = torch.compile(function, dynamic=False)
    return compiled


def _copy(function: Callable[..., Output]) -> Callable[..., Output]:
    """Return the same function with code of its own: torch counts and keeps programs by code."""

    def program(*inputs: Any) -> Output:
        return function(*inputs)

    code = program.__code__.replace()
    copied: Callable[..., Output] = FunctionType(
        code, program.__globals__, program.__name__, None, program.__closure__
    )
    return copied


def _signature(value: Any) -> Hashable:
    """Return what tells two inputs apart that need programs of their own."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, str(value.device), value.requires_grad
    if isinstance(value, Mapping):
        return tuple((name, _signature(item)) for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(_signature, value))
    return type(value), value if isinstance(value, Hashable) else None
