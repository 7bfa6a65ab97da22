"""Simulated steps: the draws agree with their true probabilities, and clicks are no fair sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polytask.errors import DataError
from polytask.suites import SPLITS, Stream, Suite, load, suite_row
from polytask.suites import clicks as module
from polytask.suites.census import Survey, survey
from polytask.suites.check import fitted
from polytask.tasks import Binary, Task, TaskSet

STEPS = module.STEPS
loaded = cache(load)
surveyed = cache(survey)


@pytest.fixture
def named(require_data: Callable[..., Path]) -> Callable[[str], Suite]:
    def get(name: str) -> Suite:
        require_data(*map(str, suite_row(name).files))
        return loaded(name)

    return get


@pytest.fixture
def read(require_data: Callable[..., Path]) -> Survey:
    require_data(*map(str, suite_row("clicks").files))
    return surveyed()


def joined(suite: Suite, what: str) -> Tensor:
    """(N, S) of all splits, in their order."""
    parts = []
    for split in SPLITS:
        (stream,) = suite.split(split)
        values = getattr(stream, what)
        parts.append(torch.stack([values[step].double() for step in STEPS], 1))
    return torch.cat(parts)


def test_both_suites_are_one_draw_labelled_in_two_ways(named: Callable[[str], Suite]) -> None:
    so_far_NS, given_NS = joined(named("clicks"), "targets"), joined(named("clicked"), "targets")
    for s in range(1, len(STEPS)):
        came_N = so_far_NS[:, s - 1] == 1
        assert torch.equal(given_NS[:, s].isnan(), ~came_N)
        assert torch.equal(given_NS[came_N, s], so_far_NS[came_N, s])
        assert not so_far_NS[~came_N, s].any()
    assert torch.equal(given_NS[:, 0], so_far_NS[:, 0])


def test_the_draws_are_those_of_the_true_probabilities(named: Callable[[str], Suite]) -> None:
    """Within tenths of the truth, what happened is off by no more than chance makes it."""
    label_NS, truth_NS = joined(named("clicks"), "targets"), joined(named("clicks"), "truth")
    for s in range(len(STEPS)):
        for part in truth_NS[:, s].argsort().chunk(10):
            q = truth_NS[part, s]
            deviation = float((q * (1 - q)).sum().sqrt())
            assert abs(float(label_NS[part, s].sum() - q.sum())) < 4 * deviation


def test_truths_are_means_over_the_mood(read: Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    """By many more points than the module takes, and against the limit without a mood."""
    found = module.simulate(read)
    assert torch.equal(found.given_NS[:, 0], found.so_far_NS[:, 0])
    for s in (1, 2):  # who came so far is in the better mood for more
        product_N = found.so_far_NS[:, s - 1] * found.given_NS[:, s]
        assert bool((found.so_far_NS[:, s] > product_N).all())
    monkeypatch.setattr(module, "MOODS", 40)
    finer = module.simulate(read)
    torch.testing.assert_close(found.given_NS, finer.given_NS, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.so_far_NS, finer.so_far_NS, rtol=0, atol=1e-7)
    assert torch.equal(found.happened_NS, finer.happened_NS)
    monkeypatch.setattr(module, "HIDDEN", 0.0)
    plain = module.simulate(read)
    torch.testing.assert_close(plain.so_far_NS, plain.given_NS.cumprod(1))


def test_rates_and_slopes_are_what_the_module_says(
    read: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    so_far_NS = module.simulate(read).so_far_NS[read.rows["train"]]
    expected = torch.tensor(module.RATES, dtype=torch.float64).cumprod(0)
    torch.testing.assert_close(so_far_NS.mean(0), expected)
    monkeypatch.setattr(module, "HIDDEN", 0.0)
    logit_NS = module.simulate(read).given_NS[read.rows["train"]].logit()
    corr = torch.full((3, 3), module.LEAN**2).double().fill_diagonal_(1)
    torch.testing.assert_close(torch.corrcoef(logit_NS.T), corr, rtol=0, atol=0.01)
    ones_S = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(logit_NS.std(0) / module.SLOPE, ones_S, rtol=0, atol=0.01)


def test_those_who_clicked_are_no_sample_of_all(named: Callable[[str], Suite]) -> None:
    """Neither in their inputs nor in what no input tells: the best of their models is biased."""
    (stream,), (entire,) = named("clicked").train, named("clicks").train
    assert stream.truth is not None
    assert entire.truth is not None
    label_N, truth_N = stream.targets["conversion"].double(), stream.truth["conversion"]
    clicked_N = ~label_N.isnan()
    taught = float(label_N[clicked_N].mean())
    assert taught > 1.75 * float(truth_N.mean())
    assert float(truth_N[clicked_N].mean()) > 1.4 * float(truth_N.mean())
    # What labels of clicked rows tell of a row with given inputs, and the truth of such a row.
    of_clicks_N = entire.truth["conversion"] / entire.truth["click"]
    deviation = float((of_clicks_N * (1 - of_clicks_N))[clicked_N].mean() / clicked_N.sum()) ** 0.5
    assert abs(taught - float(of_clicks_N[clicked_N].mean())) < 4 * deviation
    assert float(of_clicks_N.mean()) > 1.2 * float(truth_N.mean())


def test_the_seed_decides_everything(read: Survey) -> None:
    one, same, other = (module.simulate(read, seed) for seed in (0, 0, 1))
    assert torch.equal(one.given_NS, same.given_NS)
    assert torch.equal(one.happened_NS, same.happened_NS)
    assert float((one.given_NS - other.given_NS).abs().mean()) > 0.05


def test_clicks_are_those_results_were_published_with(named: Callable[[str], Suite]) -> None:
    """Labels alone: the last bit of a probability may differ between machines."""
    label = joined(named("clicks"), "targets").to(torch.uint8)
    assert hashlib.sha256(label.numpy().tobytes()).hexdigest()[:16] == "a3251b0db06d5039"


def test_the_truth_of_a_row_stays_with_it(named: Callable[[str], Suite]) -> None:
    suite = named("clicked")
    rows_N = torch.tensor([5, 3])
    part = suite.test[0].take(rows_N)
    assert suite.test[0].truth is not None
    assert part.truth is not None
    assert torch.equal(part.truth["repeat"], suite.test[0].truth["repeat"][rows_N])
    alone = suite.only(["conversion"]).test[0]
    label_N = suite.test[0].targets["conversion"]
    assert alone.truth is not None
    assert torch.equal(
        alone.truth["conversion"], suite.test[0].truth["conversion"][~label_N.isnan()]
    )


@pytest.mark.parametrize(
    ("truth", "told"),
    [
        ([0.5, 0.5], "the same rows everywhere.*truth of yes 2"),
        ([0.5, 0.5, 1.5], "outside 0 and 1"),
    ],
)
def test_a_truth_that_is_none_is_refused(truth: list[float], told: str) -> None:
    stream = Stream(
        "s", torch.zeros(3, 1), {"yes": torch.tensor([0.0, 1.0, 1.0])},
        truth={"yes": torch.tensor(truth)},
    )  # fmt: skip
    with pytest.raises(DataError, match=told):
        fitted(TaskSet([Task("yes", Binary())]), [stream], [stream], [stream])
