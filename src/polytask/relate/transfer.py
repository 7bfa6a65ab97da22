"""transfer: the expensive truth: train on one task, then on another, and see what it was good for.

Source: Zamir et al., "Taskonomy", CVPR 2018, https://arxiv.org/abs/1804.08328; Pruksachatkun et
    al., "Intermediate-Task Transfer Learning", ACL 2020, https://arxiv.org/abs/2005.00628
Differs from the source: gains are relative to the target trained alone with the same seed, without
    Taskonomy's ordinal normalisation.
Shapes: T = tasks, R = seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from polytask.errors import DataError, UsageError
from polytask.records import read_json, write_json
from polytask.relate.base import NAN, Affinity, check_tasks

Asked = tuple[str | None, str, int]

Trial = Callable[[str | None, str, int], float]
"""(source or None, target, seed) -> the target's score."""


def transfer(
    tasks: Sequence[str],
    trial: Trial,
    seeds: Sequence[int],
    *,
    higher_is_better: bool | Mapping[str, bool] = True,
    relative: bool = True,
    pairs: Sequence[tuple[str, str]] | None = None,
    keep: str | Path | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Affinity:
    """Return what each source gained each target, over all pairs: T^2 trials for every seed.

    trial: trains on the source and then on the target (None: on the target alone) and returns the
        target's score. It decides what is trained and kept; give it what it needs by a closure.
    higher_is_better: of the scores, for all tasks or for each.
    relative: gains as a share of the score alone, which must not be 0; False: differences.
    pairs: (source, target), where not all are wanted; the others are NaN.
    keep: a file in which every trial is noted; the same call goes on where it was stopped.
    tell: called with trials done and to do, as they go.

    The error is that of the mean of paired differences over seeds; NaN with one seed. A score that
    is not finite (a run that diverged) leaves that seed of that pair out.
    """
    check_tasks(tasks, "transfer")
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"transfer: seeds are {list(seeds)}; give one or more different ones.")
    up = dict.fromkeys(tasks, higher_is_better) if isinstance(higher_is_better, bool) else {
        task: higher_is_better[task] for task in tasks
    }  # fmt: skip
    if pairs is None:
        pairs = [(i, j) for i in tasks for j in tasks if i != j]
    for name in {name for pair in pairs for name in pair} - set(tasks):
        raise UsageError(f"transfer: pairs name {name!r}, which is none of the tasks.")
    asked: list[Asked] = [(None, target, seed) for target in tasks for seed in seeds
             if any(j == target for _, j in pairs)]  # fmt: skip
    asked += [(i, j, seed) for i, j in pairs for seed in seeds]
    scores = _run(asked, trial, None if keep is None else Path(keep), tell)
    T = len(tasks)
    values_TT = torch.full((T, T), NAN, dtype=torch.float64)
    error_TT = values_TT.clone()
    lost = 0
    for i, j in pairs:
        gains = []
        for seed in seeds:
            score, alone = scores[i, j, seed], scores[None, j, seed]
            if not (math.isfinite(score) and math.isfinite(alone)):
                lost += 1
                continue
            if relative and alone == 0:
                raise DataError(
                    f"transfer: the score of {j!r} alone is 0 with seed {seed}; a share of it "
                    "means nothing. Give relative=False."
                )
            gain = (score - alone) / (abs(alone) if relative else 1.0)
            gains.append(gain if up[j] else -gain)
        at = tasks.index(i), tasks.index(j)
        if gains:
            gains_R = torch.tensor(gains, dtype=torch.float64)
            values_TT[at] = gains_R.mean()
            if len(gains) > 1:
                error_TT[at] = gains_R.std() / len(gains) ** 0.5
    notes = (f"{lost} trials were not finite and are left out",) if lost else ()
    return Affinity(tuple(tasks), values_TT, error_TT, "transfer", True, notes)


def _run(
    asked: Sequence[Asked],
    trial: Trial,
    keep: Path | None,
    tell: Callable[[int, int], None] | None,
) -> dict[Asked, float]:
    """Return the score of every trial; those noted in `keep` are not made again."""
    noted: dict[str, float | None] = {}
    if keep is not None and keep.exists():
        noted = read_json(keep)
        if not isinstance(noted, dict):
            raise DataError(f"{keep} does not hold the scores of trials; give another file.")
    scores: dict[Asked, float] = {}
    for n, one in enumerate(asked):
        source, target, seed = one
        name = f"{source or ''} -> {target}, seed {seed}"
        if name not in noted:
            noted[name] = float(trial(source, target, seed))
            if keep is not None:
                write_json(keep, noted)
        score = noted[name]
        scores[one] = NAN if score is None else float(score)
        if tell is not None:
            tell(n + 1, len(asked))
    return scores
