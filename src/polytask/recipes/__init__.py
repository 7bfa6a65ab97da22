"""Whole applications built from the rooms below: train one run, compare many."""

from polytask.recipes.compare import (
    GRID,
    METHODS,
    PHASES,
    RESULT,
    SINGLE,
    TESTS,
    Plan,
    Show,
    compare,
)
from polytask.recipes.train import Job, build, load_suite, score_for, test, train

__all__ = [
    "GRID",
    "METHODS",
    "PHASES",
    "RESULT",
    "SINGLE",
    "TESTS",
    "Job",
    "Plan",
    "Show",
    "build",
    "compare",
    "load_suite",
    "score_for",
    "test",
    "train",
]
