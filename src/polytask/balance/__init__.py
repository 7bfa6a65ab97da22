"""Balance: how the losses or gradients of several tasks become one update."""

from polytask.balance.aligned_mtl import AlignedMTL
from polytask.balance.base import Balance, Needs, Signal, State, TaskFault, Update
from polytask.balance.cagrad import CAGrad
from polytask.balance.conflict_free import ConFIG
from polytask.balance.dualproj import DualProj
from polytask.balance.dwa import DWA
from polytask.balance.engine import Balancer, Losses, Weights
from polytask.balance.equal import Equal
from polytask.balance.fairgrad import FairGrad
from polytask.balance.graddrop import GradDrop
from polytask.balance.gradvac import GradVac
from polytask.balance.imtl_g import IMTLG
from polytask.balance.mgda import MGDA
from polytask.balance.moco import MoCo
from polytask.balance.nash_mtl import NashMTL
from polytask.balance.pcgrad import PCGrad
from polytask.balance.sdmgrad import SDMGrad
from polytask.balance.trimmed_mean import TrimmedMean
from polytask.balance.uncertainty import Uncertainty
from polytask.balance.upgrad import UPGrad

__all__ = [
    "DWA", "IMTLG", "MGDA", "AlignedMTL", "Balance", "Balancer", "CAGrad", "ConFIG", "DualProj",
    "Equal", "FairGrad", "GradDrop", "GradVac", "Losses", "MoCo", "NashMTL", "Needs", "PCGrad",
    "SDMGrad", "Signal", "State", "TaskFault", "TrimmedMean", "UPGrad", "Uncertainty", "Update",
    "Weights",
]  # fmt: skip
