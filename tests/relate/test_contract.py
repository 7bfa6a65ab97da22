"""The checkers for plug-ins pass what is here and catch what is broken."""

from dataclasses import replace

import pytest
import torch

from polytask.relate import TAG, GradientCosine, Groups, ant, exact, greedy, mas
from polytask.testing import check_grouping, check_watch


@pytest.mark.parametrize("rule", [exact, greedy, mas, ant])
def test_every_rule_keeps_the_contract(rule):
    check_grouping(rule)


def together(affinity, budget):
    affinity.known()
    everyone = (affinity.tasks,)
    found = exact(affinity, 1, overlap=False)
    return Groups(affinity.tasks, everyone, (0,) * len(affinity.tasks), found.value, found.score)


BROKEN = {
    "uses 2 models": lambda a, b: exact(a, b + 1),
    "it changed the affinity": lambda a, b: (together(a, b), a.values_TT.add_(1))[0],
    "a value is": lambda a, b: replace(together(a, b), value=(9.0,) * len(a.tasks)),
    "serve nobody": lambda a, b: (
        replace(together(a, b), groups=(a.tasks, a.tasks[:1])) if b > 1 else together(a, b)
    ),
    "raises no DataError": lambda a, b: together(a.filled(), b),
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_broken_rule_is_caught(said):
    check_grouping(together)
    with pytest.raises(AssertionError, match=said):
        check_grouping(BROKEN[said])


WATCHES = {
    "tag": lambda m, s, o, t: TAG(m, s, o, t, every=1),
    "as published": lambda m, s, o, t: TAG(m, s, o, t, every=1, sources=3, against="now"),
    "first order": lambda m, s, o, t: TAG(m, s, o, t, every=1, first_order=True),
    "cosine": lambda m, s, o, t: GradientCosine(s, t, every=1, at_once=2),
}


@pytest.mark.parametrize("make", WATCHES.values(), ids=WATCHES)
def test_every_watch_keeps_the_contract(make):
    check_watch(make)


class Draws(GradientCosine):
    def observe(self, losses, again=None):
        torch.rand(1)
        return super().observe(losses, again)


class Forgets(GradientCosine):
    def load_state_dict(self, state):
        """Keep nothing of it."""


class Runs(GradientCosine):
    """Computes the losses again and leaves batch-norm's statistics moved."""

    def observe(self, losses, again=None):
        with torch.random.fork_rng(devices=[]):
            again()
        return super().observe(losses, again)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Draws, "moves the random state"), (Runs, "running_mean"), (Forgets, "goes another way")],
)
def test_a_broken_watch_is_caught(kind, said):
    with pytest.raises(AssertionError, match=said):
        check_watch(lambda m, s, o, t: kind(s, t, every=1))
