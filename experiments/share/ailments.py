"""What HoME is said to cure: collapse, degradation and underfitting of experts.

    python experiments/share/ailments.py

Plan: README.md beside this file.

Shapes: S = experts, R = rows, W = width of an expert.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from found import KEPT, Table, claim, minus, spread
from found import section as grid
from torch import Tensor
from torch.overrides import TorchFunctionMode
from trials import Setting, mean_of, relative, shorter, trained, tuned

from polytask.evaluate import Claim
from polytask.fit import Meters, primary, validate
from polytask.recipes import load_suite
from polytask.share import ExpertUse, HoME, SharedModel, expert_use
from polytask.suites import Inputs, Stream, Suite
from polytask.tasks import TaskSet

SEEDS = (0, 1, 2, 3, 4)
SETTINGS = ((1e-3, 1e-2), (3e-3, 1e-2))
ROWS, EPOCHS, BATCH = 24_000, 6, 512
LOOKS = 8_192
"""Test rows that activations and gates are measured on."""
CATEGORIES = {
    "steps": ("click", "conversion", "repeat"),
    "persons": ("income", "never_married", "degree"),
}
SPARSE = ("conversion", "repeat")
RECIPES = {
    "hard": "hard",
    "mmoe": "mmoe:experts=18",
    "cgc": "cgc:shared=6,own=2",
    "ple": "ple:levels=2,shared=3,own=1",
    "home": "home",
}
RIVALS = ("mmoe", "cgc", "ple")
LEVELS: Mapping[str, Sequence[int]] = {"mmoe": (1,), "cgc": (2,), "ple": (2, 2), "home": (2, 3)}
"""How many groups of experts each level runs, in the order in which they run."""
SILENT, COLLAPSED, LEAST_NORM = 0.01, 90.0, 1e-6


@functools.cache
def suite() -> Suite:
    """Return the tasks of `clicks` and of `census` on the rows they have in common."""
    one, other = load_suite("clicks"), load_suite("census")

    def joined(pair: tuple[Stream, Stream]) -> Stream:
        mine, theirs = pair
        return replace(mine, targets={**mine.targets, **theirs.targets}, truth=None)

    train, val, test = (
        tuple(map(joined, zip(one.split(split), other.split(split), strict=True)))
        for split in ("train", "val", "test")
    )
    tasks = TaskSet([*one.tasks, *other.tasks])
    whole = replace(one, name="ailments", tasks=tasks, train=train, val=val, test=test)
    return shorter(whole, ROWS, EPOCHS, BATCH)


class Activations(TorchFunctionMode):
    """Takes what experts give, in the order in which they run: all (S, R, W) of ReLU and Swish."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.relu_, torch.nn.functional.silu) and result.ndim == 3:
            self.found.append(result)
        return result


def activations(name: str, model: SharedModel, inputs: Inputs) -> list[Tensor]:
    """Return the outputs of every level's experts, each (S, R, W)."""
    watch = Activations()
    with watch, torch.no_grad():
        model.eval()(inputs)
    assert len(watch.found) == sum(LEVELS[name]), "experts ran in groups other than expected"
    groups = iter(watch.found)
    return [torch.cat([next(groups) for _ in range(count)]) for count in LEVELS[name]]


def collapse(levels: Sequence[Tensor]) -> dict[str, float]:
    """Return how far apart the experts' outputs are, and how many are silent."""
    spreads, silent = [], []
    for made_SRW in levels:
        norm_S = made_SRW.norm(dim=-1).mean(1).clamp(min=LEAST_NORM)
        spreads.append(float(norm_S.log10().std()))
        least = SILENT * made_SRW.square().mean().sqrt()
        silent.append(100 * (made_SRW.abs() <= least).double().mean((1, 2)))
    silent_S = torch.cat(silent)
    return {
        "spread": fmean(spreads),
        "silent": float(silent_S.mean()),
        "collapsed": 100 * float((silent_S > COLLAPSED).double().mean()),
    }


def gates(use: ExpertUse) -> dict[str, float | None]:
    """Return how far single tasks take over shared experts, and what sparse tasks take of theirs.

    None: no expert is a task's own.
    """
    taken: dict[tuple[int, str], list[float]] = {}
    own: list[float] = []
    for gate in use.gates:
        if gate.reader is None:
            continue
        for expert, owner, weight in zip(gate.experts, gate.owners, gate.mean, strict=True):
            if owner is None:
                taken.setdefault((gate.level, expert), []).append(weight)
        if gate.reader in SPARSE and gate.own is not None:
            even = gate.owners.count(gate.reader) / len(gate.experts)
            own.append(gate.own / even)
    total = over = 0.0
    for weights in taken.values():
        mass, even = sum(weights), 1 / len(weights)
        if len(weights) > 1 and mass > 0:
            total += mass
            over += mass * (max(weights) / mass - even) / (1 - even)
    return {
        "degradation": over / total,
        "own": fmean(own) if own else None,
        "of_one": float(len(use.of_one)),
        "ignoring": float(len(set(use.ignoring_own) & set(SPARSE))),
    }


def run(name: str, setting: Setting, seed: int) -> dict[str, Any]:
    """Train once; return the validation score, AUROC on test and what ails the experts."""
    data = suite()
    made = home(data, seed) if name == "home" else None
    model, record = trained(data, RECIPES[name], setting, seed, mean_of, made)
    values = validate(model, data.test, Meters(data.tasks, primary_only=True))
    found: dict[str, Any] = {
        "score": record.best.score,
        "test": primary(values, data.tasks),
        "parameters": record.cost.parameters,
    }
    if name in LEVELS:
        inputs = data.test[0].take(torch.arange(LOOKS)).inputs
        found |= collapse(activations(name, model, inputs)) | gates(expert_use(model, [inputs]))
    return found


def home(data: Suite, seed: int) -> SharedModel:
    """Return HoME with the categories of the plan; its first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"shared": 2, "per_category": 2, "own": 1}
        return HoME.build(data.encoder(), data.width, data.tasks, CATEGORIES, **sizes)


def main() -> None:
    torch.set_num_threads(1)
    found = {
        name: tuned(
            f"ailments/{name}",
            SETTINGS,
            SEEDS,
            lambda setting, seed, name=name: run(name, setting, seed),
        )
        for name in RECIPES
    }
    table = {
        "seeds": SEEDS,
        "rows": ROWS,
        "delta_m": relative(suite().tasks, found),
        "models": found,
    }
    KEPT.write("ailments", table)


def _of(table: Table, name: str, measure: str) -> list[float]:
    return [run[measure] for run in table["models"][name]["runs"]]


def claims(table: Table) -> Iterator[Claim]:
    """HoME against MMoE, CGC and PLE: three ailments and what comes of them."""
    setting = (
        f"tasks of clicks and census in one model, {table['rows']} training rows, eighteen experts "
        "each"
    )
    collapsed = max(fmean(_of(table, rival, "collapsed")) for rival in RIVALS)
    for measure, words, margin, unit, reason in (
        ("spread", "collapse: experts' outputs differ in size", 0.05, "in log10 of their norm", ""),
        (
            "silent", "collapse: outputs are zero", 5.0, "% of the outputs",
            "ReLU silences about half of its outputs by its form; experts with over 90 %, the "
            f"paper's mark, are {collapsed:.0f} %",
        ),
        (
            "degradation", "degradation: one task takes over what is shared", 0.05, "of 1",
            "tasks of a category share its first gate, so they take alike there by its form",
        ),
    ):  # fmt: skip
        for rival in RIVALS:
            yield claim(
                table, "home", f"cures {words}, against {rival}", setting,
                minus(_of(table, rival, measure), _of(table, "home", measure)), "greater", margin,
                f"{unit} below {rival}", reason=reason,
            )  # fmt: skip
    for rival in ("cgc", "ple"):
        theirs = fmean(_of(table, rival, "own"))
        yield claim(
            table, "home", f"cures underfitting: sparse tasks ignore their own, against {rival}",
            f"{setting}; gates of conversion and repeat",
            minus(_of(table, "home", "own"), _of(table, rival, "own")), "greater", 0.1,
            f"of the weight of even gates over {rival}",
            reason=f"{rival}'s sparse tasks take {theirs:.1f} times the even weight: "
            + ("there is little to cure" if theirs >= 1 else "the ailment is there"),
        )  # fmt: skip
    for rival in RIVALS:
        yield claim(
            table, "home", f"predicts better than {rival}",
            f"{setting}; relative AUROC against hard sharing, mean over six tasks",
            minus(table["delta_m"]["home"], table["delta_m"][rival]), "greater", 0.5,
            f"points of delta-m over {rival}",
        )  # fmt: skip


def section(table: Table) -> str:
    """Return what ails the experts of every model."""
    measures = ("spread", "silent", "collapsed", "degradation", "of_one", "own", "ignoring")
    rows = []
    for name, of in table["models"].items():
        figures = []
        for measure in measures:
            values = [run.get(measure) for run in of["runs"]]
            figures.append("" if None in values else spread(values))
        parameters = f"{of['runs'][0]['parameters']:,}"
        rows.append([name, parameters, *figures, spread(table["delta_m"][name])])
    head = [
        "model", "parameters", "spread", "silent, %", "collapsed, %", "degradation", "of one",
        "own", "ignoring", "delta-m over hard",
    ]  # fmt: skip
    return grid(
        table,
        "Collapse, degradation and underfitting of experts",
        head,
        rows,
        "*collapsed*: experts with over 90 % silent outputs. *of one*: shared experts that one "
        "reader alone uses. *ignoring*: sparse tasks that hardly use their own experts.",
    )


if __name__ == "__main__":
    main()
