"""How a suite's tasks affect one another: models of all tasks are watched while they train.

The affinities of all seeds become one with an error over seeds; groups are proposed for every
budget up to the one asked for; and drawing the affinity again within its error says how sure the
groups are.

Shapes: T = tasks, S = seeds, N = rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.catalog import method
from polytask.errors import PolytaskError, UsageError
from polytask.fit import RECORD, FitConfig, affinity_of
from polytask.lock import alone
from polytask.parsing import choose
from polytask.recipes.plan import GRID, check_parallel
from polytask.recipes.runs import Show
from polytask.recipes.train import WATCHES, Job, load_suite
from polytask.recipes.workers import Call, Pool
from polytask.records import Record, claim, to_json, together, versions, write_json
from polytask.relate import Affinity, Groups, exact, greedy, label_correlation
from polytask.suites import Suite
from polytask.tasks import Binary, Regression

RELATED = "relate.json"
"""The result's name in its folder."""

EVIDENCE = ("tag", "gradient-cosine", "label-correlation")
"""What is looked at unless methods are named; of labels only where tasks share their rows."""

BUDGET = 3
"""Models, unless told otherwise."""

LISTED = 12
"""Up to so many tasks the groups are proven to be the best."""

DRAWS = 100
"""Affinities drawn within the error, to see how often two tasks come together."""

BY_LABELS = "label-correlation"

PHASES = ("", "models of all tasks", "", "")
"""What is shown meanwhile; as many as `compare` has."""

WATCHED = 1


@dataclass(frozen=True)
class RelatePlan:
    """What `relate` is asked for.

    suite: a name, or the path of a file that declares one. methods: of the room `relate`, with
    settings: those that watch a run, and label-correlation. budget: models at most.
    seeds: how many models of all tasks are watched, from 0. recipe: how they are trained.
    config: of each run, its learning rate included. processes, threads: as of `Plan`.
    """

    suite: str
    methods: tuple[str, ...] = EVIDENCE
    budget: int = BUDGET
    seeds: int = 3
    recipe: str = "equal"
    config: FitConfig = field(default_factory=lambda: FitConfig(lr=GRID[0][0]))
    out: Path = Path("runs")
    processes: int = 1
    threads: int = 1
    command: str = ""

    def __post_init__(self) -> None:
        for name, value in (("budget", self.budget), ("seeds", self.seeds)):
            if value < 1:
                raise UsageError(f"relate: {name} is {value}; give at least 1.")
        check_parallel(self.processes, self.threads)
        if not self.methods:
            raise UsageError(f"relate: no method was named; give some of {', '.join(known())}.")
        for text in self.methods:
            row = choose(text, "relate").method
            if row.name not in known():
                raise UsageError(
                    f"{row.name!r} of the room relate needs more than a suite; call it from "
                    f"Python, {row.target.replace(':', '.')}. Here: {', '.join(known())}."
                )
        if len(set(self.methods)) != len(self.methods):
            raise UsageError(f"relate: a method is named twice in {', '.join(self.methods)}.")

    @property
    def watches(self) -> tuple[str, ...]:
        """The methods that watch the runs."""
        return tuple(text for text in self.methods if choose(text, "relate").method.name in WATCHES)


def known() -> tuple[str, ...]:
    """Return the names of the methods that need a suite and nothing else."""
    return (*WATCHES, BY_LABELS)


def relate(plan: RelatePlan, show: Show) -> dict[str, Any]:
    """Train, watch, and return the result, which is also `relate.json` in the plan's folder.

    A folder of the same plan is taken up. Raises UsageError where the suite has a single task, or
    where none of the methods applies to it.
    """
    suite = load_suite(plan.suite)
    if len(suite.tasks) < 2:
        raise UsageError(
            f"Suite {suite.name!r} has one task; relating takes two or more. Nothing to group."
        )
    with alone(plan.out):
        claim(plan.out / "relating.json", _identity(plan, suite), "relation of tasks")
        jobs = [_job(plan, seed) for seed in range(plan.seeds)] if plan.watches else []
        _train(plan, jobs, show)
        found = to_json(_result(plan, suite, jobs))
        write_json(plan.out / RELATED, found)
    return found  # type: ignore[no-any-return]


def over_seeds(affinities: Sequence[Affinity]) -> Affinity:
    """Return the mean of several runs' affinities, and its standard error over the runs.

    Of one run it is that run's own. A pair that a run did not see is the mean of the others.
    """
    first = affinities[0]
    if len(affinities) == 1:
        return first
    values_STT = torch.stack([one.values_TT for one in affinities])
    count_TT = (~values_STT.isnan()).sum(0)
    mean_TT = values_STT.nanmean(0)
    squares_TT = (values_STT - mean_TT).square().nansum(0)
    error_TT = (squares_TT / (count_TT - 1).clamp_min(1) / count_TT.clamp_min(1)).sqrt()
    error_TT = error_TT.where(count_TT > 1, torch.full((), torch.nan).double())
    notes = dict.fromkeys(note for one in affinities for note in one.notes)
    said = f"a mean over {len(affinities)} runs, the error over runs"
    return replace(first, values_TT=mean_TT, error_TT=error_TT, notes=(said, *notes))


def for_grouping(affinity: Affinity) -> Affinity:
    """Return it with 0 for "neither helps nor hurts", as far as can be said, and none missing."""
    known = affinity.filled() if affinity.missing() else affinity
    return known if known.zero else known.centred()


def proposals(affinity: Affinity, budget: int) -> list[Groups]:
    """Return the groups for budgets of 1, 2, ... models: the best there are, see `LISTED`."""
    ready, T = for_grouping(affinity), len(affinity.tasks)
    choose_groups = exact if T <= LISTED else greedy
    return [choose_groups(ready, models) for models in range(1, min(budget, T) + 1)]


def sureness(affinity: Affinity, budget: int, seed: int = 0, draws: int = DRAWS) -> Tensor:
    """Return how often two tasks are served by one model, (T, T), over draws within the error.

    Entries without an error do not vary. Groups of a draw are those of `greedy`.
    """
    ready, T = for_grouping(affinity), len(affinity.tasks)
    generator = torch.Generator().manual_seed(seed)
    error_TT = ready.error_TT.nan_to_num(0.0)
    together_TT = torch.zeros(T, T, dtype=torch.float64)
    for _ in range(draws):
        noise_TT = torch.randn(T, T, generator=generator, dtype=torch.float64)
        drawn = replace(ready, values_TT=ready.values_TT + error_TT * noise_TT)
        serve_T = torch.tensor(greedy(drawn, min(budget, T), overlap=False).serve)
        together_TT += serve_T[:, None] == serve_T
    return together_TT / draws


def labels_of(suite: Suite) -> tuple[tuple[str, ...], Tensor] | None:
    """Return the tasks that are numbers or flags and their training labels (N, T), NaN where there
    is none; None where tasks do not share their rows, or fewer than three are of that sort: how
    alike two are says nothing of help unless others can be less alike."""
    names = [t.name for t in suite.tasks if isinstance(t.kind, (Binary, Regression))]
    if len(suite.train) != 1 or len(names) < 3:
        return None
    targets = suite.train[0].targets
    columns = [targets[name].reshape(len(targets[name]), -1)[:, 0].double() for name in names]
    return tuple(names), torch.stack(columns, 1)


def _job(plan: RelatePlan, seed: int) -> Job:
    return Job(
        suite=plan.suite,
        tasks=None,
        recipe=plan.recipe,
        config=replace(plan.config, seed=seed),
        folder=plan.out / "watched" / f"s{seed}",
        label=plan.recipe,
        watches=plan.watches,
    )


def _train(plan: RelatePlan, jobs: Sequence[Job], show: Show) -> None:
    show.begin([0, len(jobs), 0, 0])

    def done(call: Call) -> Iterator[Call]:
        show.done(call.phase, call.job, True)
        return iter(())

    def failed(call: Call, error: PolytaskError) -> Iterator[Call]:
        raise error

    calls = []
    for job in jobs:
        if (job.folder / RECORD).exists():
            show.done(WATCHED, job, False)
        else:
            calls.append(Call("train", job, WATCHED))
    with Pool(plan.processes, plan.threads) as pool:
        pool.run(
            calls,
            lambda call, step, steps, losses: show.step(call.phase, call.job, step, steps, losses),
            done,
            failed,
        )


def _result(plan: RelatePlan, suite: Suite, jobs: Sequence[Job]) -> dict[str, Any]:
    evidence, left_out = _evidence(plan, suite, jobs)
    records = [Record.load(job.folder / RECORD) for job in jobs]
    budget = min(plan.budget, len(suite.tasks))
    return {
        "kind": "relate",
        "suite": suite.name,
        "title": suite.about.title,
        "tasks": list(suite.tasks.names),
        "seeds": list(range(plan.seeds)),
        "command": plan.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": together(record.versions for record in records) or versions(),
        "settings": asdict(plan.config),
        "recipe": plan.recipe,
        "budget": budget,
        "seconds": sum(record.cost.seconds for record in records),
        "methods": {
            name: {
                "summary": method(choose(name, "relate").method.name).summary,
                "affinity": affinity.to_json(),
                "groups": [groups.to_json() for groups in proposals(affinity, budget)],
                "together": sureness(affinity, budget).tolist(),
                "draws": DRAWS,
            }
            for name, affinity in evidence.items()
        },
        "left_out": left_out,
    }


def _evidence(
    plan: RelatePlan, suite: Suite, jobs: Sequence[Job]
) -> tuple[dict[str, Affinity], dict[str, str]]:
    """Return the affinities by method, and why others have none."""
    found: dict[str, Affinity] = {}
    left_out: dict[str, str] = {}
    for text in plan.methods:
        choice = choose(text, "relate")
        if choice.method.name in WATCHES:
            seen = over_seeds([affinity_of(job.folder, text) for job in jobs])
            T = len(seen.tasks)
            if len(seen.missing()) < T * (T - 1):
                found[text] = seen
            else:
                left_out[text] = (
                    "saw no two tasks in one update: give it every=1, or a mix whose updates hold "
                    "several tasks"
                )
            continue
        labels = labels_of(suite)
        if labels is None:
            left_out[text] = (
                "needs three tasks or more that are numbers or flags and label the same rows"
            )
            continue
        names, labels_NT = labels
        found[text] = label_correlation(names, labels_NT, **dict(choice.settings))
        if len(names) < len(suite.tasks):
            others = [name for name in suite.tasks.names if name not in names]
            left_out[f"{text}, some tasks"] = f"{', '.join(others)}: neither numbers nor flags"
    if not found:
        why = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise UsageError(f"relate: no method applies to {suite.name!r}: {why}. Add tag.")
    return found, left_out


def _identity(plan: RelatePlan, suite: Suite) -> dict[str, Any]:
    config = plan.config.identity()
    del config["seed"]
    identity: dict[str, Any] = to_json(
        {
            "suite": suite.name,
            "tasks": list(suite.tasks.names),
            "rows": {stream.name: len(stream) for stream in suite.train},
            "watches": list(plan.watches),
            "recipe": plan.recipe,
            "config": config,
        }
    )
    return identity
