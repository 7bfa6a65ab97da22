"""alternating-selection: tasks take turns in choosing the row that they need most.

Source: alternating selection of Reichart et al., "Multi-Task Active Learning for Linguistic
    Annotations", ACL 2008, https://aclanthology.org/P08-1098
Differs from the source: turns by cost: the task that has spent least of its share is next. With
    `rows` False a task labels its choice for itself alone.
Shapes: N = rows, T = tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from polytask.relate.picks import Picks, check_scores, order


def alternating_selection(
    scores_NT: Tensor,
    budget: float,
    *,
    costs: Sequence[float] | None = None,
    rows: bool = True,
) -> Picks:
    """Return labels to ask for, chosen by the tasks in turn.

    scores_NT: per task, higher first; NaN cannot be asked for. budget, costs: as rank_combination.
    rows: True: the row chosen is labelled for every task that can be asked. A task's turn costs it
        what its choice costs; the one that has spent least is next, of equal ones the first. A task
        whose choice no longer fits the budget, or that has none left, drops out.
    """
    scores_NT, cost_T = check_scores(scores_NT, budget, costs, "alternating_selection")
    T = scores_NT.shape[1]
    wishes = {t: iter(order(scores_NT[:, t])) for t in range(T)}
    spent = dict.fromkeys(range(T), 0.0)
    taken: dict[tuple[int, int], None] = {}
    total = 0.0
    while wishes:
        task = min(wishes, key=lambda t: (spent[t], t))
        row = next((n for n in wishes[task] if (n, task) not in taken), None)
        if row is None:
            del wishes[task]
            continue
        asked = (~scores_NT[row].isnan()).nonzero().flatten().tolist() if rows else [task]
        labels = [(row, t) for t in asked if (row, t) not in taken]
        cost = float(cost_T[[t for _, t in labels]].sum())
        if total + cost > budget + 1e-9:
            del wishes[task]
            continue
        taken |= dict.fromkeys(labels)
        total += cost
        spent[task] += cost
    return Picks(tuple(taken), total)
