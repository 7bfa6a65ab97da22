"""`auto`: which tasks to train together and how, within a budget, so that none loses by it.

What is tried is `search`'s business, what serves a task `served`'s.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from polytask.errors import RunError, UsageError
from polytask.lock import alone as nobody_else
from polytask.recipes.plan import AutoPlan, usual_budget
from polytask.recipes.runs import Show, identity_of
from polytask.recipes.search import Search
from polytask.recipes.searched import searched
from polytask.recipes.served import Served
from polytask.recipes.train import Job, load_suite
from polytask.recipes.workers import Pool
from polytask.records import claim, read_json, to_json, write_json

FOUND = "auto.json"
"""The result's name in its folder."""


def auto(plan: AutoPlan, show: Show) -> dict[str, Any]:
    """Search, choose, test, and return the result, which is also `auto.json` in the plan's folder.

    A folder of the same plan is taken up. `load_auto` builds the models it chose. Raises UsageError
    where the suite has a single task, RunError where every setting of the first model diverges.
    """
    suite = load_suite(plan.suite)
    if len(suite.tasks) < 2:
        raise UsageError(
            f"Suite {suite.name!r} has one task, so there is nothing to share; train it with "
            f"`polytask fit {plan.suite}`."
        )
    with nobody_else(plan.out):
        asked = {"tune": plan.tune, "methods": list(plan.methods), "seed": plan.config.seed}
        budget = plan.budget if plan.budget is not None else usual_budget(len(suite.tasks))
        identity = {**identity_of(suite, plan.config), **asked, "budget": budget}
        claim(plan.out / "searching.json", identity, "search")
        if (plan.out / FOUND).exists():
            return read_json(plan.out / FOUND)  # type: ignore[no-any-return]
        with Pool(plan.processes, plan.threads) as pool:
            search = Search(plan, suite, budget, show, pool)
            search.run()
        found = to_json(searched(search))
        write_json(plan.out / FOUND, found)
    return found  # type: ignore[no-any-return]


def load_auto(folder: Path) -> Served:
    """Return the models that the search in `folder` chose, as one; see `Served`.

    Raises RunError where the folder holds no finished search.
    """
    found = read_json(folder / FOUND)
    try:
        jobs = {task["name"]: Job.from_json(task["job"]) for task in found["tasks"]}
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder / FOUND} is not the result of a search ({type(error).__name__}: {error}); "
            "give the `polytask auto` command again."
        ) from error
    return Served.of({t: replace(job, folder=folder / job.folder) for t, job in jobs.items()})
