"""TAG: how far a step on one task alone lowers each other task's loss, watched while all train.

Source: Fifty et al., "Efficiently Identifying Task Groupings for Multi-Task Learning", NeurIPS
    2021, https://arxiv.org/abs/2109.04617; code: google-research/google-research, tag
Differs from the source: the step is the optimiser's own (momentum, Adam's scaling, weight decay),
    made on copies; batch-norm statistics, random states and gradients stay as they were. By
    default tasks take turns as sources, so that the price does not grow with T, and a step is
    compared with one on no task: what momentum and weight decay do is common to all sources, moves
    with every batch, and would drown the difference between sources that are seen on different
    batches. `sources=T, against="now"` is the source's. A first-order form is added.
Shapes: T = tasks, M = sources of a look, P = shared parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.errors import UsageError
from polytask.relate.base import NAN, Affinity, Losses, check_tasks
from polytask.relate.stepping import Stepping
from polytask.relate.watching import Looking, gradients, positive, products, shared_list


class TAG:
    """A `Watch`: Z[i, j] = (L_j(after a step on no task) - L_j(after one on L_i)) / L_j(now).

    model: its buffers (batch-norm statistics) are put back after every look. shared: the
        parameters that the step changes. optimizer: the one that trains them; its own rule is
        applied to copies, which are kept beside it: of the shared parameters and of its state of
        them. Any of torch's but LBFGS, which evaluates losses itself.
    every: looks at the first of so many steps.
    sources: M, tasks that take their turn in one look; None: one per 20 tasks. A look costs M
        backward and M + 1 forward passes and as many steps of the optimiser, whatever T is, and
        sees a source in every T/M-th look: T * every / M steps for one value of each pair.
    against: "idle": the step on no task, one with gradients of 0, see above; "now": no step, as in
        the source: Z[i, j] = 1 - L_j(after a step on L_i) / L_j(now), for a forward pass less
        where the model draws no random numbers. The same for plain SGD without weight decay.
    first_order: Z[i, j] = - grad L_j . (difference of the steps) / L_j, without `again`, for M
        backward passes; only between the M tasks of a look, so M = T unless given. Exact as the
        step goes to 0.
    seed: of the order in which tasks take turns.

    Losses must be >= 0; a loss of 0 or one that is not finite is left out of that look. A step
    that diverges (the loss after it is not finite) is left out too, and counted in the notes.
    With several processes each watches its own rows.
    """

    def __init__(
        self,
        model: nn.Module,
        shared: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        tasks: Sequence[str],
        *,
        every: int = 20,
        sources: int | None = None,
        against: Literal["idle", "now"] = "idle",
        first_order: bool = False,
        seed: int = 0,
    ) -> None:
        check_tasks(tasks, "TAG")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UsageError("TAG: LBFGS evaluates losses inside its step; use another optimiser.")
        self.model, self.optimizer = model, optimizer
        self.shared = shared_list("TAG", list(shared))
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(parameter) not in held for parameter in self.shared):
            raise UsageError(
                "TAG: a shared parameter is not one of the optimiser's; give the optimiser that "
                "trains the shared parameters."
            )
        if sources is None:
            sources = len(tasks) if first_order else max(1, len(tasks) // 20)
        if first_order and sources < 2:
            raise UsageError("TAG: the first-order form compares the sources of a look; give >= 2.")
        if against not in ("idle", "now"):
            raise UsageError(f"TAG: against is {against!r}; give 'idle' or 'now'.")
        self.first_order, self.against = first_order, against
        self._looking = Looking("TAG", tasks, every, sources, seed)
        self._stepping = Stepping(optimizer, self.shared)
        self._diverged = 0

    def observe(self, losses: Losses, again: Callable[[], Losses] | None = None) -> bool:
        """Look where it is time to; return True where it looked.

        losses: task -> mean loss with its graph, which stays for your backward pass.
        again: computes the same losses of the same rows anew, with the model as it is then. It is
            called M + 1 times, without gradients.
        """
        if not self._looking.due():
            return False
        now = {t: v for t, v in self._looking.values(losses).items() if v != 0}
        for t, value in now.items():
            positive("TAG", self._looking.tasks[t], value)
        turns = self._looking.next(sorted(now))
        values_TT = torch.full((len(self._looking.tasks),) * 2, NAN, dtype=torch.float64)
        if self.first_order:
            self._first_order(values_TT, now, losses, turns)
        elif again is None:
            raise UsageError(
                "TAG looks ahead by computing the losses again: observe(losses, again=...); or use "
                "first_order=True, which does without."
            )
        elif turns:
            self._exact(values_TT, now, losses, turns, again)
        self._looking.moments.add(values_TT)
        return True

    def affinity(self) -> Affinity:
        """Return the mean over all looks so far; NaN where a pair was not seen yet."""
        notes = ["first order" if self.first_order else "exact look-ahead"]
        notes[0] += ", against a step on no task" if self.against == "idle" else ""
        if self._diverged:
            notes.append(f"{self._diverged} losses after a step were not finite and are left out")
        return self._looking.moments.affinity(self._looking.tasks, "tag", tuple(notes))

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of all it knows, as tensors."""
        return {**self._looking.state_dict(), "diverged": torch.tensor(self._diverged)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        rest = {name: value for name, value in state.items() if name != "diverged"}
        self._looking.load_state_dict(rest)
        self._diverged = int(state.get("diverged", 0))

    def _gradients(self, losses: Losses, task: int) -> list[Tensor | None]:
        return gradients(losses[self._looking.tasks[task]], self.shared)

    def _first_order(
        self,
        values_TT: Tensor,
        now: Mapping[int, float],
        losses: Losses,
        turns: Sequence[int],
    ) -> None:
        begin = [parameter.detach() for parameter in self.shared]
        if self.against == "idle":
            begin = [value.clone() for value in self._stepping.on_nothing()]
        steps = []
        for i in turns:
            grads = self._gradients(losses, i)
            steps.append((grads, [value.clone() for value in self._stepping.on(grads)]))
        change_MM = torch.zeros(len(turns), len(turns), dtype=torch.float64)
        for n, parameter in enumerate(begin):
            moved = [after[n] - parameter for _, after in steps]
            change_MM += products(moved, [grads[n] for grads, _ in steps])
        for i, row_M in zip(turns, change_MM.tolist(), strict=True):
            for j, change in zip(turns, row_M, strict=True):
                values_TT[i, j] = -change / now[j]

    def _exact(
        self,
        values_TT: Tensor,
        now: Mapping[int, float],
        losses: Losses,
        turns: Sequence[int],
        again: Callable[[], Losses],
    ) -> None:
        devices = sorted({p.device.index or 0 for p in self.shared if p.device.type == "cuda"})
        random = torch.get_rng_state()
        drew = bool(devices)

        with kept(self.model, self.shared) as put:

            def seen(values: Sequence[Tensor] | None) -> Mapping[int, float]:
                nonlocal drew
                put(values)
                # every pass draws the same numbers, such as dropout's
                with torch.random.fork_rng(devices=devices):
                    found = self._looking.values(again())
                    drew = drew or not torch.equal(random, torch.get_rng_state())
                return found

            after: dict[int, Mapping[int, float]] = {}
            for i in turns:
                put(None)  # the graph of the losses reads these parameters
                with torch.enable_grad():
                    step = self._stepping.on(self._gradients(losses, i))
                after[i] = seen(step)
            put(None)
            idle = self._stepping.on_nothing() if self.against == "idle" else None
            if idle is not None and all(map(torch.equal, idle, self.shared)):
                idle = None  # such as plain SGD: a step on no task is no step
            # losses that were drawn with other numbers are no measure: compute them again
            before = seen(idle) if idle is not None or drew else now
        for i, found in after.items():
            for j, value in now.items():
                if j in before and j in found:
                    values_TT[i, j] = (before[j] - found[j]) / value
                else:
                    self._diverged += 1


@contextmanager
def kept(
    model: nn.Module, shared: Sequence[Tensor]
) -> Iterator[Callable[[Sequence[Tensor] | None], None]]:
    """Let the shared parameters take other values (None: their own), without gradients.

    In the end they and all buffers are as they were, bit for bit. Written through `.data`: a graph
    that waits for its backward pass holds these tensors, and a change that autograd counts would
    make that pass an error although the values are the same again.
    """
    values = [parameter.detach().clone() for parameter in shared]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    changed = False

    def put(others: Sequence[Tensor] | None) -> None:
        nonlocal changed
        if others is None and not changed:
            return
        for parameter, other in zip(shared, values if others is None else others, strict=True):
            parameter.data.copy_(other)
        changed = others is not None

    try:
        with torch.no_grad():
            yield put
    finally:
        put(None)
        for buffer, value in buffers:
            buffer.data.copy_(value)
