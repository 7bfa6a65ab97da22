"""The solvers: against scipy, against every support tried in turn, and by optimality conditions."""

import importlib
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from polytask.balance import (
    MGDA,
    Balancer,
    CAGrad,
    DualProj,
    FairGrad,
    NashMTL,
    SDMGrad,
    UPGrad,
    solvers,
)

SIZES = [(1, 3), (2, 5), (5, 9), (12, 12), (40, 60)]
DEPENDENT = [(4, 2), (12, 5), (40, 15)]


def rows(tasks: int, columns: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng((seed, tasks, columns))
    return generator.standard_normal((tasks, columns))


@pytest.mark.parametrize(("tasks", "columns"), SIZES)
@pytest.mark.parametrize("exchanges", [15, 0])
def test_nonnegative_agrees_with_scipy_on_the_rows(tasks, columns, exchanges):
    matrix_PK = rows(tasks, columns, 0).T / columns**0.5
    goals_NP = rows(7, columns, 1)
    solved = solvers.nonnegative(matrix_PK.T @ matrix_PK, goals_NP @ matrix_PK, exchanges=exchanges)
    expected_NK = np.stack([nnls(matrix_PK, goal_P)[0] for goal_P in goals_NP])
    np.testing.assert_allclose(solved.values, expected_NK, rtol=0, atol=1e-9)
    assert solved.trouble is None


@pytest.mark.parametrize(("tasks", "columns"), [*SIZES, *DEPENDENT])
def test_nonnegative_meets_the_optimality_conditions(tasks, columns):
    """Also where gradients depend on each other, or repeat, or cancel."""
    rows_KP = rows(tasks, columns, 2)
    if tasks > 2:
        rows_KP[1], rows_KP[2] = rows_KP[0], -2 * rows_KP[0]
    cosines_KK, _ = solvers.split(rows_KP @ rows_KP.T)
    solved = solvers.into_dual_cone(cosines_KK, np.eye(tasks))
    added_NK = solved.values - np.eye(tasks)
    slope_NK = solved.values @ cosines_KK
    assert solved.trouble is None
    assert (added_NK >= 0).all()
    assert slope_NK.min() >= -1e-9
    assert np.abs(slope_NK * added_NK).max() <= 1e-8


@pytest.mark.parametrize("tasks", [3, 12, 40])
def test_where_every_update_conflicts_one_problem_is_solved_for_all_rows(tasks, monkeypatch):
    """Rows that cancel with positive weights: each one's projection is 0, with weights above it."""
    rows_KP = rows(tasks, tasks // 2, 10)
    rows_KP[-1] = -np.random.default_rng(11).uniform(0.5, 2, tasks - 1) @ rows_KP[:-1]
    calls = []
    monkeypatch.setattr("scipy.optimize.nnls", lambda *a, **k: calls.append(1) or nnls(*a, **k))
    cosines_KK, norms_K = solvers.split(rows_KP @ rows_KP.T)
    solved = solvers.into_dual_cone(cosines_KK, np.eye(tasks))
    assert solved.trouble is None
    assert len(calls) == 1
    assert (solved.values >= np.eye(tasks)).all()
    assert np.abs(solved.values @ (rows_KP / norms_K[:, None])).max() <= 1e-12 * solved.values.max()


def test_nearly_every_update_conflicts():
    """A cone a billionth wide is a cone: its projections are as scipy finds them on the rows."""
    turned_KP = np.array([[1.0, 1e-9], [-1.0, 1e-9], [0.0, 1.0]]) @ rows(2, 5, 12)
    unit_KP = turned_KP / np.linalg.norm(turned_KP, axis=1)[:, None]
    solved = solvers.into_dual_cone(unit_KP @ unit_KP.T, np.eye(3))
    expected_KP = [row_P + nnls(unit_KP.T, -row_P)[0] @ unit_KP for row_P in unit_KP]
    np.testing.assert_allclose(solved.values @ unit_KP, expected_KP, rtol=0, atol=1e-8)


@pytest.mark.parametrize("columns", [15, 30])
def test_a_gramian_rounded_to_float32_is_solved_to_its_rounding(columns):
    """Dependent gradients, multiplied in float32: some eigenvalues are below 0."""
    rows_KP = (rows(40, columns, 8) @ rows(columns, 500, 9)).astype(np.float32)
    cosines_KK, _ = solvers.split((rows_KP @ rows_KP.T).astype(np.float64))
    assert np.linalg.eigvalsh(cosines_KK)[0] < -1e-8
    solved = solvers.into_dual_cone(cosines_KK, np.eye(40))
    added_NK = solved.values - np.eye(40)
    slope_NK = solved.values @ cosines_KK
    assert solved.trouble is None
    assert (added_NK >= 0).all()
    assert slope_NK.min() >= -1e-5
    assert np.abs(slope_NK * added_NK).max() <= 1e-5


def test_a_guess_of_the_support_changes_nothing_but_the_time():
    rows_KP = rows(9, 12, 3)
    cosines_KK, _ = solvers.split(rows_KP @ rows_KP.T)
    linear_NK = -cosines_KK[:3]
    first = solvers.nonnegative(cosines_KK, linear_NK).values
    guess_NK = rows(3, 9, 4) > 0
    kept_NK = guess_NK.copy()
    again = solvers.nonnegative(cosines_KK, linear_NK, guess_NK).values
    np.testing.assert_allclose(again, first, rtol=0, atol=1e-12)
    assert (guess_NK == kept_NK).all()


def test_a_solver_cut_short_says_what_it_used():
    rows_KP = rows(12, 20, 5)
    cosines_KK, _ = solvers.split(rows_KP @ rows_KP.T)
    solved = solvers.nonnegative(cosines_KK, cosines_KK, exchanges=0, additions=1)
    assert solved.trouble == "the active set did not settle; used the point it started from"
    assert (solved.values >= 0).all()
    cut = solvers.equilibrium(rows_KP @ rows_KP.T, 1.0, rounds=1)
    assert cut.trouble == "Newton's steps did not settle; used the last of them"
    assert (cut.values > 0).all()


ACTIVE_SET = "the active set did not settle; used the point it started from"
SHORTEST = "the active set did not settle; used the shortest gradient"
NEWTON = "Newton's steps did not settle; used the last of them"


@pytest.mark.parametrize(
    ("method", "solver", "limits", "note"),
    [
        (MGDA(), "solvers.nonnegative", {"exchanges": 0, "additions": 1}, SHORTEST),
        (SDMGrad(), "solvers.nonnegative", {"exchanges": 0, "additions": 1}, SHORTEST),
        (UPGrad(), "solvers.nonnegative", {"exchanges": 0, "additions": 1}, ACTIVE_SET),
        (DualProj(), "solvers.nonnegative", {"exchanges": 0, "additions": 1}, ACTIVE_SET),
        (NashMTL(), "nash_mtl.equilibrium", {"rounds": 1}, NEWTON),
        (FairGrad(), "fairgrad.equilibrium", {"rounds": 1}, NEWTON),
        (
            CAGrad(),
            "cagrad.conflict_averse",
            {"rounds": 1},
            "the pull did not settle; used the mean gradient instead",
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "needs") else "",
)
def test_every_method_reports_a_solver_that_does_not_settle(
    monkeypatch, method, solver, limits, note
):
    """Cut short, each answers with what its note names, and the balancer counts it."""
    module, name = solver.split(".")
    module = importlib.import_module(f"polytask.balance.{module}")
    monkeypatch.setattr(module, name, partial(getattr(module, name), **limits))
    leaf_P = torch.ones(20, dtype=torch.float64, requires_grad=True)
    balancer = Balancer(method, [leaf_P], [f"task {k}" for k in range(12)])
    rows_KP = torch.from_numpy(rows(12, 20, 5))
    rows_KP = rows_KP - 0.8 * rows_KP.mean(0)
    with pytest.warns(RuntimeWarning, match=note):
        used = balancer.backward(rows_KP @ leaf_P)
    weights_K = torch.tensor(list(used.values()), dtype=torch.float64)
    assert list(balancer.notes.values()) == [1]
    assert bool(weights_K.isfinite().all())
    torch.testing.assert_close(leaf_P.grad, weights_K @ rows_KP)
    if method == CAGrad():
        assert weights_K.tolist() == pytest.approx([1 / 12] * 12)


def shortest_by_every_support(rows_KP: torch.Tensor) -> float:
    """Return the least norm of a convex combination, by trying all sets of weights above 0."""
    best = np.inf
    for size in range(1, len(rows_KP) + 1):
        for at in combinations(range(len(rows_KP)), size):
            some_SP = rows_KP[list(at)].numpy()
            edges_SP = some_SP[1:] - some_SP[0]
            parts = np.linalg.lstsq(edges_SP.T, -some_SP[0])[0]
            if min([1 - parts.sum(), *parts]) >= -1e-9:
                best = min(best, float(np.linalg.norm(some_SP[0] + parts @ edges_SP)))
    return best


def test_nearest_is_the_shortest_convex_combination(rows_KP):
    solved = solvers.nearest((rows_KP @ rows_KP.T).numpy())
    weights_K = torch.from_numpy(solved.values)
    assert solved.trouble is None
    assert float(weights_K.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((weights_K >= 0).all())
    length = float(torch.linalg.norm(weights_K @ rows_KP))
    shortest_row = float(rows_KP.norm(dim=1).min())
    assert length <= shortest_by_every_support(rows_KP) + 1e-7 * shortest_row


@pytest.mark.parametrize(("tasks", "columns"), [*SIZES, *DEPENDENT])
@pytest.mark.parametrize("spread", [0.0, 20.0])
def test_nearest_makes_the_same_product_with_every_gradient_it_uses(tasks, columns, spread):
    generator = np.random.default_rng(6)
    scale_K1 = 10 ** (spread * (generator.random((tasks, 1)) - 0.5))
    rows_KP = rows(tasks, columns, 6) * scale_K1
    weights_K = solvers.nearest(rows_KP @ rows_KP.T).values
    shortest_P = weights_K @ rows_KP
    norms_K = np.linalg.norm(rows_KP, axis=1)
    excess_K = (rows_KP @ shortest_P - shortest_P @ shortest_P) / (norms_K * norms_K.min())
    assert excess_K.min() >= -1e-10
    assert np.abs(excess_K * weights_K).max() <= 1e-10


@pytest.mark.parametrize("power", [0.2, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("spread", [0.0, 8.0])
@pytest.mark.parametrize(("tasks", "columns"), SIZES)
def test_equilibrium_solves_its_equation(tasks, columns, spread, power):
    generator = np.random.default_rng(7)
    scale_K1 = 10 ** (spread * (generator.random((tasks, 1)) - 0.5))
    rows_KP = rows(tasks, columns + 5, 7) * scale_K1
    gram_KK = rows_KP @ rows_KP.T
    weights_K, trouble = solvers.equilibrium(gram_KK, power)
    assert trouble is None
    assert (weights_K > 0).all()
    wanted_K = weights_K**-power
    # Where large terms nearly cancel, their sum is known to their rounding alone.
    rounding_K = 1e-13 * np.abs(gram_KK) @ weights_K
    allowed_K = 1e-6 * wanted_K + (rounding_K if spread else 0.0)
    assert (np.abs(gram_KK @ weights_K - wanted_K) <= allowed_K).all()


def test_onto_simplex_by_hand_and_whatever_the_size():
    np.testing.assert_allclose(solvers.onto_simplex(np.array([0.5, 0.5])), [0.5, 0.5])
    np.testing.assert_allclose(solvers.onto_simplex(np.array([2.0, 0.0])), [1.0, 0.0])
    np.testing.assert_allclose(solvers.onto_simplex(np.array([0.4, 0.2, -5])), [0.6, 0.4, 0.0])
    np.testing.assert_allclose(solvers.onto_simplex(np.array([-1e30, -3e30])), [1.0, 0.0])


def test_even_products_are_even_or_nothing():
    cosines_KK, _ = solvers.split(np.array([[4.0, 1.0], [1.0, 1.0]]))
    np.testing.assert_allclose(
        cosines_KK @ solvers.even_products(cosines_KK, np.ones(2)), [1, 1], rtol=1e-14
    )
    opposed_KK = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert solvers.even_products(opposed_KK, np.ones(2)).tolist() == [0.0, 0.0]
