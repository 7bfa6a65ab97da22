"""No task worse than alone: DSMTL's schemes against single-task models.

    python experiments/share/alone.py

Plan: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from compared import ON_CENSUS, compared, published
from found import KEPT, Table, spread
from found import section as grid
from trials import Setting, against, mean_of, trained, tuned

from polytask.catalog import method
from polytask.evaluate import Claim, Effect, decide_against_all, interval
from polytask.fit import Meters, primary, validate
from polytask.recipes import load_suite
from polytask.suites import Suite

SEEDS = (0, 1, 2)
MARGIN = 0.5
"""Per cent of a task's metric that it may lose."""
SCHEMES = {
    "joint": "dsmtl",
    "individual": "dsmtl:scheme=individual",
    "light": "dsmtl:scheme=light",
}
ASSAYS, EPOCHS = 4, 8
SETTINGS = ((1e-3, 3.0), (3e-3, 1e-2))
HOW = {
    "census": "each tuned alike",
    "digits2": "8 epochs, one setting",
    "tox21": "the first assays, 8 epochs, two settings",
}
"""What a claim's setting says of the runs of this experiment."""
KNOWN = ("digits2-sharing", "census-sharing", "tox21-sharing")


def assays() -> Suite:
    """Return tox21's first assays, with fewer epochs."""
    whole = load_suite("tox21")
    return replace(whole.only(whole.tasks.names[:ASSAYS]), epochs=EPOCHS)


def on_tox21() -> dict[str, Any]:
    """Return test values of the assays alone and with DSMTL, and the gains."""
    data = assays()

    def single(task: str) -> dict[str, Any]:
        of_task = data.only([task])

        def make(setting: Setting, seed: int) -> dict[str, Any]:
            return scored(of_task, "hard", setting, seed, {})

        return tuned(f"alone/{task}", SETTINGS, SEEDS, make)

    singles = {task: single(task) for task in data.tasks.names}
    first = {task: of["runs"][0]["val"][task] for task, of in singles.items()}
    both = tuned(
        "alone/dsmtl", SETTINGS, SEEDS, lambda s, seed: scored(data, "dsmtl", s, seed, first)
    )
    found: dict[str, dict[str, Any]] = {"single": {}, "dsmtl": {}}
    for task in data.tasks:
        alone = [run["test"][task.name] for run in singles[task.name]["runs"]]
        joint = [run["test"][task.name] for run in both["runs"]]
        gains = [task.primary.gain(*pair) for pair in zip(joint, alone, strict=True)]
        found["single"][task.name] = {"values": alone, "gains": [0.0 for _ in alone]}
        found["dsmtl"][task.name] = {"values": joint, "gains": gains}
    return {"seeds": SEEDS, "methods": found}


def scored(
    data: Suite, recipe: str, setting: Setting, seed: int, first: Mapping[str, float]
) -> dict[str, Any]:
    """Train once; return the validation score, and the primary metrics on validation and test.

    first: what the score is against; empty: it is the metric itself, which is up here.
    """
    score = against(data.tasks, first) if first else mean_of
    model, record = trained(data, recipe, setting, seed, score)
    test = validate(model, data.test, Meters(data.tasks, primary_only=True))
    return {
        "score": record.best.score,
        "val": primary(record.best.val, data.tasks),
        "test": primary(test, data.tasks),
    }


def main() -> None:
    torch.set_num_threads(1)
    suites = {
        "census": compared("census", ON_CENSUS, 3),
        "digits2": compared("digits2", (SCHEMES["individual"], SCHEMES["light"]), 1, 8),
        "tox21": on_tox21(),
    }
    kept = ("single", *SCHEMES.values())
    for of in suites.values():
        of["methods"] = {name: m for name, m in of["methods"].items() if name in kept}
    KEPT.write("alone", {"seeds": SEEDS, "suites": suites})


def _all(table: Table) -> Iterator[tuple[str, str, Table, bool]]:
    """Yield suite, method, what its tasks gained, and whether it is of a published table."""
    for suite, of in table["suites"].items():
        for name in SCHEMES.values():
            if name in of["methods"]:
                yield suite, name, of["methods"][name], False
    for known in KNOWN:
        methods = published(known)["methods"]
        for name in ("dsmtl", "hard"):
            if name in methods:
                yield known.removesuffix("-sharing"), name, methods[name]["tasks"], True


def claims(table: Table) -> Iterator[Claim]:
    """DSMTL on every suite, every scheme: all of its tasks."""
    for suite, name, tasks, known in _all(table):
        if name == "hard":
            continue
        (scheme,) = (scheme for scheme, recipe in SCHEMES.items() if recipe == name)
        gains = {task: of["gains"] for task, of in tasks.items()}
        outcome, worst = decide_against_all(gains, "no worse", MARGIN)
        how = "each tuned alike" if known else HOW[suite]
        setting = f"{suite}, {len(gains)} tasks, each against its own single-task model; {how}"
        reason = f"in all of {len(gains)} tasks, the one with the lowest gain shown: {worst}"
        yield Claim(
            system="dsmtl",
            paper=method("dsmtl").source,
            claim=f"no task is worse than alone: {scheme} learning, {suite}",
            setting=f"{setting}; no worse by {MARGIN:g} %",
            seeds=tuple(table["seeds"]),
            outcome=outcome,
            effect=Effect(fmean(gains[worst]), f"% of {worst}'s metric over alone"),
            interval=interval(gains[worst]),
            reason=f"{reason}; the table was known before" if known else reason,
            command=published(f"{suite}-sharing")["command"] if known else table["command"],
            versions=table["versions"],
        )


def section(table: Table) -> str:
    """Return what each task gained over being alone."""
    rows = []
    for suite, name, tasks, known in _all(table):
        gains = {task: of["gains"] for task, of in tasks.items()}
        outcome, _ = decide_against_all(gains, "no worse", MARGIN)
        told = ", ".join(f"{task} {spread(of)}" for task, of in gains.items())
        rows.append([suite, name, "known table" if known else "this run", told, outcome])
    head = ["suite", "method", "from", "gain of each task in %", "no task worse by 0.5 %"]
    return grid(table, "Against being alone", head, rows)


if __name__ == "__main__":
    main()
