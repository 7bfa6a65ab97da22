"""IGB v2: random weights first, what the agent is told, and that its weights begin to count."""

import math

import pytest
import torch

from polytask.balance import Balancer, IGBv2, State
from polytask.errors import UsageError
from polytask.testing import check_balance

ABSENT = math.nan
QUICK = IGBv2(level_epoch=0, learn_epoch=1, act_epoch=2, every=2, memory=8)


def run(method: IGBv2, steps: list[list[float]], steps_per_epoch: int = 2, saved=None):
    """Return the state and the used weights after each step; NaN stands for an absent task."""
    leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
    names = [f"task {t}" for t in range(len(steps[0]))]
    balancer = Balancer(method, [leaf], names, steps_per_epoch)
    if saved is not None:
        balancer.load_state_dict(saved)
    result: list[tuple[State, list[float]]] = []
    for losses in steps:
        there = {n: leaf * x for n, x in zip(names, losses, strict=True) if not math.isnan(x)}
        used = balancer.backward(there)
        result.append((balancer.state_dict(), [used.get(name, ABSENT) for name in names]))
    return result


def losses(steps: int, tasks: int = 3) -> list[list[float]]:
    draw = torch.Generator().manual_seed(0)
    return (torch.rand(steps, tasks, generator=draw, dtype=torch.float64) + 0.1).tolist()


def test_weights_times_losses_are_positive_and_sum_to_the_number_of_tasks():
    steps = losses(12)
    for given, (_, used) in zip(steps, run(QUICK, steps), strict=True):
        shares = [w * x for w, x in zip(used, given, strict=True)]
        assert min(shares) > 0
        assert sum(shares) == pytest.approx(3.0, rel=1e-5)


def test_memory_holds_what_was_seen_done_and_rewarded():
    # Levels of the first epoch: 2 and 4.
    steps = [[1.0, 4.0], [3.0, 4.0], [1.0, 2.0], [0.5, 1.8], [0.4, ABSENT], [0.2, 1.0]]
    states = run(QUICK, steps)
    final = states[-1][0]
    assert int(final["state.stored"]) == 4  # one for each step after the first epoch
    rows = final["state.memory_NX"][:4].tolist()
    gaps = [[1.5, 1.0], [0.5, 0.5], [0.25, 0.45], [0.2, 0.45], [0.1, 0.25]]
    rewards = [0.5, 0.05, 0.05, 0.1]  # the least fall among the tasks present
    for n, row in enumerate(rows):
        action = states[n + 1][0]["state.action_T"].tolist()
        assert row == pytest.approx([*gaps[n], *action, rewards[n], *gaps[n + 1]], abs=1e-6)


def test_the_oldest_transitions_give_way():
    states = run(IGBv2(0, 90, 90, memory=3), losses(7), steps_per_epoch=1)
    assert int(states[-1][0]["state.stored"]) == 6
    memory = states[-1][0]["state.memory_NX"]
    before = states[-2][0]["state.memory_NX"]
    assert [torch.equal(a, b) for a, b in zip(memory, before, strict=True)] == [True, True, False]


def test_the_agent_learns_from_learn_epoch_and_chooses_from_act_epoch():
    method = IGBv2(level_epoch=0, learn_epoch=2, act_epoch=3, every=2, memory=8)
    lessons = [int(state["state.agent.lessons"]) for state, _ in run(method, losses(8))]
    assert lessons[:4] == [0] * 4
    assert lessons[4] > 0
    assert lessons[7] > lessons[5] == lessons[4]
    # With other observations the agent chooses otherwise; the random draws did not care.
    one, other = losses(8), losses(8)
    other[6] = [9.0, 0.2, 0.1]
    actions = [run(method, steps)[6][0]["state.action_T"] for steps in (one, other)]
    assert not torch.allclose(*actions, atol=1e-3)
    early = [run(method, [[x] * 3 for x in (1.0, value)])[1] for value in (2.0, 7.0)]
    assert torch.equal(early[0][0]["state.action_T"], early[1][0]["state.action_T"])


@pytest.mark.parametrize("scale", [1e-10, 1e15])
def test_units_of_losses_change_no_weighted_loss(scale):
    steps = losses(8)
    scaled = [[a * scale, *rest] for a, *rest in steps]
    for (_, one), (_, other) in zip(run(QUICK, steps), run(QUICK, scaled), strict=True):
        assert [other[0] * scale, *other[1:]] == pytest.approx(one, rel=1e-4)


def test_a_resumed_run_goes_on_bit_for_bit():
    steps = losses(12)
    whole = run(QUICK, steps)
    resumed = run(QUICK, steps[7:], saved=whole[6][0])
    for (one, used), (other, again) in zip(whole[7:], resumed, strict=True):
        assert used == again
        assert all(torch.equal(one[k].nan_to_num(), other[k].nan_to_num()) for k in one)


def test_the_contract_holds_while_the_agent_learns_and_acts():
    check_balance(QUICK, tasks=3)


def test_a_task_without_a_level_is_weighed_and_never_rewards():
    steps = [[1.0, ABSENT], [1.0, ABSENT], [0.5, 3.0], [0.25, 9.0], [ABSENT, 1.0]]
    states = run(QUICK, steps)
    assert float(states[3][0]["state.memory_NX"][1, 4]) == pytest.approx(0.25)
    assert int(states[4][0]["state.stored"]) == 2  # no task present has a level
    assert states[4][1][1] > 0


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: IGBv2(level_epoch=3), "give a level_epoch >= 0 below both others"),
        (lambda: IGBv2(every=1), "every is 1; give an integer >= 2"),
        (lambda: IGBv2(memory=0), "memory is 0; give an integer >= 1"),
        (lambda: IGBv2(seed=-1), "seed is -1; give an integer >= 0"),
        (lambda: IGBv2(lr=0.0), "lr is 0.0; give a value > 0"),
    ],
)
def test_settings_out_of_range_are_refused(build, text):
    with pytest.raises(UsageError, match=text):
        build()
