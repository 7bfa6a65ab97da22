"""What the papers promise, held over hard Gramians: descent, order, scale, stationarity."""

from dataclasses import replace

import pytest
import torch

from polytask.balance import (
    IMTLG,
    MGDA,
    AlignedMTL,
    Balance,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    MoCo,
    NashMTL,
    SDMGrad,
    Signal,
    TrimmedMean,
    UPGrad,
)

DETERMINISTIC = [
    MGDA(), CAGrad(), IMTLG(), ConFIG(), NashMTL(), FairGrad(), FairGrad(2.0), UPGrad(),
    DualProj(), SDMGrad(), AlignedMTL(), TrimmedMean(),
]  # fmt: skip


def answer(method: Balance, signal: Signal) -> tuple[torch.Tensor, float]:
    """Return the update, and the length against which its rounding is to be measured."""
    rows_KP = signal.rows_KP
    update = method(signal, method.start(signal.tasks))
    assert bool(torch.isfinite(update.weights_K).all())
    if update.direction_P is not None:
        return update.direction_P, float(rows_KP.abs().sum())
    weights_K = update.weights_K
    norms_K = rows_KP.norm(dim=1)
    return weights_K @ rows_KP, float(weights_K.abs() @ norms_K + 1e-8 * norms_K.max())


@pytest.mark.parametrize("method", [MGDA(), UPGrad(), DualProj(), NashMTL(), FairGrad()], ids=repr)
def test_the_update_conflicts_with_no_task(rows_KP, signal, method):
    update_P, length = answer(method, signal(rows_KP))
    norms_K = rows_KP.norm(dim=1)
    assert bool((rows_KP @ update_P >= -1e-9 * norms_K * length).all())


@pytest.mark.parametrize("method", DETERMINISTIC, ids=repr)
def test_the_order_of_the_tasks_does_not_matter(rows_KP, signal, method):
    update_P, length = answer(method, signal(rows_KP))
    for order in (list(range(len(rows_KP)))[::-1], [*range(1, len(rows_KP)), 0]):
        other_P, _ = answer(method, signal(rows_KP[order]))
        assert float((other_P - update_P).norm()) <= 1e-6 * length


@pytest.mark.parametrize(
    "method",
    [MGDA(), CAGrad(), UPGrad(), DualProj(), SDMGrad(), ConFIG(), IMTLG(), TrimmedMean()],
    ids=repr,
)
@pytest.mark.parametrize("factor", [1e-9, 3.0, 1e12])
def test_a_common_scale_of_the_losses_scales_the_update(signal, method, factor):
    rows_KP = torch.randn(5, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    update_P, _ = answer(method, signal(rows_KP))
    scaled_P, _ = answer(method, signal(rows_KP * factor))
    torch.testing.assert_close(scaled_P, update_P * factor, rtol=1e-8, atol=0)


@pytest.mark.parametrize("columns", [9, 3])
@pytest.mark.parametrize(
    "method",
    [NashMTL(), *(replace(m, normalise="norm") for m in (MGDA(), UPGrad(), DualProj(), CAGrad()))],
    ids=repr,
)
def test_the_scale_of_one_loss_does_not_matter(signal, method, columns):
    generator = torch.Generator().manual_seed(4)
    rows_KP = torch.randn(5, columns, generator=generator, dtype=torch.float64)
    scale_K1 = torch.tensor([[1e-10], [1e-3], [1], [40], [1e15]], dtype=torch.float64)
    update_P, length = answer(method, signal(rows_KP))
    other_P, _ = answer(method, signal(rows_KP * scale_K1))
    assert float((other_P - update_P).norm()) <= 1e-6 * length


@pytest.mark.parametrize("method", [ConFIG(), IMTLG()], ids=repr)
def test_the_scale_of_one_loss_does_not_turn_the_update(signal, method):
    rows_KP = torch.randn(5, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    scale_K1 = torch.tensor([[1e-10], [1e-3], [1], [40], [1e15]], dtype=torch.float64)
    units = []
    for given_KP in (rows_KP, rows_KP * scale_K1):
        update_P, _ = answer(method, signal(given_KP))
        units.append(update_P / update_P.norm())
    torch.testing.assert_close(*units, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", DETERMINISTIC, ids=repr)
def test_one_task_alone_is_plain_descent(signal, method):
    rows_KP = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    update_P, _ = answer(method, signal(rows_KP))
    unit_P = rows_KP[0] / 5
    torch.testing.assert_close(update_P / update_P.norm(), unit_P, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", [UPGrad(), DualProj(), CAGrad(c=0.0), TrimmedMean(0)], ids=repr)
def test_without_conflict_the_mean_stays_the_mean(signal, method):
    rows_KP = torch.rand(4, 7, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    update_P, _ = answer(method, signal(rows_KP))
    torch.testing.assert_close(update_P, rows_KP.mean(0), rtol=1e-12, atol=0)


FRONT = [
    MGDA(), CAGrad(), IMTLG(), ConFIG(), NashMTL(), FairGrad(), UPGrad(), DualProj(), SDMGrad(),
    AlignedMTL(), MoCo(beta=1.0, beta_decay=0.0, gamma=0.05, gamma_decay=0.0),
]  # fmt: skip


@pytest.mark.parametrize("method", FRONT, ids=lambda method: type(method).__name__)
def test_descent_ends_on_the_known_front(method):
    """Three squared distances in the plane x_3 = 0: every Pareto point lies in their triangle."""
    corners_KP = torch.tensor([[1.0, 0, 0], [-1, 0.5, 0], [0, -1, 0]], dtype=torch.float64)
    scale_K1 = torch.tensor([[1.0], [3.0], [0.5]], dtype=torch.float64)
    at_P = torch.tensor([2.0, 2.0, 1.5], dtype=torch.float64)
    state = method.start(3)
    for step in range(400):
        rows_KP = 2 * scale_K1 * (at_P - corners_KP)
        losses_K = (scale_K1[:, 0] * (at_P - corners_KP).square().sum(1)).detach()
        given = Signal(losses_K, torch.arange(3), 3, step, None, rows_KP @ rows_KP.T, rows_KP)
        update = method(given, state)
        state = update.state
        direction_P = update.direction_P
        if direction_P is None:
            direction_P = update.weights_K @ rows_KP
        at_P = at_P - 0.15 / (1 + step / 20) * direction_P
    mixture = torch.linalg.solve(
        torch.cat([corners_KP[:, :2].T, torch.ones(1, 3, dtype=torch.float64)]),
        torch.cat([at_P[:2], torch.ones(1, dtype=torch.float64)]),
    )
    assert float(mixture.min()) > -0.02
    assert abs(float(at_P[2])) < 0.02
