"""Learning to Branch on tasks of a known tree: the tree it finds, and that tree trained anew.

    python experiments/share/branching.py

Plan: README.md beside this file.

Shapes: N = rows, T = tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import permutations
from statistics import fmean
from typing import Any

import numpy as np
import torch
from found import KEPT, Table, claim, minus, said, spread
from found import section as grid
from synthetic import Problem, losses, normal, picked, problem, train
from torch import Tensor, nn

from polytask.evaluate import Claim
from polytask.share import Branched, LearningToBranch, TrunkModel

SEEDS = tuple(range(5))
INPUTS, WIDTH, HARD_WIDTH = 6, 6, 10
"""Width of the tree's layers, the true one's and the model's; hard sharing of the width that gives
it the parameters of the true tree."""
ROWS = {"train": 4000, "val": 1000, "test": 4000}
NOISE, BATCH, STEPS = 0.3, 125, 2400
LONGER = 2
"""How many times as long the longer search is."""
SEARCHES: list[dict[str, Any]] = [
    {"lr": 0.01, "alpha_lr": 0.1},
    {"lr": 0.03, "alpha_lr": 0.1},
]
TRAININGS: list[dict[str, Any]] = [{"lr": lr} for lr in (0.01, 0.03)]

Paths = Mapping[str, Sequence[str]]
"""Task -> its nodes, one per layer."""

TREE: dict[str, tuple[str, ...]] = {
    f"task {t}": ("all", f"half {t // 4}", f"quarter {t // 2}") for t in range(8)
}
"""Eight tasks: the first layer is common, the second to four of them, the third to two."""
RANDOM_TREES = 200


def drawn(seed: int) -> Problem:
    """Return tasks that are random outputs of the leaves of a tree of random layers.

    What a unit takes the ReLU of has mean 0 and deviation 1, so that branches do not grow alike.
    """
    random = torch.Generator().manual_seed(seed)
    layers: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
    many: dict[tuple[str, ...], Tensor] = {(): normal(INPUTS)(20_000, random)}
    for path in TREE.values():
        for at in range(len(path)):
            above, node = path[:at], path[: at + 1]
            if node not in layers:
                weight_IW = torch.randn(many[above].shape[1], WIDTH, generator=random)
                scale_W, mean_W = torch.std_mean(many[above] @ weight_IW, 0)
                layers[node] = weight_IW / scale_W, -mean_W / scale_W
                many[node] = torch.addmm(layers[node][1], many[above], layers[node][0]).relu()
    outs_TW = torch.randn(len(TREE), WIDTH, generator=random)

    def truth(rows_NI: Tensor) -> Tensor:
        made = []
        for path, out in zip(TREE.values(), outs_TW, strict=True):
            rows = rows_NI
            for at in range(len(path)):
                weight_IW, bias_W = layers[path[: at + 1]]
                rows = torch.addmm(bias_W, rows, weight_IW).relu()
            made.append(rows @ out)
        return torch.stack(made, 1)

    return problem(truth, normal(INPUTS), list(TREE), ROWS, NOISE, random)


def agreement(found: Paths, true: Paths) -> float:
    """Return how far two trees agree on which of two tasks is nearer to a third, -1 to 1.

    Of all triples a, b, c where b shares more layers with a than c does in the true tree: +1 where
    it is so in the found one, -1 where it is the other way round, 0 where they share equally many.
    A tree whose tasks were shuffled has the expectation 0.
    """
    signs = []
    for a, b, c in permutations(true, 3):
        if depth(true[a], true[b]) > depth(true[a], true[c]):
            near, far = depth(found[a], found[b]), depth(found[a], found[c])
            signs.append((near > far) - (near < far))
    return fmean(signs)


def depth(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many layers two paths share."""
    return sum(a == b for a, b in zip(one, other, strict=True))


def random_trees(seed: int) -> Iterator[Paths]:
    """Return trees whose nodes each have a parent drawn evenly, as those a search begins with."""
    random = np.random.default_rng(seed)
    tasks, layers = list(TREE), len(TREE["task 0"])
    for _ in range(RANDOM_TREES):
        parents = random.integers(len(tasks), size=(layers, len(tasks)))
        found = {}
        for t, task in enumerate(tasks):
            at, path = t, []
            for layer in range(layers - 1, -1, -1):
                at = int(parents[layer, at])
                path.insert(0, tasks[at])
            found[task] = tuple(path)
        yield found


def searched(setting: Mapping[str, Any], seed: int, times: int = 1) -> dict[str, Any]:
    """Search once, `times` as long; return the tree, and the losses of the search's weights."""
    given = drawn(seed)
    torch.manual_seed(seed)
    model = LearningToBranch.build(nn.Identity(), INPUTS, given.tasks, widths=(WIDTH,) * 3)
    rates = {"": setting["lr"], "trunk.alpha": setting["alpha_lr"]}
    batches = given.batches(BATCH, seed)
    # The last weights and not the best: the tree is known when the draws have cooled.
    looks = train(model, given, batches, steps=times * STEPS, lr=rates, keep="last")
    assert isinstance(model.trunk, LearningToBranch)
    return {"val": looks[-1], "test": tested(model, given), "tree": model.trunk.paths()}


def trained(paths: Paths, width: int, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train a fixed tree from new weights; return its losses."""
    given = drawn(seed)
    torch.manual_seed(seed)
    trunk = Branched({t: tuple(p) for t, p in paths.items()}, INPUTS, (width,) * 3)
    model = TrunkModel.build(nn.Identity(), trunk, given.tasks)
    batches = given.batches(BATCH, seed)
    looks = train(model, given, batches, steps=STEPS, lr=setting["lr"])
    return {"val": min(looks), "test": tested(model, given)}


def tested(model: TrunkModel, given: Problem) -> float:
    return fmean(losses(model, given.fed("test")).values())


def shuffled(paths: Paths, seed: int) -> Paths:
    """Return the tree with its tasks in another order."""
    order = np.random.default_rng(seed).permutation(len(paths))
    every = list(paths.values())
    return {task: every[at] for task, at in zip(paths, order, strict=True)}


HARD: Paths = dict.fromkeys(TREE, ("all",) * 3)


def main() -> None:
    torch.set_num_threads(1)
    setting = picked("branching/search", SEARCHES, searched)
    searches = [KEPT.run(f"branching/search--s{s}", partial(searched, setting, s)) for s in SEEDS]
    longer = [
        KEPT.run(f"branching/longer--s{s}", partial(searched, setting, s, LONGER)) for s in SEEDS
    ]
    trees = {
        "found": [found["tree"] for found in searches],
        "shuffled": [shuffled(found["tree"], s) for s, found in zip(SEEDS, searches, strict=True)],
        "true": [TREE for _ in SEEDS],
        "hard": [HARD for _ in SEEDS],
    }
    # Trees are trained with what suits the true one.
    of_trees = picked("branching/true", TRAININGS, partial(trained, TREE, WIDTH))
    of_hard = picked("branching/hard", TRAININGS, partial(trained, HARD, HARD_WIDTH))
    models = {
        "search": {"setting": setting, "test": [found["test"] for found in searches]},
        "longer search": {"setting": setting, "test": [found["test"] for found in longer]},
    }
    for name, of_seeds in trees.items():
        picks, width = (of_hard, HARD_WIDTH) if name == "hard" else (of_trees, WIDTH)
        runs = [
            KEPT.run(f"branching/{name}--s{s}", partial(trained, paths, width, picks, s))
            for s, paths in zip(SEEDS, of_seeds, strict=True)
        ]
        models[name] = {"setting": picks, "test": [found["test"] for found in runs]}
    by_chance = [fmean(agreement(tree, TREE) for tree in random_trees(s)) for s in SEEDS]
    table = {
        "seeds": SEEDS,
        "steps": STEPS,
        "models": models,
        "trees": trees["found"],
        "agreement": [agreement(found, TREE) for found in trees["found"]],
        "agreement_longer": [agreement(found["tree"], TREE) for found in longer],
        "random": by_chance,
        "nodes": [nodes(found) for found in trees["found"]],
    }
    KEPT.write("branching", table)


def nodes(paths: Paths) -> list[int]:
    """Return how many nodes each layer of a tree has."""
    return [len(set(layer)) for layer in zip(*paths.values(), strict=True)]


def claims(table: Table) -> Iterator[Claim]:
    """The tree found against chance and against the true one, and what training it anew gives."""
    setting = "8 synthetic regression tasks of a known tree of 3 layers (1, 2 and 4 nodes)"
    agreed = f"{setting}; agreement on which of two tasks is nearer to a third"
    yield claim(
        table, "learning-to-branch", "finds a tree nearer to the true one than random trees",
        agreed,
        minus(table["agreement"], table["random"]), "greater", 0.2,
        "in agreement with the true tree over random trees (1 is perfect)",
    )  # fmt: skip
    yield claim(
        table, "learning-to-branch", "finds the known tree", agreed,
        [a - 1 for a in table["agreement"]], "no worse", 0.2,
        "in agreement with the true tree from the perfect 1",
    )  # fmt: skip
    yield claim(
        table, "learning-to-branch",
        f"finds the known tree, {LONGER} times as long a search", agreed,
        [a - 1 for a in table["agreement_longer"]], "no worse", 0.2,
        "in agreement with the true tree from the perfect 1",
    )  # fmt: skip
    found = table["models"]
    ours = found["found"]["test"]
    for rival, words in (
        ("search", "its tree trained anew beats the model of the search"),
        ("hard", "its tree trained anew beats hard sharing of the true tree's parameters"),
        ("shuffled", "its tree trained anew beats the same tree with tasks shuffled"),
    ):
        fewer = [100 * (b - a) / b for a, b in zip(ours, found[rival]["test"], strict=True)]
        yield claim(
            table, "learning-to-branch", words, setting, fewer, "greater", 5.0,
            f"% of the test error saved against {rival}",
        )  # fmt: skip


def section(table: Table) -> str:
    rows = [
        [name, said(found["setting"]), spread(found["test"])]
        for name, found in table["models"].items()
    ]
    words = (
        f"Agreement of the found trees with the true one: {spread(table['agreement'])}; after "
        f"{LONGER} times as long a search {spread(table['agreement_longer'])}; of random "
        f"trees: {spread(table['random'])}. Nodes per layer of the found trees, seed by seed: "
        f"{', '.join('/'.join(map(str, each)) for each in table['nodes'])} (true: 1/2/4)."
    )
    head = ["model", "picked", "test error"]
    return grid(table, "Learning to Branch: tasks of a known tree", head, rows, words)


if __name__ == "__main__":
    main()
