"""The loop of the methods that search: rounds of a gradient step, state in and out.

A search that is stopped and goes on from its state gives the same bits as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from polytask.errors import Diverged, UsageError
from polytask.merge.family import Tensors

Keep = Callable[["SearchState"], None]


@dataclass(frozen=True)
class SearchState:
    """A search after some rounds: what is searched, the optimiser's memory, and past losses.

    `tensors` and `of` turn it into named tensors and back, for a safetensors file.
    """

    round: int
    values: Tensors
    memory: Tensors
    losses: tuple[float, ...]

    def tensors(self) -> Tensors:
        """Return the state as named tensors."""
        return (
            {"round": torch.tensor(self.round)}
            | {"losses": torch.tensor(self.losses, dtype=torch.float64)}
            | {f"value/{name}": tensor for name, tensor in self.values.items()}
            | {f"memory/{name}": tensor for name, tensor in self.memory.items()}
        )

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> SearchState:
        """Return the state that `tensors` was made of."""
        if "round" not in tensors or "losses" not in tensors:
            raise UsageError(
                "These tensors are not the state of a search: they lack 'round' and 'losses'. Give "
                "what SearchState.tensors() returned."
            )

        def begins(word: str) -> Tensors:
            return {n.removeprefix(word): t for n, t in tensors.items() if n.startswith(word)}

        past = tuple(tensors["losses"].tolist())
        return cls(int(tensors["round"]), begins("value/"), begins("memory/"), past)


@dataclass(frozen=True)
class Saving:
    """When a search hands out its state: every `every` rounds, and at the end."""

    keep: Keep
    every: int = 100


def search(
    who: str,
    values: Tensors,
    optimiser: Callable[[list[Tensor]], Optimizer],
    gradients: Callable[[int, Tensors], Tensor],
    rounds: int,
    *,
    after: Callable[[Tensors], None] = lambda values: None,
    state: SearchState | None = None,
    saving: Saving | None = None,
) -> SearchState:
    """Return the state after all rounds.

    values: where the search starts; not changed. gradients: round and values -> the objective,
        with gradients added to the values. after: changes the values in place after each step,
        such as a clamp. state: goes on from there; its values must be named and shaped the same.

    Raises Diverged where an objective is not finite, and UsageError where the state is of another
    search.
    """
    if rounds < 1:
        raise UsageError(f"{who}: rounds is {rounds}; give a whole number >= 1.")
    begun = state.values if state is not None else values
    if {n: v.shape for n, v in begun.items()} != {n: v.shape for n, v in values.items()}:
        raise UsageError(
            f"{who}: the state is of another search: it holds {list(begun)}, this one looks for "
            f"{list(values)}. Start without a state, or with the same models and settings."
        )
    # In the order of `values`: a file may hold a state's tensors in another.
    now = {n: begun[n].detach().clone().to(v.device).requires_grad_() for n, v in values.items()}
    steps = optimiser(list(now.values()))
    first, losses = (state.round, list(state.losses)) if state is not None else (0, [])
    if state is not None:
        _remember(steps, state.memory)
    for round in range(first, rounds):
        steps.zero_grad(set_to_none=True)
        loss = float(gradients(round, now))
        if not math.isfinite(loss):
            raise Diverged(
                f"{who}: the objective is {loss} in round {round}; give a smaller learning rate, "
                "or see whether the tuned models' own outputs are finite."
            )
        steps.step()
        with torch.no_grad():
            after(now)
        losses.append(loss)
        done = round + 1
        if saving is not None and (done % saving.every == 0 or done == rounds):
            saving.keep(_state(done, now, steps, losses))
    return _state(max(first, rounds), now, steps, losses)


def _state(round: int, now: Tensors, steps: Optimizer, losses: list[float]) -> SearchState:
    memory = {
        f"{i}/{key}": value.detach().clone()
        for i, held in steps.state_dict()["state"].items()
        for key, value in held.items()
        if isinstance(value, Tensor)
    }
    values = {name: value.detach().clone() for name, value in now.items()}
    return SearchState(round, values, memory, tuple(losses))


def _remember(steps: Optimizer, memory: Tensors) -> None:
    held: dict[int, Tensors] = {}
    for name, tensor in memory.items():
        at, _, key = name.partition("/")
        held.setdefault(int(at), {})[key] = tensor.clone()
    steps.load_state_dict(steps.state_dict() | {"state": held})
