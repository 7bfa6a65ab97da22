"""Masks and coefficients in two levels: masks that are good after the coefficients adapt to them.

A round: coefficients at their start take one step for a drawn mask; the mask's logits take a step
for what then comes out. After all rounds the mask is fixed and the coefficients are searched.

Shapes: T = tasks, N = tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from polytask.merge.coefficients import Coefficients, Level, pull
from polytask.merge.family import Merged, Tensors
from polytask.merge.masks import Masks, masked
from polytask.merge.rounds import OfTask, Rounds, search_coefficients, sure
from polytask.merge.search import Saving, SearchState, search


@dataclass(frozen=True)
class Bilevel:
    """What a search in two levels is set to; see `ConcreteAdaMerging` for the fields."""

    who: str
    level: Level
    start: float
    masks: Masks
    rounds: int
    coefficient_rate: float
    coefficient_rounds: int


def search_bilevel(
    settings: Bilevel,
    rounds: Rounds,
    extra: Tensors,
    optimiser: Callable[[list[Tensor]], Optimizer],
    outer: Callable[[Tensors, int], OfTask],
    before: Callable[[Tensors, Tensors, int], None],
    state: SearchState | None,
    saving: Saving | None,
) -> Merged:
    """Return what both phases found; learned: logits, `extra`, and the coefficients.

    extra: values that are searched beside the logits, which come first for `optimiser`.
    outer: values and round -> the loss of a task in the step on the mask.
    before: called with the values, the merged tensors and the round, ahead of that step; it may
        add gradients to the extra values.
    """
    family = rounds.family
    start = Coefficients(family.base, family.deltas, settings.start, settings.level)

    plainly = sure(family, settings.who)

    def gradients(round: int, values: Tensors) -> Tensor:
        masks = settings.masks.draw(values, round)
        lam = start.values.clone().requires_grad_()
        deltas = {name: delta * masks[name].detach() for name, delta in family.deltas.items()}
        # Two batches a round: one for the step inside, one for the step on the mask.
        pull(start.merge(lam, deltas), rounds.losses(2 * round, plainly))
        with torch.no_grad():
            assert lam.grad is not None
            # Adam's first step is one of the learning rate in the direction of the sign.
            lam = lam - settings.coefficient_rate * lam.grad / (lam.grad.abs() + 1e-8)
            change = start.changes(lam)
        merged = masked(family.base, change, masks)
        before(values, {n: tensor.detach() for n, tensor in merged.items()}, round)
        return pull(merged, rounds.losses(2 * round + 1, outer(values, round)))

    values = settings.masks.start(family.base) | extra
    if state is None or "coefficients" not in state.values:
        found = search(
            settings.who, values, optimiser, gradients, settings.rounds, state=state, saving=saving
        )
        second = None
    else:  # the masks are found: the state is of the second phase, and carries them
        past = state.losses[: settings.rounds], state.losses[settings.rounds :]
        masks_of = {name: state.values[name] for name in values}
        found = SearchState(settings.rounds, masks_of, {}, past[0])
        lam_of = {"coefficients": state.values["coefficients"]}
        second = replace(state, values=lam_of, losses=past[1])
    masks = settings.masks.settled(found.values)
    deltas = {name: delta * masks[name] for name, delta in family.deltas.items()}
    coefficients = Coefficients(family.base, deltas, settings.start, settings.level)
    done = search_coefficients(
        settings.who, rounds, coefficients, plainly, settings.coefficient_rounds,
        settings.coefficient_rate, state=second, saving=_both(saving, found),
    )  # fmt: skip
    lam = done.values["coefficients"]
    return Merged(
        coefficients.merge(lam),
        learned={**found.values, "coefficients": lam},
        losses=found.losses + done.losses,
    )


def _both(saving: Saving | None, first: SearchState) -> Saving | None:
    """Return the saving of the second phase, whose states carry what the first found."""
    if saving is None:
        return None
    keep = saving.keep

    def kept(state: SearchState) -> None:
        values = state.values | first.values
        keep(replace(state, values=values, losses=first.losses + state.losses))

    return Saving(kept, saving.every)
