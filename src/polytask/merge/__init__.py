"""Merge: models tuned apart become one."""

from polytask.merge.average import Average, average
from polytask.merge.base import Merge, Over, Place, Reach, State, Surveyor, check_models
from polytask.merge.breadcrumbs import Breadcrumbs, breadcrumbs
from polytask.merge.consensus import Consensus, consensus
from polytask.merge.dare import DARE, dare
from polytask.merge.dare_ties import DareTies, dare_ties
from polytask.merge.iso_c import IsoC, iso_c
from polytask.merge.iso_cts import IsoCTS, iso_cts
from polytask.merge.model_stock import ModelStock, model_stock
from polytask.merge.pcb import PCB, pcb
from polytask.merge.rounding import rounded
from polytask.merge.slerp import SLERP, slerp
from polytask.merge.tall_masks import TallMasks, tall_masks
from polytask.merge.task_arithmetic import TaskArithmetic, task_arithmetic
from polytask.merge.ties import TIES, ties
from polytask.merge.tsv_m import TSVM, tsv_m

__all__ = [
    "DARE",
    "PCB",
    "SLERP",
    "TIES",
    "TSVM",
    "Average",
    "Breadcrumbs",
    "Consensus",
    "DareTies",
    "IsoC",
    "IsoCTS",
    "Merge",
    "ModelStock",
    "Over",
    "Place",
    "Reach",
    "State",
    "Surveyor",
    "TallMasks",
    "TaskArithmetic",
    "average",
    "breadcrumbs",
    "check_models",
    "consensus",
    "dare",
    "dare_ties",
    "iso_c",
    "iso_cts",
    "model_stock",
    "pcb",
    "rounded",
    "slerp",
    "tall_masks",
    "task_arithmetic",
    "ties",
    "tsv_m",
]
