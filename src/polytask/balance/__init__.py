"""Balance: how the losses or gradients of several tasks become one update."""

from polytask.balance.aligned_mtl import AlignedMTL
from polytask.balance.base import (
    Balance,
    Needs,
    Observed,
    Observer,
    Signal,
    State,
    TaskFault,
    Update,
)
from polytask.balance.coba import CoBa
from polytask.balance.dwa import DWA
from polytask.balance.engine import Balancer, Losses, Weights
from polytask.balance.equal import Equal
from polytask.balance.famo import FAMO
from polytask.balance.fixed import Fixed
from polytask.balance.gls import GLS
from polytask.balance.gradnorm import GradNorm
from polytask.balance.igb_v1 import IGBv1
from polytask.balance.igb_v2 import IGBv2
from polytask.balance.imtl_l import IMTLL
from polytask.balance.pcgrad import PCGrad
from polytask.balance.rlw import RLW
from polytask.balance.scale_invariant import ScaleInvariant
from polytask.balance.stch import STCH
from polytask.balance.uncertainty import Uncertainty

__all__ = [
    "DWA", "FAMO", "GLS", "IMTLL", "RLW", "STCH", "AlignedMTL", "Balance", "Balancer", "CoBa",
    "Equal", "Fixed", "GradNorm", "IGBv1", "IGBv2", "Losses", "Needs", "Observed", "Observer",
    "PCGrad", "ScaleInvariant", "Signal", "State", "TaskFault", "Uncertainty", "Update", "Weights",
]  # fmt: skip
