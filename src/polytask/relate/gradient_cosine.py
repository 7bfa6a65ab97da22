"""gradient-cosine: whether the tasks' gradients in the shared parameters agree, while all train.

Source: the cosine of Du et al., "Adapting Auxiliary Losses Using Gradient Similarity", 2018,
    https://arxiv.org/abs/1812.02224, and Yu et al., NeurIPS 2020, https://arxiv.org/abs/2001.06782
Differs from the source: a mean over training with its error, in place of a rule for each step.
Shapes: T = tasks, M = tasks of a look, P = shared parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from polytask.errors import UsageError
from polytask.relate.base import NAN, Affinity, Losses, check_tasks
from polytask.relate.watching import Looking, gradients, products, shared_list


class GradientCosine:
    """A `Watch` whose affinity is the mean cosine of two tasks' gradients; symmetric.

    shared: the parameters the gradients are of. every: looks at the first of so many steps.
    at_once: M, tasks whose gradients a look compares: M backward passes and M x P numbers; None:
        all. Fewer take turns, and a pair is then seen in about (M/T)^2 of the looks.
    seed: of the turns.
    """

    def __init__(
        self,
        shared: Sequence[Tensor],
        tasks: Sequence[str],
        *,
        every: int = 10,
        at_once: int | None = None,
        seed: int = 0,
    ) -> None:
        check_tasks(tasks, "GradientCosine")
        at_once = len(tasks) if at_once is None else at_once
        if at_once < 2:
            raise UsageError(f"GradientCosine: at_once is {at_once}; it compares at least 2.")
        self.shared = shared_list("GradientCosine", list(shared))
        self._looking = Looking("GradientCosine", tasks, every, at_once, seed)

    def observe(self, losses: Losses, again: Callable[[], Losses] | None = None) -> bool:
        """Look where it is time to; return True where it looked. `again` is not needed."""
        if not self._looking.due():
            return False
        T = len(self._looking.tasks)
        turns = self._looking.next(sorted(self._looking.values(losses)))
        values_TT = torch.full((T, T), NAN, dtype=torch.float64)
        if turns:
            rows = [gradients(losses[self._looking.tasks[t]], self.shared) for t in turns]
            gram_MM = torch.zeros(len(turns), len(turns), dtype=torch.float64)
            for n in range(len(self.shared)):
                grads = [row[n] for row in rows]
                gram_MM += products(grads, grads)
            norm_M = gram_MM.diagonal().sqrt()
            scale_MM = norm_M[:, None] * norm_M
            fine_MM = (scale_MM > 0) & gram_MM.isfinite()
            cosine_MM = (gram_MM / scale_MM).clamp(-1, 1)
            cosine_MM = cosine_MM.where(fine_MM, torch.full((), NAN).double())
            at_M = torch.tensor(turns)
            values_TT[at_M[:, None], at_M] = cosine_MM
        self._looking.moments.add(values_TT)
        return True

    def affinity(self) -> Affinity:
        """Return the mean over all looks so far; NaN where a pair was not seen yet."""
        return self._looking.moments.affinity(self._looking.tasks, "gradient-cosine", ())

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of all it knows, as tensors."""
        return self._looking.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        self._looking.load_state_dict(state)
