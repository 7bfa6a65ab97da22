"""Load balance over the whole update against that of every micro-batch of one domain.

    python experiments/share/specialising.py

Plan: README.md beside this file.

Shapes: N = rows, I = inputs, T = tasks, D = domains, E = experts, B = rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from statistics import fmean
from typing import Any

import torch
from found import KEPT, Table, claim, minus, said, spread
from found import section as grid
from synthetic import Problem, losses, picked, problem, random_layer, train
from torch import Tensor, nn

from polytask.evaluate import Claim
from polytask.fit import Step
from polytask.fit.data import Table as Rows
from polytask.fit.data import table as joined
from polytask.share import TrunkModel
from polytask.share.sparse_moe import SparseMoE

SEEDS = tuple(range(5))
DOMAINS, TASKS, INPUTS, UNITS, WIDTH = 4, 2, 10, 8, 16
EXPERTS, K, HIDDEN = 8, 2, 8
ROWS = {"train": 2000, "val": 1000, "test": 4000}
NOISE, MICRO, STEPS = 0.3, 32, 300
WEIGHTS = (0.01, 0.1)
SETTINGS: list[dict[str, Any]] = [{"lr": 0.003}, {"lr": 0.01}]
SIDES = {
    "global": ("global", True),
    "batch": ("batch", True),
    "batch, mixed": ("batch", False),
}
"""Name -> over what the loss is balanced, and whether a micro-batch is of one domain."""


class Domains:
    """Rows of domains, each around a centre of its own; a row tells its domain by its first
    column, which the model does not see."""

    def __init__(self, random: torch.Generator) -> None:
        self.centre_DI = 2 * torch.randn(DOMAINS, INPUTS, generator=random)
        self.layers = [random_layer(INPUTS, UNITS, random) for _ in range(DOMAINS)]
        self.outs = [torch.randn(UNITS, TASKS, generator=random) for _ in range(DOMAINS)]

    def rows(self, count: int, random: torch.Generator) -> Tensor:
        domain_N = torch.arange(count) % DOMAINS
        noise_NI = torch.randn(count, INPUTS, generator=random)
        return torch.cat([domain_N[:, None].float(), self.centre_DI[domain_N] + noise_NI], 1)

    def truth(self, rows_NI: Tensor) -> Tensor:
        """Return what the row's domain makes of the row relative to its centre."""
        domain_N = rows_NI[:, 0].long()
        apart_NI = rows_NI[:, 1:] - self.centre_DI[domain_N]
        made_DNT = [f(apart_NI) @ out for f, out in zip(self.layers, self.outs, strict=True)]
        return torch.stack(made_DNT)[domain_N, torch.arange(len(domain_N))]


class Features(nn.Module):
    """A linear layer of what the model sees of a row."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, WIDTH)

    def forward(self, rows_NI: Tensor) -> Tensor:
        features: Tensor = self.linear(rows_NI[:, 1:])
        return features


def drawn(seed: int) -> Problem:
    random = torch.Generator().manual_seed(seed)
    domains = Domains(random)
    names = [f"task {t}" for t in range(TASKS)]
    return problem(domains.truth, domains.rows, names, ROWS, NOISE, random)


def updates(given: Problem, pure: bool, seed: int) -> Iterator[Step]:
    """Return updates without end: as many micro-batches as domains, `MICRO` rows each.

    pure: whether a micro-batch has the rows of one domain; the rows of an update are the same.
    """
    rows = joined((given.splits["train"],), given.tasks)
    assert isinstance(rows, Rows)
    random = torch.Generator().manual_seed(seed)
    of_domain = len(given.splits["train"]) // DOMAINS
    while True:
        order_DN = torch.stack(
            [torch.randperm(of_domain, generator=random) for _ in range(DOMAINS)]
        )
        for start in range(0, of_domain - MICRO + 1, MICRO):
            taken_DB = order_DN[:, start : start + MICRO] * DOMAINS + torch.arange(DOMAINS)[:, None]
            taken_DB = taken_DB if pure else taken_DB.T.reshape(DOMAINS, MICRO)
            counts = dict.fromkeys(given.tasks.names, float(taken_DB.numel()))
            yield Step(tuple((rows.batch(taken_B),) for taken_B in taken_DB), counts)


def attempt(side: str, weight: float, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train once; return losses and how much a choice of expert tells of the domain."""
    given = drawn(seed)
    balance, pure = SIDES[side]
    torch.manual_seed(seed)
    model = SparseMoE.build(
        Features(), WIDTH, given.tasks, experts=EXPERTS, k=K, hidden=HIDDEN, balance=balance,
        weight=weight,
    )  # fmt: skip
    looks = train(model, given, updates(given, pure, seed), steps=STEPS, lr=setting["lr"])
    counts_DE = choices(model, given)
    return {
        "val": min(looks),
        "test": fmean(losses(model, given.fed("test")).values()),
        "told": information(counts_DE) / torch.tensor(DOMAINS).log().item(),
        "most": float(counts_DE.sum(0).max() / counts_DE.sum()),
    }


def choices(model: TrunkModel, given: Problem) -> Tensor:
    """Return how often rows of each domain chose each expert in the test split, (D, E)."""
    inputs = given.splits["test"].inputs
    assert isinstance(inputs, Tensor)
    found = []
    for domain in range(DOMAINS):
        seen: dict[str, Tensor] = {}
        trunk = model.trunk
        with torch.no_grad():
            features = model.encoder(inputs[inputs[:, 0] == domain])
            trunk.mix(trunk.stack(model.tasks), features, seen)
        found.append(seen["counts_LE"][0])
    return torch.stack(found).double()


def information(counts_DE: Tensor) -> float:
    """Return the mutual information of row and column of a table of counts, in nats."""
    joint_DE = counts_DE / counts_DE.sum()
    alone_DE = joint_DE.sum(1, keepdim=True) * joint_DE.sum(0, keepdim=True)
    return float(torch.special.xlogy(joint_DE, joint_DE / alone_DE.clamp(min=1e-300)).sum())


def measured(side: str, weight: float) -> dict[str, Any]:
    """Return the picked setting of one side and what came of it, a column per measure."""
    run = partial(attempt, side, weight)
    setting = picked(f"specialising/{weight}/{side}", SETTINGS, run)
    runs = [
        KEPT.run(f"specialising/{weight}/{side}--s{seed}", partial(run, setting, seed))
        for seed in SEEDS
    ]
    return {"setting": setting} | {key: [found[key] for found in runs] for key in COLUMNS}


def claims(table: Table) -> Iterator[Claim]:
    """The update's balance against the micro-batch's, for every weight of the loss."""
    for weight, found in table["weights"].items():
        ours, theirs = found["global"], found["batch"]
        setting = (
            f"{DOMAINS} synthetic domains, a micro-batch for each in every update, {EXPERTS} "
            f"experts, k {K}, balancing loss of weight {weight}"
        )
        yield claim(
            table, "sparse-moe",
            f"specialises more balanced over the update than per micro-batch, weight {weight}",
            f"{setting}; information of expert and domain over that of the domain",
            minus(ours["told"], theirs["told"]), "greater", 0.1, "in that share over micro-batches",
        )  # fmt: skip
        fewer = [100 * (b - a) / b for a, b in zip(ours["test"], theirs["test"], strict=True)]
        yield claim(
            table, "sparse-moe",
            f"predicts better balanced over the update than per micro-batch, weight {weight}",
            setting, fewer, "greater", 5.0, "% of the micro-batches' test error saved",
        )  # fmt: skip


COLUMNS = {
    "test": "test error",
    "told": "information of expert and domain",
    "most": "share of the most chosen expert",
}


def section(table: Table) -> str:
    rows = [
        [weight, side, said(run["setting"]), *(spread(run[key]) for key in COLUMNS)]
        for weight, found in table["weights"].items()
        for side, run in found.items()
    ]
    head = ["weight", "balanced over", "picked", *COLUMNS.values()]
    return grid(table, "Balance over the update and over micro-batches of a domain", head, rows)


def main() -> None:
    torch.set_num_threads(1)
    weights = {str(weight): {side: measured(side, weight) for side in SIDES} for weight in WEIGHTS}
    about = {"seeds": SEEDS, "steps": STEPS, "micro_batch": MICRO}
    KEPT.write("specialising", about | {"weights": weights})


if __name__ == "__main__":
    main()
