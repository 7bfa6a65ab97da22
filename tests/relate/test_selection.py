"""Selecting tasks: relevance by its conditions of optimality, facility location, coverage."""

from itertools import combinations

import pytest
import torch

from polytask.errors import DataError, UsageError
from polytask.relate import (
    Affinity,
    active_sources,
    allocate,
    bento,
    consistency_diversity,
    facility_location,
    lasso_relevance,
    representation,
    ridge_relevance,
)

NAN = float("nan")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("sources", [3, 8, 30])
def test_lasso_relevance_meets_its_conditions_of_optimality(sources):
    heads_KM, target_K = normal(6, sources), normal(6, seed=1)
    nu_M = lasso_relevance(heads_KM, target_K, penalty=0.2)
    lam = 0.2 * float((heads_KM.T @ target_K).abs().max())
    slope_M = heads_KM.T @ (target_K - heads_KM @ nu_M)
    used = nu_M != 0
    torch.testing.assert_close(slope_M[used], lam * nu_M[used].sign(), rtol=1e-4, atol=1e-4)
    assert bool((slope_M[~used].abs() <= lam * (1 + 1e-4)).all())
    assert int(used.sum()) <= 6


def test_lasso_relevance_does_not_depend_on_the_scale_and_finds_the_source_that_is_the_target():
    heads_KM = torch.nn.functional.normalize(normal(10, 30), dim=0)
    nu_M = lasso_relevance(heads_KM, 2 * heads_KM[:, 4], penalty=0.05)
    assert int(nu_M.argmax()) == 4
    assert float(nu_M[4] / nu_M.abs().sum()) > 0.95
    torch.testing.assert_close(
        lasso_relevance(heads_KM, 200 * heads_KM[:, 4], penalty=0.05), 100 * nu_M
    )


def test_ridge_relevance_tends_to_the_least_norm_solution():
    heads_KM, target_K = normal(6, 20), normal(6, seed=1)
    found = ridge_relevance(heads_KM, target_K, penalty=1e-12)
    torch.testing.assert_close(found, torch.linalg.pinv(heads_KM) @ target_K)
    assert torch.equal(ridge_relevance(0 * heads_KM, target_K), torch.zeros(20).double())
    assert torch.equal(lasso_relevance(0 * heads_KM, target_K), torch.zeros(20).double())


def test_samples_add_up_and_go_by_relevance():
    assert allocate(torch.tensor([3.0, -1.0, 0.0]), 8) == (6, 2, 0)
    assert allocate(torch.tensor([3.0, -1.0, 0.0]), 11, floor=1) == (7, 3, 1)
    assert allocate(torch.tensor([2.0, 1.0]), 10, power=2.0) == (8, 2)
    assert allocate(torch.zeros(3), 7) == (3, 2, 2)
    assert allocate(torch.ones(2), 100, costs=(1.0, 4.0)) == (33, 16)
    for budget in range(5, 60, 7):
        counts = allocate(normal(5, seed=budget), budget, floor=1)
        assert sum(counts) == budget
        assert min(counts) >= 1


def test_a_linear_representation_is_recovered():
    basis_IK = torch.linalg.qr(normal(12, 3)).Q
    heads_KM = normal(3, 8, seed=1)
    rows = []
    for m in range(8):
        x = normal(60, 12, seed=10 + m)
        rows.append((x, x @ basis_IK @ heads_KM[:, m] + 0.01 * normal(60, seed=30 + m)))
    found_IK, found_KM = representation(rows, 3)
    torch.testing.assert_close(found_IK.T @ found_IK, torch.eye(3).double())
    assert float((found_IK @ found_IK.T - basis_IK @ basis_IK.T).norm()) < 0.02
    torch.testing.assert_close(found_IK @ found_KM, basis_IK @ heads_KM, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("relevance", ["lasso", "ridge", "none"])
def test_sources_that_the_target_needs_are_sampled(relevance):
    basis_IK = torch.linalg.qr(normal(12, 4)).Q
    heads_KM = torch.nn.functional.normalize(normal(4, 20, seed=1), dim=0)
    asked = []

    def draw(source, count):
        asked.append(count)
        x = normal(count, 12, seed=1000 * source + len(asked))
        noise = 0.1 * normal(count, seed=len(asked))
        return x, x @ basis_IK @ heads_KM[:, source] + noise

    x = normal(30, 12, seed=5)
    truth_I = basis_IK @ heads_KM[:, 7]
    found = active_sources(draw, (x, x @ truth_I + 0.1 * normal(30, seed=6)), 20, (600, 1200),
                           width=4, relevance=relevance)  # fmt: skip
    assert sum(found.counts) == 1800 == sum(asked)
    if relevance == "none":
        assert len(set(found.counts)) == 1
    else:
        assert max(range(20), key=found.counts.__getitem__) == 7
    fresh = normal(50, 12, seed=8)
    error = (found.predict(fresh) - fresh @ truth_I).square().mean()
    assert float(error) < 0.02


def test_few_rows_of_the_target_and_undrawn_sources_are_refused():
    def draw(source, count):
        return normal(count, 5), normal(count)

    with pytest.raises(DataError, match="3 rows of the target cannot fix 3 numbers"):
        active_sources(draw, (normal(3, 5), normal(3)), 4, (10,), width=3)
    with pytest.raises(DataError, match="no sample of source 2 was drawn"):
        active_sources(draw, (normal(9, 5), normal(9)), 4, (2,), width=2, floor=0)
    with pytest.raises(UsageError, match="width 6 exceeds the 5 inputs"):
        active_sources(draw, (normal(9, 5), normal(9)), 4, (40,), width=6)


def test_facility_location_comes_within_the_proven_share_of_the_best_choice():
    for seed in range(10):
        points = normal(9, 3, seed=seed)
        distance = torch.cdist(points, points)
        likeness = distance.max() - distance
        kept = facility_location(tuple("abcdefghi"), likeness, 3)
        best = max(float(likeness[:, list(c)].amax(1).sum()) for c in combinations(range(9), 3))
        found = sum(kept.covered) * float(distance.max())
        assert (1 - 1 / 2.718281828) * best <= found <= best + 1e-9
        assert kept.coverage[-1] == pytest.approx(sum(kept.covered) / 9)
        assert list(kept.coverage) == sorted(kept.coverage)
        for name, task, covered in zip("abcdefghi", kept.stands_for, kept.covered, strict=True):
            assert task in kept.kept
            assert (name == task and covered == 1) or name not in kept.kept


def like_tasks(copies, kinds=4, noise=0.05):
    """Return an affinity in which tasks come in kinds that transfer alike."""
    kind = torch.arange(kinds).repeat_interleave(copies)
    profile = normal(kinds, kinds)
    values_TT = profile[kind][:, kind] + noise * normal(len(kind), len(kind), seed=1)
    names = tuple(f"{int(k)}-{n}" for n, k in enumerate(kind))
    return Affinity(names, values_TT, torch.full_like(values_TT, NAN)), kind


@pytest.mark.parametrize("components", [0, 3])
def test_bento_keeps_one_task_of_each_kind(components):
    affinity, _ = like_tasks(5)
    kept = bento(affinity, 4, components=components)
    assert {name[0] for name in kept.kept} == set("0123")
    assert all(task[0] == other[0] for task, other in zip(kept.tasks, kept.stands_for, strict=True))
    more = bento(affinity, 6, components=components)
    assert more.kept[:4] == kept.kept
    assert kept.coverage == more.coverage[:4]


def test_all_eigenvectors_say_nothing_which_is_why_only_some_are_taken():
    """A full set of eigenvectors is a rotation: the released code then chooses by chance."""
    affinity, _ = like_tasks(5)
    from polytask.relate.bento import _likeness

    values_TT = affinity.values_TT - affinity.values_TT.mean(0)
    off_TT = _likeness(values_TT).fill_diagonal_(0)
    root_T = off_TT.sum(1).rsqrt()
    laplacian_TT = torch.eye(20).double() - root_T[:, None] * off_TT * root_T
    vectors_TT = torch.linalg.eigh(laplacian_TT).eigenvectors
    apart = torch.cdist(vectors_TT, vectors_TT) + 2**0.5 * torch.eye(20)
    torch.testing.assert_close(apart, torch.full((20, 20), 2**0.5).double(), atol=1e-6, rtol=0)


def test_bento_refuses_what_it_cannot_choose_from():
    affinity, _ = like_tasks(2, kinds=2)
    with pytest.raises(UsageError, match="keep is 5; give 1 to 4"):
        bento(affinity, 5)
    with pytest.raises(UsageError, match="components is 4"):
        bento(affinity, 2, components=4)
    flat = Affinity(affinity.tasks, torch.ones(4, 4), torch.full((4, 4), NAN))
    with pytest.raises(DataError, match="all tasks transfer the same"):
        bento(flat, 2)
    holes = affinity.values_TT.clone()
    holes[0, 1] = NAN
    with pytest.raises(DataError, match="lacks 1 of 12"):
        bento(Affinity(affinity.tasks, holes, affinity.error_TT), 2)


def test_consistent_sources_come_first_and_are_added_while_they_cover_more():
    eye = torch.eye(4).double()

    def around(*axes, seed):
        scale = sum(eye[a] for a in axes)
        return scale + 0.3 * normal(200, 4, seed=seed) * scale

    target = around(0, 1, 2, seed=0)
    sources = {
        "other": around(3, seed=1),
        "most": around(0, 1, seed=2),
        "same again": around(0, 1, seed=3) * 0.7,
        "rest": around(2, seed=4),
    }
    found = consistency_diversity(target, sources, growth=0.01)
    assert found.sources[0] == "most"
    assert found.consistency["most"] == pytest.approx((2 / 3) ** 0.5, abs=0.02)
    assert found.consistency["other"] == pytest.approx(0, abs=0.05)
    assert list(found.coverage) == sorted(found.coverage)
    assert found.coverage[-1] <= 1
    everything = consistency_diversity(target, sources, growth=0.0)
    assert set(everything.sources) >= {"most", "same again", "rest"}
    assert len(consistency_diversity(target, sources, growth=9.0).sources) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lasso_relevance(normal(3, 2), normal(4)), UsageError, r"give \(K, M\) and \(K,\)"),
        (lambda: lasso_relevance(normal(3, 2), normal(3), penalty=1.0), UsageError, "penalty is 1"),
        (lambda: ridge_relevance(normal(3, 2), normal(3), penalty=0.0), UsageError, "penalty is 0"),
        (lambda: ridge_relevance(normal(3, 2) * NAN, normal(3)), DataError, "not finite"),
        (lambda: allocate(torch.ones(3), 2, floor=1), UsageError, "floor of 1 for each of 3"),
        (lambda: allocate(torch.ones(3), 9, costs=(1.0, 0.0, 1.0)), UsageError, "3 numbers > 0"),
        (lambda: allocate(torch.tensor([1.0, NAN]), 9), DataError, "not finite"),
        (lambda: consistency_diversity(normal(3, 2), {}), UsageError, "at least one source"),
        (lambda: consistency_diversity(normal(3, 2), {"a": normal(3, 4)}), UsageError, "of a have"),
    ],
)
def test_wrong_use_is_answered_with_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()
