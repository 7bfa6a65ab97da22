"""A balancer's state -> a flat dict of tensors for a checkpoint, and back.

The names: "step", "state.X" for what the method remembers, "trained.X" for the parameters it has;
under wrappers X begins with the wrapped method's name, as in "trained.by.log_variance_T".
"engine.X" is what the engine found out about the model. It may be missing: rows and several
processes have no use for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polytask.balance.base import State
from polytask.errors import RunError

Modules = Mapping[str, nn.Module]
"""Methods with trained parts, by their names under the wrappers; "" where there is no wrapper."""


ENGINE = "engine."


def pack(
    step: int, state: State, modules: Modules, engine: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return copies of all numbers, by name."""
    packed = {"step": torch.tensor(step)}
    packed |= {f"state.{name}": value for name, value in state.items()}
    for path, module in modules.items():
        packed |= {f"{_trained(path)}{name}": v for name, v in module.state_dict().items()}
    packed |= {ENGINE + name: value for name, value in engine.items()}
    return {name: value.detach().clone() for name, value in packed.items()}


def of_engine(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the engine found out, by its own names."""
    return {n.removeprefix(ENGINE): v for n, v in given.items() if n.startswith(ENGINE)}


def check(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], method: str, tasks: tuple[str, ...]
) -> None:
    """Return nothing where `given` has the names and shapes of `expected`; else raise RunError."""
    expected, given = (
        {name: value for name, value in each.items() if not name.startswith(ENGINE)}
        for each in (expected, given)
    )
    for name in sorted(expected.keys() ^ given.keys()):
        what = "lacks" if name in expected else "has the unknown entry"
        raise RunError(
            f"Balancer: the saved state {what} {name!r}; it is not one of {method}. Load it with "
            "the method that wrote it."
        )
    for name, value in expected.items():
        # A state that starts without elements takes its size at the first step.
        grows = not (value.numel() and given[name].numel())
        if not grows and given[name].shape != value.shape:
            raise RunError(
                f"Balancer: saved {name!r} has shape {tuple(given[name].shape)}, expected "
                f"{tuple(value.shape)}: it was saved with other tasks than {tasks}."
            )


def unpack(given: Mapping[str, Tensor], like: State, modules: Modules) -> State:
    """Return the method's state where `like` is, and give its modules their parameters."""
    for path, module in modules.items():
        begin = _trained(path)
        module.load_state_dict(
            {name[len(begin) :]: v for name, v in given.items() if name.startswith(begin)}
        )
    return {
        name: given[f"state.{name}"].to(
            value.device, value.dtype if value.numel() else None, copy=True
        )
        for name, value in like.items()
    }


def _trained(path: str) -> str:
    return f"trained.{path}." if path else "trained."
