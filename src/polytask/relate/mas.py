"""MAS: after some rounds of training all tasks as one, split them by the affinity seen so far.

Source: Zhuang et al., "MAS: Towards Resource-Efficient Federated Multiple-Task Learning", ICCV
    2023, https://arxiv.org/abs/2307.11285
Differs from the source: the split alone, known here from a summary; training all-in-one before and
    going on from its weights after is the loop's business. In the source: 100 rounds of federated
    averaging, split after 30 of them by TAG scores.
Shapes: T = tasks.
"""

from __future__ import annotations

from polytask.relate.base import Affinity, Groups, check_budget
from polytask.relate.exact import exact


def mas(affinity: Affinity, splits: int, *, seconds: float = 60.0) -> Groups:
    """Return exactly `splits` groups without overlap, of the highest mean affinity.

    affinity: such as `TAG(...)` saw in the first rounds. splits: 1 to T; what exceeds T counts as
        T. Each split goes on from the common model's weights. A task alone counts 0. Up to 16
        tasks; see `exact`.
    """
    splits = check_budget(splits, len(affinity.tasks), "mas")
    return exact(affinity, splits, overlap=False, exactly=True, seconds=seconds)
