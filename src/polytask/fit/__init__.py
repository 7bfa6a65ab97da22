"""A visible loop of plain functions: feed, step, validate, checkpoint, resume."""

from polytask.fit.config import FitConfig
from polytask.fit.data import Batch, Feed, Step
from polytask.fit.loop import (
    RECORD,
    RESTING,
    WEIGHTS,
    Score,
    build_optimiser,
    fit,
    load_weights,
)
from polytask.fit.probe import probe
from polytask.fit.progress import Bar, Log, Progress, Silent
from polytask.fit.step import step_losses, task_losses, train_step, update_loads
from polytask.fit.sums import LossSums
from polytask.fit.validate import LeftOut, Meters, predict, primary, validate
from polytask.fit.watched import MakeWatch, affinity_of

__all__ = [
    "RECORD",
    "RESTING",
    "WEIGHTS",
    "Bar",
    "Batch",
    "Feed",
    "FitConfig",
    "LeftOut",
    "Log",
    "LossSums",
    "MakeWatch",
    "Meters",
    "Progress",
    "Score",
    "Silent",
    "Step",
    "affinity_of",
    "build_optimiser",
    "fit",
    "load_weights",
    "predict",
    "primary",
    "probe",
    "step_losses",
    "task_losses",
    "train_step",
    "update_loads",
    "validate",
]
