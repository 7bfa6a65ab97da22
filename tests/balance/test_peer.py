"""Where TorchJD is installed: its weights and ours on the same Gramians."""

import pytest
import torch

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
    TrimmedMean,
    UPGrad,
)

aggregation = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_aligned_mtl_agrees_with_torchjd(rows_KP, signal, mode):
    ours_K = AlignedMTL(mode)(signal(rows_KP), {}).weights_K
    ones_K = torch.ones(len(rows_KP), dtype=torch.float64)
    theirs_K = aggregation.AlignedMTLWeighting(ones_K, scale_mode=mode)(rows_KP @ rows_KP.T)
    scale = float(rows_KP.abs().max())
    torch.testing.assert_close(ours_K @ rows_KP, theirs_K @ rows_KP, rtol=1e-8, atol=1e-10 * scale)


def test_pcgrad_agrees_with_torchjd_on_two_tasks(signal):
    # With more tasks each follows its own random order.
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rows_KP = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        ours_K = PCGrad()(signal(rows_KP), {}).weights_K
        theirs_K = aggregation.PCGradWeighting()(rows_KP @ rows_KP.T)
        torch.testing.assert_close(ours_K, theirs_K, rtol=1e-10, atol=1e-12)


# TorchJD adds 1e-4 to the diagonal of the quadratic problems; ours are exact.
EXACT = {"norm_eps": 0.0, "reg_eps": 1e-12}


def problems():
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        tasks = (2, 3, 5, 9)[seed % 4]
        scale_K1 = torch.exp(torch.randn(tasks, 1, generator=generator, dtype=torch.float64))
        yield scale_K1 * torch.randn(tasks, tasks + 6, generator=generator, dtype=torch.float64)


def assert_same_update(ours_K, theirs_K, rows_KP, within=1e-6):
    difference_P = (ours_K - theirs_K) @ rows_KP
    assert float(difference_P.norm()) <= within * float((theirs_K @ rows_KP).norm())


@pytest.mark.parametrize("preference", [None, (0.5, 2.0, 1.0, 0.1, 3.0, 1.0, 1.0, 0.2, 4.0)])
@pytest.mark.parametrize("method", [UPGrad, DualProj])
def test_the_projections_agree_with_torchjd(signal, method, preference):
    linalg = pytest.importorskip("torchjd._linalg")
    pytest.importorskip("quadprog", reason="TorchJD's solver is not installed")
    theirs = {UPGrad: aggregation.UPGradWeighting, DualProj: aggregation.DualProjWeighting}[method]
    for rows_KP in problems():
        given = preference and preference[: len(rows_KP)]
        weigh = theirs(
            None if given is None else torch.tensor(given, dtype=torch.float64),
            projector=linalg.QuadprogProjector(**EXACT),
        )
        ours_K = method(given)(signal(rows_KP), {}).weights_K
        assert_same_update(ours_K, weigh(rows_KP @ rows_KP.T), rows_KP)


def test_imtl_g_agrees_with_torchjd_but_for_the_sign(signal):
    for rows_KP in problems():
        theirs_K = aggregation.IMTLGWeighting()(rows_KP @ rows_KP.T)
        climbs = float(rows_KP[0] @ (theirs_K @ rows_KP)) < 0
        ours_K = IMTLG()(signal(rows_KP), {}).weights_K
        assert_same_update(ours_K, -theirs_K if climbs else theirs_K, rows_KP)


def test_config_agrees_with_torchjd(rows_KP, signal):
    if torch.linalg.matrix_rank(rows_KP) < len(rows_KP):
        pytest.skip("their cut-off for dependent gradients is another")
    update_P = ConFIG()(signal(rows_KP), {}).weights_K @ rows_KP
    theirs_P = aggregation.ConFIG()(rows_KP)
    torch.testing.assert_close(update_P / theirs_P.norm(), theirs_P / theirs_P.norm())


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_fairgrad_agrees_with_torchjd(signal, alpha):
    compared = 0
    for rows_KP in problems():
        gram_KK = rows_KP @ rows_KP.T
        theirs_K = aggregation.FairGradWeighting(alpha)(gram_KK)
        residual_K = (gram_KK @ theirs_K) * theirs_K ** (1 / alpha) - 1
        if float(residual_K.abs().max()) > 1e-7:
            continue  # a general least-squares solver, which stops where it stops
        compared += 1
        ours_K = FairGrad(alpha)(signal(rows_KP), {}).weights_K
        assert_same_update(ours_K, theirs_K, rows_KP)
    assert compared >= 3


@pytest.mark.filterwarnings("ignore")  # of the modelling layer, about its own speed
def test_nash_mtl_agrees_with_torchjd_where_its_solver_settles(signal):
    pytest.importorskip("ecos", reason="TorchJD's solver is not installed")
    compared = 0
    for rows_KP in problems():
        theirs_K = aggregation.NashMTL(len(rows_KP), max_norm=0.0, optim_niter=50).weighting(
            rows_KP
        )
        products_K = theirs_K * (rows_KP @ (theirs_K @ rows_KP))
        if float((products_K - 1).abs().max()) < 1e-6:
            compared += 1
            ours_K = NashMTL(max_norm=0.0)(signal(rows_KP), {}).weights_K
            assert_same_update(ours_K, theirs_K, rows_KP)
    assert compared >= 4


def test_cagrad_is_at_least_as_good_as_torchjds(signal):
    """Their solver stops at 1e-8 of the objective, which leaves 1e-4 in the weights."""
    pytest.importorskip("clarabel", reason="TorchJD's solver is not installed")
    for rows_KP in problems():
        theirs_K = aggregation.CAGradWeighting(0.4, norm_eps=1e-12)(rows_KP @ rows_KP.T)
        ours_K = CAGrad(0.4)(signal(rows_KP), {}).weights_K
        assert_same_update(ours_K, theirs_K, rows_KP, within=1e-3)
        worst_ours = float((rows_KP @ (ours_K @ rows_KP)).min())
        worst_theirs = float((rows_KP @ (theirs_K @ rows_KP)).min())
        assert worst_ours >= worst_theirs - 1e-6 * abs(worst_theirs)


def test_mgda_is_at_least_as_short_as_torchjds(signal):
    """Theirs stops before the minimum, after as many Frank-Wolfe steps as it is given."""
    for rows_KP in problems():
        theirs_K = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=3000)(rows_KP @ rows_KP.T)
        ours_P = MGDA()(signal(rows_KP), {}).weights_K @ rows_KP
        theirs_P = theirs_K @ rows_KP
        assert float(ours_P.norm()) <= float(theirs_P.norm()) * (1 + 1e-12)
        torch.testing.assert_close(ours_P, theirs_P, rtol=0, atol=3e-2 * float(theirs_P.norm()))


def test_sdmgrad_agrees_with_torchjds_iterated_to_the_end(signal):
    for rows_KP in problems():
        weigh = aggregation.SDMGradWeighting(lr=0.3, momentum=0.5, n_iter=4000)
        theirs_K = weigh(rows_KP @ rows_KP.T)
        ours_K = SDMGrad()(signal(rows_KP), {}).weights_K
        assert_same_update(ours_K, theirs_K, rows_KP, within=1e-5)


def test_gradvac_agrees_with_torchjd_on_two_tasks(signal):
    # With more tasks each follows its own random order.
    theirs, method = aggregation.GradVacWeighting(beta=0.5, eps=1e-300), GradVac(beta=0.5)
    state = method.start(2)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rows_KP = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        update = method(signal(rows_KP, seed), state)
        state = update.state
        torch.testing.assert_close(
            update.weights_K, theirs(rows_KP @ rows_KP.T), rtol=1e-9, atol=1e-12
        )


def test_the_trimmed_mean_agrees_with_torchjd(signal):
    rows_KP = torch.randn(5, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for trim in (0, 1, 2):
        ours_P = TrimmedMean(trim)(signal(rows_KP), {}).direction_P
        torch.testing.assert_close(ours_P, aggregation.TrimmedMean(trim)(rows_KP))


def test_graddrop_keeps_what_torchjds_keeps_where_signs_agree(signal):
    rows_KP = torch.rand(4, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows_KP[:, ::2] *= -1
    ours_P = GradDrop()(signal(rows_KP), {}).direction_P
    torch.testing.assert_close(ours_P, aggregation.GradDrop()(rows_KP))
