"""A target skill that needs others: Skill-It, uniform and target-only sampling, one budget.

    python experiments/mix/skills.py

Plan: README.md beside this file.

Shapes: N = rows, I = bits of a row, S = skills.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.evaluate import Claim
from polytask.mix import FixedRates, Mix, Mixture, SkillIt, Uniform, edges

SEEDS = tuple(range(5))
BITS, TARGET = 24, "product"
SKILLS: dict[str, tuple[int, ...]] = {
    "first": (0, 1, 2),
    "second": (3, 4, 5),
    TARGET: (0, 1, 2, 3, 4, 5),
    **{f"other {k}": (6 + 3 * k, 7 + 3 * k, 8 + 3 * k) for k in range(5)},
}
"""Each skill is the parity of some bits; the target's is the product of the first two's."""
ROWS, WIDTH, BATCH, LOOKS, LR = 20_000, 256, 128, 15, 1e-3
BUDGETS = (750, 1500)


def graph() -> tuple[float, ...]:
    """Return the edges: the first two skills help the target, each helps itself."""
    names = list(SKILLS)
    gains_SS = torch.zeros(len(names), len(names))
    for skill in ("first", "second"):
        gains_SS[names.index(skill), names.index(TARGET)] = 1
    return edges(gains_SS)


def target_only() -> FixedRates:
    return FixedRates(tuple(float(name == TARGET) for name in SKILLS))


METHODS: dict[str, Mix] = {
    "skill-it": SkillIt(graph(), targets=(TARGET,), eta=2.0),
    "uniform": Uniform(),
    "target only": target_only(),
}


class Network(nn.Module):
    """One trunk, a number for every skill."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(BITS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
        )
        self.heads = nn.Linear(WIDTH, len(SKILLS))

    def forward(self, bits_NI: Tensor) -> Tensor:
        return self.heads(self.trunk(bits_NI))


def bits(rows: int, random: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (rows, BITS), generator=random).float() * 2 - 1


def labels(bits_NI: Tensor) -> Tensor:
    """Return every skill's parity as 0 or 1: (N, S)."""
    return torch.stack([(bits_NI[:, list(at)].prod(1) > 0).float() for at in SKILLS.values()], 1)


def attempt(name: str, steps: int, seed: int) -> dict[str, Any]:
    """Train for this many updates; return the target's test accuracy in % and all rows drawn."""
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Network()
    optimiser = torch.optim.Adam(model.parameters(), lr=LR)
    data = {skill: bits(ROWS, random) for skill in SKILLS}
    val_NI, test_NI = bits(2000, random), bits(4000, random)
    val_NS, test_NS = labels(val_NI), labels(test_NI)
    names = list(SKILLS)
    mixture = Mixture(METHODS[name], dict.fromkeys(SKILLS, ROWS), BATCH, seed, epoch=steps // LOOKS)
    drawn = dict.fromkeys(SKILLS, 0)
    for _ in range(LOOKS):
        for batch in mixture:
            rows_NI = torch.stack([data[skill][row] for skill, row in batch])
            at_N = torch.tensor([names.index(skill) for skill, _ in batch])
            for skill, _ in batch:
                drawn[skill] += 1
            target_N = labels(rows_NI).gather(1, at_N[:, None])
            loss = F.binary_cross_entropy_with_logits(
                model(rows_NI).gather(1, at_N[:, None]), target_N
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if mixture.schedule.mix.observes:
            with torch.no_grad():
                losses_S = F.binary_cross_entropy_with_logits(
                    model(val_NI), val_NS, reduction="none"
                ).mean(0)
            mixture.observe(dict(zip(names, losses_S.tolist(), strict=True)))
    with torch.no_grad():
        right_S = ((model(test_NI) > 0) == (test_NS > 0.5)).float().mean(0)
    return {"test": 100 * float(right_S[names.index(TARGET)]), "drawn": drawn}


def claims(table: Table) -> Iterator[Claim]:
    for steps, methods in table["methods"].items():
        found = {name: [run["test"] for run in runs] for name, runs in methods.items()}
        for rival in ("uniform", "target only"):
            yield claim(
                table, "skill-it", f"beats {rival} sampling under a fixed budget: {steps} updates",
                f"parities of bits, updates of {BATCH} rows; the target skill's test accuracy",
                minus(found["skill-it"], found[rival]), "greater", 2.0, f"points over {rival}",
            )  # fmt: skip


def section(table: Table) -> str:
    rows = []
    for steps, methods in table["methods"].items():
        for name, runs in methods.items():
            drawn = [sum(run["drawn"][skill] for run in runs) for skill in SKILLS]
            parts = ", ".join(f"{100 * n / sum(drawn):.0f}" for n in drawn)
            rows.append([str(steps), name, spread([run["test"] for run in runs]), parts])
    skills = ", ".join(SKILLS)
    head = ["updates", "mix", "target skill, accuracy in %", f"% of rows: {skills}"]
    return grid(table, "A skill that needs others", head, rows)


def main() -> None:
    torch.set_num_threads(1)
    methods = {
        str(steps): {
            name: [
                KEPT.run(f"skills/{steps}/{name}--s{s}", partial(attempt, name, steps, s))
                for s in SEEDS
            ]
            for name in METHODS
        }
        for steps in BUDGETS
    }
    KEPT.write("skills", {"seeds": SEEDS, "batch": BATCH, "looks": LOOKS, "methods": methods})


if __name__ == "__main__":
    main()
