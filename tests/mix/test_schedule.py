"""The schedule: exact counts, no row twice within a pass, and the same rows after any resume."""

from collections import Counter

import numpy as np
import pytest
import torch

from polytask.errors import RunError, UsageError
from polytask.mix import (
    Alternating,
    LossDriven,
    Now,
    OverTime,
    Proportional,
    Schedule,
    SkillIt,
    Streams,
    Temperature,
    Uniform,
)


class Given:
    """A mix of fixed shares, whatever they are."""

    varies = "never"
    observes = False

    def __init__(self, *shares: float) -> None:
        self.shares = shares

    def start(self, streams: Streams) -> dict:
        return {}

    def __call__(self, streams: Streams, now: Now, state: dict) -> torch.Tensor:
        return torch.tensor(self.shares, dtype=torch.float64)


def walk(schedule: Schedule, steps: int, state=None, first: int = 0):
    """Return each step's [(stream, rows as a list)] and the last state."""
    state = schedule.start() if state is None else state
    fed = []
    for step in range(first, first + steps):
        given, state = schedule.rows(step, state)
        fed.append([(stream, rows.tolist()) for stream, rows in given])
    return fed, state


def test_one_stream_is_a_permutation_per_epoch_with_a_short_last_batch():
    schedule = Schedule(Proportional(), [10], 4, seed=3)
    assert schedule.steps_per_epoch == 3
    fed, state = walk(schedule, 9)
    assert [len(rows) for ((_, rows),) in fed] == [4, 4, 2] * 3
    epochs = [[row for ((_, rows),) in fed[e : e + 3] for row in rows] for e in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert state.tolist() == [30]


def test_one_stream_smaller_than_the_batch_gives_all_its_rows():
    fed, _ = walk(Schedule(Uniform(), [3], 8, seed=0), 2)
    assert [sorted(rows) for ((_, rows),) in fed] == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    "mix", [Proportional(), Uniform(), Temperature(2.0, cap=50), Given(0.5, 0, 0.2, 0.3)]
)
def test_several_streams_fill_every_step_exactly_and_near_their_shares(mix):
    sizes = [7, 100, 13, 400]
    schedule = Schedule(mix, sizes, 10, seed=1)
    assert schedule.steps_per_epoch == 52
    shares = mix(schedule.streams, Now(0), {}).numpy()
    total = np.zeros(4)
    for step in range(2000):
        counts = schedule.counts(step)
        assert counts.sum() == 10
        assert (np.abs(counts - 10 * shares) < 1).all()  # one of the two integers around it
        total += counts
    np.testing.assert_allclose(total / 20000, shares, atol=5e-4)


def test_the_expected_count_over_seeds_is_the_share_at_every_step():
    shares = (0.07, 0.33, 0.6)
    for step in (0, 5):
        schedules = (Schedule(Given(*shares), [9, 9, 9], 5, seed) for seed in range(3000))
        mean = np.mean([schedule.counts(step) for schedule in schedules], axis=0)
        np.testing.assert_allclose(mean, 5 * np.array(shares), atol=0.04)  # about 4 sigma


def test_streams_of_share_nought_never_feed_a_step():
    fed, state = walk(Schedule(Given(0, 1, 0), [5, 5, 5], 4, seed=0), 20)
    assert {stream for step in fed for stream, _ in step} == {1}
    assert state.tolist() == [0, 80, 0]


@pytest.mark.parametrize("batch_size", [4, 64])
def test_no_row_comes_twice_before_all_rows_of_its_stream_came(batch_size):
    sizes = [3, 11, 40]
    fed, state = walk(Schedule(Uniform(), sizes, batch_size, seed=5), 60)
    for stream, size in enumerate(sizes):
        rows = [row for step in fed for s, part in step if s == stream for row in part]
        assert len(rows) == state[stream]
        whole = len(rows) // size * size
        assert whole > 0
        for start in range(0, whole, size):
            assert sorted(rows[start : start + size]) == list(range(size))
        assert max(Counter(rows[whole:]).values(), default=1) == 1


def test_proportional_streams_take_one_pass_together():
    sizes = [30, 60, 10]
    schedule = Schedule(Proportional(), sizes, 10, seed=2)
    _, state = walk(schedule, schedule.steps_per_epoch)
    assert np.abs(state.numpy() - sizes).max() <= 2


@pytest.mark.parametrize("sizes", [[10], [7, 100, 13], list(range(1, 140))])
def test_it_resumes_at_the_exact_row(sizes):
    def fresh() -> Schedule:
        return Schedule(Temperature(2.0), sizes, 16, seed=11)

    whole, end = walk(fresh(), 30)
    head, state = walk(fresh(), 13)
    saved = state.clone()
    tail, resumed_end = walk(fresh(), 17, saved, first=13)
    assert head + tail == whole
    assert torch.equal(end, resumed_end)
    assert torch.equal(saved, state)  # a state is never changed in place


def test_rows_follow_from_the_seed_and_not_from_torchs_generator():
    def rows(seed: int):
        return walk(Schedule(Uniform(), [50, 20], 8, seed), 10)[0]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = rows(0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert rows(0) == first
    assert rows(1) != first


def test_streams_of_one_size_walk_differently():
    state = Schedule(Uniform(), [50, 50], 100, 0)
    ((_, left), (_, right)), _ = state.rows(0, state.start())
    assert left.tolist() != right.tolist()


@pytest.mark.parametrize(
    ("sizes", "batch_size", "seed", "text"),
    [
        ([], 4, 0, "at least one row"),
        ([3, 0], 4, 0, r"at least one row; sizes are \[3, 0\]"),
        ([3], 0, 0, "batch_size is 0; give at least 1"),
        ([3], 1, -1, "seed is -1"),
    ],
)
def test_wrong_arguments_are_refused(sizes, batch_size, seed, text):
    with pytest.raises(UsageError, match=text):
        Schedule(Uniform(), sizes, batch_size, seed)


@pytest.mark.parametrize("shares", [(0.5, 0.6), (1.5, -0.5), (1.0,), (float("nan"), 1.0)])
def test_a_mix_whose_shares_are_none_is_named(shares):
    schedule = Schedule(Given(*shares), [3, 3], 4, seed=0)
    with pytest.raises(UsageError, match=r"Given gave shares .* for step 0; expected 2 numbers"):
        schedule.rows(0, schedule.start())


def test_rows_are_those_of_the_first_release():
    """Written down from the schedule as it was before mixes could vary and look."""
    fed, state = walk(Schedule(Temperature(2.0), [7, 100, 13], 6, seed=4), 3)
    assert fed == FIRST
    assert state.tolist() == [3, 11, 4]


FIRST = [
    [(0, [1]), (1, [67, 52, 14, 95]), (2, [8])],
    [(0, [2]), (1, [32, 82, 85]), (2, [2, 3])],
    [(0, [0]), (1, [76, 59, 7, 94]), (2, [0])],
]


def test_a_mix_that_varies_is_asked_anew_at_every_step():
    schedule = Schedule(Alternating(), [5, 5, 5], 4, seed=0)
    assert [schedule.counts(step).tolist().index(4) for step in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_mix_that_varies_by_run_must_be_told_its_length():
    with pytest.raises(UsageError, match=r"OverTime varies over the run .* steps=\.\.\."):
        Schedule(OverTime(), [5, 5], 4, seed=0)
    Schedule(OverTime(), [5, 5], 4, seed=0, steps=10)
    with pytest.raises(UsageError, match="steps is 0"):
        Schedule(OverTime(), [5, 5], 4, seed=0, steps=0)


def test_a_look_changes_the_shares_from_then_on_and_nothing_else():
    schedule = Schedule(LossDriven(floor=0.0), [50, 50], 10, seed=0)
    assert schedule.counts(3).tolist() == [5, 5]
    before = schedule.memory
    schedule.observe(torch.tensor([1.0, 4.0]), 4)
    assert schedule.counts(4).tolist() == [2, 8]
    assert before["losses_WS"].isnan().all()
    schedule.memory = before
    assert schedule.counts(3).tolist() == [5, 5]


@pytest.mark.parametrize(
    ("mix", "losses", "error", "text"),
    [
        (Uniform(), [1.0, 1.0], UsageError, "Uniform does not look at losses"),
        (SkillIt(), [1.0], UsageError, r"shape \(1,\) came for 2 streams"),
        (SkillIt(), [1.0, float("inf")], RunError, "loss of stream '1' before update 3 is inf"),
        (LossDriven(), [-1.0, 1.0], RunError, "loss of stream '0' is -1; it takes losses bounded"),
    ],
)
def test_a_wrong_look_is_refused(mix, losses, error, text):
    schedule = Schedule(mix, [3, 3], 4, seed=0)
    with pytest.raises(error, match=text):
        schedule.observe(torch.tensor(losses), 3)


@pytest.mark.parametrize("sizes", [[10], [7, 100, 13]])
def test_the_state_after_a_step_needs_no_rows(sizes):
    schedule = Schedule(Temperature(2.0), sizes, 6, seed=1)
    state = skipped = schedule.start()
    for step in range(9):
        _, state = schedule.rows(step, state)
        skipped = schedule.after(step, skipped)
        assert torch.equal(state, skipped)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 39])
def test_few_rows_of_many_streams_are_counted_as_many_of_few_are(batch_size):
    """Below a row per stream the streams are searched for; the counts are those of the line."""
    sizes = [1 + 37 * s % 90 for s in range(40)]
    shares = [s % 3 / 39 for s in range(40)]  # every third is 0
    for mix in (Temperature(2.0), Given(*shares), Uniform()):
        schedule = Schedule(mix, sizes, batch_size, seed=9)
        for step in range(300):
            found = torch.zeros(40, dtype=torch.int64)
            for stream, rows in schedule.rows(step, schedule.start())[0]:
                found[stream] = len(rows)
                assert len(rows) > 0
            assert found.tolist() == schedule.counts(step).tolist()
