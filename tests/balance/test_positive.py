"""Losses that are 0 or negative: refused with the task's name, or left out with a note."""

import math

import pytest
import torch

from polytask.balance import (
    DWA,
    FAMO,
    GLS,
    IMTLL,
    MGDA,
    STCH,
    AlignedMTL,
    Balancer,
    CAGrad,
    CoBa,
    DualProj,
    FairGrad,
    GradNorm,
    GradVac,
    IGBv1,
    IGBv2,
    MoCo,
    PCGrad,
    ScaleInvariant,
    SDMGrad,
    Uncertainty,
    UPGrad,
)
from polytask.errors import RunError, UsageError

LOGARITHMIC = [FAMO, GLS, IGBv1, IGBv2, ScaleInvariant, STCH]
DIVIDED = [
    method(normalise=normalise)
    for method in (MGDA, CAGrad, FairGrad, UPGrad, DualProj, SDMGrad, PCGrad, GradVac, AlignedMTL)
    for normalise in ("loss", "loss-norm")
]
NOTE = "a loss is exactly 0; left its task out of the step"


def two_losses(build, bad: float) -> tuple[Balancer, torch.Tensor, dict[str, torch.Tensor]]:
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(build(), [leaf], ["left", "right"], steps_per_epoch=1)
    return balancer, leaf, {"left": leaf * 1, "right": leaf * bad}


@pytest.mark.parametrize("build", [*LOGARITHMIC, GradNorm, IMTLL, Uncertainty])
def test_a_negative_loss_is_refused_and_nothing_changes(build):
    balancer, leaf, losses = two_losses(build, -0.5)
    with pytest.raises(
        RunError, match=r"the loss of task 'right' is -0.5; .*bounded below by 0. U"
    ):
        balancer.backward(losses)
    assert balancer.step == 0
    assert leaf.grad is None


@pytest.mark.parametrize("build", [CoBa, FAMO])
def test_losses_that_are_looked_at_are_held_to_the_same_rule(build):
    balancer, _, losses = two_losses(build, 1.0)
    balancer.backward(losses)
    with pytest.raises(RunError, match=r"the loss of task 'left' is -0.1; "):
        balancer.observe({"left": torch.tensor(-0.1), "right": torch.tensor(1.0)})


@pytest.mark.parametrize("build", [build for build in LOGARITHMIC if build is not FAMO])
@pytest.mark.filterwarnings("ignore:.*exactly 0:RuntimeWarning")
def test_a_task_whose_loss_is_0_has_the_weight_0_and_the_others_theirs(weigh, build):
    """Over five epochs, before and after levels are known and agents act."""
    three = [[0.5, 0.3, 2.0], [0.4, 0.2, 1.0], [0.3, 0.1, 0.9], [0.2, 0.1, 0.5], [0.1, 0.1, 0.2]]
    for at in range(5):
        steps = [row.copy() for row in three]
        steps[at][1] = 0.0
        weights = weigh(build(), steps)
        assert all(math.isfinite(weight) for row in weights for weight in row)
        assert weights[at][1] == 0.0
        assert weights[at][0] > 0
        if build is not IGBv2:  # its agent saw the zero, and that is right
            absent = [row.copy() for row in steps]
            absent[at][1] = math.nan
            without = weigh(build(), absent[: at + 1])[at]
            assert [weights[at][0], weights[at][2]] == pytest.approx([without[0], without[2]])


@pytest.mark.parametrize("build", LOGARITHMIC)
def test_losses_of_0_are_noted_and_a_step_of_nothing_else_changes_nothing(build):
    balancer, leaf, losses = two_losses(build, 0.0)
    with pytest.warns(RuntimeWarning, match=NOTE):
        assert balancer.backward(losses)["right"] == 0.0
    assert list(balancer.notes.values()) == [1]
    if build is FAMO:
        balancer.observe({"left": torch.tensor(0.9), "right": torch.tensor(0.0)})
    before = float(leaf.grad)
    assert dict(balancer.backward({"left": leaf * 0, "right": leaf * 0})) == {
        "left": 0.0,
        "right": 0.0,
    }
    assert float(leaf.grad) == before


@pytest.mark.parametrize("method", DIVIDED, ids=repr)
def test_a_gradient_to_divide_by_a_loss_of_0_is_left_out(signal, method):
    rows_KP = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = signal(rows_KP, losses=(0.5, 0.0, 2.0, 3.0))
    update = method(given, method.start(4))
    kept = [0, 2, 3]
    alone = signal(rows_KP[kept], losses=(0.5, 2.0, 3.0), at=tuple(kept))
    expected = method(alone, method.start(4))
    assert update.weights_K[1] == 0
    torch.testing.assert_close(update.weights_K[kept], expected.weights_K)
    assert update.note == NOTE
    assert expected.note is None
    for name, value in expected.state.items():
        torch.testing.assert_close(update.state[name], value)


def test_moco_keeps_the_average_of_a_task_whose_loss_is_0(signal):
    rows_KP = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = MoCo(normalise="loss")
    update = method(signal(rows_KP, losses=(0.5, 0.0, 2.0)), method.start(3))
    expected = method(
        signal(rows_KP[[0, 2]], losses=(0.5, 2.0), at=(0, 2), tasks=3), method.start(3)
    )
    torch.testing.assert_close(update.direction_P, expected.direction_P)
    torch.testing.assert_close(update.state, expected.state)
    assert float(update.weights_K[1]) == 0.0


def test_where_every_loss_is_0_nothing_is_divided(signal):
    rows_KP = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = MGDA(normalise="loss")(signal(rows_KP, losses=(0.0, 0.0, 0.0)), {})
    torch.testing.assert_close(update.weights_K, MGDA()(signal(rows_KP), {}).weights_K)
    assert update.note.startswith("every loss is 0")


@pytest.mark.parametrize("build", [IMTLL, Uncertainty, GradNorm])
def test_learned_weights_take_a_loss_of_0_as_it_is(build):
    balancer, leaf, losses = two_losses(build, 0.0)
    assert dict(balancer.backward(losses)) == {"left": 1.0, "right": 1.0}
    assert float(leaf.grad) == 1.0
    (trained,) = balancer.parameters()
    assert bool(trained.grad.isfinite().all())
    assert balancer.notes == {}


def test_gradnorm_measures_a_task_from_its_first_loss_above_0():
    balancer, leaf, losses = two_losses(GradNorm, 0.0)
    balancer.backward(losses)
    assert balancer.state["first_T"].tolist() == pytest.approx([1.0, math.nan], nan_ok=True)
    balancer.backward({"left": leaf * 0.5, "right": leaf * 4.0})
    balancer.backward({"left": leaf * 0, "right": leaf * 0})  # no rate to compare: both are 1
    assert balancer.state["first_T"].tolist() == [1.0, 4.0]
    (trained,) = balancer.parameters()
    assert bool(trained.grad.isfinite().all())


def test_coba_measures_a_task_from_its_first_loss_above_0():
    balancer, _, _ = two_losses(lambda: CoBa(warmup=2, history=4), 1.0)
    for left, right in ((2.0, 0.0), (1.0, 4.0), (0.5, 2.0), (0.0, 0.0)):
        balancer.observe({"left": torch.tensor(left), "right": torch.tensor(right)})
    ratios = [[1.0, math.nan], [0.5, 1.0], [0.25, 0.5], [0.0, 0.0]]
    for row, expected in zip(balancer.state["ratios_HT"].tolist(), ratios, strict=True):
        assert row == pytest.approx(expected, nan_ok=True)
    assert float(balancer.state["weights_T"].sum()) == pytest.approx(1)


def test_dwa_takes_the_rate_1_after_an_epoch_of_losses_that_were_0():
    balancer, leaf, _ = two_losses(DWA, 0.0)
    for right in (1.0, 0.0, 2.0):
        balancer.backward({"left": leaf, "right": leaf * right})
    with pytest.warns(
        RuntimeWarning, match="a mean loss was 0 over an epoch; took its task's rate"
    ):
        used = dict(balancer.backward({"left": leaf, "right": leaf}))  # not 2 / 0 but 1
    assert used == {"left": 1.0, "right": 1.0}
    assert list(balancer.notes.values()) == [1]


def test_famo_leaves_alone_the_logit_of_a_task_whose_loss_is_or_was_0():
    balancer, leaf, losses = two_losses(FAMO, 0.5)
    balancer.backward(losses)
    balancer.observe({"left": torch.tensor(0.9), "right": torch.tensor(0.0)})
    with pytest.warns(RuntimeWarning, match=NOTE):
        balancer.backward({"left": leaf, "right": leaf * 0})
    with pytest.raises(UsageError, match="must see each batch's losses after the update"):
        balancer.backward(losses)
    balancer.observe({"left": torch.tensor(0.9), "right": torch.tensor(0.4)})
    assert dict(balancer.backward({"left": leaf, "right": None})) == {"left": 1.0}
    assert balancer.state["count_T"].tolist() == [2.0, 0.0]
    assert float(balancer.state["logits_T"][1]) == 0.0
