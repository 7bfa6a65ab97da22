"""Sharing: which parameters the tasks share. Inputs -> one output per asked task."""

from polytask.share.aitm import AITM
from polytask.share.base import Features, Gate, Inputs, SharedModel, Trace
from polytask.share.cgc import CGC
from polytask.share.cross_stitch import CrossStitch
from polytask.share.dselect_k import DSelectK
from polytask.share.esmm import ESMM
from polytask.share.experts import Experts, Gates
from polytask.share.hard import HardSharing
from polytask.share.home import HoME
from polytask.share.mmoe import MMoE
from polytask.share.mmoeex import MMoEEx
from polytask.share.ple import PLE
from polytask.share.sluice import Sluice
from polytask.share.trunk import Trunk, TrunkModel
from polytask.share.use import ExpertUse, GateUse, expert_use

__all__ = [
    "AITM",
    "CGC",
    "ESMM",
    "PLE",
    "CrossStitch",
    "DSelectK",
    "ExpertUse",
    "Experts",
    "Features",
    "Gate",
    "GateUse",
    "Gates",
    "HardSharing",
    "HoME",
    "Inputs",
    "MMoE",
    "MMoEEx",
    "SharedModel",
    "Sluice",
    "Trace",
    "Trunk",
    "TrunkModel",
    "expert_use",
]
