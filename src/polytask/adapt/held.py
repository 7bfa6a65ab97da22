"""Methods that train a model's own weights: which of them a stage of training may change.

    with Held(model, {"head.weight": False, "mlp.weight": mask}, optimiser):
        ...  # anybody's loop

This is their whole contract: a method says what is trained, and `Held` keeps the rest as it is, bit
for bit, whatever the optimiser's momentum and weight decay do. Parameters that nobody names stay
as they were, trained or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polytask.errors import UsageError, unknown

Trained = Mapping[str, bool | Tensor]
"""Name of a parameter -> whether it is trained; or which of its entries, a bool of its shape."""


class Held:
    """Parameters, or entries of them, that are not trained until `release`; a context, if wanted.

    optimiser: whatever else it does to entries that are held is taken back after each step. Without
        it they only have no gradient, and weight decay or momentum from before still move them.
        Parameters that are held as a whole have no gradient at all, so optimisers pass them by
        (their .grad is cleared).
    """

    def __init__(
        self, model: nn.Module, trained: Trained, optimiser: Optimizer | None = None
    ) -> None:
        parameters = dict(model.named_parameters())
        self._before: list[tuple[nn.Parameter, bool]] = []
        self._kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._handles: list[Any] = []
        for name, which in trained.items():
            if name not in parameters:
                raise unknown("parameter", name, parameters, "See model.named_parameters().")
            if isinstance(which, Tensor) and (
                which.dtype != torch.bool or which.shape != parameters[name].shape
            ):
                raise UsageError(
                    f"Held: the mask of {name!r} is {which.dtype} of shape {tuple(which.shape)}; "
                    f"give a bool tensor of shape {tuple(parameters[name].shape)}."
                )
        for name, which in trained.items():
            self._hold(parameters[name], which)
        if optimiser is not None:
            self._handles.append(optimiser.register_step_post_hook(self._put_back))

    def restore(self) -> None:
        """Put entries that are held back as they were; done after each step of the optimiser."""
        for parameter, mask, kept in self._kept:
            parameter.data.copy_(torch.where(mask, parameter.data, kept))

    def release(self) -> None:
        """Let everything be trained that was trained before."""
        for handle in self._handles:
            handle.remove()
        for parameter, wanted in self._before:
            parameter.requires_grad_(wanted)
        self._handles, self._before, self._kept = [], [], []

    def _hold(self, parameter: nn.Parameter, which: bool | Tensor) -> None:
        self._before.append((parameter, parameter.requires_grad))
        if not isinstance(which, Tensor):
            parameter.requires_grad_(which)
            if not which:
                parameter.grad = None
            return
        mask = which.to(parameter.device)
        parameter.requires_grad_(True)
        if parameter.grad is not None:
            parameter.grad = torch.where(mask, parameter.grad, 0.0)
        self._kept.append((parameter, mask, parameter.detach().clone()))
        hook = parameter.register_hook(  # type: ignore[no-untyped-call]
            lambda grad: torch.where(mask, grad, 0.0)
        )
        self._handles.append(hook)

    def _put_back(self, optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        self.restore()

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
