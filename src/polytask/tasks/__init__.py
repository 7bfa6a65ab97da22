"""What is learned: tasks, their kinds, losses with their own denominators, and metrics."""

from polytask.tasks.base import IGNORE, Kind, Metric, Task, TaskSet

__all__ = ["IGNORE", "Kind", "Metric", "Task", "TaskSet"]
