"""Back to the dtype of the files: rounded once, and never past the dtype's range in silence.

Shapes: P = elements of a piece.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import RunError

DROPPED = {torch.bfloat16: 16, torch.float16: 13}
"""Bits of a float32's fraction that the dtype has no room for."""


def rounded(merged_P: Tensor, dtype: torch.dtype, name: str, finite: bool = True) -> Tensor:
    """Return `merged_P` in `dtype`, each element the nearest value that the dtype has.

    name: of the tensor, for the error.
    finite: whether everything that came in was finite. Where it was not, what is not finite may
        stay so; what leaves the dtype's range raises all the same.
    Raises RunError where an element is out of range; it never becomes infinite in silence.
    """
    if merged_P.numel() == 0:
        return merged_P.to(dtype)
    most = torch.finfo(dtype).max
    low, high = (float(end) for end in torch.aminmax(merged_P))  # NaN where one is in it
    if not -most <= low <= high <= most:
        _check_range(merged_P, dtype, name, finite)
    if merged_P.dtype == torch.float64 and dtype in DROPPED:
        return _once(merged_P, dtype)
    return merged_P.to(dtype)


def _check_range(merged_P: Tensor, dtype: torch.dtype, name: str, finite: bool) -> None:
    left_P = ~merged_P.to(dtype).isfinite()
    if not finite:
        left_P &= merged_P.isfinite()
    if bool(left_P.any()):
        worst = merged_P[left_P].flatten()[0]
        raise RunError(
            f"Tensor {name!r}: a merged value is {float(worst):.6g}, out of the range of "
            f"{_word(dtype)} (up to {torch.finfo(dtype).max:.6g}). Merge into a wider dtype, or "
            "lower the scale."
        )


def _once(merged_P: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 rounded to a 16-bit dtype once, where torch goes by way of float32.

    The detour errs only where the float32 lies exactly between two values of the dtype: the tie
    is then broken to even, though the float64 was to one side. Those few elements are moved off
    the tie before, to the side where the float64 is.
    """
    single_P = merged_P.to(torch.float32)
    bits_P = single_P.view(torch.int32)
    tie = 1 << (DROPPED[dtype] - 1)
    doubtful_P = (bits_P & (2 * tie - 1)) == tie
    # Below its normal range the dtype drops more bits than that: there every element is looked at.
    doubtful_P |= single_P.abs() < torch.finfo(dtype).smallest_normal
    index = doubtful_P.flatten().nonzero()[:, 0]
    if len(index) == 0:
        return single_P.to(dtype)
    single_N, exact_N = single_P.flatten()[index], merged_P.flatten()[index]
    error_N = exact_N - single_N.to(torch.float64)
    # Rounding to odd: an inexact float32 takes the neighbour whose last bit is 1, which no tie has.
    even_N = (single_N.view(torch.int32) & 1) == 0
    other_N = torch.nextafter(single_N, torch.where(error_N > 0, torch.inf, -torch.inf))
    single_P.view(-1)[index] = torch.where((error_N != 0) & even_N, other_N, single_N)
    return single_P.to(dtype)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
