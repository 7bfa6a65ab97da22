"""What is learned: tasks, their kinds, losses with their own denominators, and metrics."""

from polytask.tasks.base import IGNORE, Kind, Metric, Task, TaskSet
from polytask.tasks.binary import Binary
from polytask.tasks.block import Block, blocks, losses
from polytask.tasks.dense import DenseLabels
from polytask.tasks.dense_regression import DenseRegression
from polytask.tasks.multiclass import Multiclass
from polytask.tasks.multilabel import Multilabel
from polytask.tasks.regression import Regression
from polytask.tasks.sequence import SequenceLabels

__all__ = [
    "IGNORE",
    "Binary",
    "Block",
    "DenseLabels",
    "DenseRegression",
    "Kind",
    "Metric",
    "Multiclass",
    "Multilabel",
    "Regression",
    "SequenceLabels",
    "Task",
    "TaskSet",
    "blocks",
    "losses",
]
