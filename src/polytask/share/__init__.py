"""Sharing: which parameters the tasks share. Inputs -> one output per asked task.

An architecture is imported when it is first used (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any

from polytask.share.base import Features, Gate, Inputs, SharedModel, Trace
from polytask.share.hard import HardSharing
from polytask.share.loads import Loads

if TYPE_CHECKING:
    from polytask.share.aitm import AITM
    from polytask.share.apem import APEM
    from polytask.share.cgc import CGC
    from polytask.share.cross_stitch import CrossStitch
    from polytask.share.dselect_k import DSelectK
    from polytask.share.dsmtl import DSMTL
    from polytask.share.dtrn import DTRN
    from polytask.share.esmm import ESMM
    from polytask.share.experts import Experts, Gates
    from polytask.share.home import HoME
    from polytask.share.learning_to_branch import Branched, LearningToBranch
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
    "CGC": "cgc",
    "Branched": "learning_to_branch",
    "CrossStitch": "cross_stitch",
    "DSMTL": "dsmtl",
    "DSelectK": "dselect_k",
    "DTRN": "dtrn",
    "ESMM": "esmm",
    "ExpertUse": "use",
    "Experts": "experts",
    "GateUse": "use",
    "Gates": "experts",
    "HoME": "home",
    "LearningToBranch": "learning_to_branch",
    "MMoE": "mmoe",
    "MultiModN": "multimodn",
    "M3ViT": "m3vit",
    "Medusa": "medusa",
    "MMoEEx": "mmoeex",
    "MTAN": "mtan",
    "PLE": "ple",
    "STEM": "stem",
    "SkillNet": "skillnet",
    "Sluice": "sluice",
    "SparseMoE": "sparse_moe",
    "TaskGating": "task_gating",
    "TaskExpert": "task_expert",
    "Trunk": "trunk",
    "TrunkModel": "trunk",
    "UseMeter": "use",
    "expert_use": "use",
}


def __getattr__(name: str) -> Any:
    """Import the architecture called `name` when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'polytask.share' has no attribute {name!r}")
    return getattr(importlib.import_module(f"polytask.share.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


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
