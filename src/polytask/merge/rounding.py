"""Back to the dtype of the files: rounded once, and never past the dtype's range in silence.

Shapes: P = elements of a piece.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
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
    out_P = nearest(merged_P, dtype)
    if not all_finite(out_P):
        check_range(merged_P, out_P, name, finite)
    return out_P


def nearest(merged_P: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `merged_P` in `dtype`, each element the nearest value; infinite out of its range."""
    if merged_P.dtype == torch.float64 and dtype in DROPPED:
        merged_P = _off_ties(merged_P, dtype)  # torch goes by way of float32
    return merged_P.to(dtype)


def all_finite(values: Tensor) -> bool:
    """Return whether all are finite; quickly where they are."""
    # A sum is not finite where one of its terms is not; it may also leave the dtype's range alone.
    if values.numel() == 0 or math.isfinite(values.sum().item()):
        return True
    return all(math.isfinite(end) for end in torch.aminmax(values))  # NaN where one is in it


def check_range(merged_P: Tensor, out_P: Tensor, name: str, finite: bool) -> None:
    """Raise RunError where an element is not finite that has to be; see `rounded`."""
    left_P = ~out_P.isfinite()
    if not finite:
        left_P &= merged_P.isfinite()
    if bool(left_P.any()):
        worst = merged_P[left_P].flatten()[0]
        dtype = str(out_P.dtype).removeprefix("torch.")
        raise RunError(
            f"Tensor {name!r}: a merged value is {float(worst):.6g}, out of the range of {dtype} "
            f"(up to {torch.finfo(out_P.dtype).max:.6g}). Merge into a wider dtype, or lower the "
            "scale."
        )


def _off_ties(merged_P: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 as float32, such that rounding to a 16-bit dtype gives the nearest value.

    A float32 on the way errs only where it lies exactly between two values of the dtype: the tie
    is then broken to even, though the float64 was to one side. Those few elements are moved off
    the tie, to the side where the float64 is.
    """
    single_P = merged_P.to(torch.float32)
    numbers_P = single_P.reshape(-1).cpu().numpy()
    index_N = _ties(numbers_P, dtype)
    exact_N = merged_P.reshape(-1).cpu().numpy()[index_N]
    off_N = np.flatnonzero(exact_N != numbers_P[index_N])
    if len(off_N):
        index_N, exact_N = index_N[off_N], exact_N[off_N]
        # Rounding to odd: an inexact float32 takes the neighbour whose last bit is 1: never a tie.
        number_N = numbers_P[index_N]
        other_N = np.nextafter(number_N, np.where(exact_N > number_N, np.inf, -np.inf), dtype="f4")
        odd_N = (number_N.view(np.uint32) & 1).astype(np.bool_)
        numbers_P[index_N] = np.where(odd_N, number_N, other_N)
    return torch.from_numpy(numbers_P).to(merged_P.device).reshape(merged_P.shape)


def _ties(single_P: NDArray[np.float32], dtype: torch.dtype) -> NDArray[np.intp]:
    """Return the places of all ties between values of the dtype, and of some others."""
    bits_P = single_P.view(np.uint32)
    if dtype == torch.bfloat16:
        # Its exponent is a float32's, so a tie ends in 16 bits 1000...0 wherever it stands.
        return np.flatnonzero(bits_P << np.uint32(16) == np.uint32(1 << 31))
    size_P = bits_P & np.uint32(0x7FFFFFFF)
    tie = np.uint32(1 << (DROPPED[dtype] - 1))
    is_tie_P = (bits_P & (2 * tie - 1)) == tie
    # Below its normal range float16 drops more bits than that: there all are looked at, but zeros.
    smallest = np.float32(torch.finfo(dtype).smallest_normal).view(np.uint32)
    return np.flatnonzero(is_tie_P | (size_P - np.uint32(1) < smallest))
