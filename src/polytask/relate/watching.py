"""What methods that watch training share: when to look, whose turn it is, and means over looks.

Shapes: T = tasks, M = tasks whose turn it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polytask.errors import DataError, RunError, UsageError, unknown
from polytask.relate.base import NAN, Affinity, Losses


@dataclass
class Moments:
    """Count, mean and sum of squares of every entry over the looks it was seen in (Welford)."""

    tasks: int
    count_TT: Tensor = field(init=False)
    mean_TT: Tensor = field(init=False)
    squares_TT: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.tasks, self.tasks)
        self.count_TT, self.mean_TT, self.squares_TT = (
            torch.zeros(shape, dtype=torch.float64) for _ in range(3)
        )

    def add(self, values_TT: Tensor) -> None:
        """Add one look; NaN is an entry not seen in it."""
        seen_TT = ~values_TT.isnan()
        self.count_TT = self.count_TT + seen_TT
        off_TT = (values_TT - self.mean_TT).where(seen_TT, torch.zeros(()).double())
        self.mean_TT = self.mean_TT + off_TT / self.count_TT.clamp_min(1)
        after_TT = (values_TT - self.mean_TT).where(seen_TT, torch.zeros(()).double())
        self.squares_TT = self.squares_TT + off_TT * after_TT

    def affinity(self, tasks: tuple[str, ...], source: str, notes: tuple[str, ...]) -> Affinity:
        """Return the means; their standard error takes the looks for independent."""
        unknown_TT = torch.full((), NAN).double()
        values_TT = self.mean_TT.where(self.count_TT > 0, unknown_TT)
        variance_TT = self.squares_TT / (self.count_TT - 1).clamp_min(1)
        error_TT = (variance_TT / self.count_TT.clamp_min(1)).sqrt()
        error_TT = error_TT.where(self.count_TT > 1, unknown_TT)
        least = int((self.count_TT + self.count_TT.max() * torch.eye(self.tasks)).min())
        seen = f"every value is a mean over looks, {least} or more of them"
        return Affinity(tasks, values_TT, error_TT, source, True, (seen, *notes))

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the three tables."""
        return {name: getattr(self, name).clone() for name in self._NAMES}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the three tables."""
        for name in self._NAMES:
            setattr(self, name, state[name].to(torch.float64).clone())

    _NAMES = ("count_TT", "mean_TT", "squares_TT")


class Looking:
    """When a watch looks and whose turn it is: a part of every watch.

    Tasks take turns in an order drawn anew for every round, from the seed and the number of the
    round alone, so that a resumed run goes on with the same turns.
    """

    def __init__(self, who: str, tasks: Sequence[str], every: int, at_once: int, seed: int) -> None:
        for name, value, least in (("every", every, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{who}: {name} is {value!r}; give an integer >= {least}.")
        if not 1 <= at_once <= len(tasks):
            raise UsageError(
                f"{who}: {at_once} tasks at once of {len(tasks)}; give 1 to {len(tasks)}."
            )
        self.who, self.tasks = who, tuple(tasks)
        self.every, self.at_once, self.seed = every, at_once, seed
        self.step = self.turn = 0
        self.moments = Moments(len(tasks))

    def due(self) -> bool:
        """Count a step; return True where it is one to look at."""
        self.step += 1
        return (self.step - 1) % self.every == 0

    def next(self, present: Sequence[int]) -> list[int]:
        """Return whose turn it is, as numbers on axis T; absent tasks lose theirs."""
        T = len(self.tasks)
        if self.at_once == T:
            return list(present)
        turns = []
        for _ in range(self.at_once):
            round_, place = divmod(self.turn, T)
            generator = torch.Generator().manual_seed((self.seed << 32) + round_)
            turns.append(int(torch.randperm(T, generator=generator)[place]))
            self.turn += 1
        return [t for t in dict.fromkeys(turns) if t in set(present)]

    def values(self, losses: Losses) -> dict[int, float]:
        """Return the finite losses by number; raise for unknown tasks and those with no sense."""
        found = {}
        for task, loss in losses.items():
            if task not in self.tasks:
                known = f"The tasks are: {', '.join(self.tasks)}."
                raise unknown("task", task, self.tasks, known)
            if loss.ndim:
                raise UsageError(
                    f"{self.who}: the loss of {task!r} has shape {tuple(loss.shape)}; give a "
                    "scalar."
                )
            value = float(loss.detach())
            if value == value and abs(value) != torch.inf:
                found[self.tasks.index(task)] = value
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Return the steps, the turns and the tables."""
        counts = torch.tensor([self.step, self.turn])
        return {"counts": counts, **self.moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave; raise RunError where it is of other tasks."""
        expected = self.state_dict()
        if state.keys() != expected.keys() or any(
            state[name].shape != value.shape for name, value in expected.items()
        ):
            raise RunError(
                f"{self.who}: the saved state is not of {len(self.tasks)} tasks watched by it; "
                "load it into the watch that wrote it."
            )
        self.step, self.turn = (int(n) for n in state["counts"])
        self.moments.load_state_dict(state)


def positive(who: str, task: str, value: float) -> None:
    """Raise DataError where a loss is below 0: a relative change of it would mean nothing."""
    if value < 0:
        raise DataError(
            f"{who} compares losses by their ratio, and that of {task!r} is {value:.3g}; give "
            "losses >= 0, such as one less its lower bound."
        )


def shared_list(who: str, shared: Sequence[Tensor]) -> list[Tensor]:
    """Return the shared parameters that train, or raise UsageError where there is none."""
    found = [parameter for parameter in shared if parameter.requires_grad]
    if not found:
        raise UsageError(f"{who}: no shared parameter trains; give those the tasks share.")
    return found


def gradients(loss: Tensor, shared: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradient of a loss in each shared parameter; its graph stays."""
    if not loss.requires_grad:
        raise UsageError(
            "A loss has no graph to pass back through; give the losses of the step, before their "
            "backward pass and outside of torch.no_grad()."
        )
    return list(torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True))


def products(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> Tensor:
    """Return the inner products of every tensor with every other one, (M, M), in float64.

    All of one shape; None is 0.
    """
    like = next((given for given in (*one, *other) if given is not None), None)
    if like is None:
        return torch.zeros(len(one), len(other), dtype=torch.float64)

    def rows(given: Sequence[Tensor | None]) -> Tensor:
        zero = torch.zeros_like(like.to_dense())
        flat = [(zero if v is None else v.to_dense()).reshape(-1) for v in given]
        return torch.stack(flat).double()

    rows_MP = rows(one)
    return (rows_MP @ (rows_MP if other is one else rows(other)).T).cpu()
