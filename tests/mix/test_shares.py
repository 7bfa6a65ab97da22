"""Mixes: the shares of each, by the definition in the source."""

import math

import pytest
import torch

from polytask.catalog import METHODS
from polytask.errors import UsageError
from polytask.mix import (
    DMT,
    Alternating,
    Curriculum,
    FixedRates,
    Hinting,
    LossDriven,
    Mix,
    Nested,
    Now,
    OverTime,
    Proportional,
    RichFirst,
    SkillIt,
    Streams,
    Temperature,
    Uniform,
    Unmixed,
    edges,
)
from polytask.testing import check_mix

SIZES = Streams.of([10, 1000, 90])
NAMED = Streams.of({"code": 400, "math": 100, "talk": 500})


def shares(mix: Mix, streams: Streams = SIZES, step: int = 0, steps: int | None = None, state=None):
    state = mix.start(streams) if state is None else state
    return mix(streams, Now(step, steps), state)


def over(mix: Mix, steps: int, streams: Streams = NAMED) -> list[list[float]]:
    """Return the shares of every step of a run."""
    return [shares(mix, streams, step, steps).tolist() for step in range(steps)]


def test_shares_follow_their_definition():
    assert shares(Proportional()).tolist() == [10 / 1100, 1000 / 1100, 90 / 1100]
    assert shares(Uniform()).tolist() == [1 / 3] * 3
    # Raffel et al.: r_m = min(e_m, K) / sum, then to the power 1 / T, made to sum to 1 again
    mixed = SIZES.sizes_S.double().clamp(max=400)
    mixed = (mixed / mixed.sum()) ** (1 / 3)
    torch.testing.assert_close(shares(Temperature(3.0, cap=400)), mixed / mixed.sum())
    # seqio's rate: min(n * scale, cap) ** (1 / T)
    scaled = (SIZES.sizes_S.double() * 0.1).clamp(max=5) ** 0.5
    torch.testing.assert_close(shares(Temperature(2.0, 5, 0.1)), scaled / scaled.sum())
    assert shares(FixedRates((1, 0, 3))).tolist() == [0.25, 0, 0.75]
    assert shares(FixedRates()).tolist() == pytest.approx([1 / 3] * 3)
    assert shares(FixedRates((1e308, 1e308, 0))).tolist() == [0.5, 0.5, 0]


def test_temperature_lies_between_proportional_and_uniform():
    torch.testing.assert_close(shares(Temperature(1.0)), shares(Proportional()))
    torch.testing.assert_close(shares(Temperature(float("inf"))), shares(Uniform()))
    torch.testing.assert_close(shares(Temperature(1.0, cap=10)), shares(Uniform()))
    assert shares(Temperature(0.001)).tolist() == [0.0, 1.0, 0.0]


def test_nested_rates_multiply_down_the_tree():
    streams = Streams.of({"a": 10, "b": 30, "c": 5, "d": 100, "e": 100})
    mix = Nested(("x", "x", "y.p", "y.q", "y.q"))
    half = [0.5 * 0.25, 0.5 * 0.75]
    assert shares(mix, streams).tolist() == [*half, 0.5 * 0.5, 0.5 * 0.5 * 0.5, 0.5 * 0.5 * 0.5]
    # a stream beside a group is one of the level's, and a group counts with all its rows
    beside = Nested(("x", "x", "", "y", "y"), between=Proportional(), within=Uniform())
    with pytest.raises(UsageError, match="group '' has a level without a name"):
        beside.start(streams)
    deep = Nested(("x", "x", "x.y", "x.y", "x.y"), between=Proportional(), within=Uniform())
    found = shares(deep, streams).tolist()
    assert found == pytest.approx([10 / 245, 30 / 245, *[205 / 245 / 3] * 3])
    assert shares(Nested(), streams).tolist() == shares(Proportional(), streams).tolist()


def test_over_time_moves_between_mixes_on_a_line_or_in_steps():
    line = OverTime((1.0, math.inf))
    first, last = shares(Proportional(), NAMED), shares(Uniform(), NAMED)
    for part in (0.0, 0.25, 0.9):
        expected = first * (1 - part) + last * part
        torch.testing.assert_close(shares(line, NAMED, round(20 * part), 20), expected)
    torch.testing.assert_close(shares(line, NAMED, 30, 20), last)  # beyond its end
    fixed = tuple(FixedRates(tuple(float(i == j) for j in range(3))) for i in range(3))
    steps = OverTime(at=(0.2, 0.4, 0.8), between="step", mixes=fixed)
    at = [row.index(1) for row in over(steps, 10)]
    assert at == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_a_sequential_curriculum_gives_every_level_its_part_of_the_run():
    mix = Curriculum("sequential", difficulty=(2.0, 1.0, 2.0))
    found = over(mix, 10)
    assert found[:5] == [[0, 1, 0]] * 5
    assert found[5:] == [[0.5, 0, 0.5]] * 5
    assert over(Curriculum("sequential", until=0.5), 6)[3:] == [[1 / 3] * 3] * 3


def test_a_mixed_curriculum_keeps_what_is_open():
    assert over(Curriculum(by=Proportional()), 3) == [[1, 0, 0], [0.8, 0.2, 0], [0.4, 0.1, 0.5]]
    # competence: the open part grows with the root, so level k of 4 opens at (k^2 - 1) / 15
    streams = Streams.of([1] * 4)
    opened = [sum(x > 0 for x in row) for row in over(Curriculum(opening="root"), 15, streams)]
    expected = [
        sum((k**2 - 1) / 15 <= step / 15 + 1e-9 for k in (1, 2, 3, 4)) for step in range(15)
    ]
    assert opened == expected
    assert opened[0] == 1


def test_rich_streams_come_first():
    found = over(RichFirst(until=0.5, temperature=math.inf), 4)
    assert found == [[400 / 900, 0, 500 / 900]] * 2 + [[1 / 3] * 3] * 2
    assert over(RichFirst(("math",)), 4)[0] == [0, 1, 0]
    assert over(RichFirst(by=FixedRates((1, 1, 0))), 4)[3] == [0.5, 0.5, 0]
    # all alike: all are rich
    assert shares(RichFirst(), Streams.of([5, 5]), 0, 10).tolist() == [0.5, 0.5]


def test_dual_stage_mixing_keeps_a_part_of_the_special_rows():
    found = over(DMT(("code", "math"), until=0.25, kept=0.1), 4)
    assert found[0] == [0.8, 0.2, 0]
    for row in found[1:]:
        assert row == pytest.approx([40 / 550, 10 / 550, 500 / 550])
    assert over(DMT(("code",), kept=0), 4)[3] == pytest.approx([0, 1 / 6, 5 / 6])


def test_hints_take_their_share_and_fade():
    assert shares(Hinting(("math",), 0.25), NAMED).tolist() == pytest.approx([1 / 3, 0.25, 5 / 12])
    fading = over(Hinting(("math",), 0.4, fade=0.5), 4)
    assert [row[1] for row in fading] == pytest.approx([0.4, 0.2, 0, 0])
    assert all(sum(row) == pytest.approx(1) for row in fading)


def test_alternating_takes_turns():
    assert [row.index(1) for row in over(Alternating((2, 0, 1)), 6)] == [0, 0, 2, 0, 0, 2]
    assert [row.index(1) for row in over(Alternating(), 4)] == [0, 1, 2, 0]


@pytest.mark.parametrize("order", ["spread", "drawn"])
def test_unmixed_steps_are_of_one_stream_as_often_as_the_mix_says(order):
    mix = Unmixed(FixedRates((0.1, 0.0, 0.9)), order, seed=3)
    found = torch.tensor(over(mix, 2000))
    assert found.sum(1).eq(1).all()
    assert ((found == 0) | (found == 1)).all()
    mean = found.mean(0)
    assert mean[1] == 0
    if order == "spread":  # at every length, within a few steps
        parts = found.cumsum(0) - torch.arange(1, 2001)[:, None] * torch.tensor([0.1, 0.0, 0.9])
        assert parts.abs().max() < 4
    else:
        assert mean[0] == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 2000))
    assert torch.equal(found, torch.tensor(over(mix, 2000)))
    assert not torch.equal(found, torch.tensor(over(Unmixed(mix.mix, order, seed=4), 2000)))


def test_skill_it_is_the_sources_formula():
    """p_i proportional to exp(eta sum_j A_ij sum of the last 3 looks' L_j), from L = 1."""
    graph_SS = torch.tensor([[1, 0.5, 0], [0, 1, 0.5], [0, 0, 1]], dtype=torch.float64)
    mix = SkillIt(tuple(graph_SS.flatten().tolist()), eta=0.2)
    state = mix.start(NAMED)
    expected = torch.softmax(0.2 * graph_SS.sum(1), 0)
    torch.testing.assert_close(shares(mix, NAMED, state=state), expected)
    looks = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i, losses_S in enumerate(looks):
        state = mix.observe(losses_S, NAMED, Now(i), state)
        total_S = looks[max(0, i - 2) : i + 1].sum(0)
        expected = torch.softmax(0.2 * (graph_SS @ total_S), 0)
        torch.testing.assert_close(shares(mix, NAMED, state=state), expected)
    # fine-tuning: the target's losses alone count, whatever helps it is trained
    target = SkillIt(mix.graph, targets=("talk",), eta=0.2)
    expected = torch.softmax(0.2 * graph_SS[:, 2] * total_S[2], 0)
    torch.testing.assert_close(shares(target, NAMED, state=state), expected)


def test_the_graph_of_an_affinity_has_ones_and_halves():
    gains = torch.tensor([[-9.0, 0.1, -0.1], [0.0, 0.0, 2.0], [0.3, -1.0, 5.0]])
    assert edges(gains) == (1, 0.5, 0, 0, 1, 0.5, 0.5, 0, 1)
    assert edges(gains, above=1, weight=1) == (1, 0, 0, 0, 1, 1, 0, 0, 1)
    with pytest.raises(UsageError, match=r"shape \(2, 3\); give a square table"):
        edges(torch.zeros(2, 3))


def test_a_stream_that_was_not_looked_at_keeps_its_loss_or_takes_the_mean():
    mix = LossDriven(floor=0.0)
    state = mix.observe(torch.tensor([1.0, math.nan, 3.0]), NAMED, Now(0), mix.start(NAMED))
    assert shares(mix, NAMED, state=state).tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    state = mix.observe(torch.tensor([math.nan, 4.0, math.nan]), NAMED, Now(1), state)
    assert shares(mix, NAMED, state=state).tolist() == pytest.approx([1 / 8, 4 / 8, 3 / 8])


def test_loss_and_gap_drive_the_shares():
    losses = torch.tensor([2.0, 3.0, 1.0])

    def driven(mix: LossDriven) -> list[float]:
        assert shares(mix, NAMED).tolist() == pytest.approx([1 / 3] * 3)
        return shares(mix, NAMED, state=mix.observe(losses, NAMED, Now(0), {
            "losses_WS": torch.full((1, 3), torch.nan)
        })).tolist()  # fmt: skip

    assert driven(LossDriven(floor=0.3)) == pytest.approx(
        [0.1 + 0.7 / 3, 0.1 + 0.35, 0.1 + 0.7 / 6]
    )
    assert driven(LossDriven(power=2, floor=0)) == pytest.approx([4 / 14, 9 / 14, 1 / 14])
    # gaps: 2/1 - 1 = 1, 3/2 - 1 = 0.5, below its reference: 0
    assert driven(LossDriven((1.0, 2.0, 5.0), floor=0)) == pytest.approx([2 / 3, 1 / 3, 0])
    assert driven(LossDriven((9.0, 9.0, 9.0), floor=0)) == pytest.approx([1 / 3] * 3)


READY = {
    "dmt": lambda streams: DMT(streams.names[:1]),
    "hinting": lambda streams: Hinting(streams.names[:1]),
    "unmixed": lambda streams: Unmixed(SkillIt()),
}
"""Methods that do not stand without a setting."""


@pytest.mark.parametrize("name", [row.name for row in METHODS if row.room == "mix"])
def test_every_mix_of_the_catalog_keeps_the_contract(name):
    method = next(row for row in METHODS if row.name == name).load()
    for streams in (Streams.of([5]), SIZES, Streams.of(range(1, 140)), Streams.of([1, 10**12])):
        if name in READY and len(streams) == 1 and name != "unmixed":
            continue
        check_mix(READY.get(name, lambda _, made=method: made())(streams), streams)


def test_a_mix_that_breaks_the_contract_is_caught():
    class Wrong(Uniform):
        def __call__(self, streams, now, state):
            return torch.full((len(streams),), 0.5)

    with pytest.raises(AssertionError, match=r"contract of a mix is broken \(Wrong.*float32"):
        check_mix(Wrong(), SIZES)

    class Moves(Alternating):
        varies = "never"

    with pytest.raises(AssertionError, match="varies is 'never', but shares differ by step"):
        check_mix(Moves(), SIZES)

    class Untold(Uniform):
        def optimiser_for(self, groups, streams, *, lr, weight_decay):
            return torch.optim.SGD(groups, lr)

    with pytest.raises(AssertionError, match="its optimiser is a SGD, no StreamOptimiser"):
        check_mix(Untold(), SIZES)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Temperature(0), r"temperature is 0; give a value > 0"),
        (lambda: Temperature(-1.0), r"temperature is -1.0"),
        (lambda: Temperature(float("nan")), r"temperature is nan"),
        (lambda: Temperature(2.0, cap=0), "cap is 0; give at least 1 row"),
        (lambda: Temperature(scale=0), "scale is 0; give a finite value > 0"),
        (lambda: FixedRates((0.0, 0.0)), r"rates are \(0.0, 0.0\); give finite numbers >= 0, not"),
        (lambda: FixedRates((1.0, -1.0)), "give finite numbers >= 0"),
        (lambda: FixedRates(()), "not all 0"),
        (lambda: Nested(within=SkillIt()), "SkillIt looks at losses and cannot mix inside Nested"),
        (lambda: OverTime((1.0,)), "1 mix is no change; give two or more"),
        (lambda: OverTime(at=(0.5, 0.2)), r"at is \(0.5, 0.2\) for 2 mixes; give a time"),
        (lambda: OverTime(at=(0.0, 0.5, 1.0)), "for 2 mixes"),
        (lambda: OverTime(between="jump"), "between is 'jump'; give 'line' or 'step'"),
        (lambda: Curriculum("hard"), "form is 'hard'; give 'mixed' or 'sequential'"),
        (lambda: Curriculum(opening="late"), "opening is 'late'"),
        (lambda: Curriculum(until=0), "until is 0; give a part of the run, above 0"),
        (lambda: Curriculum(difficulty=(1.0, math.nan)), "give finite numbers"),
        (lambda: RichFirst(until=1.5), "until is 1.5; give a part of the run"),
        (lambda: DMT(("a",), kept=2), "kept is 2; give a part of the rows, from 0 to 1"),
        (lambda: Hinting(("a",), share=1.0), "share is 1.0; give a share above 0 and below 1"),
        (lambda: SkillIt(eta=0), "eta is 0; give a finite value > 0"),
        (lambda: SkillIt(looks=0), "looks is 0; give at least 1"),
        (lambda: SkillIt((1.0, -1.0)), "give finite numbers >= 0"),
        (lambda: LossDriven(power=0), "power is 0"),
        (lambda: LossDriven(floor=2), "floor is 2; give a value from 0 to 1"),
        (lambda: LossDriven((0.0,)), r"reference is \(0.0,\); give finite losses > 0"),
        (lambda: Alternating((0, 0)), r"turns are \(0, 0\); give whole numbers >= 0, not all 0"),
        (lambda: Unmixed(Uniform(), order="up"), "order is 'up'; give 'spread' or 'drawn'"),
        (lambda: Unmixed(Uniform(), seed=-1), "seed is -1"),
        (lambda: Unmixed(Uniform(), optimiser="sgd"), "optimiser is 'sgd'; give 'adamw' or"),
        (
            lambda: Unmixed(SkillIt(), optimiser="mt-adamw"),
            "needs shares that stand still, and those of SkillIt move",
        ),
        (lambda: Streams.of([]), r"at least one row; sizes are \[\]"),
        (lambda: Streams.of({"a": 3, "b": 0}), r"sizes are \[3, 0\]; 'b' has none"),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_refused(make, text):
    with pytest.raises(UsageError, match=text):
        make()


@pytest.mark.parametrize(
    ("mix", "text"),
    [
        (FixedRates((1.0, 2.0)), r"2 rates came for 3 streams \(code, math, talk\)"),
        (Nested(("a",)), "1 groups came for 3 streams"),
        (Curriculum(difficulty=(1.0,)), "1 difficulties came for 3 streams"),
        (RichFirst(("mth",)), r"Unknown stream of RichFirst 'mth'. Did you mean 'math'\?"),
        (DMT(), "special names none of the 3 streams; name some and leave some"),
        (DMT(("code", "math", "talk")), "special names all of the 3 streams"),
        (DMT(("code", "code")), "a stream is named twice in code/code"),
        (Hinting(), "hints names none of the 3 streams"),
        (SkillIt((1.0,)), r"has 1 numbers for 3 streams \(code, math, talk\); give 9"),
        (SkillIt(targets=("x",)), "Unknown stream of SkillIt 'x'. The streams: code, math, talk"),
        (LossDriven((1.0,)), "1 references came for 3 streams"),
        (Alternating((1,)), "1 turns came for 3 streams"),
        (Curriculum(by=FixedRates((1.0, 1.0, 1.0))), r"3 rates came for 1 streams \(code\)"),
        (Hinting(("code",), by=FixedRates((1.0, 1.0, 1.0))), "3 rates came for 2 streams"),
        (Nested(("x", "x", "y"), within=FixedRates((1.0,))), "1 rates came for 2 streams"),
    ],
)
def test_a_setting_of_other_streams_is_refused_before_the_run(mix, text):
    with pytest.raises(UsageError, match=text):
        mix.start(NAMED)
