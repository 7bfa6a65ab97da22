"""What Gramian methods share: normalised gradients, preferences, faults that name the task."""

from dataclasses import replace

import pytest
import torch

from polytask.balance import (
    IMTLG,
    MGDA,
    AlignedMTL,
    Balancer,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradVac,
    MoCo,
    PCGrad,
    SDMGrad,
    UPGrad,
)
from polytask.errors import RunError, UsageError

NORMALISED = [
    PCGrad(),
    AlignedMTL(),
    MGDA(),
    CAGrad(),
    FairGrad(),
    GradVac(),
    SDMGrad(),
    UPGrad(),
    DualProj(),
]
PREFERRED = [AlignedMTL(), ConFIG(), SDMGrad(), UPGrad(), DualProj()]


@pytest.mark.parametrize("method", NORMALISED, ids=repr)
@pytest.mark.parametrize("normalise", ["norm", "loss", "loss-norm"])
def test_normalised_is_the_method_on_scaled_gradients(signal, method, normalise):
    rows_KP = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    losses = (0.5, 4.0, 1.0, 3.0)
    losses_K1 = torch.tensor(losses, dtype=torch.float64)[:, None]
    scaled_KP = rows_KP.clone()
    if "norm" in normalise:
        scaled_KP /= rows_KP.norm(dim=1, keepdim=True)
    if "loss" in normalise:
        scaled_KP /= losses_K1
    plain = method(signal(scaled_KP), method.start(4)).weights_K
    ours = replace(method, normalise=normalise)
    weights_K = ours(signal(rows_KP, losses=losses), ours.start(4)).weights_K
    torch.testing.assert_close(weights_K @ rows_KP, plain @ scaled_KP, rtol=1e-8, atol=1e-10)


def test_moco_averages_the_normalised_gradients(signal):
    rows_KP = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = MoCo(normalise="loss")
    update = ours(signal(rows_KP, losses=(0.5, 2.0, 4.0)), ours.start(3))
    scaled_KP = rows_KP / torch.tensor([[0.5], [2.0], [4.0]], dtype=torch.float64)
    torch.testing.assert_close(update.state["average_TP"], scaled_KP / 2)


@pytest.mark.parametrize("method", [*NORMALISED, MoCo()], ids=lambda method: type(method).__name__)
def test_every_method_that_normalises_refuses_other_words(method):
    with pytest.raises(UsageError, match=r"normalise is 'log'; give 'none', 'norm', 'loss' or"):
        replace(method, normalise="log")


def test_a_loss_that_cannot_be_divided_by_names_the_task():
    leaf = torch.ones(2, requires_grad=True)
    balancer = Balancer(MGDA(normalise="loss"), [leaf], ["depth", "normals"])
    with pytest.raises(
        RunError, match=r"MGDA\(normalise='loss'\): the loss of task 'normals' is -0.25;"
    ):
        balancer.backward([leaf.sum(), leaf[0] * 0 - 0.25])
    assert leaf.grad is None


@pytest.mark.parametrize("method", [MGDA(), IMTLG(), MoCo(), CAGrad()], ids=repr)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_names_the_task(signal, method, bad):
    rows_KP = torch.ones(3, 2, dtype=torch.float64)
    rows_KP[1, 0] = bad
    with pytest.raises(RunError, match=r"gradient of task number 4 .* is not finite"):
        method(signal(rows_KP, at=(0, 4, 5)), method.start(6))


@pytest.mark.parametrize("method", PREFERRED, ids=repr)
def test_absent_tasks_take_their_preference_with_them(signal, method):
    rows_KP = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    chosen = replace(method, preference=(3.0, 7.0, 0.5))
    weights_K = chosen(signal(rows_KP, at=(0, 2)), chosen.start(3)).weights_K
    alone = replace(method, preference=(3.0, 0.5))
    torch.testing.assert_close(weights_K, alone(signal(rows_KP), alone.start(2)).weights_K)
    assert not torch.allclose(weights_K, method(signal(rows_KP), {}).weights_K)


@pytest.mark.parametrize("method", PREFERRED, ids=repr)
def test_a_wrong_preference_is_refused(method):
    for wrong in ((1.0, -1.0), (1.0, float("nan")), (0.0, 0.0)):
        with pytest.raises(UsageError, match=r"preference is .*finite numbers >= 0, not all 0"):
            replace(method, preference=wrong)
    with pytest.raises(UsageError, match="preference has 2 numbers for 3 tasks; give one per task"):
        replace(method, preference=(1.0, 2.0)).start(3)


def test_a_substitute_is_warned_of_once_and_counted():
    leaf = torch.ones(2, requires_grad=True)
    balancer = Balancer(IMTLG(), [leaf], ["a", "b"])
    with pytest.warns(RuntimeWarning, match=r"IMTLG: no combination .*update 0") as caught:
        balancer.backward([leaf.sum(), -leaf.sum()])
    assert caught[0].filename == __file__
    for _ in range(2):  # a second warning would be an error here
        balancer.backward([leaf.sum(), -leaf.sum()])
    balancer.backward([leaf[0] * 1, leaf[1] * 1])
    assert list(balancer.notes.values()) == [3]
    assert leaf.grad.tolist() == pytest.approx([0.5, 0.5])
