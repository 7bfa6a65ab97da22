"""Merge: models tuned apart become one.

What needs data, adapters, recipes and records is imported when it is first used (PEP 562); a
method without data is a function of its module's name too, and so imported at once.
"""

from typing import TYPE_CHECKING

from polytask.lazily import lazily
from polytask.merge.atm import atm
from polytask.merge.average import Average, average
from polytask.merge.base import Merge, Mixture, Over, Place, Reach, State, Surveyor, check_models
from polytask.merge.breadcrumbs import Breadcrumbs, breadcrumbs
from polytask.merge.cold_fusion import cold_fusion
from polytask.merge.consensus import Consensus, consensus
from polytask.merge.dare import DARE, dare
from polytask.merge.dare_ties import DareTies, dare_ties
from polytask.merge.diff import Diff, Difference, diff
from polytask.merge.heat_map import heat_map
from polytask.merge.iso_c import IsoC, iso_c
from polytask.merge.iso_cts import IsoCTS, iso_cts
from polytask.merge.job import Job, Written, prepare
from polytask.merge.maps import Maps, Meeting, maps
from polytask.merge.merging import merge
from polytask.merge.model_stock import ModelStock, model_stock
from polytask.merge.options import Options
from polytask.merge.pcb import PCB, pcb
from polytask.merge.progress import Progress
from polytask.merge.rounding import rounded
from polytask.merge.slerp import SLERP, slerp
from polytask.merge.tall_masks import TallMasks, tall_masks
from polytask.merge.task_arithmetic import TaskArithmetic, task_arithmetic
from polytask.merge.ties import TIES, ties
from polytask.merge.tsv_m import TSVM, tsv_m

if TYPE_CHECKING:
    from polytask.merge.adamerging import AdaMerging
    from polytask.merge.adapter_files import AdapterJob, AdapterWritten, merge_adapter_folders
    from polytask.merge.adapter_recipe import read_adapter_recipe
    from polytask.merge.adapters import AdapterMerge, Change
    from polytask.merge.atlas import ATLAS
    from polytask.merge.backdoor import Patch
    from polytask.merge.concrete import Concrete
    from polytask.merge.concrete_adamerging import ConcreteAdaMerging
    from polytask.merge.dam import DAM
    from polytask.merge.family import Family, Merged
    from polytask.merge.fisher import Fisher
    from polytask.merge.grafting import Grafting
    from polytask.merge.reading import read_recipe
    from polytask.merge.recipe import Recipe
    from polytask.merge.record import MergeRecord, MergeResult, merge_record
    from polytask.merge.regions import Regions
    from polytask.merge.regmean import RegMean
    from polytask.merge.search import Saving, SearchState
    from polytask.merge.self_positioning import SelfPositioning
    from polytask.merge.surgery import Surgery
    from polytask.merge.tinting import Tinting

_WHERE = {
    "AdaMerging": "adamerging",
    "AdapterJob": "adapter_files",
    "AdapterWritten": "adapter_files",
    "merge_adapter_folders": "adapter_files",
    "read_adapter_recipe": "adapter_recipe",
    "AdapterMerge": "adapters",
    "Change": "adapters",
    "ATLAS": "atlas",
    "Patch": "backdoor",
    "Concrete": "concrete",
    "ConcreteAdaMerging": "concrete_adamerging",
    "DAM": "dam",
    "Family": "family",
    "Merged": "family",
    "Fisher": "fisher",
    "Grafting": "grafting",
    "read_recipe": "reading",
    "Recipe": "recipe",
    "MergeRecord": "record",
    "MergeResult": "record",
    "merge_record": "record",
    "Regions": "regions",
    "RegMean": "regmean",
    "Saving": "search",
    "SearchState": "search",
    "SelfPositioning": "self_positioning",
    "Surgery": "surgery",
    "Tinting": "tinting",
}

__getattr__, __dir__ = lazily(__name__, _WHERE)

__all__ = [
    "ATLAS",
    "DAM",
    "DARE",
    "PCB",
    "SLERP",
    "TIES",
    "TSVM",
    "AdaMerging",
    "AdapterJob",
    "AdapterMerge",
    "AdapterWritten",
    "Average",
    "Breadcrumbs",
    "Change",
    "Concrete",
    "ConcreteAdaMerging",
    "Consensus",
    "DareTies",
    "Diff",
    "Difference",
    "Family",
    "Fisher",
    "Grafting",
    "IsoC",
    "IsoCTS",
    "Job",
    "Maps",
    "Meeting",
    "Merge",
    "MergeRecord",
    "MergeResult",
    "Merged",
    "Mixture",
    "ModelStock",
    "Options",
    "Over",
    "Patch",
    "Place",
    "Progress",
    "Reach",
    "Recipe",
    "RegMean",
    "Regions",
    "Saving",
    "SearchState",
    "SelfPositioning",
    "State",
    "Surgery",
    "Surveyor",
    "TallMasks",
    "TaskArithmetic",
    "Tinting",
    "Written",
    "atm",
    "average",
    "breadcrumbs",
    "check_models",
    "cold_fusion",
    "consensus",
    "dare",
    "dare_ties",
    "diff",
    "heat_map",
    "iso_c",
    "iso_cts",
    "maps",
    "merge",
    "merge_adapter_folders",
    "merge_record",
    "model_stock",
    "pcb",
    "prepare",
    "read_adapter_recipe",
    "read_recipe",
    "rounded",
    "slerp",
    "tall_masks",
    "task_arithmetic",
    "ties",
    "tsv_m",
]
