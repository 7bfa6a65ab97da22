"""EveryN: look at the gradients at every n-th update, and keep the weights in between.

Source: none of its own; Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022,
    https://arxiv.org/abs/2202.01017, section 5.3 (weights updated every few steps), measure it
    for Nash-MTL
Differs from the source: works around any method that answers with weights. A task that has no
    weight yet, because it was absent from every look, causes a look; one that is absent keeps its
    weight until it is present at a look again.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from polytask.balance.base import State, Update
from polytask.balance.feature_level import FeatureLevel
from polytask.balance.sampled_rows import SampledRows
from polytask.balance.turn import Turn
from polytask.balance.wrapper import Method, check_wrapped, nest, started, under
from polytask.errors import UsageError


@dataclass(frozen=True)
class EveryN:
    """The method's weights, as old as n - 1 updates at most.

    Between looks an update costs one backward pass: the shared parameters get the gradient of the
    losses times the kept weights, every task's own parameters that of its unweighted loss. What
    the method learns or remembers moves at looks alone.

    method: one that answers with weights; or FeatureLevel or SampledRows around one.
    n: >= 1, updates from one look to the next; 1 is the method itself.
    """

    looks_again: ClassVar[bool] = False
    spans_processes: ClassVar[bool] = True

    method: Method
    n: int = 10

    def __post_init__(self) -> None:
        check_wrapped("EveryN", self.method, inside=(FeatureLevel, SampledRows), rows=False)
        if self.n < 1:
            raise UsageError(f"EveryN: n is {self.n}; give a whole number >= 1 (default 10).")

    def methods(self) -> Mapping[str, Method]:
        """Return the method wrapped."""
        return {"method": self.method}

    def start(self, tasks: int) -> State:
        """Return weights of NaN, which stand for none yet, and the method's state."""
        weights_T = torch.full((tasks,), torch.nan, dtype=torch.float64)
        return started(self, tasks, {"weights_T": weights_T})

    def take(self, turn: Turn, state: State) -> None:
        """Weigh a micro-batch by the weights kept; hold it where this update may be a look."""
        weights_T = state["weights_T"]
        # Not of the tasks here alone: a later micro-batch, or process, may have the one without.
        if turn.number % self.n == 0 or bool(weights_T.isnan().any()):
            turn.take(self.method, under("method", state))
        else:
            turn.add_weighted(weights_T.index_select(0, turn.index_K))

    def update(self, turn: Turn, state: State) -> Update:
        """Add the gradients; return the weights used, new or old."""
        known_K = state["weights_T"].index_select(0, turn.index_K)
        due = turn.number % self.n == 0
        if not due and not bool(known_K.isnan().any()):
            turn.add_weighted(known_K)
            turn.said.how = f"one backward with the weights of the last look (every {self.n})"
            return Update(state, known_K)
        found = turn.exact(self.method, under("method", state))
        turn.said.how = f"every {self.n} updates: {turn.said.how}"
        new_K = found.weights_K.detach().to(torch.float64)
        kept = {"weights_T": state["weights_T"].index_copy(0, turn.index_K, new_K)}
        return Update(kept | nest("method", found.state), found.weights_K, note=found.note)
