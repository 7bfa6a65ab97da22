"""Adapting: one pretrained model, many tasks, a few parameters each.

    from polytask.adapt import LoRA, adapt

    adapted = adapt(model, LoRA(rank=8), tasks=("a", "b"), where=("q_proj", "v_proj"), seed=0)
    with adapted.tasks(index_B):
        output = model(x)

Everything is imported when it is first used (PEP 562).
"""

from typing import TYPE_CHECKING

from polytask.lazily import lazily

if TYPE_CHECKING:
    from polytask.adapt.alter import ALTER
    from polytask.adapt.arrow import Arrow, arrow_of, point
    from polytask.adapt.base import Adapter, Layer, Method, Rows, Trace
    from polytask.adapt.bitfit import BitFit
    from polytask.adapt.bottleneck import Bottleneck
    from polytask.adapt.dora import DoRA
    from polytask.adapt.engine import Active, Adapted, At, adapt
    from polytask.adapt.files import fingerprint, load_adapted, save_adapted
    from polytask.adapt.fusion import AdapterFusion
    from polytask.adapt.global_task import GlobalTask
    from polytask.adapt.half import HalfFineTuning
    from polytask.adapt.held import Held
    from polytask.adapt.hyperformer import HyperFormer
    from polytask.adapt.incremental import IncrementalRank
    from polytask.adapt.lora import LoRA
    from polytask.adapt.loramoe import LoRAMoE
    from polytask.adapt.mam import MAM
    from polytask.adapt.mbc import Clusters, cluster, clusters_of, merge_clusters
    from polytask.adapt.mhr import MHR, freeze_skills, route_evenly
    from polytask.adapt.mor1e import MoR1E, fit_centroids
    from polytask.adapt.mosld import MoSLD
    from polytask.adapt.mpt import MPT, PromptDistillation
    from polytask.adapt.mtl_lora import MTLLoRA
    from polytask.adapt.mtlora import mtlora_at
    from polytask.adapt.peft_files import Stored, load_peft, peft_of_file, save_peft
    from polytask.adapt.polyhistor import Polyhistor
    from polytask.adapt.polytropon import Polytropon
    from polytask.adapt.prefix import PrefixTuning
    from polytask.adapt.probing import LinearProbing
    from polytask.adapt.prompt import PromptTuning
    from polytask.adapt.scalearn import ScaLearn
    from polytask.adapt.selection import (
        Even,
        GivenScores,
        Plain,
        PrototypeScores,
        RouterScores,
        Rule,
        Scores,
        Selection,
        Shares,
        Softmax,
        TaskScores,
    )
    from polytask.adapt.shared_factor import SharedFactor
    from polytask.adapt.smora import SMoRA, follow_load
    from polytask.adapt.sparse import SparseChange, SparseTuning, compose, load_sparse, save_sparse
    from polytask.adapt.spt import SPT, describe
    from polytask.adapt.ssf import SSF
    from polytask.adapt.subtuning import Branched, Choice, SubTuning, only
    from polytask.adapt.tensorpoly import TensorPoly
    from polytask.adapt.where import Where

_WHERE = {
    "ALTER": "alter",
    "Arrow": "arrow",
    "arrow_of": "arrow",
    "point": "arrow",
    "Adapter": "base",
    "Layer": "base",
    "Method": "base",
    "Rows": "base",
    "Trace": "base",
    "BitFit": "bitfit",
    "Bottleneck": "bottleneck",
    "DoRA": "dora",
    "Active": "engine",
    "Adapted": "engine",
    "At": "engine",
    "adapt": "engine",
    "fingerprint": "files",
    "load_adapted": "files",
    "save_adapted": "files",
    "AdapterFusion": "fusion",
    "GlobalTask": "global_task",
    "HalfFineTuning": "half",
    "Held": "held",
    "HyperFormer": "hyperformer",
    "IncrementalRank": "incremental",
    "LoRA": "lora",
    "LoRAMoE": "loramoe",
    "MAM": "mam",
    "Clusters": "mbc",
    "cluster": "mbc",
    "clusters_of": "mbc",
    "merge_clusters": "mbc",
    "MHR": "mhr",
    "freeze_skills": "mhr",
    "route_evenly": "mhr",
    "MoR1E": "mor1e",
    "fit_centroids": "mor1e",
    "MoSLD": "mosld",
    "MPT": "mpt",
    "PromptDistillation": "mpt",
    "MTLLoRA": "mtl_lora",
    "mtlora_at": "mtlora",
    "Stored": "peft_files",
    "load_peft": "peft_files",
    "peft_of_file": "peft_files",
    "save_peft": "peft_files",
    "Polyhistor": "polyhistor",
    "Polytropon": "polytropon",
    "LinearProbing": "probing",
    "PrefixTuning": "prefix",
    "PromptTuning": "prompt",
    "ScaLearn": "scalearn",
    "Even": "selection",
    "GivenScores": "selection",
    "Plain": "selection",
    "PrototypeScores": "selection",
    "RouterScores": "selection",
    "Rule": "selection",
    "Scores": "selection",
    "Selection": "selection",
    "Shares": "selection",
    "Softmax": "selection",
    "TaskScores": "selection",
    "SharedFactor": "shared_factor",
    "SMoRA": "smora",
    "follow_load": "smora",
    "SparseChange": "sparse",
    "SparseTuning": "sparse",
    "compose": "sparse",
    "load_sparse": "sparse",
    "save_sparse": "sparse",
    "SPT": "spt",
    "describe": "spt",
    "SSF": "ssf",
    "Branched": "subtuning",
    "Choice": "subtuning",
    "SubTuning": "subtuning",
    "only": "subtuning",
    "TensorPoly": "tensorpoly",
    "Where": "where",
}

__getattr__, __dir__ = lazily(__name__, _WHERE)

__all__ = [
    "ALTER",
    "MAM",
    "MHR",
    "MPT",
    "SPT",
    "SSF",
    "Active",
    "Adapted",
    "Adapter",
    "AdapterFusion",
    "Arrow",
    "At",
    "BitFit",
    "Bottleneck",
    "Branched",
    "Choice",
    "Clusters",
    "DoRA",
    "Even",
    "GivenScores",
    "GlobalTask",
    "HalfFineTuning",
    "Held",
    "HyperFormer",
    "IncrementalRank",
    "Layer",
    "LinearProbing",
    "LoRA",
    "LoRAMoE",
    "MTLLoRA",
    "Method",
    "MoR1E",
    "MoSLD",
    "Plain",
    "Polyhistor",
    "Polytropon",
    "PrefixTuning",
    "PromptDistillation",
    "PromptTuning",
    "PrototypeScores",
    "RouterScores",
    "Rows",
    "Rule",
    "SMoRA",
    "ScaLearn",
    "Scores",
    "Selection",
    "SharedFactor",
    "Shares",
    "Softmax",
    "SparseChange",
    "SparseTuning",
    "Stored",
    "SubTuning",
    "TaskScores",
    "TensorPoly",
    "Trace",
    "Where",
    "adapt",
    "arrow_of",
    "cluster",
    "clusters_of",
    "compose",
    "describe",
    "fingerprint",
    "fit_centroids",
    "follow_load",
    "freeze_skills",
    "load_adapted",
    "load_peft",
    "load_sparse",
    "merge_clusters",
    "mtlora_at",
    "only",
    "peft_of_file",
    "point",
    "route_evenly",
    "save_adapted",
    "save_peft",
    "save_sparse",
]
