"""Adapting: one pretrained model, many tasks, a few parameters each.

    from polytask.adapt import LoRA, adapt

    adapted = adapt(model, LoRA(rank=8), tasks=("a", "b"), where=("q_proj", "v_proj"), seed=0)
    with adapted.tasks(index_B):
        output = model(x)

Everything is imported when it is first used (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polytask.adapt.arrow import Arrow, arrow_of, point
    from polytask.adapt.base import Adapter, Layer, Method, Rows, Trace
    from polytask.adapt.bitfit import BitFit
    from polytask.adapt.bottleneck import Bottleneck
    from polytask.adapt.dora import DoRA
    from polytask.adapt.engine import Active, Adapted, At, adapt
    from polytask.adapt.files import fingerprint, load_adapted, save_adapted
    from polytask.adapt.global_task import GlobalTask
    from polytask.adapt.lora import LoRA
    from polytask.adapt.loramoe import LoRAMoE
    from polytask.adapt.mam import MAM
    from polytask.adapt.mbc import Clusters, cluster, clusters_of, merge_clusters
    from polytask.adapt.mhr import MHR, freeze_skills, route_evenly
    from polytask.adapt.mor1e import MoR1E, fit_centroids
    from polytask.adapt.mosld import MoSLD
    from polytask.adapt.mtl_lora import MTLLoRA
    from polytask.adapt.mtlora import mtlora_at
    from polytask.adapt.polytropon import Polytropon
    from polytask.adapt.prefix import PrefixTuning
    from polytask.adapt.prompt import PromptTuning
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
    from polytask.adapt.ssf import SSF
    from polytask.adapt.tensorpoly import TensorPoly
    from polytask.adapt.where import Where

_WHERE = {
    "TensorPoly": "tensorpoly",
    "follow_load": "smora",
    "SMoRA": "smora",
    "SharedFactor": "shared_factor",
    "Polytropon": "polytropon",
    "mtlora_at": "mtlora",
    "MTLLoRA": "mtl_lora",
    "MoSLD": "mosld",
    "fit_centroids": "mor1e",
    "MoR1E": "mor1e",
    "route_evenly": "mhr",
    "freeze_skills": "mhr",
    "MHR": "mhr",
    "merge_clusters": "mbc",
    "clusters_of": "mbc",
    "cluster": "mbc",
    "Clusters": "mbc",
    "LoRAMoE": "loramoe",
    "GlobalTask": "global_task",
    "point": "arrow",
    "arrow_of": "arrow",
    "Arrow": "arrow",
    "fingerprint": "files",
    "load_adapted": "files",
    "save_adapted": "files",
    "MAM": "mam",
    "PromptTuning": "prompt",
    "PrefixTuning": "prefix",
    "DoRA": "dora",
    "Bottleneck": "bottleneck",
    "BitFit": "bitfit",
    "Active": "engine",
    "Adapted": "engine",
    "Adapter": "base",
    "At": "engine",
    "Even": "selection",
    "GivenScores": "selection",
    "Layer": "base",
    "LoRA": "lora",
    "Method": "base",
    "Plain": "selection",
    "PrototypeScores": "selection",
    "RouterScores": "selection",
    "Rows": "base",
    "Rule": "selection",
    "SSF": "ssf",
    "Scores": "selection",
    "Selection": "selection",
    "Shares": "selection",
    "Softmax": "selection",
    "TaskScores": "selection",
    "Trace": "base",
    "Where": "where",
    "adapt": "engine",
}


def __getattr__(name: str) -> Any:
    """Import what is called `name` when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'polytask.adapt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"polytask.adapt.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


__all__ = [
    "MAM",
    "MHR",
    "SSF",
    "Active",
    "Adapted",
    "Adapter",
    "Arrow",
    "At",
    "BitFit",
    "Bottleneck",
    "Clusters",
    "DoRA",
    "Even",
    "GivenScores",
    "GlobalTask",
    "Layer",
    "LoRA",
    "LoRAMoE",
    "MTLLoRA",
    "Method",
    "MoR1E",
    "MoSLD",
    "Plain",
    "Polytropon",
    "PrefixTuning",
    "PromptTuning",
    "PrototypeScores",
    "RouterScores",
    "Rows",
    "Rule",
    "SMoRA",
    "Scores",
    "Selection",
    "SharedFactor",
    "Shares",
    "Softmax",
    "TaskScores",
    "TensorPoly",
    "Trace",
    "Where",
    "adapt",
    "arrow_of",
    "cluster",
    "clusters_of",
    "fingerprint",
    "fit_centroids",
    "follow_load",
    "freeze_skills",
    "load_adapted",
    "merge_clusters",
    "mtlora_at",
    "point",
    "route_evenly",
    "save_adapted",
]
