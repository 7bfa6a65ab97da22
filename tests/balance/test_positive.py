"""Methods that scale by losses name the task whose loss they cannot take, and change nothing."""

import pytest
import torch

from polytask.balance import (
    FAMO,
    GLS,
    IMTLL,
    STCH,
    Balancer,
    CoBa,
    GradNorm,
    IGBv1,
    ScaleInvariant,
)
from polytask.errors import RunError

POSITIVE = [FAMO, GLS, GradNorm, IGBv1, ScaleInvariant, STCH]


def two_losses(build, bad: float) -> tuple[Balancer, torch.Tensor, dict[str, torch.Tensor]]:
    leaf = torch.ones((), requires_grad=True)
    balancer = Balancer(build(), [leaf], ["left", "right"], steps_per_epoch=1)
    return balancer, leaf, {"left": leaf * 1, "right": leaf * bad}


@pytest.mark.parametrize("build", POSITIVE)
@pytest.mark.parametrize("bad", [0.0, -0.5])
def test_a_loss_that_is_not_positive_is_refused(build, bad):
    balancer, leaf, losses = two_losses(build, bad)
    with pytest.raises(RunError, match=r"the loss of task 'right' is -?0.*so each must be > 0"):
        balancer.backward(losses)
    assert balancer.step == 0
    assert leaf.grad is None


def test_imtl_l_takes_a_loss_of_zero_and_no_negative_one():
    balancer, _, losses = two_losses(IMTLL, 0.0)
    assert dict(balancer.backward(losses)) == {"left": 1.0, "right": 1.0}
    balancer, _, losses = two_losses(IMTLL, -0.5)
    with pytest.raises(RunError, match=r"task 'right' is -0.5.*must be >= 0. Use such a loss"):
        balancer.backward(losses)


@pytest.mark.parametrize("build", [CoBa, FAMO])
def test_losses_that_are_looked_at_are_held_to_the_same_rule(build):
    balancer, _, losses = two_losses(build, 1.0)
    balancer.backward(losses)
    with pytest.raises(RunError, match="the loss of task 'left' is 0; "):
        balancer.observe({"left": torch.tensor(0.0), "right": torch.tensor(1.0)})
