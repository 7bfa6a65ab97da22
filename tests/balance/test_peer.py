"""Where TorchJD is installed: its updates and ours on the same gradients, easy and hard.

An input counts where both mean the same; each test says which do not count, and that enough do.
The largest differences found are in docs/balance-agreement.md.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.balance import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradDrop,
    GradVac,
    NashMTL,
    PCGrad,
    SDMGrad,
    Signal,
    TrimmedMean,
    UPGrad,
)

aggregation = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")

WITHIN = 1e-6


def gradients() -> dict[tuple[str, int], Tensor]:
    """Return rows by their kind and the number of tasks."""
    cases = {}
    for tasks in (1, 2, 3, 8, 40):
        generator = torch.Generator().manual_seed(tasks)
        rows_KP = torch.randn(tasks, 2 * tasks + 6, generator=generator, dtype=torch.float64)
        cases["random", tasks] = rows_KP
        cases["x 1e-10", tasks] = rows_KP * 1e-10
        cases["x 1e15", tasks] = rows_KP * 1e15
        cases["zero", tasks] = rows_KP * 0
        if tasks == 1:
            continue
        size_K1 = torch.logspace(-1.5, 1.5, tasks, dtype=torch.float64)[:, None]
        cases["unlike sizes", tasks] = rows_KP * size_K1
        size_K1 = torch.logspace(-10, 15, tasks, dtype=torch.float64)[:, None]
        cases["very unlike sizes", tasks] = rows_KP * size_K1
        cases["conflicting", tasks] = rows_KP - 0.9 * rows_KP.mean(0)
        cases["agreeing", tasks] = rows_KP.abs()
        cases["rank K / 2", tasks] = rows_KP[:, : tasks // 2]
        cases["one zero", tasks] = torch.cat([rows_KP[:1] * 0, rows_KP[1:]])
        cases["one twice", tasks] = torch.cat([rows_KP[:-1], rows_KP[:1]])
        cases["two opposed", tasks] = torch.cat([rows_KP[:-1], -2 * rows_KP[:1]])
    return cases


GRADIENTS = gradients()
SIZES = {"x 1e-10", "x 1e15", "unlike sizes", "very unlike sizes"}


def ours_on(method, rows_KP: Tensor, step: int = 0, state=None):
    """Return the update and the answer it came with."""
    tasks = len(rows_KP)
    index_K = torch.arange(tasks)
    given = Signal(torch.ones(tasks), index_K, tasks, step, None, rows_KP @ rows_KP.T, rows_KP)
    answer = method(given, method.start(tasks) if state is None else state)
    if answer.direction_P is not None:
        return answer.direction_P, answer
    return answer.weights_K @ rows_KP, answer


def weighed(weighting) -> Callable[[Tensor], Tensor]:
    return lambda rows_KP: weighting(rows_KP @ rows_KP.T) @ rows_KP


def apart(ours_P: Tensor, theirs_P: Tensor, rows_KP: Tensor) -> float:
    """Return the distance relative to their length, or to the shortest gradient, if longer."""
    distance = float((ours_P - theirs_P).norm())
    norms_K = rows_KP.norm(dim=1)
    shortest = float(norms_K[norms_K > 0].min()) if bool(norms_K.any()) else 1.0
    return distance / max(float(theirs_P.norm()), shortest)


def assert_agreement(method, theirs, cases, least: int, within: float = WITHIN) -> None:
    """Compare on each case; `theirs` returns None where it has no answer to compare with."""
    found = {}
    for name, rows_KP in cases.items():
        theirs_P = theirs(rows_KP)
        if theirs_P is not None:
            found[name] = apart(ours_on(method, rows_KP)[0], theirs_P, rows_KP)
    assert {name: size for name, size in found.items() if not size <= within} == {}
    assert len(found) >= least


def but(*kinds: str) -> dict[tuple[str, int], Tensor]:
    return {name: rows_KP for name, rows_KP in GRADIENTS.items() if name[0] not in kinds}


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_aligned_mtl(mode):
    """Where both keep the same rank: ours drops directions by float32's epsilon, as the authors'
    code, theirs by that of the Gramian given."""

    def theirs(rows_KP: Tensor) -> Tensor | None:
        gram_KK = rows_KP @ rows_KP.T
        values_K = torch.linalg.eigvalsh(gram_KK)
        largest = values_K[-1] * len(rows_KP)
        ranks = {
            int((values_K > largest * torch.finfo(dtype).eps).sum())
            for dtype in (torch.float32, torch.float64)
        }
        ones_K = gram_KK.new_ones(len(rows_KP))  # ours prefers all by 1, theirs by 1 / K
        weighting = aggregation.AlignedMTLWeighting(ones_K, scale_mode=mode)
        return weighed(weighting)(rows_KP) if len(ranks) == 1 else None

    assert_agreement(AlignedMTL(mode), theirs, GRADIENTS, least=40, within=1e-12)


@pytest.mark.parametrize("preference", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(UPGrad, "UPGradWeighting"), (DualProj, "DualProjWeighting")],
    ids=["upgrad", "dualproj"],
)
def test_projections(ours, theirs, preference):
    """Theirs divides by the trace, which may not be 0, and adds to the diagonal what we tell it:
    1e-12 of the trace, which hides gradients a million times shorter than others."""
    linalg = pytest.importorskip("torchjd._linalg")
    pytest.importorskip("quadprog", reason="TorchJD's solver is not installed")
    projector = linalg.QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)
    for tasks in (1, 2, 3, 8, 40):
        given = tuple(0.1 + (7 * k % 5) for k in range(tasks)) if preference else None
        preference_K = None if given is None else torch.tensor(given, dtype=torch.float64)
        weighting = getattr(aggregation, theirs)(preference_K, projector=projector)
        cases = {n: r for n, r in but("zero", "very unlike sizes").items() if n[1] == tasks}
        # Rows in one dimension that point both ways, and rows twice the space: the update is 0,
        # and theirs as near to it as what was added to the diagonal allows.
        assert_agreement(ours(given), weighed(weighting), cases, least=3)


def test_imtl_g():
    """Where equal products exist; theirs up to its sign, and up to its length where gradients
    depend on each other: many weights of sum 1 give the direction then. Where none exist, theirs
    takes the least squares in the gradients as they are, ours in unit ones. Theirs is 0 where the
    sum of its weights is below 1e-12 before it is made 1, which goes by the gradients' unit."""

    def theirs(rows_KP: Tensor) -> Tensor | None:
        cosines_KK = rows_KP @ rows_KP.T / torch.outer(*[rows_KP.norm(dim=1)] * 2)
        ones_K = cosines_KK.new_ones(len(cosines_KK))
        even_K = torch.linalg.pinv(cosines_KK, rtol=1e-12) @ ones_K
        if not torch.allclose(cosines_KK @ even_K, ones_K):
            return None
        theirs_P = weighed(aggregation.IMTLGWeighting())(rows_KP)
        if int(torch.linalg.matrix_rank(cosines_KK, rtol=1e-9)) < len(rows_KP):
            theirs_P = theirs_P / theirs_P.norm() * ours_on(IMTLG(), rows_KP)[0].norm()
        return -theirs_P if float(rows_KP[0] @ theirs_P) < 0 else theirs_P

    cases = but("zero", "one zero", "x 1e15", "very unlike sizes")
    assert_agreement(IMTLG(), theirs, cases, least=20)
    cases = {name: rows_KP for name, rows_KP in GRADIENTS.items() if name[0] == "one zero"}
    assert_agreement(IMTLG(), weighed(aggregation.IMTLGWeighting()), cases, least=4)


def test_config():
    """Everywhere but on gradients that are parallel and opposed: there the cosines asked for
    cannot be had, ours says so, and theirs returns rounding errors."""
    cases = {
        name: rows_KP for name, rows_KP in GRADIENTS.items() if ours_on(ConFIG(), rows_KP)[1].note
    }
    assert set(cases) == {
        *(("zero", tasks) for tasks in (1, 2, 3, 8, 40)),
        ("two opposed", 2),
    }
    kept = {name: rows_KP for name, rows_KP in GRADIENTS.items() if name not in cases}
    assert_agreement(ConFIG(), aggregation.ConFIG(), kept, least=45, within=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_fairgrad(alpha):
    """Where their answer solves the equation: it comes from a general least-squares solver."""

    def theirs(rows_KP: Tensor) -> Tensor | None:
        weights_K = aggregation.FairGradWeighting(alpha)(rows_KP @ rows_KP.T)
        update_P = weights_K @ rows_KP
        wrong_K = (rows_KP @ update_P) * weights_K ** (1 / alpha) - 1
        return update_P if float(wrong_K.abs().max()) < 1e-7 else None

    assert_agreement(FairGrad(alpha), theirs, but("zero", "one zero"), least=12)


@pytest.mark.filterwarnings("ignore")  # of the modelling layer, about its own speed
def test_nash_mtl():
    """Where their answer solves the equation: they keep the last weights where it does not."""
    pytest.importorskip("ecos", reason="TorchJD's solver is not installed")

    def theirs(rows_KP: Tensor) -> Tensor | None:
        peer = aggregation.NashMTL(len(rows_KP), 0.0, update_weights_every=1, optim_niter=100)
        weights_K = peer.weighting(rows_KP)
        update_P = weights_K @ rows_KP
        wrong_K = weights_K * (rows_KP @ update_P) - 1
        return update_P if float(wrong_K.abs().max()) < 1e-6 else None

    cases = {
        n: rows_KP for n, rows_KP in but("zero", "one zero", *SIZES).items() if n[1] in (2, 3, 8)
    }
    assert_agreement(NashMTL(0.0), theirs, cases, least=8)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # to the digits now asked for
@pytest.mark.parametrize("tight", [False, True], ids=["as it is", "tightened"])
def test_cagrad(monkeypatch, tight):
    """Both maximise the least product with a gradient, over a ball around the mean. Ours is never
    below theirs, and the distance between the updates is no more than what theirs falls short of
    the most explains. With their solver's tolerances tightened that is 1e-6, as they are 1e-4, and
    1e-2 where the best product is 0. Where a gradient is 0 the best updates are many. Where all
    are, theirs divides by 0.

    By how much an update d2 of the ball falls short bounds its distance from the best one d: with
    d - g_0 = r u, and g_w = |g_w| u in the gradients' hull, |d2 - d|^2 <= 2 r u (d - d2), and
    g_w (d - d2) is at most the shortfall.
    """
    cvxpy = pytest.importorskip("cvxpy", reason="TorchJD's solver is not installed")
    if tight:
        solve = cvxpy.Problem.solve
        limits = {"tol_gap_abs": 1e-16, "tol_gap_rel": 1e-16, "tol_feas": 1e-16, "max_iter": 500}
        monkeypatch.setattr(cvxpy.Problem, "solve", lambda self, name: solve(self, name, **limits))
    theirs = weighed(aggregation.CAGradWeighting(0.4, norm_eps=0.0))
    cases = but("zero", "one zero", "very unlike sizes")
    if tight:
        assert_agreement(CAGrad(0.4), theirs, cases, least=35, within=3e-6)
    compared = 0
    for name, rows_KP in cases.items():
        ours_P, answer = ours_on(CAGrad(0.4), rows_KP)
        theirs_P, mean_P = theirs(rows_KP), rows_KP.mean(0)
        had, theirs_had = float((rows_KP @ ours_P).min()), float((rows_KP @ theirs_P).min())
        longest = float(rows_KP.norm(dim=1).max())
        rounding = 1e-13 * longest * float(ours_P.norm())
        assert had >= theirs_had - rounding, name
        worst_K = answer.weights_K - 1 / len(rows_KP)
        worst = float((worst_K / worst_K.sum() @ rows_KP).norm())
        if worst <= 1e-6 * longest:
            continue  # a stationary point: theirs is no update
        radius = 0.4 * float(mean_P.norm())
        short = had - theirs_had + rounding
        explained = (2 * radius * short / worst) ** 0.5 + 1e-9 * float(ours_P.norm())
        assert float((ours_P - theirs_P).norm()) <= explained, name
        compared += 1
    assert compared >= 33


def test_mgda():
    """Theirs stops before the minimum. For the shortest point x of a convex set, and no other,
    |y - x|^2 <= |y|^2 - |x|^2 for every other point y of it."""
    for name, rows_KP in GRADIENTS.items():
        theirs_P = weighed(aggregation.MGDAWeighting(epsilon=1e-12, max_iters=300))(rows_KP)
        ours_P = ours_on(MGDA(), rows_KP)[0]
        norms_K = rows_KP.norm(dim=1)
        rounding = 1e-12 * float(norms_K.max() * norms_K.min())
        gap = float(theirs_P.square().sum() - ours_P.square().sum())
        assert float((theirs_P - ours_P).square().sum()) <= gap + rounding, name
        if name[1] <= 2 and name[0] not in ("two opposed", "rank K / 2"):
            assert apart(ours_P, theirs_P, rows_KP) < 1e-12, name


def test_sdmgrad():
    """Theirs iterated to the end, where it gets there in some hundred small steps."""
    weighting = aggregation.SDMGradWeighting(lr=0.3, momentum=0.5, n_iter=400)

    def theirs(rows_KP: Tensor) -> Tensor:
        weighting.reset()
        return weighed(weighting)(rows_KP)

    cases = but("x 1e-10", "very unlike sizes", "rank K / 2", "unlike sizes")
    assert_agreement(SDMGrad(), theirs, {n: r for n, r in cases.items() if n[1] < 40}, least=25)


def visiting_order(tasks: int, seed: int, step: int) -> np.ndarray:
    """Return the tasks in the order in which each meets the others, itself last, (K, K)."""
    keys_KK = np.random.default_rng((seed, step)).random((tasks, tasks))
    np.fill_diagonal(keys_KK, np.inf)
    return keys_KK.argsort(axis=1)


def test_pcgrad(monkeypatch):
    """In the same random order. A gradient of zero conflicts with none, in theirs too."""
    for name, rows_KP in GRADIENTS.items():
        orders = iter(torch.from_numpy(visiting_order(name[1], 5, 3)))
        monkeypatch.setattr(torch, "randperm", lambda size, orders=orders: next(orders))
        theirs_P = weighed(aggregation.PCGradWeighting())(rows_KP)
        assert apart(ours_on(PCGrad(5), rows_KP, 3)[0], theirs_P, rows_KP) < 1e-12, name


@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_gradvac(monkeypatch, beta):
    """In the same random order, for ten steps, in which the goals grow. Theirs gives a gradient
    of zero, or what rounding leaves of one that was turned away whole, a cosine, and so moves a
    goal that ours leaves where it was."""
    for name in but("zero", "one zero", "very unlike sizes", "two opposed"):
        tasks = name[1]
        if tasks == 40 and name[0] != "random":
            continue  # theirs takes its time
        weighting = aggregation.GradVacWeighting(beta, eps=1e-300)
        method = GradVac(beta, seed=5)
        state = method.start(tasks)
        for step in range(10):
            order_KK = visiting_order(tasks, 5, step)
            # Theirs draws positions among the others, so those past the task itself are one less.
            met = [row[:-1] - (row[:-1] > i) for i, row in enumerate(order_KK)]
            orders = iter([torch.from_numpy(row) for row in met])
            monkeypatch.setattr(torch, "randperm", lambda size, orders=orders: next(orders))
            turned_KP = GRADIENTS[name].roll(step, dims=1) * (1 + step % 3)
            theirs_P = weighed(weighting)(turned_KP)
            ours_P, answer = ours_on(method, turned_KP, step, state)
            state = answer.state
            assert apart(ours_P, theirs_P, turned_KP) < WITHIN, (name, step)


@pytest.mark.parametrize("trim", [0, 1, 3])
def test_trimmed_mean(trim):
    cases = {n: rows_KP for n, rows_KP in GRADIENTS.items() if n[1] > 2 * trim}
    assert_agreement(
        TrimmedMean(trim), aggregation.TrimmedMean(trim), cases, least=20, within=1e-14
    )


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_graddrop(monkeypatch, leak):
    """With the same numbers drawn; where all gradients are 0 in a column, theirs has 0 / 0."""
    draw, drawn = torch.rand, []

    def remember(*args, **kwargs):
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    def theirs(rows_KP: Tensor) -> Tensor:
        monkeypatch.setattr(torch, "rand", remember)
        ours_on(GradDrop(leak), rows_KP)
        monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: drawn[-1])
        theirs_P = aggregation.GradDrop(leak=rows_KP.new_full((len(rows_KP),), leak))(rows_KP)
        monkeypatch.setattr(torch, "rand", draw)
        return theirs_P

    assert_agreement(GradDrop(leak), theirs, but("zero"), least=45, within=1e-12)
