"""Weighed: a method of the losses sets weights first, a method of the gradients balances then.

Source: Dai, Fei & Lu, "Improvable Gap Balancing for Multi-Task Learning", UAI 2023,
    https://arxiv.org/abs/2307.15429, section 4.3 (loss balancing combined with gradient balancing);
    Liu et al., "Towards Impartial Multi-Task Learning", ICLR 2021,
    https://openreview.net/forum?id=IMPnRXEWpvr (IMTL is IMTL-L followed by IMTL-G)
Differs from the source: joins any two methods. Trained weights (uncertainty, IMTL-L) are trained by
    the losses they weigh, as they are alone: the second method's answer does not reach them.
Shapes: T = tasks of the run, K = tasks present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from polytask.balance.base import Balance, State, Update
from polytask.balance.refusals import check_parts
from polytask.balance.turn import Turn
from polytask.balance.wrapper import Method, Wrapper, label, nest, started, under, wrappers
from polytask.errors import UsageError


@dataclass(frozen=True)
class Weighed:
    """The products of both methods' weights.

    With w of the first, the second sees the losses w_k L_k and their gradients, so the Gramian
    diag(w) G diag(w). Every task's own parameters get the gradient of w_k L_k.

    method: one that compares gradients, or a wrapper around one.
    by: one that needs losses alone. It may look at losses between updates (FAMO, CoBa). For
        micro-batches one with foresees = True.
    """

    spans_processes: ClassVar[bool] = True
    looks_again: ClassVar[bool] = False

    method: Method
    by: Balance

    def __post_init__(self) -> None:
        if not isinstance(self.by, Balance) or self.by.needs != "losses":
            raise UsageError(
                f"Weighed: by is {label(self.by)}, which does not weigh by losses alone; give one "
                "that does, such as Weighed(CAGrad(), by=IGBv1())."
            )
        if any(isinstance(wrapper, Weighed) for wrapper in wrappers(self.method)):
            raise UsageError("Weighed: method is weighed already; one method of the losses goes.")
        if not isinstance(self.method, Wrapper) and (
            not isinstance(self.method, Balance) or self.method.needs == "losses"
        ):
            raise UsageError(
                f"Weighed: method is {label(self.method)}, which does not look at gradients; give "
                "one that does, such as Weighed(CAGrad(), by=IGBv1())."
            )

    def methods(self) -> Mapping[str, Method]:
        """Return the method of the gradients and that of the losses."""
        return {"method": self.method, "by": self.by}

    def start(self, tasks: int) -> State:
        """Return the states of both."""
        return started(self, tasks, {})

    def take(self, turn: Turn, state: State) -> None:
        """Weigh a micro-batch, which needs a `by` that foresees, and hand it to the method."""
        check_parts(self.by)
        if turn.mine:
            first = turn.ask(self.by, under("by", state))
            turn = turn.weighed(first.weights_K.detach())
        turn.take(self.method, under("method", state))

    def update(self, turn: Turn, state: State) -> Update:
        """Add the gradients; return the products of the weights."""
        first = turn.ask(self.by, under("by", state))
        weights_K = first.weights_K.detach()
        second = turn.weighed(weights_K).exact(self.method, under("method", state))
        turn.add_trained(first)
        turn.said.how = f"losses weighed by {label(self.by)}, then {turn.said.how}"
        both_K = weights_K.to(second.weights_K.dtype) * second.weights_K.detach()
        notes = [note for note in (first.note, second.note) if note is not None]
        return Update(
            nest("by", first.state) | nest("method", second.state),
            both_K,
            note="; ".join(notes) or None,
        )
