"""The experiments on relating tasks: what they read, what they count, and pages as tables say."""

import pytest
import torch

from polytask.catalog import METHODS
from polytask.evaluate.claims import load
from polytask.relate import cover, exact, greedy, hoa

from .experiment import together
from .test_merge_experiment import EXPERIMENTS

FOLDER = EXPERIMENTS / "relate"
SCRIPTS = (
    "found", "tables", "known_truth", "sources", "benchmark", "clusters", "suites", "page",
)  # fmt: skip
NAN = float("nan")


@pytest.fixture(scope="module")
def scripts():
    with together(FOLDER, SCRIPTS) as scripts:
        yield scripts


@pytest.fixture
def groupings(scripts, require_data):
    require_data("task_grouping_gains")
    return {given.name: given for given in scripts.tables.groupings()}


def test_the_page_and_the_claims_are_what_the_tables_say(scripts):
    tables = scripts.page.PAGE.tables()
    assert set(tables) == {one.__name__ for one in scripts.page.EXPERIMENTS}
    assert (FOLDER / "results.md").read_text() == scripts.page.PAGE.markdown(tables)
    kept = [c for c in load(EXPERIMENTS) if c.experiment == "relate"]
    made = scripts.page.PAGE.claims(tables)
    assert [(c.system, c.claim, c.outcome) for c in kept] == [
        (c.system, c.claim, c.outcome) for c in made
    ]
    assert {c.system for c in made} <= {row.name for row in METHODS if row.room == "relate"}


def test_gains_of_published_groups_are_read_as_they_are_printed(groupings):
    standley = groupings["Taskonomy"].chosen_by
    assert len(standley) == 26
    pair = (standley.member_GT.int() == torch.tensor([1, 1, 0, 0, 0])).all(1)
    # losses of the file: together 0.07858 and 0.1833, alone 0.08039 and 0.1695
    expected = [1 - 0.07858 / 0.08039, 1 - 0.1833 / 0.1695]
    assert standley.gain_GT[pair][0, :2].tolist() == pytest.approx(expected)
    assert len(groupings["ETTm1"].truth) == 2**7 - 8
    assert len(groupings["clinical"].truth) == 3185 - 27
    assert not groupings["clinical"].truth.pairs().missing()


@pytest.mark.parametrize("name", ["Taskonomy", "Taskonomy, large", "ETTm1"])
def test_on_measured_gains_no_rule_beats_the_proven_optimum_and_pairs_foresee_the_rest(
    scripts, groupings, name
):
    given = groupings[name]
    guess = hoa(given.chosen_by.pairs(), given.truth.member_GT)
    if name != "ETTm1":  # there they do not
        assert scripts.known_truth.correlation(given.truth, guess) > 0.3
    pairs = given.chosen_by.pairs()
    for budget in (2, 3):
        best = cover(given.truth, budget)
        assert best.optimal
        chosen = [cover(guess, budget), exact(pairs, budget), greedy(pairs, budget)]
        measured = [float(given.truth.measured(groups).mean()) for groups in chosen]
        assert max(measured) <= best.score + 1e-12
        # choosing by pairs is choosing by their means, whichever way the groups are listed
        assert measured[0] == pytest.approx(measured[1], abs=1e-3)
        assert max(scripts.known_truth.random_groupings(given, budget)) <= best.score + 1e-12


def test_transfer_tables_are_read_and_foresee_themselves(scripts, require_data):
    require_data("taskonomy_affinity", "nlp_intermediate_transfer", "bento_transfer")
    found = {given.name: given for given in scripts.tables.transfers()}
    assert [given.truth_ST.shape[1] for given in found.values()][-2:] == [57, 66]
    for given in found.values():
        assert scripts.known_truth.within_targets(given.truth_ST, given.truth_ST) == pytest.approx(
            1
        )
        assert scripts.known_truth.caught(given.truth_ST, given.truth_ST) == pytest.approx(1)
    taskonomy = found["Taskonomy, 22 targets"]
    fewer = taskonomy.guesses["the same with 16,000 images"]
    assert scripts.known_truth.within_targets(taskonomy.truth_ST, fewer) > 0.5


def test_guesses_are_scored_within_each_target(scripts):
    truth = torch.tensor([[1.0, 9.0], [2.0, 8.0], [3.0, 7.0], [4.0, NAN]])
    up = torch.arange(4.0)[:, None].expand(4, 2)
    assert scripts.known_truth.within_targets(truth, up) == 1  # the second has three sources
    assert scripts.known_truth.within_targets(truth, -up) == -1
    assert scripts.known_truth.caught(truth, up) == 1
    assert scripts.known_truth.caught(truth, -up) == -1  # as far below the mean as the best above
    assert scripts.known_truth.within_targets(truth[:3], up[:3]) is None


def test_what_a_source_does_elsewhere_leaves_the_target_out(scripts):
    truth = torch.tensor([[1.0, 1.0, NAN], [0.0, 1.0, 5.0], [2.0, 3.0, 3.0]]).double()
    changed = truth.clone()
    changed[:, 0] = torch.tensor([7.0, -9.0, 3.0])
    one, other = scripts.tables.elsewhere(truth), scripts.tables.elsewhere(changed)
    torch.testing.assert_close(one[:, 0], other[:, 0])
    assert not torch.allclose(one[:, 1], other[:, 1])


def test_samples_needed_are_read_off_a_line_through_the_curve(scripts):
    errors = [1000 / n for n in scripts.sources.BUDGETS]
    assert scripts.sources.needed(errors, 0.25) == pytest.approx(torch.tensor(4000.0).log2().item())
    rules = {r: {str(b): [f * 1000 / b] for b in scripts.sources.BUDGETS}
             for r, f in (("lasso", 1.0), ("ridge", 4.0), ("none", 2.0))}  # fmt: skip
    table = {"seeds": [0], "rules": rules}
    assert scripts.sources.saved(table, "lasso", "ridge") == pytest.approx([2.0])


def test_each_experiment_makes_what_its_page_needs(scripts, require_data, monkeypatch):
    require_data("bento_transfer")
    small = scripts.sources.attempt("lasso", 400, 0)["outside"]
    assert 0 < small < 1
    monkeypatch.setattr(scripts.clusters, "STEPS", 30)
    ways = scripts.clusters.attempt(0)
    assert set(ways) == set(scripts.page.PAGE.tables()["clusters"]["ways"])
    assert all(0 <= value <= 100 for value in ways.values())
    tasks, runs = scripts.tables.mmlu_runs()
    assert runs.shape == (10, 57, 57)
    models, acc_QT = scripts.benchmark.accuracies(tasks)
    assert len(models) == 5
    assert scripts.benchmark.agreement(acc_QT, list(range(57))) == pytest.approx((1.0, 0.0))
