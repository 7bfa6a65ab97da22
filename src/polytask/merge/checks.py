"""Checks of settings that several methods share."""

from __future__ import annotations

import math

from polytask.errors import UsageError


def check_share(method: str, name: str, value: float, *, zero: bool = False) -> None:
    """Raise UsageError unless a share is in (0, 1]; with `zero`, in [0, 1)."""
    if not (0 <= value < 1 if zero else 0 < value <= 1):
        allowed = "[0, 1)" if zero else "(0, 1]"
        raise UsageError(f"{method}: {name} is {value}; give a share in {allowed}.")


def check_finite(method: str, name: str, value: float) -> None:
    """Raise UsageError unless a setting is a finite number."""
    if not math.isfinite(value):
        raise UsageError(f"{method}: {name} is {value}; give a finite number.")


def check_weights(method: str, weights: tuple[float, ...]) -> None:
    """Raise UsageError unless weights are finite and, where there are any, not all 0."""
    for weight in weights:
        check_finite(method, "a weight", weight)
    if weights and not any(weights):
        raise UsageError(f"{method}: every weight is 0; give at least one that is not.")


def check_seed(method: str, seed: int) -> None:
    """Raise UsageError unless a seed is >= 0."""
    if seed < 0:
        raise UsageError(f"{method}: seed is {seed}; give an integer >= 0.")
