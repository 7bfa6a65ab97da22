"""Balance: how the losses or gradients of several tasks become one update."""

from polytask.balance.aligned_mtl import AlignedMTL
from polytask.balance.base import Balance, Needs, Signal, State, TaskFault, Update
from polytask.balance.dwa import DWA
from polytask.balance.engine import Balancer, Losses, Weights
from polytask.balance.equal import Equal
from polytask.balance.pcgrad import PCGrad
from polytask.balance.uncertainty import Uncertainty

__all__ = [
    "DWA", "AlignedMTL", "Balance", "Balancer", "Equal", "Losses", "Needs", "PCGrad", "Signal",
    "State", "TaskFault", "Uncertainty", "Update", "Weights",
]  # fmt: skip
