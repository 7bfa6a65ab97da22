"""Mixes: the shares of each, by the definition in the source."""

import pytest
import torch

from polytask.catalog import METHODS
from polytask.errors import UsageError
from polytask.mix import Mix, Proportional, Temperature, Uniform

SIZES = torch.tensor([10, 1000, 90])


def test_shares_follow_their_definition():
    assert Proportional()(SIZES, 0).tolist() == [10 / 1100, 1000 / 1100, 90 / 1100]
    assert Uniform()(SIZES, 0).tolist() == [1 / 3] * 3
    # Raffel et al.: r_m = min(e_m, K) / sum, then to the power 1 / T, made to sum to 1 again
    mixed = SIZES.double().clamp(max=400)
    mixed = (mixed / mixed.sum()) ** (1 / 3)
    torch.testing.assert_close(Temperature(3.0, cap=400)(SIZES, 7), mixed / mixed.sum())


def test_temperature_lies_between_proportional_and_uniform():
    torch.testing.assert_close(Temperature(1.0)(SIZES, 0), Proportional()(SIZES, 0))
    torch.testing.assert_close(Temperature(float("inf"))(SIZES, 0), Uniform()(SIZES, 0))
    torch.testing.assert_close(Temperature(1.0, cap=10)(SIZES, 0), Uniform()(SIZES, 0))
    cold = Temperature(0.001)(SIZES, 0)
    assert cold.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("name", [row.name for row in METHODS if row.room == "mix"])
def test_every_mix_of_the_catalog_keeps_the_contract(name):
    mix = next(row for row in METHODS if row.name == name).load()()
    assert isinstance(mix, Mix)
    assert mix == type(mix)()
    for sizes in (torch.tensor([5]), SIZES, torch.arange(1, 140), torch.tensor([1, 10**12])):
        shares = mix(sizes, 3)
        assert shares.shape == sizes.shape
        assert shares.dtype == torch.float64
        assert bool((shares >= 0).all())
        assert float(shares.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(UsageError, match=r"temperature is .*; give a value > 0"):
        Temperature(temperature)


def test_a_cap_below_one_row_is_refused():
    with pytest.raises(UsageError, match="cap is 0; give at least 1 row"):
        Temperature(2.0, cap=0)
