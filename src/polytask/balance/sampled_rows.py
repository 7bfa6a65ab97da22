"""SampledRows: the method looks at the gradients of a part of the rows; the update is of all.

Source: none of its own; a Gramian of a random part of the batch, as MoDo of Chen et al., "Three-Way
    Trade-Off in Multi-Objective Learning", NeurIPS 2023, https://arxiv.org/abs/2305.20057, takes
    products of gradients of independent samples
Differs from the source: the products are of one sample with itself, so that the Gramian stays
    positive semi-definite, and any method can be asked. A task without a label in the sample keeps
    its last weight; one that has none yet gets the mean weight of the tasks that are in it.
Shapes: T = tasks of the run, K = tasks present, S = tasks in the sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from polytask.balance.base import Balance, State, Update
from polytask.balance.exact import Pending
from polytask.balance.turn import Turn
from polytask.balance.wrapper import Method, check_wrapped, nest, started, under
from polytask.errors import UsageError


@dataclass(frozen=True)
class SampledRows:
    """The method's weights for the Gramian of a sample, applied to the whole batch.

    The price is a plain step and the exact method's on that part of the rows.

    method: one that answers with weights.
    fraction: in (0, 1], of the rows of a batch that are looked at; at least one row is.
    seed: >= 0; of the draws, made anew at every step.

    The sample's Gramian is formed per layer where that applies; `Balancer` says of its `gramian`
    what that means for a run that is taken up again.

    Needs `again`, see `wrapper.Again`. The second forward pass updates the running statistics of
    batch normalisation, unless `again` keeps them; `fit` does. Every micro-batch and process draws
    of its own rows; micro-batches before the last are passed backward when the weights are known,
    after one forward pass more.
    """

    looks_again: ClassVar[bool] = True
    spans_processes: ClassVar[bool] = True

    method: Balance
    fraction: float = 0.125
    seed: int = 0

    def __post_init__(self) -> None:
        check_wrapped("SampledRows", self.method, rows=False)
        if not 0 < self.fraction <= 1:
            raise UsageError(
                f"SampledRows: fraction is {self.fraction}; give a number in (0, 1] (default "
                "0.125)."
            )
        if self.seed < 0:
            raise UsageError(f"SampledRows: seed is {self.seed}; give an integer >= 0.")

    def methods(self) -> Mapping[str, Method]:
        """Return the method wrapped."""
        return {"method": self.method}

    def start(self, tasks: int) -> State:
        """Return weights of NaN, which stand for none yet, and the method's state."""
        weights_T = torch.full((tasks,), torch.nan, dtype=torch.float64)
        return started(self, tasks, {"weights_T": weights_T})

    def take(self, turn: Turn, state: State) -> None:
        """Keep what computes the micro-batch again: its weights follow from the whole sample."""
        turn.hold()

    def update(self, turn: Turn, state: State) -> Update:
        """Add the gradients of the whole batch; return the weights."""
        seen, parts = Pending(), turn.every
        for n, (again, _) in enumerate(parts):
            rows = turn.rows(self.seed, n, 0.0, self.fraction)
            mine, given, losses_K = turn.look(again, rows, turn.at)
            seen.add_losses(mine, losses_K)
            turn.engine.look(seen, mine, given, more=n + 1 < len(parts))
        at, losses_S = turn.together(seen)
        weights_T = state["weights_T"]
        method_state, note = under("method", state), None
        if at:
            gram_SS = turn.engine.gramian(seen, at)
            how = f"a sample of {self.fraction:g} of the rows: {turn.engine.said}{turn.held}"
            sample = replace(turn, at=at, losses_K=losses_S)
            found = sample.ask(self.method, method_state, gram_SS)
            sample.add_penalty(found)
            method_state, note = found.state, found.note
            new_S = found.weights_K.detach().to(torch.float64)
            weights_T = weights_T.index_copy(0, sample.index_K, new_S)
            mean = new_S.mean()
        else:
            how = f"a sample of {self.fraction:g} of the rows, without a label"
            mean = weights_T.nanmean().nan_to_num(nan=1.0)
        weights_K = weights_T.index_select(0, turn.index_K)
        weights_K = torch.where(weights_K.isnan(), mean, weights_K)
        turn.add_weighted(weights_K)
        turn.said.how = how
        return Update({"weights_T": weights_T} | nest("method", method_state), weights_K, note=note)
