"""Task-aware gating when unrelated tasks are added: what the related ones lose.

    python experiments/share/unrelated.py

Plan: README.md beside this file.

Shapes: N = rows, I = inputs, T = tasks, H = units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from statistics import fmean
from typing import Any

import torch
from found import KEPT, Table, claim_against_all, minus, said, spread
from found import section as grid
from synthetic import Problem, losses, normal, picked, problem, random_layer, train
from torch import Tensor, nn

from polytask.evaluate import Claim
from polytask.parsing import parse
from polytask.share import SharedModel

SEEDS = tuple(range(5))
RELATED, UNRELATED = 4, 12
INPUTS, UNITS, WIDTH = 10, 16, 24
ROWS = {"train": 500, "val": 500, "test": 4000}
NOISE, BATCH, STEPS = 0.3, 125, 400
SETTINGS: list[dict[str, Any]] = [{"lr": 0.003}, {"lr": 0.01}]

FORMS = {
    "gates": "task-gating:form=gates,experts=8,hidden=16",
    "embedding": "task-gating:form=embedding,experts=8,hidden=16",
    "fixed": "task-gating:form=fixed,experts=8,hidden=16",
}
RIVALS = {
    "ungated": "sparse-moe:experts=8,hidden=16",
    "hard, equal cost": "sparse-moe:experts=1,hidden=16,balance=none",
}
LARGE = {"hard, equal parameters": "sparse-moe:experts=1,hidden=128,balance=none"}
"""Hard sharing is one expert, which every row takes with weight 1: of the units that a row runs
with the others, or of the units of all of their experts."""
RECIPES = FORMS | RIVALS | LARGE
COUNTS = {"alone": RELATED, "with unrelated": RELATED + UNRELATED}


def drawn(tasks: int, seed: int) -> Problem:
    """Return the related tasks, and as many unrelated ones after them as make up `tasks`.

    The related ones read one random layer; every unrelated one has a layer of its own. Their rows
    and targets are the same bits, whatever is added.
    """
    random = torch.Generator().manual_seed(seed)
    common = random_layer(INPUTS, UNITS, random)
    layers = [common] * RELATED + [random_layer(INPUTS, UNITS, random) for _ in range(UNRELATED)]
    outs_TH = torch.randn(len(layers), UNITS, generator=random)

    def truth(rows_NI: Tensor) -> Tensor:
        made = [f(rows_NI) @ out for f, out in zip(layers, outs_TH, strict=True)]
        return torch.stack(made, 1)

    names = [f"task {t}" for t in range(len(layers))]
    return problem(truth, normal(INPUTS), names, ROWS, NOISE, random).only(names[:tasks])


def build(recipe: str, given: Problem) -> SharedModel:
    """Return the model: a linear layer for all tasks, the recipe's trunk, linear heads."""
    share = parse(recipe).share
    encoder = nn.Linear(INPUTS, WIDTH)
    model: SharedModel = share.method.load().build(
        encoder, WIDTH, given.tasks, **dict(share.settings)
    )
    return model


def attempt(name: str, tasks: int, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train once; return the validation loss of all tasks and the related ones' test loss."""
    given = drawn(tasks, seed)
    torch.manual_seed(seed)
    model = build(RECIPES[name], given)
    looks = train(model, given, given.batches(BATCH, seed), steps=STEPS, lr=setting["lr"])
    test = losses(model, given.fed("test"))
    return {"val": min(looks), "test": fmean(test[task] for task in given.tasks.names[:RELATED])}


def measured(name: str, tasks: int) -> dict[str, Any]:
    """Return the picked setting and the related tasks' test losses."""
    setting = picked(f"unrelated/{tasks}/{name}", SETTINGS, partial(attempt, name, tasks))
    runs = [
        KEPT.run(f"unrelated/{tasks}/{name}--s{s}", partial(attempt, name, tasks, setting, s))
        for s in SEEDS
    ]
    return {"setting": setting, "test": [found["test"] for found in runs]}


def rises(found: Mapping[str, Any]) -> list[float]:
    """Return by how much the related tasks' test loss rises with the unrelated ones, in %."""
    alone, added = (found[name]["test"] for name in COUNTS)
    return [100 * (b - a) / a for a, b in zip(alone, added, strict=True)]


def claims(table: Table) -> Iterator[Claim]:
    """Each form against sharing of equal cost, and against hard sharing of equal parameters."""
    found = table["methods"]
    setting = f"{RELATED} related synthetic regression tasks, {UNRELATED} unrelated ones added"

    def fewer(ours: str, theirs: str) -> list[float]:
        one, other = (found[name]["with unrelated"]["test"] for name in (ours, theirs))
        return [100 * (b - a) / b for a, b in zip(one, other, strict=True)]

    for form in FORMS:
        for rivals, size in ((RIVALS, "of equal cost"), (LARGE, "of equal parameters")):
            words = f"robust to added unrelated tasks, form {form}, against sharing {size}"
            yield claim_against_all(
                table, "task-gating", f"{words}: the rise",
                f"{setting}; by how much the related tasks' test error rises",
                {rival: minus(rises(found[rival]), rises(found[form])) for rival in rivals},
                "greater", 5.0, "points of the rise in % below",
            )  # fmt: skip
            yield claim_against_all(
                table, "task-gating", f"{words}: the level",
                f"{setting}; the related tasks' test error with them",
                {rival: fewer(form, rival) for rival in rivals},
                "greater", 5.0, "% of the error saved, against",
            )  # fmt: skip


def section(table: Table) -> str:
    rows = []
    for name, found in table["methods"].items():
        alone, added = (found[count] for count in COUNTS)
        errors = [said(alone["setting"]), spread(alone["test"])]
        errors += [said(added["setting"]), spread(added["test"])]
        rows.append([name, *errors, spread(rises(found))])
    head = [
        "experts", "picked", "related alone", "picked", "with unrelated tasks", "rise, %",
    ]  # fmt: skip
    return grid(table, "Unrelated tasks added: test error of the related ones", head, rows)


def main() -> None:
    torch.set_num_threads(1)
    methods = {
        name: {count: measured(name, tasks) for count, tasks in COUNTS.items()} for name in RECIPES
    }
    about = {"seeds": SEEDS, "steps": STEPS, "batch": BATCH, "recipes": RECIPES}
    KEPT.write("unrelated", about | {"methods": methods})


if __name__ == "__main__":
    main()
