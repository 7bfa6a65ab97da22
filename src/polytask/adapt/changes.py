"""What a task changes of the base's weights: exactly, in float64; and putting it in and out."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from polytask.adapt.base import Adapter, Layer
from polytask.errors import UsageError

if TYPE_CHECKING:
    from polytask.adapt.engine import Adapted


def changes_of(
    base: nn.Module, places: Iterable[tuple[Layer, list[Adapter]]], task: int
) -> dict[str, Tensor]:
    """Return a task's change of each parameter, by its name in the base, in float64.

    Raises UsageError where an adapter is no change of weights, where it would change a bias that
    the layer does not have, or a weight that another layer uses as well.
    """
    names = {id(p): name for name, p in base.named_parameters()}
    users = _users(base)
    found: dict[str, Tensor] = {}
    for layer, adapters in places:
        for adapter in adapters:
            if not adapter.folds:
                raise UsageError(
                    f"{type(adapter).__name__} at {layer.path!r} is no change of weights, so it "
                    "can be neither folded nor merged as one."
                )
        weight, bias = layer.weight_OI().double(), layer.bias_O()
        bias = None if bias is None else bias.double()
        for adapter in adapters:
            d_weight, d_bias = adapter.change(task, weight, bias)
            _note(found, names, users, layer, layer.weight, d_weight)
            weight = weight + d_weight
            if d_bias is not None and bias is None:
                if bool((d_bias != 0).any()):
                    raise UsageError(
                        f"{type(adapter).__name__} adds to the output of {layer.path!r}, which "
                        "has no bias to hold it; give the layer a bias of zeros first."
                    )
            elif d_bias is not None and bias is not None:
                _note(found, names, users, layer, layer.bias, d_bias)
                bias = bias + d_bias
    return found


def _users(base: nn.Module) -> dict[int, set[str]]:
    """Return the modules that use each parameter, by the parameter's id."""
    users: dict[int, set[str]] = {}
    for path, module in base.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), set()).add(path)
    return users


def _note(
    found: dict[str, Tensor],
    names: dict[int, str],
    users: dict[int, set[str]],
    layer: Layer,
    attribute: str | None,
    change: Tensor,
) -> None:
    assert attribute is not None
    parameter: Tensor = getattr(layer.module, attribute)
    others = users[id(parameter)]
    if len(others) > 1:
        raise UsageError(
            f"The weight of {layer.path!r} is also that of {', '.join(sorted(others))}, which its "
            "adapter leaves alone; untie them first, or do without folding."
        )
    name = names[id(parameter)]
    whole = found.setdefault(name, torch.zeros_like(parameter, dtype=torch.float64).detach())
    part = whole if layer.rows is None else whole[layer.rows[0] : layer.rows[1]]
    part += change.t() if layer.flipped and change.dim() == 2 else change


def changed(parameter: Tensor, change: Tensor) -> Tensor:
    """Return a parameter with a change added, rounded once."""
    return (parameter.detach().double() + change).to(parameter.dtype)


class Folded:
    """A task's change inside of the base's weights; as a context, until its end."""

    def __init__(self, adapted: Adapted, changes: dict[str, Tensor], task: str) -> None:
        self.task = task
        self._adapted = adapted
        self._kept: list[tuple[nn.Parameter, Tensor]] = []
        parameters = dict(adapted.base.named_parameters())
        for name, change in changes.items():
            parameter = parameters[name]
            # The old tensor itself is kept: taking the change off again would round.
            self._kept.append((parameter, parameter.data))
            parameter.data = changed(parameter, change)

    def put_back(self) -> None:
        """Put the tensors from before back."""
        for parameter, before in self._kept:
            parameter.data = before
        self._kept = []

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._adapted.unfold()
