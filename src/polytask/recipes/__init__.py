"""Whole applications built from the rooms below: train one run, compare many."""

from polytask.recipes.compare import GRID, METHODS, RESULT, SINGLE, Plan, Show, compare
from polytask.recipes.train import Job, build, load_suite, score_for, test, train

__all__ = [
    "GRID",
    "METHODS",
    "RESULT",
    "SINGLE",
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
