"""Whole applications built from the rooms below: train one run, compare many."""

from polytask.recipes.compare import PHASES, RESULT, TESTS, Show, compare
from polytask.recipes.plan import GRID, METHODS, SINGLE, Plan
from polytask.recipes.relating import RELATED, RelatePlan, relate
from polytask.recipes.train import Job, build, load_suite, score_for, test, train
from polytask.recipes.truth import measure

__all__ = [
    "GRID",
    "METHODS",
    "PHASES",
    "RELATED",
    "RESULT",
    "SINGLE",
    "TESTS",
    "Job",
    "Plan",
    "RelatePlan",
    "Show",
    "build",
    "compare",
    "load_suite",
    "measure",
    "relate",
    "score_for",
    "test",
    "train",
]
