"""Rounded once: every element is the nearest value that the dtype has, ties to even."""

import numpy as np
import pytest
import torch

from polytask.errors import RunError
from polytask.merge import SLERP, Average, TaskArithmetic, rounded

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def misrounded(out_P, exact_P):
    """Return the share of elements that are not the nearest to `exact_P`, a float64 array.

    From the definition: no neighbour is nearer, and where one is as near, the last bit is 0.
    """
    bits_P = out_P.view(BITS[out_P.dtype])
    value_P = out_P.to(torch.float64).numpy()
    gap_P = abs(value_P - exact_P)
    wrong_P = np.zeros(len(exact_P), bool)
    for step in (-1, 1):  # in size; a zero's inner neighbour is no number of its sign
        near_P = (bits_P + step).view(out_P.dtype).to(torch.float64).numpy()
        near_gap_P = abs(near_P - exact_P)
        odd_P = (bits_P & 1).numpy() == 1
        wrong_P |= near_gap_P < gap_P
        wrong_P |= (near_gap_P == gap_P) & odd_P & (near_P != value_P)
    return wrong_P.mean()


def exact_average(base_P, tuned_MP):
    return tuned_MP.sum(0) / len(tuned_MP)


def exact_task_arithmetic(base_P, tuned_MP):
    return base_P + 0.3 * (tuned_MP - base_P).sum(0)


def exact_slerp(base_P, tuned_MP):
    a_P, b_P = tuned_MP[:2]
    cos = a_P @ b_P / np.sqrt((a_P @ a_P) * (b_P @ b_P))
    angle = np.arccos(cos)
    return (np.sin(0.6 * angle) * a_P + np.sin(0.4 * angle) * b_P) / np.sin(angle)


CASES = [
    (Average(), exact_average, 4),
    (Average(), exact_average, 3),
    (TaskArithmetic(), exact_task_arithmetic, 4),
    (SLERP(0.4), exact_slerp, 2),
]


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [
        (torch.bfloat16, 1.0),
        (torch.bfloat16, 1e-39),  # below its normal range, without its full digits
        (torch.float16, 1.0),
        (torch.float16, 1e-5),
        (torch.float32, 1.0),
        (torch.float32, 1e-39),
    ],
)
@pytest.mark.parametrize(
    ("method", "exact", "models"), CASES, ids=[f"{case[0]} of {case[2]}" for case in CASES]
)
def test_no_element_is_rounded_wrongly(method, exact, models, dtype, unit):
    generator = torch.Generator().manual_seed(0)
    base_P = torch.randn(200_000, generator=generator, dtype=torch.float64) * unit
    tau_MP = torch.randn((models, 200_000), generator=generator, dtype=torch.float64) * unit
    base_P, tuned_MP = base_P.to(dtype), (base_P + 0.2 * tau_MP).to(dtype)
    merged_P = method(base_P, tuned_MP)
    exact_P = exact(base_P.to(torch.float64).numpy(), tuned_MP.to(torch.float64).numpy())
    assert misrounded(merged_P, exact_P) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_hair_beside_a_tie_goes_to_its_own_side(dtype):
    """Where rounding to float32 first falls on the tie, and the second time goes to even."""
    bits_P = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    value_P = bits_P.view(dtype).to(torch.float64)
    next_P = (bits_P + 1).view(dtype).to(torch.float64)
    kept_P = value_P.isfinite() & next_P.isfinite() & (value_P.sign() * next_P.sign() >= 0)
    tie_P = ((value_P + next_P) / 2)[kept_P]
    for side in (-1, 0, 1):
        exact_P = tie_P * (1 + side * 2.0**-40)
        out_P = rounded(exact_P, dtype, "x")
        assert misrounded(out_P, exact_P.numpy()) == 0
    by_way_of_32_P = (tie_P * (1 + 2.0**-40)).to(torch.float32).to(dtype)
    assert misrounded(by_way_of_32_P, (tie_P * (1 + 2.0**-40)).numpy()) > 0.2


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_value_stays_and_what_rounds_beyond_it_raises(dtype):
    most = torch.finfo(dtype).max
    unit = most - float(torch.tensor(most, dtype=dtype).mul(1 - torch.finfo(dtype).eps))
    edge_P = torch.tensor([most, -most, most + 0.49 * unit / 2], dtype=torch.float64)
    assert rounded(edge_P, dtype, "x").to(torch.float64).abs().tolist() == [most] * 3
    beyond_P = torch.tensor([0.0, most + 0.51 * unit], dtype=torch.float64)
    word = str(dtype).removeprefix("torch.")
    with pytest.raises(RunError, match=rf"Tensor 'a\.b': a merged value is .* range of {word} "):
        rounded(beyond_P, dtype, "a.b")


def test_what_was_not_finite_before_may_stay_so_but_nothing_else():
    values_P = torch.tensor([torch.nan, torch.inf, 1.0], dtype=torch.float64)
    out_P = rounded(values_P, torch.float16, "x", finite=False)
    assert out_P[0].isnan()
    assert out_P[1:].tolist() == [torch.inf, 1.0]
    with pytest.raises(RunError, match="a merged value is nan"):
        rounded(values_P, torch.float16, "x")
    values_P[2] = 1e6
    with pytest.raises(RunError, match="a merged value is 1e"):
        rounded(values_P, torch.float16, "x", finite=False)
