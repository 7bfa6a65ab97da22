"""The experiments on balance methods: their measures, their signs, and that tables make claims."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from polytask.catalog import METHODS
from polytask.evaluate.claims import load, save
from polytask.records import Point

from .experiment import imported as module

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
BALANCE = EXPERIMENTS / "balance"


@pytest.fixture(scope="module")
def paths():
    return module(BALANCE, "paths")


@pytest.fixture(scope="module")
def claims():
    return module(BALANCE, "claims")


def test_the_claims_follow_from_the_tables(claims, tmp_path):
    tables = {
        name: json.loads((BALANCE / f"{name}.json").read_text())
        for name in claims.MAKERS
        if (BALANCE / f"{name}.json").exists()
    }
    (tmp_path / "balance").mkdir()
    save(tmp_path / "balance", claims.made(tables))
    recorded = tuple(c for c in load(EXPERIMENTS) if c.experiment == "balance")
    assert load(tmp_path) == recorded


def test_the_page_of_results_is_that_of_the_tables(claims):
    page = module(BALANCE, "page")
    tables = {
        name: json.loads((BALANCE / f"{name}.json").read_text())
        for name in page.SECTIONS
        if (BALANCE / f"{name}.json").exists()
    }
    # every table that a claim stands on is shown, and one that none stands on
    assert set(page.SECTIONS) == {*claims.MAKERS, "wrapped"}
    if tables:
        assert (BALANCE / "results.md").read_text() == page.markdown(tables)


def test_measures_of_gradients_against_numpy(paths):
    grads_KP = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grads_KP *= torch.tensor([[1.0], [3.0], [0.1], [20.0]])
    gram_KK, weights_K = grads_KP @ grads_KP.T, torch.tensor([1.0, 0.2, 5.0, 0.0]).double()
    rows, update = grads_KP.numpy(), (weights_K @ grads_KP).numpy()
    assert paths.log10_condition(gram_KK) == pytest.approx(np.log10(np.linalg.cond(rows)))
    norms = np.linalg.norm(rows, axis=1)
    cosines = rows @ update / (norms * np.linalg.norm(update))
    assert paths.least_cosine(gram_KK, weights_K) == pytest.approx(cosines.min())
    pairs = [
        2 * norms[i] * norms[j] / (norms[i] ** 2 + norms[j] ** 2)
        for i in range(4)
        for j in range(i)
    ]
    assert paths.similarity(gram_KK) == pytest.approx(np.mean(pairs))


def test_dependent_gradients_have_a_finite_condition(paths):
    assert 6 < paths.log10_condition(torch.ones(3, 3, dtype=torch.float64)) < 8


def test_unevenness_is_that_of_relative_losses(paths):
    even = [{"a": 4.0, "b": 2.0}, {"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 0.5}]
    assert paths.unevenness(even) == 0
    uneven = [{"a": 4.0, "b": 2.0}, {"a": 4.0, "b": 1.0}]  # ratios 1 and 0.5
    assert paths.unevenness(uneven) == pytest.approx(0.25)


def test_what_is_watched_answers_as_the_method_does(paths):
    from polytask.balance import AlignedMTL, Signal

    gram_KK = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    signal = Signal(torch.ones(2), torch.arange(2), 2, gram_KK=gram_KK)
    watched = paths.Watched(AlignedMTL())
    mine = watched(signal, watched.start(2))
    assert torch.equal(mine.weights_K, AlignedMTL()(signal, {}).weights_K)
    assert watched.means()["least_cosine"] == paths.least_cosine(gram_KK, mine.weights_K)


def test_the_optimum_of_preset_weights():
    preset = module(BALANCE, "preset")
    given = preset.problem(3)
    x_P = given.optimum()
    assert float((given.weights_K @ given.gradients(x_P)).abs().max()) < 1e-12
    assert float(given.weights_K.sum()) == pytest.approx(preset.TASKS)
    eigenvalues = torch.linalg.eigvalsh(given.curvature_KPP)
    assert torch.allclose(eigenvalues[:, [0, -1]], torch.tensor(preset.CURVATURES).double())
    # The gradients are those of the losses.
    moving_P = given.start_P.clone().requires_grad_()
    given.losses(moving_P)[1].backward()
    assert torch.allclose(moving_P.grad, given.gradients(given.start_P)[1])
    preset.UPDATES = 400
    assert preset.descend(preset.methods(given)["fixed"], given) < 1e-6


def test_edges_against_scipy():
    from scipy.ndimage import sobel

    mine = module(BALANCE, "two_branches").sobel
    picture_HW = torch.rand(7, 9, generator=torch.Generator().manual_seed(0))
    theirs = np.hypot(*(sobel(picture_HW.numpy(), axis=a, mode="nearest") for a in (0, 1)))
    assert np.allclose(mine(picture_HW[None, None])[0, 0].numpy(), theirs, atol=1e-5)


def test_branches_meet_in_one_map():
    branches = module(BALANCE, "two_branches")
    statistics = {"picture": ([1.0] * 3, [2.0] * 3), "edges": ([0.0], [1.0])}
    model = branches.TwoBranches(statistics)
    inputs = {"picture": torch.rand(2, 3, 48, 64), "edges": torch.rand(2, 1, 48, 64)}
    assert model(inputs)["map"].shape == (2, branches.WIDTH, 48, 64)


def test_spread_of_the_best_epochs():
    points = [Point(s, e, 0.0, {}, {}, {}, 0.0) for e, s in enumerate((40, 80, 120), start=1)]
    record = SimpleNamespace(
        points=points, best_per_task={"a": (40, 0.5), "b": (120, 0.5)}, settings={"epochs": 20}
    )
    assert module(BALANCE, "convergence").spread(record) == pytest.approx(5.0)


def test_a_run_that_is_kept_is_not_made_again(tmp_path, monkeypatch):
    store = module(BALANCE, "store")
    monkeypatch.setattr(store.KEPT, "runs", tmp_path)
    assert store.kept("a/b", lambda: {"x": 1.23456789}) == {"x": 1.23457}
    assert store.kept("a/b", lambda: pytest.fail("made again")) == {"x": 1.23457}


ABOUT = {"command": "python x.py", "versions": {"python": "3", "torch": "2"}, "seeds": [0, 1, 2]}
LOW, HIGH = [1.0, 1.1, 0.9], [9.0, 9.2, 9.1]


def outcomes(made):
    return {claim.claim: claim.outcome for claim in made}


@pytest.mark.parametrize(("claimed", "other", "outcome"), [(1, 0, "seen"), (0, 1, "not seen")])
def test_each_claim_of_an_experiment_has_its_sign(claims, claimed, other, outcome):
    """Tables where every claim is plainly true, and the same with the sides exchanged."""
    up, down = (HIGH, LOW) if claimed else (LOW, HIGH)
    better = {"log10_condition": down, "least_cosine": up, "similarity": up}
    worse = {"log10_condition": up, "least_cosine": down, "similarity": down}
    methods = dict.fromkeys(claims.RIVALS, worse) | {"aligned-mtl": better}
    methods |= {"coba": {"unevenness": down}}
    methods |= {"equal": {"unevenness": up, "preset_objective": up}}
    methods |= {"aligned-mtl preset": {"preset_objective": down}}
    methods |= {"fixed preset": {"preset_objective": up}}
    both = {"equal": {"spread": up, "best_score": down}, "coba": {"spread": down, "best_score": up}}
    suite = {"seeds": [0, 1, 2]} | both
    delta_m = {"pcgrad": down, "pcgrad+flat-regions": up, "igb-v1+pcgrad": up}
    added = {"flat": {"pcgrad": "pcgrad+flat-regions"}, "igb": {"pcgrad": "igb-v1+pcgrad"}}
    fuller = {name: {"delta_m": down} for name in ("x", "x+feature-level", "equal")}
    fuller |= {"x+fuller": {"delta_m": up}}
    tables = {
        "paths": ABOUT | {"methods": methods},
        "convergence": ABOUT | {"suites": {"one": suite, "two": suite}},
        "added": ABOUT
        | {"added": added, "suites": {"one": {"seeds": [0, 1, 2], "delta_m": delta_m}}},
        "modalities": ABOUT | {"wrapped": "x", "methods": fuller},
    }
    known = {row.name for row in METHODS}
    if not {"flat-regions", "fuller"} <= known:  # methods still to come
        tables.pop("added"), tables.pop("modalities")
    found = outcomes(claims.made(tables))
    assert len(found) >= 13
    assert set(found.values()) == {outcome}


def test_claims_of_closeness_have_their_sides(claims):
    settings = {"tasks": 3, "dimensions": 20, "updates": 10}
    for left, outcome in (([0.0, 0.1, 0.2], "seen"), ([3.0, 3.1, 2.9], "not seen")):
        preset = ABOUT | {"settings": settings, "gap_left_percent": {"aligned-mtl": left}}
        assert list(outcomes(claims.of_preset(preset)).values()) == [outcome]
    for at_40, outcome in (([1.4, 1.3, 1.35], "seen"), ([9.0, 9.1, 9.2], "not seen")):
        cost = ABOUT | {"ratios": {"famo": {"2": [1.3, 1.3, 1.3], "40": at_40}}}
        assert list(outcomes(claims.of_famo_cost(cost)).values()) == [outcome]


def test_planned_claims_on_comparisons(tmp_path):
    """A comparison where what is claimed holds by far, and which suites count."""
    compare = module(EXPERIMENTS / "compare", "claims")
    level = dict.fromkeys(compare.EVERY, 1.0)
    level |= {"igb-v1": 5.0, "igb-v2": 5.1, "aligned-mtl": 3.0}

    def table(names, seeds=3):
        gains = {n: [level[n] + 0.01 * ((i * len(n)) % 3) for i in range(seeds)] for n in names}
        tasks = {n: {"tasks": {"t": {"gains": gains[n]}}} for n in names}
        return {"seeds": list(range(seeds)), "methods": tasks, "versions": {"torch": "2"}}

    (tmp_path / "compare").mkdir()
    tables = {
        "digits2": table(compare.EVERY),
        "tox21": table(["equal", "uncertainty", "dwa", "pcgrad", "aligned-mtl"]),
        "census": table(compare.EVERY, seeds=1),
        "sarcos": table(compare.EVERY),
    }
    compare.write(tables, tmp_path / "compare" / "claims.json")
    found = {(c.system, c.claim): c for c in load(tmp_path)}
    said = {claim: c.outcome for claim, c in found.items()}
    assert said["aligned-mtl", "is ahead of cagrad"] == "seen"
    assert said["igb-v1", "IGB v1 is the best of the loss balancers"] == "seen"
    assert said["igb-v2", "IGB v2 is better than loss balancers commonly are"] == "seen"
    assert said["famo", "matches the mean of the gradient methods"] == "seen"
    assert said["famo", "is no worse than the best gradient method"] == "not seen"
    assert said["equal", "tuned equal weights match every method"] == "not seen"
    assert said["equal", "methods gain nothing on average over a plain sum"] == "seen"
    hardest = found["equal", "tuned equal weights match every method"]
    assert "over igb-v2" in hardest.effect.unit
    assert "not seen against 3" in hardest.reason
    # A suite counts where its table has all that the claim names, with three seeds.
    assert "mean over digits2;" in found["aligned-mtl", "is ahead of cagrad"].setting
    assert "digits2, tox21;" in found["aligned-mtl", "is ahead of pcgrad"].setting


def test_every_section_of_the_page_is_a_whole_grid(claims):
    page = module(BALANCE, "page")
    watched = {"log10_condition": LOW, "least_cosine": LOW, "similarity": LOW}
    always = {"unevenness": LOW, "preset_objective": HIGH}
    both = {m: {"spread": LOW, "best_score": HIGH} for m in ("equal", "coba")}
    tables = {
        "paths": ABOUT | {"methods": {"equal": always, "cagrad": watched | always}},
        "preset": ABOUT | {"settings": {"updates": 10}, "gap_left_percent": {"fixed": LOW}},
        "famo_cost": ABOUT | {"plain_ms": {"2": LOW}, "ratios": {"famo": {"2": LOW}}},
        "convergence": ABOUT | {"suites": {"one": both}},
        "added": ABOUT
        | {"added": {"flat": {"a": "a+b"}}, "suites": {"one": {"delta_m": {"a": LOW, "a+b": LOW}}}},
        "wrapped": ABOUT
        | {"added": {"w": {"a": "a+w"}}, "suites": {"one": {"delta_m": {"a": LOW, "a+w": HIGH}}}},
        "modalities": ABOUT
        | {
            "metrics": {"t": "RMSE"},
            "methods": {"equal": {"lr": 0.1, "test": [{"t": 1.0}] * 3, "delta_m": LOW}},
        },
    }
    text = page.markdown(tables)
    assert "1 ± 0.1" in text
    assert "9.1 ± 0.1" in text
    assert "| a | a+w | 1 ± 0.1 | 9.1 ± 0.1 | 8.1 ±" in text
    for section in text.split("## ")[1:]:
        grid = [line for line in section.splitlines() if line.startswith("|")]
        assert len(grid) >= 3
        assert len({line.count("|") for line in grid}) == 1
