"""What all checkers need."""

from __future__ import annotations

import torch

from polytask.balance import State


def hold(holds: bool, where: str, otherwise: str, of: str = "a balance") -> None:
    """Raise AssertionError, unless it holds, that names where and what is broken."""
    if not holds:
        raise AssertionError(f"The contract of {of} is broken ({where}): {otherwise}.")


def equal(state: State, other: State) -> bool:
    """Return whether two states hold the same numbers, NaN counting as NaN."""
    return state.keys() == other.keys() and all(
        torch.equal(value.nan_to_num(nan=-1.0), other[key].nan_to_num(nan=-1.0))
        for key, value in state.items()
    )


def layout(state: State) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shape and type of each tensor."""
    return {key: (value.shape, value.dtype) for key, value in state.items()}
