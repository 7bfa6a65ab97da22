"""Balance: how the losses or gradients of several tasks become one update.

Everything is imported when it is first used (PEP 562).
"""

from typing import TYPE_CHECKING

from polytask.lazily import lazily

if TYPE_CHECKING:
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
    from polytask.balance.cagrad import CAGrad
    from polytask.balance.coba import CoBa
    from polytask.balance.conflict_free import ConFIG
    from polytask.balance.dualproj import DualProj
    from polytask.balance.dwa import DWA
    from polytask.balance.engine import Balancer
    from polytask.balance.equal import Equal
    from polytask.balance.every_n import EveryN
    from polytask.balance.fairgrad import FairGrad
    from polytask.balance.famo import FAMO
    from polytask.balance.feature_level import FeatureLevel
    from polytask.balance.fixed import Fixed
    from polytask.balance.flat_regions import FlatRegions
    from polytask.balance.fuller import Fuller
    from polytask.balance.gls import GLS
    from polytask.balance.graddrop import GradDrop
    from polytask.balance.gradnorm import GradNorm
    from polytask.balance.gradvac import GradVac
    from polytask.balance.igb_v1 import IGBv1
    from polytask.balance.igb_v2 import IGBv2
    from polytask.balance.imtl_g import IMTLG
    from polytask.balance.imtl_l import IMTLL
    from polytask.balance.look_ahead import LookAhead
    from polytask.balance.losses import Losses, Weights
    from polytask.balance.measure import Measured
    from polytask.balance.mgda import MGDA
    from polytask.balance.moco import MoCo
    from polytask.balance.nash_mtl import NashMTL
    from polytask.balance.pcgrad import PCGrad
    from polytask.balance.rlw import RLW
    from polytask.balance.sampled_rows import SampledRows
    from polytask.balance.scale_invariant import ScaleInvariant
    from polytask.balance.sdmgrad import SDMGrad
    from polytask.balance.sharded import sum_not_mean
    from polytask.balance.stch import STCH
    from polytask.balance.trimmed_mean import TrimmedMean
    from polytask.balance.uncertainty import Uncertainty
    from polytask.balance.upgrad import UPGrad
    from polytask.balance.weighed import Weighed
    from polytask.balance.wrapped import sum_gradients
    from polytask.balance.wrapper import Again, Rows, Wrapper

_WHERE = {
    "AlignedMTL": "aligned_mtl",
    "Balance": "base",
    "Needs": "base",
    "Observed": "base",
    "Observer": "base",
    "Signal": "base",
    "State": "base",
    "TaskFault": "base",
    "Update": "base",
    "CAGrad": "cagrad",
    "CoBa": "coba",
    "ConFIG": "conflict_free",
    "DualProj": "dualproj",
    "DWA": "dwa",
    "Balancer": "engine",
    "Equal": "equal",
    "EveryN": "every_n",
    "FairGrad": "fairgrad",
    "FAMO": "famo",
    "FeatureLevel": "feature_level",
    "Fixed": "fixed",
    "FlatRegions": "flat_regions",
    "Fuller": "fuller",
    "GLS": "gls",
    "GradDrop": "graddrop",
    "GradNorm": "gradnorm",
    "GradVac": "gradvac",
    "IGBv1": "igb_v1",
    "IGBv2": "igb_v2",
    "IMTLG": "imtl_g",
    "IMTLL": "imtl_l",
    "LookAhead": "look_ahead",
    "Losses": "losses",
    "Weights": "losses",
    "Measured": "measure",
    "MGDA": "mgda",
    "MoCo": "moco",
    "NashMTL": "nash_mtl",
    "PCGrad": "pcgrad",
    "RLW": "rlw",
    "SampledRows": "sampled_rows",
    "ScaleInvariant": "scale_invariant",
    "SDMGrad": "sdmgrad",
    "sum_not_mean": "sharded",
    "STCH": "stch",
    "TrimmedMean": "trimmed_mean",
    "Uncertainty": "uncertainty",
    "UPGrad": "upgrad",
    "Weighed": "weighed",
    "sum_gradients": "wrapped",
    "Again": "wrapper",
    "Rows": "wrapper",
    "Wrapper": "wrapper",
}

__getattr__, __dir__ = lazily(__name__, _WHERE)

__all__ = [
    "DWA", "FAMO", "GLS", "IMTLG", "IMTLL", "MGDA", "RLW", "STCH", "Again", "AlignedMTL",
    "Balance", "Balancer", "CAGrad", "CoBa", "ConFIG", "DualProj", "Equal", "EveryN", "FairGrad",
    "FeatureLevel", "Fixed", "FlatRegions", "Fuller", "GradDrop", "GradNorm", "GradVac", "IGBv1",
    "IGBv2", "LookAhead", "Losses", "Measured", "MoCo", "NashMTL", "Needs", "Observed", "Observer",
    "PCGrad", "Rows", "SDMGrad", "SampledRows", "ScaleInvariant", "Signal", "State", "TaskFault",
    "TrimmedMean", "UPGrad", "Uncertainty", "Update", "Weighed", "Weights", "Wrapper",
    "sum_gradients", "sum_not_mean",
]  # fmt: skip
