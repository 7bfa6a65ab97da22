"""Sharing: which parameters the tasks share. Inputs -> one output per asked task.

An architecture is imported when it is first used (PEP 562).

Everything is imported when it is first used (PEP 562).
"""

from typing import TYPE_CHECKING

from polytask.lazily import lazily

if TYPE_CHECKING:
    from polytask.share.aitm import AITM
    from polytask.share.apem import APEM
    from polytask.share.base import Features, Gate, Inputs, SharedModel, Trace
    from polytask.share.cgc import CGC
    from polytask.share.cross_stitch import CrossStitch
    from polytask.share.dselect_k import DSelectK
    from polytask.share.dsmtl import DSMTL
    from polytask.share.dtrn import DTRN
    from polytask.share.esmm import ESMM
    from polytask.share.experts import Experts, Gates
    from polytask.share.hard import HardSharing
    from polytask.share.home import HoME
    from polytask.share.learning_to_branch import Branched, LearningToBranch
    from polytask.share.loads import Loads
    from polytask.share.m3vit import M3ViT
    from polytask.share.medusa import Medusa
    from polytask.share.mmoe import MMoE
    from polytask.share.mmoeex import MMoEEx
    from polytask.share.mtan import MTAN
    from polytask.share.multimodn import MultiModN
    from polytask.share.ple import PLE
    from polytask.share.skillnet import SkillNet
    from polytask.share.sluice import Sluice
    from polytask.share.sparse_moe import SparseMoE
    from polytask.share.stem import STEM
    from polytask.share.task_expert import TaskExpert
    from polytask.share.task_gating import TaskGating
    from polytask.share.trunk import Trunk, TrunkModel
    from polytask.share.use import ExpertUse, GateUse, UseMeter, expert_use

_WHERE = {
    "AITM": "aitm",
    "APEM": "apem",
    "Features": "base",
    "Gate": "base",
    "Inputs": "base",
    "SharedModel": "base",
    "Trace": "base",
    "CGC": "cgc",
    "CrossStitch": "cross_stitch",
    "DSelectK": "dselect_k",
    "DSMTL": "dsmtl",
    "DTRN": "dtrn",
    "ESMM": "esmm",
    "Experts": "experts",
    "Gates": "experts",
    "HardSharing": "hard",
    "HoME": "home",
    "Branched": "learning_to_branch",
    "LearningToBranch": "learning_to_branch",
    "Loads": "loads",
    "M3ViT": "m3vit",
    "Medusa": "medusa",
    "MMoE": "mmoe",
    "MMoEEx": "mmoeex",
    "MTAN": "mtan",
    "MultiModN": "multimodn",
    "PLE": "ple",
    "SkillNet": "skillnet",
    "Sluice": "sluice",
    "SparseMoE": "sparse_moe",
    "STEM": "stem",
    "TaskExpert": "task_expert",
    "TaskGating": "task_gating",
    "Trunk": "trunk",
    "TrunkModel": "trunk",
    "ExpertUse": "use",
    "GateUse": "use",
    "UseMeter": "use",
    "expert_use": "use",
}

__getattr__, __dir__ = lazily(__name__, _WHERE)

__all__ = [
    "AITM",
    "APEM",
    "CGC",
    "DSMTL",
    "DTRN",
    "ESMM",
    "MTAN",
    "PLE",
    "STEM",
    "Branched",
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
    "LearningToBranch",
    "Loads",
    "M3ViT",
    "MMoE",
    "MMoEEx",
    "Medusa",
    "MultiModN",
    "SharedModel",
    "SkillNet",
    "Sluice",
    "SparseMoE",
    "TaskExpert",
    "TaskGating",
    "Trace",
    "Trunk",
    "TrunkModel",
    "UseMeter",
    "expert_use",
]
