"""A kind that is nothing but a metric with a direction: this room never looks at anything else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest

from polytask.tasks import Kind, Metric, Task, TaskSet


@dataclass(frozen=True)
class Measured(Kind):
    """A kind with one metric and no data."""

    metric: str = "accuracy"
    direction: Literal["max", "min"] = "max"
    name = "measured"

    def metrics(self):
        return (Metric(self.metric, self.direction, "", _never),)

    fit = check = encode = present = head = loss_sum = scores = None


def _never():
    raise AssertionError("evaluate must not build metrics")


@pytest.fixture(scope="session")
def task_set() -> Callable[..., TaskSet]:
    """Return a maker: task_set(a="max", b="min")."""

    def make(**directions: Literal["max", "min"]) -> TaskSet:
        metric = {"max": "accuracy", "min": "rmse"}
        return TaskSet(Task(n, Measured(metric[d], d)) for n, d in directions.items())

    return make
