"""An affinity says what is known and what is not, and comes back from JSON as it was."""

import json

import pytest
import torch

from polytask.errors import DataError, UsageError
from polytask.records import to_json
from polytask.relate import Affinity, Gains, Groups, hoa, member_of

NAN = float("nan")


def affinity(values, errors=None):
    values_TT = torch.tensor(values, dtype=torch.float64)
    errors_TT = torch.full_like(values_TT, NAN) if errors is None else torch.tensor(errors)
    names = tuple("abcdef"[: len(values)])
    return Affinity(names, values_TT, errors_TT, "made", notes=("by hand",))


def test_it_comes_back_from_a_file_with_what_is_missing(tmp_path):
    made = affinity([[NAN, 0.5], [-1 / 3, 1.0]], [[NAN, 0.1], [NAN, NAN]])
    made.save(tmp_path / "affinity.json")
    again = Affinity.load(tmp_path / "affinity.json")
    assert again == made
    assert hash(again) == hash(made)
    assert again != made.symmetric()
    assert again.of("a", "b") == 0.5


def test_groups_come_back_from_json():
    groups = Groups(("a", "b", "c"), (("a", "b"), ("b", "c")), (0, 1, 1), (0.1, 0.2, NAN), NAN)
    again = Groups.from_json(json.loads(json.dumps(to_json(groups.to_json()))))
    assert to_json(again.to_json()) == to_json(groups.to_json())
    assert again.of("b") == ("b", "c")


@pytest.mark.parametrize("broken", [{}, {"tasks": ["a", "b"], "values": 3}, {"tasks": [1]}])
def test_other_json_is_no_affinity(broken):
    with pytest.raises(DataError, match="This is no Affinity as to_json writes it"):
        Affinity.from_json(broken)


def test_missing_values_stop_what_needs_them_and_are_named():
    made = affinity([[NAN, 1.0, NAN], [2.0, NAN, 3.0], [4.0, 5.0, NAN]])
    assert made.missing() == (("a", "c"),)
    with pytest.raises(DataError, match=r"lacks 1 of 6 values, first that of 'a' on 'c'.*filled"):
        made.known()


def test_a_missing_value_is_filled_by_the_other_direction_then_by_row_and_column():
    both = affinity([[NAN, 1.0, NAN], [2.0, NAN, NAN], [4.0, NAN, NAN]]).filled()
    assert both.of("a", "c") == 4.0
    # b as a source 2, c as a target the mean of all (7/3): nothing is known of it
    assert both.of("b", "c") == pytest.approx(2.0 + 7 / 3 - 7 / 3)
    # c as a source 4, b as a target 1, the mean of all 7/3
    assert both.of("c", "b") == pytest.approx(4.0 + 1.0 - 7 / 3)
    assert both.notes[-1] == "3 of 6 values were filled in"
    assert both.known().isfinite().all()
    assert both.filled() is both
    with pytest.raises(DataError, match="holds no value between two tasks"):
        affinity([[1.0, NAN], [NAN, 1.0]]).filled()


def test_additive_values_are_filled_exactly():
    """Where a value is a source's part plus a target's, the guess is nearly the truth."""
    source_T, target_T = torch.randn(2, 30, generator=torch.Generator().manual_seed(0)).double()
    whole_TT = source_T[:, None] + target_T
    holes_TT = whole_TT.clone()
    gone = torch.rand(30, 30, generator=torch.Generator().manual_seed(1)) < 0.2
    gone = gone & gone.T | torch.eye(30).bool()
    holes_TT[gone] = NAN
    made = Affinity(tuple(map(str, range(30))), holes_TT, torch.full((30, 30), NAN)).filled()
    off = gone & ~torch.eye(30).bool()
    assert off.any()
    error = (made.values_TT - whole_TT)[off].square().mean().sqrt()
    assert error < 0.2 * whole_TT.std()


def test_centring_leaves_differences_between_sources_and_symmetry_takes_what_is_there():
    made = affinity([[9.0, 1.0, 5.0], [2.0, 9.0, 7.0], [4.0, NAN, 9.0]])
    centred = made.centred()
    assert centred.of("b", "a") == -1.0
    assert centred.of("c", "a") == 1.0
    assert centred.zero
    assert made.symmetric().of("b", "c") == 7.0
    assert made.symmetric().of("a", "c") == made.symmetric().of("c", "a") == 4.5
    assert made.only(("c", "a")).values_TT.tolist() == [[9.0, 4.0], [5.0, 9.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Affinity(("a",), torch.zeros(1, 1), torch.zeros(1, 1)), "at least two tasks"),
        (lambda: Affinity(("a", "a"), torch.zeros(2, 2), torch.zeros(2, 2)), "a occurs twice"),
        (lambda: Affinity(("a", "b"), torch.zeros(2, 3), torch.zeros(2, 2)), r"need \(2, 2\)"),
        (lambda: affinity([[0.0, float("inf")], [0.0, 0.0]]), "holds an infinity"),
        (lambda: affinity([[0.0, 0.0]] * 2, [[-1.0, 0.0]] * 2), "below 0"),
        (lambda: affinity([[0.0, 0.0]] * 2).of("a", "z"), "Unknown task 'z'"),
        (lambda: Groups(("a", "b"), (("a",),), (0, 0), (0.0, 0.0), 0.0), "'b' is served by a"),
        (lambda: Groups(("a", "b"), (("a", "b"),), (0,), (0.0,), 0.0), "as many entries"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises((UsageError, DataError), match=message):
        make()


def test_the_higher_order_approximation_is_the_mean_of_pairs():
    made = affinity([[9.0, 1.0, 5.0], [2.0, 9.0, 7.0], [4.0, 6.0, 9.0]])
    gains = hoa(made, member_of(made.tasks, [("a", "b", "c"), ("a", "c"), ("b",)]))
    expected = torch.tensor([[3.0, 3.5, 6.0], [4.0, NAN, 5.0], [NAN, 0.0, NAN]]).double()
    torch.testing.assert_close(gains.gain_GT, expected, equal_nan=True)
    assert gains.pairs().of("a", "c") == 5.0
    assert gains.pairs().missing() == (("a", "b"), ("b", "a"), ("b", "c"), ("c", "b"))


def test_a_grouping_is_looked_up_among_measured_gains():
    member_GT = member_of(("a", "b", "c"), [("a", "b"), ("a", "b", "c")])
    gains = Gains(("a", "b", "c"), member_GT, torch.tensor([[1.0, 2.0, NAN], [3.0, 4.0, 5.0]]))
    groups = Groups(("a", "b", "c"), (("a", "b"), ("c",)), (0, 0, 1), (0.0,) * 3, 0.0)
    assert gains.measured(groups).tolist() == [1.0, 2.0, 0.0]
    other = Groups(("a", "b", "c"), (("b", "c"), ("a",)), (1, 0, 0), (0.0,) * 3, 0.0)
    assert gains.measured(other).isnan().tolist() == [False, True, True]
