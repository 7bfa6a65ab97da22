"""What the searches have in common: gradients against finite differences, resuming, bad input."""

from dataclasses import replace

import pytest
import torch

from polytask.errors import DataError, Diverged, UsageError
from polytask.merge.adamerging import AdaMerging
from polytask.merge.atlas import ATLAS
from polytask.merge.concrete import Concrete
from polytask.merge.concrete_adamerging import ConcreteAdaMerging
from polytask.merge.dam import DAM
from polytask.merge.family import Merged
from polytask.merge.search import Saving, SearchState, search
from polytask.merge.self_positioning import SelfPositioning
from polytask.merge.surgery import Surgery
from polytask.merge.tinting import Tinting

from .families import FAMILIES, ROWS, TASKS, WITH_REGRESSION, inputs, mlp, targets

METHODS = {
    "adamerging": AdaMerging(rounds=6, batch_size=5),
    "adamerging-task": AdaMerging(level="task", rounds=6, batch_size=5),
    "adamerging-plus": AdaMerging(plus=True, rounds=6, batch_size=5),
    "concrete": Concrete(rounds=6, batch_size=5),
    "concrete-adamerging": ConcreteAdaMerging(rounds=6, coefficient_rounds=4, batch_size=5),
    "dam": DAM(rounds=6, coefficient_rounds=4, batch_size=5),
    "tinting": Tinting(rounds=6, batch_size=5),
    "tinting-plus": Tinting(plus=True, rounds=6, batch_size=5),
    "surgery": Surgery(rounds=6, batch_size=5, rank=2),
    "atlas": ATLAS(epochs=2, batch_size=15),
    "atlas-x3": ATLAS(parts=3, penalty=0.5, epochs=2, batch_size=15),
    "self-positioning": SelfPositioning(probe=10, rounds=6, batch_size=5),
}
LABELLED = ("atlas", "atlas-x3", "self-positioning")


def run(name, kind, method=None, *, state=None, saving=None, data=None):
    family = FAMILIES[kind]()
    data = data or inputs(kind)
    if name in LABELLED:
        truth = targets()
        data = {t: (x, truth[t]) for t, x in data.items()}
    if name == "surgery":
        return (method or METHODS[name])(
            family, data, Merged(family.mean()), state=state, saving=saving
        )
    return (method or METHODS[name])(family, data, state=state, saving=saving)


def same(one: Merged, other: Merged) -> bool:
    def equal(a, b):
        return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

    own = one.own.keys() == other.own.keys() and all(
        equal(one.own[t], other.own[t]) for t in one.own
    )
    searched = equal(one.learned, other.learned) and one.losses == other.losses
    return equal(one.shared, other.shared) and searched and own


@pytest.mark.parametrize("name", METHODS)
def test_a_search_that_goes_on_from_any_state_gives_the_same_bits(name):
    states: list[SearchState] = []
    whole = run(name, "mlp", saving=Saving(states.append, every=2))
    assert len(states) >= 3
    for state in states:
        # Through named tensors and back, as a file would hold them: in an order of its own.
        held = sorted(state.tensors().items(), reverse=True)
        again = SearchState.of({n: t.clone() for n, t in held})
        assert same(run(name, "mlp", state=again), whole)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("name", METHODS)
def test_any_module_is_searched_and_the_tuned_models_stay_as_they_are(name, kind):
    family = FAMILIES[kind]()
    before = {t: {n: p.clone() for n, p in family.shared(t).items()} for t in TASKS.names}
    merged = run(name, kind)
    assert set(merged.shared) == set(family.names)
    for tensor in merged.shared.values():
        assert torch.isfinite(tensor).all()
        assert not tensor.requires_grad
    again = FAMILIES[kind]()
    for task in TASKS.names:
        assert family.build(task, merged)(inputs(kind)[task]) is not None
        for n, p in before[task].items():
            assert torch.equal(p, again.shared(task)[n])


@pytest.mark.parametrize("name", [n for n in METHODS if n != "surgery"])
def test_seeds_change_what_is_drawn_and_nothing_else_does(name):
    method = METHODS[name]
    assert same(run(name, "mlp", method), run(name, "mlp", method))
    assert not same(run(name, "mlp", replace(method, seed=9)), run(name, "mlp", method))


@pytest.mark.parametrize(
    "name", ["adamerging", "concrete", "concrete-adamerging", "dam", "tinting"]
)
def test_a_regression_is_refused_by_methods_that_need_classes(name):
    family = mlp(WITH_REGRESSION)
    data = {t: torch.rand(8, 4, dtype=torch.float64) for t in WITH_REGRESSION.names}
    with pytest.raises(UsageError, match=r"task 'price' is of the kind regression, which has none"):
        METHODS[name](family, data)


@pytest.mark.parametrize("name", ["atlas", "self-positioning", "surgery"])
def test_a_regression_is_taken_by_methods_that_do_not(name):
    family = mlp(WITH_REGRESSION)
    data = {t: torch.rand(12, 4, dtype=torch.float64) for t in WITH_REGRESSION.names}
    truth = {"a": torch.arange(12) % 3, "price": torch.rand(12, dtype=torch.float64)}
    if name == "surgery":
        merged = METHODS[name](family, data, Merged(family.mean()))
    else:
        merged = METHODS[name](family, {t: (x, truth[t]) for t, x in data.items()})
    assert len(merged.losses) > 0


def test_data_that_do_not_fit_are_refused_with_what_to_do():
    data = inputs("mlp")
    with pytest.raises(UsageError, match="AdaMerging needs rows of every task; task 'b' has none"):
        AdaMerging()(mlp(), {**data, "b": data["b"][:0]})
    truth = targets()
    with pytest.raises(UsageError, match=rf"task 'a' has {ROWS} rows and {ROWS - 1} targets"):
        ATLAS()(mlp(), {t: (x, truth[t][: ROWS - 1]) for t, x in data.items()})
    with pytest.raises(DataError, match="Task 'a'"):
        ATLAS()(mlp(), {t: (x, truth[t] + 7) for t, x in data.items()})
    with pytest.raises(UsageError, match=f"has {ROWS} rows, fewer than the 128"):
        SelfPositioning()(mlp(), {t: (x, truth[t]) for t, x in data.items()})


@pytest.mark.parametrize("make", [AdaMerging, Concrete, ConcreteAdaMerging, DAM, Tinting, Surgery])
def test_bad_settings_are_refused(make):
    with pytest.raises(UsageError, match="give a rate > 0"):
        make(learning_rate=0.0)
    with pytest.raises(UsageError, match="a size >= 1"):
        make(batch_size=0)


def test_more_bad_settings_are_refused():
    with pytest.raises(UsageError, match="rounds is 0"):
        AdaMerging(rounds=0)(mlp(), inputs("mlp"))
    with pytest.raises(UsageError, match="A density of 0"):
        AdaMerging(plus=True, density=0.0)(mlp(), inputs("mlp"))
    with pytest.raises(UsageError, match="temperature is 0"):
        Concrete(temperature=0.0)(mlp(), inputs("mlp"))
    with pytest.raises(UsageError, match="parts 0"):
        ATLAS(parts=0)
    with pytest.raises(UsageError, match="probe is 0"):
        SelfPositioning(probe=0)
    with pytest.raises(UsageError, match="rank is 0"):
        Surgery(rank=0)


def test_an_objective_that_is_not_finite_stops_the_search():
    data = inputs("mlp")
    data["b"][0] = torch.nan
    with pytest.raises(Diverged, match=r"AdaMerging: the objective is nan in round 0"):
        AdaMerging(batch_size=ROWS)(mlp(), data)


def test_a_state_of_another_search_is_refused():
    states = []
    run("adamerging", "mlp", saving=Saving(states.append))
    with pytest.raises(UsageError, match="the state is of another search"):
        run("adamerging", "cnn", state=states[0])
    with pytest.raises(UsageError, match="they lack 'round'"):
        SearchState.of({"weight": torch.zeros(1)})


def test_the_search_itself_is_adam():
    """Against torch's own loop on a quadratic."""
    start = torch.tensor([3.0, -2.0])

    def gradients(round, values):
        loss = (values["x"] ** 2).sum()
        loss.backward()
        return loss.detach()

    found = search("t", {"x": start}, lambda ps: torch.optim.Adam(ps, 0.1), gradients, 20)
    x = start.clone().requires_grad_()
    steps = torch.optim.Adam([x], 0.1)
    for _ in range(20):
        steps.zero_grad()
        (x**2).sum().backward()
        steps.step()
    assert torch.equal(found.values["x"], x.detach())
    assert found.losses[0] == 13
    assert torch.equal(start, torch.tensor([3.0, -2.0]))
