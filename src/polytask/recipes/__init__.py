"""Whole applications built from the rooms below: train one run, compare many."""

from polytask.recipes.auto import FOUND, auto, load_auto
from polytask.recipes.compare import PHASES, RESULT, TESTS, compare
from polytask.recipes.plan import AUTO, BESIDE, GRID, METHODS, SINGLE, AutoPlan, Plan
from polytask.recipes.relating import RELATED, RelatePlan, relate
from polytask.recipes.runs import Show
from polytask.recipes.scoring import score_for
from polytask.recipes.served import Served
from polytask.recipes.train import Job, build, load_suite, test, train
from polytask.recipes.truth import measure

__all__ = [
    "AUTO",
    "BESIDE",
    "FOUND",
    "GRID",
    "METHODS",
    "PHASES",
    "RELATED",
    "RESULT",
    "SINGLE",
    "TESTS",
    "AutoPlan",
    "Job",
    "Plan",
    "RelatePlan",
    "Served",
    "Show",
    "auto",
    "build",
    "compare",
    "load_auto",
    "load_suite",
    "measure",
    "relate",
    "score_for",
    "test",
    "train",
]
