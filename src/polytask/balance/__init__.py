"""Balance: how the losses or gradients of several tasks become one update."""

from polytask.balance.base import Balance, Needs, Signal, State, TaskFault, Update
from polytask.balance.engine import Balancer, Losses, Weights
from polytask.balance.equal import Equal

__all__ = [
    "Balance", "Balancer", "Equal", "Losses", "Needs", "Signal", "State", "TaskFault", "Update",
    "Weights",
]  # fmt: skip
