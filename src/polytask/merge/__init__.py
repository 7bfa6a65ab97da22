"""Merge: models tuned apart become one."""

from polytask.merge.average import Average, average
from polytask.merge.base import Merge, Over, Place, Reach, State, Surveyor, check_models
from polytask.merge.rounding import rounded
from polytask.merge.task_arithmetic import TaskArithmetic, task_arithmetic

__all__ = [
    "Average",
    "Merge",
    "Over",
    "Place",
    "Reach",
    "State",
    "Surveyor",
    "TaskArithmetic",
    "average",
    "check_models",
    "rounded",
    "task_arithmetic",
]
