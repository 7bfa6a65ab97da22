"""The experiments on relating tasks: what they read, what they count, and pages as tables say."""

from itertools import chain

import pytest
import torch

from polytask.catalog import METHODS
from polytask.evaluate.claims import load
from polytask.relate import cover, exact, greedy, hoa

from .experiment import together
from .test_merge_experiment import EXPERIMENTS

FOLDER = EXPERIMENTS / "relate"
SCRIPTS = (
    "found", "tables", "known_truth", "trained", "pairs", "joint_split", "sources", "real_sources",
    "benchmark", "clusters", "real_clusters", "suites", "page",
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


def test_evidence_on_pairs_is_scored_without_the_diagonal_and_with_both_directions(scripts):
    truth = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()
    guess = truth.T.clone().fill_diagonal_(NAN)  # the other direction is the same pair
    found = scripts.pairs.worth(truth.clone().fill_diagonal_(NAN), guess)
    assert found["pairs"] == pytest.approx(1)
    assert found["picked"] > 0
    assert scripts.pairs.worth(truth, truth)["targets"] == pytest.approx(1)
    turned = scripts.pairs.worth(truth, -truth)
    assert (turned["pairs"], turned["targets"]) == (pytest.approx(-1), pytest.approx(-1))
    assert turned["picked"] < 0
    # another 3 x 3: a third of the pairs is the best one
    small = torch.tensor([[0.0, 1, 2], [3, 0, 6], [4, 8, 0]])
    assert scripts.pairs.of_pairs(small).tolist() == [2, 3, 7]
    assert scripts.pairs.worth(small, small)["picked"] == pytest.approx(3)


def test_a_split_costs_the_rows_that_its_models_saw(scripts):
    table = scripts.page.PAGE.tables()["joint_split"]
    for suite, one in table["suites"].items():
        ways, tasks = one["ways"], len(one["tasks"])
        compute = {way: of["compute"] for way, of in ways.items()}
        assert compute["all together"] == compute["all together, on"] == [1, 1, 1]
        # all rows have all labels on sarcos; rows that a group does not label are not trained on
        exact = pytest.approx if suite == "sarcos" else lambda most: pytest.approx(most, rel=0.3)
        assert compute["alone"] == exact([tasks] * 3)
        for splits in scripts.joint_split.SPLITS:
            assert compute[f"tag, {splits}, from scratch"] == exact([splits] * 3)
            assert compute[f"tag, {splits}, on"] == exact([(1 + splits) / 2] * 3)
            for seed in range(3):
                mine, drawn = (
                    ways[f"{by}, {splits}, on"]["groups"][seed] for by in ("tag", "random")
                )
                assert [len(group) for group in mine] == [len(group) for group in drawn]
                assert sorted(chain(*mine)) == sorted(chain(*drawn)) == sorted(one["tasks"])


def test_tasks_on_rows_of_their_own_are_clustered_by_how_their_maps_are_spread(scripts):
    clusters = scripts.real_clusters
    random = torch.Generator().manual_seed(0)
    labels = torch.full((200, 8), NAN)
    for t in range(8):  # other rows, and other numbers of them
        labels[20 * t : 20 * t + 12 + t, t] = 1.0
    met = torch.tensor([0.2, 0.9])[torch.arange(8) % 2] + 0.05 * torch.rand(
        200, 8, generator=random
    )

    class Problem:
        tasks, train = tuple("abcdefgh"), (torch.zeros(200, 1), labels)

    maps = clusters.Maps(Problem())
    for _ in range(3):
        maps.look(-met.log())
    assert set(maps.groups(2, 0).groups.groups) == {tuple("aceg"), tuple("bdfh")}


def test_scores_of_real_clusters_are_those_of_others(scripts):
    from sklearn.metrics import r2_score, roc_auc_score

    clusters = scripts.real_clusters
    random = torch.Generator().manual_seed(0)
    output = torch.randn(300, generator=random).round(decimals=1)  # with ties
    flag = (torch.rand(300, generator=random) < 0.2).float()
    expected = roc_auc_score(flag.numpy(), output.numpy())
    assert clusters.auroc(output, flag) == pytest.approx(expected)

    problem = object.__new__(clusters.Problem)
    problem.suite = "school"
    labels = torch.randn(300, 2, generator=random)
    labels[::3, 0] = NAN
    outputs = labels.nan_to_num() + torch.randn(300, 2, generator=random)
    known = ~labels.isnan()
    expected = 100 * r2_score(labels[known].numpy(), outputs[known].numpy())
    assert problem.score(outputs, labels) == pytest.approx(expected, abs=0.5)  # n - 1 for n
    assert not problem.losses(outputs, labels)[::3, 0].any()


def test_no_pupil_of_a_source_is_drawn_twice(scripts, require_data, monkeypatch):
    require_data("school")
    monkeypatch.setattr(scripts.real_sources, "TARGETS", 1)
    monkeypatch.setattr(scripts.real_sources, "SWEEPS", 1)
    few = scripts.real_sources.attempt("none", 552, 0)
    assert few["drawn"] == 552
    all_of_them = scripts.real_sources.attempt("lasso", 10**6, 0)
    every = sum(len(scores) for _, scores in scripts.real_sources.schools())
    assert every - 251 <= all_of_them["drawn"] < every  # all but the target's
    assert 0 < all_of_them["left"] < few["left"] * 2


def test_rules_that_draw_fewer_samples_are_compared_at_those(scripts):
    curve = {"1": ([100.0], [90.0]), "2": ([10000.0], [50.0])}
    few = {"1": ([100.0], [80.0]), "2": ([1000.0], [60.0])}
    table = {"seeds": [0], "rules": {
        name: {b: {"drawn": drawn, "left": left} for b, (drawn, left) in of.items()}
        for name, of in (("none", curve), ("lasso", few))
    }}  # fmt: skip
    # 90 - 80 at 100 samples; half way, at 1,000, the other has 70
    assert scripts.real_sources.saved(table, "lasso", "none") == pytest.approx([10.0])
