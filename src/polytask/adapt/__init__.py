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
    from polytask.adapt.alter import ALTER
    from polytask.adapt.base import Adapter, Layer, Method, Rows, Trace
    from polytask.adapt.bitfit import BitFit
    from polytask.adapt.bottleneck import Bottleneck
    from polytask.adapt.dora import DoRA
    from polytask.adapt.engine import Active, Adapted, At, adapt
    from polytask.adapt.files import fingerprint, load_adapted, save_adapted
    from polytask.adapt.fusion import AdapterFusion
    from polytask.adapt.half import HalfFineTuning
    from polytask.adapt.held import Held
    from polytask.adapt.hyperformer import HyperFormer
    from polytask.adapt.incremental import IncrementalRank
    from polytask.adapt.lora import LoRA
    from polytask.adapt.mam import mam
    from polytask.adapt.mpt import MPT, PromptDistillation
    from polytask.adapt.peft_files import Stored, load_peft, peft_of_file, save_peft
    from polytask.adapt.polyhistor import Polyhistor
    from polytask.adapt.prefix import PrefixTuning
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
    from polytask.adapt.sparse import SparseChange, SparseTuning, compose, load_sparse, save_sparse
    from polytask.adapt.spt import SPT, describe
    from polytask.adapt.ssf import SSF
    from polytask.adapt.subtuning import Branched, Choice, SubTuning, only
    from polytask.adapt.where import Where

_WHERE = {
    "peft_of_file": "peft_files",
    "Stored": "peft_files",
    "save_peft": "peft_files",
    "load_peft": "peft_files",
    "Choice": "subtuning",
    "only": "subtuning",
    "Branched": "subtuning",
    "SubTuning": "subtuning",
    "HalfFineTuning": "half",
    "load_sparse": "sparse",
    "save_sparse": "sparse",
    "compose": "sparse",
    "SparseChange": "sparse",
    "SparseTuning": "sparse",
    "Held": "held",
    "IncrementalRank": "incremental",
    "describe": "spt",
    "SPT": "spt",
    "PromptDistillation": "mpt",
    "MPT": "mpt",
    "Polyhistor": "polyhistor",
    "HyperFormer": "hyperformer",
    "ALTER": "alter",
    "AdapterFusion": "fusion",
    "ScaLearn": "scalearn",
    "fingerprint": "files",
    "load_adapted": "files",
    "save_adapted": "files",
    "mam": "mam",
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
    "ALTER",
    "MPT",
    "SPT",
    "SSF",
    "Active",
    "Adapted",
    "Adapter",
    "AdapterFusion",
    "At",
    "BitFit",
    "Bottleneck",
    "Branched",
    "Choice",
    "DoRA",
    "Even",
    "GivenScores",
    "HalfFineTuning",
    "Held",
    "HyperFormer",
    "IncrementalRank",
    "Layer",
    "LoRA",
    "Method",
    "Plain",
    "Polyhistor",
    "PrefixTuning",
    "PromptDistillation",
    "PromptTuning",
    "PrototypeScores",
    "RouterScores",
    "Rows",
    "Rule",
    "ScaLearn",
    "Scores",
    "Selection",
    "Shares",
    "Softmax",
    "SparseChange",
    "SparseTuning",
    "Stored",
    "SubTuning",
    "TaskScores",
    "Trace",
    "Where",
    "adapt",
    "compose",
    "describe",
    "fingerprint",
    "load_adapted",
    "load_peft",
    "load_sparse",
    "mam",
    "only",
    "peft_of_file",
    "save_adapted",
    "save_peft",
    "save_sparse",
]
