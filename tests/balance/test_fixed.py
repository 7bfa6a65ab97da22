"""Fixed weights: those given, also when tasks are absent; wrong ones are refused."""

import math

import pytest

from polytask.balance import Fixed
from polytask.errors import UsageError
from polytask.parsing import parse

ABSENT = math.nan


def test_weights_are_those_given_and_absent_tasks_take_theirs_along(weigh):
    steps = [[1.0, 9.0, -2.0], [5.0, ABSENT, 1.0]]
    weights = weigh(Fixed((1.0, 0.5, 0.0)), steps)
    assert weights[0] == [1.0, 0.5, 0.0]
    assert weights[1] == pytest.approx([1.0, ABSENT, 0.0], nan_ok=True)
    assert weigh(Fixed(), steps)[0] == [1.0, 1.0, 1.0]


def test_a_recipe_names_them():
    assert parse("fixed:weights=1/0.5/2e-1+uniform").balance.build() == Fixed((1.0, 0.5, 0.2))


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (1.0, -1.0), (1.0, math.inf), (math.nan,)])
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(UsageError, match=r"Fixed: weights are .*give finite numbers >= 0, not all"):
        Fixed(weights)


def test_weights_for_another_number_of_tasks_are_refused(weigh):
    with pytest.raises(UsageError, match="2 weights came for 3 tasks; give one per task"):
        weigh(Fixed((1.0, 2.0)), [[1.0, 1.0, 1.0]])
