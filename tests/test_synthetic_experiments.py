"""The experiments on synthetic tasks: what they draw, train and measure, and the claims' signs."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from polytask.share import HardSharing
from polytask.share.experts import Experts

from .experiment import imported

SHARE = Path(__file__).parents[1] / "experiments" / "share"
NAMES = ("synthetic", "selecting", "branching", "branched_digits2", "unrelated", "specialising")


@pytest.fixture(scope="module")
def scripts():
    return SimpleNamespace(**{name: imported(SHARE, name) for name in NAMES})


def tiny(scripts, seed=0, noise=0.3, sizes=(200, 100, 3000)):
    """Two tasks of one layer of three units."""
    synthetic = scripts.synthetic
    random = torch.Generator().manual_seed(seed)
    layer, out_HT = synthetic.random_layer(4, 3, random), torch.tensor([[1.0, 9], [2, 0], [3, 0]])
    sizes = dict(zip(("train", "val", "test"), sizes, strict=True))

    def truth(rows_NI):
        return layer(rows_NI) @ out_HT

    return synthetic.problem(truth, synthetic.normal(4), ["a", "b"], sizes, noise, random), truth


def test_targets_have_deviation_1_and_noise_where_it_belongs(scripts):
    given, truth = tiny(scripts)
    test, train = given.splits["test"], given.splits["train"]
    true_NT = truth(test.inputs)
    for t, task in enumerate(("a", "b")):
        scaled = test.targets[task]
        assert float(scaled.std()) == pytest.approx(1, abs=0.1)
        # Without noise the scaled target is linear in the true one.
        assert np.corrcoef(scaled, true_NT[:, t])[0, 1] == pytest.approx(1, abs=1e-6)
        scale = float(scaled.std() / true_NT[:, t].std())
        left = train.targets[task] - truth(train.inputs)[:, t] * scale
        assert float(left.std()) == pytest.approx(0.3, rel=0.2)


def hard(given, seed=0):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
    return HardSharing.build(encoder, 16, given.tasks)


def test_training_keeps_the_weights_of_the_best_look(scripts):
    synthetic = scripts.synthetic
    given, _ = tiny(scripts)
    model = hard(given)
    looks = synthetic.train(model, given, given.batches(50, 0), steps=100, lr=0.05)
    assert len(looks) == synthetic.LOOKS
    assert min(looks) < 0.5 * looks[0]
    kept = synthetic.losses(model, given.fed("val"))
    assert np.mean(list(kept.values())) == pytest.approx(min(looks), rel=1e-5)
    # With a rate that is too high the best look is not the last.
    model = hard(given)
    looks = synthetic.train(model, given, given.batches(50, 0), steps=60, lr=3.0, keep="last")
    assert looks[-1] > min(looks)
    last = synthetic.losses(model, given.fed("val"))
    assert np.mean(list(last.values())) == pytest.approx(looks[-1], rel=1e-5)


def test_rates_go_to_the_parameters_whose_names_begin_so(scripts):
    given, _ = tiny(scripts)
    model = hard(given)
    before = {name: value.clone() for name, value in model.named_parameters()}
    batches = given.batches(50, 0)
    rates = {"": 0.01, "encoder": 0.0}
    scripts.synthetic.train(model, given, batches, steps=20, lr=rates, keep="last")
    moved = {n: not torch.equal(v, before[n]) for n, v in model.named_parameters()}
    assert moved == {name: not name.startswith("encoder") for name in before}


def test_settings_are_picked_on_a_draw_of_their_own(scripts, tmp_path, monkeypatch):
    synthetic, asked = scripts.synthetic, []
    monkeypatch.setattr(synthetic.KEPT, "runs", tmp_path)

    def run(setting, seed):
        asked.append(seed)
        return {"val": abs(setting["x"] - 2)}

    assert synthetic.picked("a", [{"x": x} for x in (0, 2, 3)], run) == {"x": 2}
    assert asked == [synthetic.TUNED_ON] * 3
    every = (scripts.selecting, scripts.branching, scripts.unrelated, scripts.specialising)
    assert not any(synthetic.TUNED_ON in one.SEEDS for one in every)


@pytest.mark.parametrize("noise", [False, True])
def test_top_k_gates_against_a_loop(scripts, noise):
    torch.manual_seed(0)
    trunk = scripts.selecting.TopK(["a", "b"], Experts(5, 4, (3,), out=2), 2, noise).double().eval()
    with torch.no_grad():
        for logits in trunk.logits.values():
            logits.normal_()
    rows_RD = torch.randn(6, 4, dtype=torch.float64)
    experts_ERW = trunk.experts(rows_RD)
    for t, task in enumerate(("a", "b")):
        logits = trunk.logits[f"task_{task}"].tolist()
        best = sorted(range(5), key=lambda e, of=logits: -of[e])[:2]
        parts = torch.tensor([logits[e] for e in best], dtype=torch.float64).exp()
        expected = sum(p * experts_ERW[e] for p, e in zip(parts / parts.sum(), best, strict=True))
        torch.testing.assert_close(trunk(rows_RD)[t], expected, rtol=1e-12, atol=1e-12)
    drawn = [trunk.train()(rows_RD) for _ in range(5)]
    assert all(torch.equal(one, drawn[0]) for one in drawn) != noise
    weights = trunk.stack(["a", "b"])["weights"]
    assert (weights > 0).sum(1).tolist() == [2, 2]
    weights[0].square().sum().backward()
    assert (trunk.logits["task_a"].grad != 0).sum() == 2


def test_overlaps_by_hand(scripts):
    chosen = [{0, 1}, {0, 1}, {1, 2}, {3}]
    within, between = scripts.selecting.overlaps(chosen, [0, 0, 1, 1])
    assert within == pytest.approx((1 + 0) / 2)
    assert between == pytest.approx((1 / 3 + 1 / 3 + 0 + 0) / 4)


def test_tasks_of_a_cluster_are_mixtures_of_two_functions(scripts):
    given = scripts.selecting.drawn(16, 0)
    test = given.splits["test"].targets
    targets = np.stack([test[name].numpy() for name in given.tasks.names], 1)
    groups = scripts.selecting.clusters(16)
    assert groups == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    for cluster in range(4):
        mine = targets[:, [t for t, group in enumerate(groups) if group == cluster]]
        # two functions and the constant that scaling leaves
        singular = np.linalg.svd(mine, compute_uv=False)
        assert (singular[3:] < 1e-3 * singular[0]).all()
    assert np.linalg.matrix_rank(targets, tol=1e-2 * np.linalg.norm(targets)) > 4


@pytest.mark.parametrize("name", ["dselect-k", "top-k"])
def test_selecting_trains_both_gates(scripts, monkeypatch, name):
    selecting = scripts.selecting
    monkeypatch.setattr(selecting, "ROWS", {"train": 200, "val": 50, "test": 50})
    case = selecting.Case(8, 20)
    found = selecting.attempt(name, case, selecting.SETTINGS[name][0], 0)
    assert found["test"] < 3
    assert found["within"] - found["apart"] >= 0
    assert 1 <= found["experts"] <= selecting.EXPERTS


def test_agreement_of_trees(scripts):
    branching = scripts.branching
    tree = branching.TREE
    assert branching.agreement(tree, tree) == 1
    names = {"all": "x", **{f"half {i}": f"y{i}" for i in range(2)}}
    renamed = {t: tuple(names.get(node, node) for node in path) for t, path in tree.items()}
    assert branching.agreement(renamed, tree) == 1
    assert branching.agreement(branching.HARD, tree) == 0
    # Small and by hand: a and b are near; found says a and c are.
    true = {"a": ("x", "y"), "b": ("x", "y"), "c": ("x", "z")}
    found = {"a": ("x", "y"), "b": ("x", "z"), "c": ("x", "y")}
    # triples: a nearer to b than to c, wrong; b nearer to a than to c, equal; c says nothing
    assert branching.agreement(found, true) == pytest.approx((-1 + 0) / 2)
    mean = np.mean([branching.agreement(branching.shuffled(tree, s), tree) for s in range(300)])
    assert abs(mean) < 0.06
    by_chance = [branching.agreement(found, tree) for found in branching.random_trees(0)]
    assert len(by_chance) == branching.RANDOM_TREES
    assert abs(np.mean(by_chance)) < 0.06
    assert branching.nodes(tree) == [1, 2, 4]


def test_hard_sharing_has_the_true_trees_parameters(scripts):
    from polytask.share import Branched

    branching = scripts.branching
    sizes = [
        sum(p.numel() for p in Branched(paths, branching.INPUTS, (width,) * 3).parameters())
        for paths, width in (
            (branching.TREE, branching.WIDTH),
            (branching.HARD, branching.HARD_WIDTH),
        )
    ]
    assert sizes == [294, 290]


def test_branching_searches_and_trains_what_it_found(scripts, monkeypatch):
    branching = scripts.branching
    monkeypatch.setattr(branching, "STEPS", 40)
    monkeypatch.setattr(branching, "ROWS", {"train": 250, "val": 50, "test": 50})
    found = branching.searched(branching.SEARCHES[0], 0)
    assert found["tree"].keys() == branching.TREE.keys()
    anew = branching.trained(found["tree"], branching.WIDTH, branching.TRAININGS[0], 0)
    assert 0 < anew["test"] < 3


def test_what_is_added_leaves_the_related_tasks_as_they_are(scripts):
    unrelated = scripts.unrelated
    alone, added = (unrelated.drawn(tasks, 3) for tasks in unrelated.COUNTS.values())
    assert len(added.tasks) == len(alone.tasks) + unrelated.UNRELATED
    for split in ("train", "val", "test"):
        one, other = alone.splits[split], added.splits[split]
        assert torch.equal(one.inputs, other.inputs)
        assert all(torch.equal(one.targets[t], other.targets[t]) for t in alone.tasks.names)
    # Related tasks are outputs of 16 common units, the others are not.
    inputs, names = added.splits["test"].inputs.numpy(), added.tasks.names
    targets = np.stack([added.splits["test"].targets[t].numpy() for t in names], 1)
    assert np.linalg.matrix_rank(np.c_[targets, inputs]) == len(names) + inputs.shape[1]


def test_rivals_are_of_equal_cost_or_equal_parameters(scripts):
    unrelated = scripts.unrelated
    given = unrelated.drawn(4, 0)
    sizes = {}
    for name, recipe in unrelated.RECIPES.items():
        trunk = unrelated.build(recipe, given).trunk
        sizes[name] = sum(p.numel() for part in trunk.experts for p in part.parameters())
    assert {sizes[name] for name in (*unrelated.FORMS, "ungated")} == {sizes["gates"]}
    assert sizes["hard, equal cost"] * 8 == sizes["gates"]
    assert sizes["hard, equal parameters"] == pytest.approx(sizes["gates"], rel=0.03)


def test_unrelated_trains_every_recipe(scripts, monkeypatch):
    unrelated = scripts.unrelated
    monkeypatch.setattr(unrelated, "STEPS", 20)
    for name in unrelated.RECIPES:
        assert 0 < unrelated.attempt(name, 16, {"lr": 0.01}, 0)["test"] < 3


def test_updates_hold_the_same_rows_by_domain_or_mixed(scripts):
    specialising = scripts.specialising
    given = specialising.drawn(0)
    pairs = zip(*(specialising.updates(given, pure, 1) for pure in (True, False)), strict=False)
    for pure, mixed in itertools.islice(pairs, 20):
        assert len(pure.micros) == len(mixed.micros) == specialising.DOMAINS
        rows = [[batch.inputs for (batch,) in step.micros] for step in (pure, mixed)]
        assert [set(part[:, 0].tolist()) for part in rows[0]] == [{0.0}, {1.0}, {2.0}, {3.0}]
        assert all(len(set(part[:, 0].tolist())) == specialising.DOMAINS for part in rows[1])
        one, other = (set(map(tuple, torch.cat(part).tolist())) for part in rows)
        assert one == other
        assert len(one) == pure.counts["task 0"] == mixed.counts["task 0"]


def test_information_against_scikit_learn(scripts):
    from sklearn.metrics import mutual_info_score

    counts_DE = torch.tensor([[3, 0, 5], [1, 9, 0], [2, 2, 2]]).double()
    expected = mutual_info_score(None, None, contingency=counts_DE.numpy())
    assert scripts.specialising.information(counts_DE) == pytest.approx(expected)
    assert scripts.specialising.information(torch.eye(4).double()) == pytest.approx(np.log(4))
    assert scripts.specialising.information(torch.ones(4, 3).double()) == pytest.approx(0)


def test_specialising_trains_every_side_and_counts_choices(scripts, monkeypatch):
    specialising = scripts.specialising
    monkeypatch.setattr(specialising, "STEPS", 20)
    for side in specialising.SIDES:
        found = specialising.attempt(side, 0.01, {"lr": 0.003}, 0)
        assert 0 <= found["told"] <= 1
        assert 1 / specialising.EXPERTS <= found["most"] <= 1
        assert 0 < found["test"] < 3


ABOUT = {"command": "python x.py", "versions": {"torch": "2"}, "seeds": [0, 1, 2]}
LOW, HIGH = [1.0, 1.1, 0.9], [9.0, 9.2, 9.1]


@pytest.mark.parametrize(("claimed", "outcome"), [(True, "seen"), (False, "not seen")])
def test_each_claim_has_its_sign(scripts, claimed, outcome):
    """Tables where every claim is plainly true, and the same with the sides exchanged."""
    down, up = (LOW, HIGH) if claimed else (HIGH, LOW)
    gates = {
        "dselect-k": {"test": down, "apart": up, "experts": [2, 2, 2]},
        "top-k": {"test": up, "apart": down},
    }
    balance = {"global": {"test": down, "told": up}, "batch": {"test": up, "told": down}}
    trees = {name: {"test": up} for name in ("search", "hard", "shuffled")}
    unrelated = scripts.unrelated
    mild = {"alone": {"test": LOW}, "with unrelated": {"test": down}}
    harsh = {"alone": {"test": LOW}, "with unrelated": {"test": up}}
    methods = dict.fromkeys((*unrelated.RIVALS, *unrelated.LARGE), harsh)
    methods |= dict.fromkeys(unrelated.FORMS, mild)
    digits = {"learning-to-branch": down, "hard": down, "branched": up}
    agreement = [1.0, 0.98, 0.99] if claimed else [-0.02, 0.0, 0.02]
    tables = {
        "selecting": {"cases": {"16 tasks": gates, "128 tasks": gates}},
        "specialising": {"weights": {"0.01": balance}},
        "branching": {
            "models": trees | {"found": {"test": down}},
            "agreement": agreement,
            "agreement_longer": agreement,
            "random": [0.0, 0.01, -0.01],
        },
        "unrelated": {"methods": methods},
        "branched_digits2": {"models": {n: {"delta_m": v} for n, v in digits.items()}},
    }
    made = [c for n, table in tables.items() for c in getattr(scripts, n).claims(ABOUT | table)]
    assert len(made) == 4 + 2 + 6 + 12 + 2
    assert {claim.outcome for claim in made} == {outcome}, [c for c in made if c.outcome != outcome]


def test_a_rival_that_is_hard_to_beat_decides(scripts):
    unrelated = scripts.unrelated
    mild = {"alone": {"test": LOW}, "with unrelated": {"test": LOW}}
    harsh = {"alone": {"test": LOW}, "with unrelated": {"test": HIGH}}
    methods = dict.fromkeys(unrelated.RECIPES, harsh) | dict.fromkeys(unrelated.FORMS, mild)
    methods["ungated"] = mild
    rise = next(unrelated.claims(ABOUT | {"methods": methods}))
    assert rise.outcome == "not seen"
    assert rise.effect.unit.endswith("below ungated")
    assert "seen against 1, not seen against 1" in rise.reason


def test_the_tree_of_digits2_is_trained_with_the_encoder_the_search_began_with(
    scripts, monkeypatch
):
    digits = scripts.branched_digits2
    whole = digits.load_suite("digits2")
    few = {
        split: tuple(stream.take(torch.arange(256)) for stream in whole.split(split))
        for split in ("train", "val", "test")
    }
    small = dataclasses.replace(whole, epochs=1, **few)
    monkeypatch.setattr(digits, "load_suite", lambda name: small)
    setting = digits.SETTINGS[0]
    search = digits.searched(setting, 0)
    assert set(search["tree"]) == set(whole.tasks.names) == set(search["test"])
    seen = {}
    scored = digits.scored

    def look(model, *rest):
        seen["model"] = model
        seen["encoder"] = [p.clone() for p in model.encoder.parameters()]
        return scored(model, *rest)

    monkeypatch.setattr(digits, "scored", look)
    anew = digits.branched(search["tree"], setting, 0)
    assert seen["model"].trunk.paths() == search["tree"]
    assert set(anew["test"]) == set(search["test"])
    began, _, _ = digits.build(small, digits.parse(digits.SEARCH), 0)
    pairs = zip(began.encoder.parameters(), seen["encoder"], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    compared = json.loads(digits.COMPARED.read_text())
    hard = digits.of_comparison(compared, "hard")
    assert np.mean(hard["delta_m"]) == pytest.approx(
        compared["methods"]["hard"]["delta_m"], abs=1e-3
    )
    # Scored as the comparison scores, its own values give its own gains.
    again = digits.delta_m(compared, [{"test": test} for test in hard["test"]])
    assert again == pytest.approx(hard["delta_m"], abs=0.02)
