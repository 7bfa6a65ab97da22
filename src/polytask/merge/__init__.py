"""Merge: models tuned apart become one."""

from polytask.merge.adapter_files import merge_adapter_folders
from polytask.merge.adapters import AdapterMerge, Change
from polytask.merge.average import Average, average
from polytask.merge.base import Merge, Mixture, Over, Place, Reach, State, Surveyor, check_models
from polytask.merge.breadcrumbs import Breadcrumbs, breadcrumbs
from polytask.merge.consensus import Consensus, consensus
from polytask.merge.dare import DARE, dare
from polytask.merge.dare_ties import DareTies, dare_ties
from polytask.merge.diff import Diff, Difference, diff
from polytask.merge.heat_map import heat_map
from polytask.merge.iso_c import IsoC, iso_c
from polytask.merge.iso_cts import IsoCTS, iso_cts
from polytask.merge.job import Job, Written, prepare
from polytask.merge.merging import merge
from polytask.merge.model_stock import ModelStock, model_stock
from polytask.merge.options import Options
from polytask.merge.pcb import PCB, pcb
from polytask.merge.progress import Progress
from polytask.merge.reading import read_recipe
from polytask.merge.recipe import Recipe
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
    "AdapterMerge",
    "Average",
    "Breadcrumbs",
    "Change",
    "Consensus",
    "DareTies",
    "Diff",
    "Difference",
    "IsoC",
    "IsoCTS",
    "Job",
    "Merge",
    "Mixture",
    "ModelStock",
    "Options",
    "Over",
    "Place",
    "Progress",
    "Reach",
    "Recipe",
    "State",
    "Surveyor",
    "TallMasks",
    "TaskArithmetic",
    "Written",
    "average",
    "breadcrumbs",
    "check_models",
    "consensus",
    "dare",
    "dare_ties",
    "diff",
    "heat_map",
    "iso_c",
    "iso_cts",
    "merge",
    "merge_adapter_folders",
    "model_stock",
    "pcb",
    "prepare",
    "read_recipe",
    "rounded",
    "slerp",
    "tall_masks",
    "task_arithmetic",
    "ties",
    "tsv_m",
]
