"""IGB and STCH: their authors' objectives once levels are known, logarithms before."""

import math

import pytest
import torch

from polytask.balance import STCH, IGBv1
from polytask.errors import UsageError

ABSENT = math.nan
# Two steps per epoch. Levels from epoch 1: (1.5, 4, 1); the first epoch's losses do not count.
EARLY = [[9.0, 9.0, 9.0], [7.0, 7.0, 7.0], [1.0, 6.0, 1.0], [2.0, 2.0, 1.0]]
LEVELS = torch.tensor([1.5, 4.0, 1.0], dtype=torch.float64)
LATER = [[0.5, 5.0, 0.2], [1e-6, 1.0, 1e3]]


def igb(losses_K: torch.Tensor, levels_K: torch.Tensor) -> torch.Tensor:
    """The authors' loss: the weights count as constants."""
    weights_K = len(losses_K) * torch.softmax(losses_K.detach() / levels_K, dim=-1)
    return (weights_K * losses_K.log()).sum()


def stch(mu: float):
    """The authors' loss, with the largest term taken out as they do."""

    def objective(losses_K: torch.Tensor, levels_K: torch.Tensor) -> torch.Tensor:
        height_K = (losses_K / levels_K).log()
        apart_K = height_K - height_K.detach().max()
        return mu * (apart_K / mu).exp().sum().log() * len(losses_K)

    return objective


CASES = [(IGBv1(), igb), (STCH(warmup=1), stch(1.0)), (STCH(mu=0.1, warmup=1), stch(0.1))]
ids = ["igb", "stch", "stch sharp"]


@pytest.mark.parametrize(("method", "objective"), CASES, ids=ids)
def test_weights_are_the_gradient_of_the_authors_objective(weigh, gradient, method, objective):
    weights = weigh(method, EARLY + LATER, steps_per_epoch=2)
    for losses, found in zip(EARLY, weights, strict=False):
        assert found == pytest.approx([1 / loss for loss in losses], rel=1e-12)
    for losses, found in zip(LATER, weights[4:], strict=True):
        expected = gradient(lambda losses_K: objective(losses_K, LEVELS), losses)
        assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("method", "objective"), CASES, ids=ids)
def test_absent_tasks_are_left_out_of_levels_and_objective(weigh, gradient, method, objective):
    early = [EARLY[0], EARLY[1], [1.0, ABSENT, 1.0], [ABSENT, 2.0, 1.0]]
    weights = weigh(method, [*early, [0.5, ABSENT, 0.2]], steps_per_epoch=2)[-1]
    levels_K = torch.tensor([1.0, 1.0], dtype=torch.float64)
    expected = gradient(lambda losses_K: objective(losses_K, levels_K), [0.5, 0.2])
    assert [weights[0], weights[2]] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("method", "objective"), CASES, ids=ids)
def test_a_task_without_a_level_keeps_its_inverse_loss(weigh, gradient, method, objective):
    early = [EARLY[0], EARLY[1], [1.0, ABSENT, 1.0], [3.0, ABSENT, 1.0]]
    steps = [*early, [0.5, 8.0, 0.2], [ABSENT, 4.0, ABSENT]]
    weights = weigh(method, steps, steps_per_epoch=2)
    levels_K = torch.tensor([2.0, 1.0], dtype=torch.float64)
    expected = gradient(lambda losses_K: objective(losses_K, levels_K), [0.5, 0.2])
    assert weights[4] == pytest.approx([expected[0], 1 / 8, expected[1]], rel=1e-10)
    assert weights[5][1] == pytest.approx(1 / 4)


@pytest.mark.parametrize("scale", [1e-10, 1e15])
@pytest.mark.parametrize("method", [IGBv1(), STCH(warmup=1)], ids=repr)
def test_the_unit_of_one_loss_changes_no_weighted_loss(weigh, method, scale):
    plain = weigh(method, EARLY + LATER, steps_per_epoch=2)
    scaled_steps = [[a * scale, b, c] for a, b, c in EARLY + LATER]
    scaled = weigh(method, scaled_steps, steps_per_epoch=2)
    for one, other in zip(plain, scaled, strict=True):
        assert [other[0] * scale, *other[1:]] == pytest.approx(one, rel=1e-9)


def test_mu_chooses_between_the_worst_task_and_logarithms(weigh):
    steps = [*EARLY, [0.5, 5.0, 0.2]]  # the second is 1.25 levels high, the others below 1
    sharp = weigh(STCH(mu=1e-3, warmup=1), steps, steps_per_epoch=2)[-1]
    assert sharp == pytest.approx([0.0, 3 / 5.0, 0.0], abs=1e-12)
    flat = weigh(STCH(mu=1e9, warmup=1), steps, steps_per_epoch=2)[-1]
    assert flat == pytest.approx([1 / 0.5, 1 / 5.0, 1 / 0.2])


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: STCH(mu=0.0), "mu is 0.0; give a value > 0"),
        (lambda: STCH(mu=math.nan), "mu is nan; give a value > 0"),
        (lambda: STCH(warmup=-1), "warmup is -1; give epochs >= 0"),
        (lambda: IGBv1(level_epoch=-1), "level_epoch is -1; give an epoch >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(build, text):
    with pytest.raises(UsageError, match=text):
        build()
